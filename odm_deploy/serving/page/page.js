"use strict";
const $ = (id) => document.getElementById(id);
const size = ({ naturalWidth: width, naturalHeight: height }) => `${width} × ${height}`;
const POLL_MS = 400;
let running = new AbortController();
let urls = [];
let factor = 1;

function say(text, failed = false) {
  $("status").textContent = text;
  $("status").classList.toggle("failed", failed);
}

async function introduce() {
  const about = await (await fetch("health")).json();
  const { runtime, device } = about.runtime;
  factor = about.scale;
  document.title = $("model").textContent = about.model;
  $("facts").textContent = `${about.network}, enlarges ${about.scale} times, on ${runtime} (${device})`;
  const megapixels = Number((about.max_pixels / 1e6).toPrecision(2));
  $("limits").textContent = `up to ${megapixels} megapixels and ${Math.round(about.max_bytes / 2 ** 20)} MiB; it goes to this server alone`;
}

// How far the server has come, as it says itself while the answer is awaited.
async function watch(signal, start) {
  while (!signal.aborted) {
    const { waiting, tiles_done: done, tiles } = await (await fetch("health", { signal })).json();
    if (signal.aborted) return;
    const seconds = `${((performance.now() - start) / 1000).toFixed(0)} s`;
    if (tiles > 1) { $("bar").max = tiles; $("bar").value = done; } else $("bar").removeAttribute("value");
    say([waiting ? `upscaling, ${waiting} waiting` : "upscaling", tiles > 1 && `tile ${done} of ${tiles}`, seconds].filter(Boolean).join(", "));
    await new Promise((over) => setTimeout(over, POLL_MS));
  }
}

async function post(path, image, signal) {
  const reply = await fetch(path, { method: "POST", body: image, signal });
  if (!reply.ok) {
    const { error } = await reply.json().catch(() => ({ error: `the server answered ${reply.status}` }));
    throw new Error(error);
  }
  const timing = [...(reply.headers.get("server-timing") ?? "").matchAll(/(\w+);dur=([\d.]+)/g)];
  return { blob: await reply.blob(), timing: timing.map(([, part, ms]) => `${part} ${Math.round(ms)} ms`).join(", ") };
}

async function show(image, blob) {
  const url = URL.createObjectURL(blob);
  urls.push(url);
  image.src = url;
  await image.decode().catch(() => { throw new Error("the browser cannot show the result"); });
  return url;
}

async function upscale(image, name) {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  const watching = new AbortController();
  document.body.classList.add("busy");
  $("work").hidden = false;
  say("sending");
  try {
    const start = performance.now();
    watch(watching.signal, start).catch(() => {});
    const network = await post("upscale", image, signal);
    const seconds = (performance.now() - start) / 1000;
    const bicubic = await post("bicubic", image, signal);
    watching.abort();
    urls.forEach(URL.revokeObjectURL);
    urls = [];
    await show($("bicubic"), bicubic.blob);
    const link = $("download");
    link.href = await show($("upscaled"), network.blob);
    link.download = `${name.replace(/\.[^.]*$/, "")}_upscaled.png`;
    const { naturalWidth: width, naturalHeight: height } = $("upscaled");
    $("stage").style.setProperty("--ratio", width / height);
    $("input").textContent = `${width / factor} × ${height / factor} pixels`;
    $("output").textContent = `${size($("upscaled"))} pixels`;
    $("time").textContent = `${seconds.toFixed(2)} s`;
    $("parts").textContent = `On the server: ${network.timing}.`;
    zoom(false);
    move(50);
    say("");
    document.body.classList.add("done");
    $("result").hidden = false;
  } catch (error) {
    if (!signal.aborted) say(error.message, true);
  } finally {
    watching.abort();
    if (!signal.aborted) { $("work").hidden = true; document.body.classList.remove("busy"); }
  }
}

// The divider: dragged by mouse or finger from wherever the picture is touched, or by arrow keys.
function move(percent) {
  const at = Math.min(100, Math.max(0, percent));
  $("picture").style.setProperty("--at", `${at}%`);
  $("divider").setAttribute("aria-valuenow", Math.round(at));
  $("divider").dataset.at = at;
}

function follow({ clientX }) {
  const { left, width } = $("picture").getBoundingClientRect();
  move((100 * (clientX - left)) / width);
}

let drag = null;
$("picture").addEventListener("pointerdown", (event) => {
  if (event.button || !event.isPrimary) return;
  const zoomed = $("stage").classList.contains("zoomed");
  const onDivider = $("divider").contains(event.target);
  if (zoomed && !onDivider && event.pointerType !== "mouse") return; // fingers scroll there
  drag = zoomed && !onDivider ? { x: event.clientX, y: event.clientY } : "divider";
  $("picture").setPointerCapture(event.pointerId);
  if (drag === "divider") follow(event);
});
$("picture").addEventListener("pointermove", (event) => {
  if (drag === "divider") follow(event);
  else if (drag) {
    $("stage").scrollBy(drag.x - event.clientX, drag.y - event.clientY);
    drag = { x: event.clientX, y: event.clientY };
  }
});
for (const over of ["pointerup", "pointercancel"]) $("picture").addEventListener(over, () => { drag = null; });
$("divider").addEventListener("keydown", (event) => {
  const at = Number($("divider").dataset.at ?? 50);
  const step = event.shiftKey ? 10 : 1;
  const to = { ArrowLeft: at - step, ArrowRight: at + step, Home: 0, End: 100 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  move(to);
});

// One pixel of the result to one of the page, with the divider in the middle.
function zoom(on) {
  const { naturalWidth } = $("upscaled");
  $("stage").classList.toggle("zoomed", on);
  $("zoom").setAttribute("aria-pressed", on);
  $("zoom").textContent = on ? "Fit" : "1:1";
  $("picture").style.width = on ? `${naturalWidth / devicePixelRatio}px` : "";
  if (!on) return;
  const stage = $("stage"), at = Number($("divider").dataset.at ?? 50) / 100;
  stage.scrollTo(at * stage.scrollWidth - stage.clientWidth / 2, (stage.scrollHeight - stage.clientHeight) / 2);
}
$("zoom").addEventListener("click", () => zoom(!$("stage").classList.contains("zoomed")));

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
  addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
for (const kind of ["dragleave", "drop"])
  addEventListener(kind, () => drop.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (file) upscale(file, file.name);
});
addEventListener("paste", ({ clipboardData }) => {
  const [file] = clipboardData.files;
  if (file) upscale(file, file.name || "pasted");
});
$("file").addEventListener("change", ({ target }) => { if (target.files[0]) upscale(target.files[0], target.files[0].name); });
$("sample").addEventListener("click", sample);
introduce().finally(() => { if (location.hash === "#sample") sample(); });
