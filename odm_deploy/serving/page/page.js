"use strict";
const $ = (id) => document.getElementById(id);
let running = new AbortController();
let urls = [];

function say(text, failed = false) {
  $("status").textContent = text;
  $("status").classList.toggle("failed", failed);
}

async function post(path, image, signal) {
  const reply = await fetch(path, { method: "POST", body: image, signal });
  if (!reply.ok) {
    const { error } = await reply.json().catch(() => ({ error: `the server answered ${reply.status}` }));
    throw new Error(error);
  }
  const timing = [...(reply.headers.get("server-timing") ?? "").matchAll(/(\w+);dur=([\d.]+)/g)];
  return { blob: await reply.blob(), timing: timing.map(([, part, ms]) => `${part} ${Math.round(ms)}`).join(", ") };
}

async function show(id, blob) {
  const url = URL.createObjectURL(blob);
  urls.push(url);
  await new Promise((shown, failed) => {
    $(id).onload = shown;
    $(id).onerror = () => failed(new Error("the browser cannot show the result"));
    $(id).src = url;
  });
  return url;
}

async function upscale(image, name) {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  $("result").hidden = true;
  say("upscaling ...");
  try {
    const start = performance.now();
    const network = await post("upscale", image, signal);
    const seconds = (performance.now() - start) / 1000;
    const bicubic = await post("bicubic", image, signal);
    urls.forEach(URL.revokeObjectURL);
    urls = [];
    $("result").hidden = false;
    await show("bicubic", bicubic.blob);
    const link = $("download");
    link.href = await show("upscaled", network.blob);
    link.download = `${name.replace(/\.[^.]*$/, "")}_upscaled.png`;
    const { naturalWidth: width, naturalHeight: height } = $("upscaled");
    say(`${width}×${height} pixels in ${seconds.toFixed(2)} s (ms: ${network.timing})`);
  } catch (error) {
    if (!signal.aborted) say(error.message, true);
  }
}

function sample() {
  const canvas = Object.assign(document.createElement("canvas"), { width: 120, height: 80 });
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#e9dfc7";
  pen.fillRect(0, 0, 120, 80);
  for (let ray = 0; ray < 24; ray++) {
    pen.fillStyle = ray % 2 ? "#20405f" : "#d9683c";
    pen.beginPath();
    pen.moveTo(40, 40);
    pen.arc(40, 40, 34, (ray * Math.PI) / 12, ((ray + 1) * Math.PI) / 12);
    pen.fill();
  }
  pen.fillStyle = "#111";
  pen.font = "italic 15px serif";
  pen.fillText("sample", 74, 45);
  canvas.toBlob((blob) => upscale(blob, "sample"), "image/png");
}

const drop = $("drop");
for (const kind of ["dragenter", "dragover"])
  drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
for (const kind of ["dragleave", "drop"])
  drop.addEventListener(kind, () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (file) upscale(file, file.name);
});
$("file").addEventListener("change", ({ target }) => { if (target.files[0]) upscale(target.files[0], target.files[0].name); });
$("slider").addEventListener("input", ({ target }) => $("stage").style.setProperty("--at", `${target.value}%`));
$("sample").addEventListener("click", sample);
if (location.hash === "#sample") sample();
