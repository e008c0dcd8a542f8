import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from odm_deploy.bundle.manifest import CPU_ONNX_FILE, GOLDEN_FILE, MANIFEST_FILE, ONNX_FILE, PLAN_FILE
from odm_deploy.errors import InputError
from odm_deploy.files import atomic_directory, atomic_path, check_directory, check_file, write_text


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


WRITE_AND_HANG = """
import sys, time
from odm_deploy.files import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    print("written", flush=True)
    time.sleep(60)
"""


def test_the_file_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "deep" / "er" / "x.png"
    with atomic_path(target) as temporary:
        assert temporary.suffix == ".png"
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert names_in(target.parent) == ["x.png"]


@pytest.mark.parametrize("name", ["x" * 251 + ".png", "ä" * 125 + ".png"], ids=["ASCII", "UTF-8"])
def test_any_name_that_fits_can_be_written(tmp_path, name):
    for _ in range(2):
        with atomic_path(tmp_path / name) as temporary:
            temporary.write_bytes(b"whole")
            assert temporary.suffix == ".png"
    with atomic_directory(tmp_path / name.replace(".png", "")) as folder:
        fill(folder, "new")
    assert sorted(names_in(tmp_path)) == sorted([name, name.replace(".png", "")])


def test_names_that_are_no_text_are_spelled_out_in_text(tmp_path):
    write_text(tmp_path / "page.html", f"of {os.fsdecode(bytes([97, 255]))}.png, ä")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == "of a\\udcff.png, ä"


def test_the_file_gets_the_mode_that_the_umask_asks_for(tmp_path):
    previous = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "x") as temporary:
            temporary.write_text("new")
    finally:
        os.umask(previous)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_what_was_there_before(tmp_path, error):
    target = tmp_path / "x.pt"
    target.write_text("old")

    with pytest.raises(error), atomic_path(target) as temporary:  # noqa: PT012 - what the block raises is the point
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert names_in(tmp_path) == ["x.pt"]


def test_a_killed_process_leaves_no_partial_file(tmp_path):
    target = tmp_path / "x.pt"
    with subprocess.Popen([sys.executable, "-c", WRITE_AND_HANG, target], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "written\n"
        child.send_signal(signal.SIGKILL)
        child.wait(timeout=30)
    assert not target.exists()
    # Nothing can clean up after SIGKILL, but what is left does not pass for the result, and goes with the next writing.
    assert len(names_in(tmp_path)) == 1
    assert names_in(tmp_path)[0].startswith(".x.")
    with atomic_path(target) as temporary:
        temporary.write_text("whole")
        assert sorted(names_in(tmp_path)) == [temporary.name]
    assert names_in(tmp_path) == ["x.pt"]


def test_a_folder_in_the_way_is_refused_before_any_work(tmp_path):
    entered = False
    with pytest.raises(InputError, match="it is a folder"), atomic_path(tmp_path):
        entered = True
    assert not entered


def test_a_file_where_a_folder_must_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"), atomic_path(tmp_path / "file" / "x"):
        pass
    with pytest.raises(InputError, match="cannot write"), atomic_directory(tmp_path / "file" / "x"):
        pass


def fill(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)


def test_a_directory_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "out" / "bundle"
    with atomic_directory(target) as temporary:
        fill(temporary, "new")
        assert not target.exists()
    assert (target / "manifest.json").read_text() == "new"
    assert names_in(target.parent) == ["bundle"]


def test_an_older_bundle_is_replaced_whole(tmp_path):
    target = tmp_path / "bundle"
    target.mkdir()
    fill(target, "old")
    (target / "engine.plan").write_text("old")
    with atomic_directory(target) as temporary:
        fill(temporary, "new")
        assert (target / "manifest.json").read_text() == "old"
    assert names_in(target) == ["manifest.json"]
    assert names_in(tmp_path) == ["bundle"]


def test_an_empty_directory_is_replaced(tmp_path):
    (tmp_path / "bundle").mkdir()
    with atomic_directory(tmp_path / "bundle") as temporary:
        fill(temporary, "new")
    assert names_in(tmp_path / "bundle") == ["manifest.json"]


def test_an_exception_leaves_the_older_bundle(tmp_path):
    target = tmp_path / "bundle"
    target.mkdir()
    fill(target, "old")

    with pytest.raises(RuntimeError, match="half"), atomic_directory(target) as temporary:  # noqa: PT012
        fill(temporary, "half")
        raise RuntimeError("half way")
    assert (target / "manifest.json").read_text() == "old"
    assert names_in(tmp_path) == ["bundle"]


def test_a_bundle_that_holds_somebodys_file_is_not_replaced(tmp_path):
    target = tmp_path / "bundle"
    target.mkdir()
    fill(target, "old")
    for name in (MANIFEST_FILE, ONNX_FILE, CPU_ONNX_FILE, PLAN_FILE, GOLDEN_FILE, ".hidden"):
        (target / name).write_text("old")
    check_directory(target)
    (target / "model.pt").write_text("precious")
    with pytest.raises(InputError, match=r"besides a bundle it holds model\.pt, which would be lost"):
        check_directory(target)
    with pytest.raises(InputError, match=r"move that away first"), atomic_directory(target):
        pass
    assert (target / "model.pt").read_text() == "precious"


def test_somebody_elses_folder_is_never_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_text("precious")
    with pytest.raises(InputError, match="it exists and is not a bundle"), atomic_directory(tmp_path / "photos"):
        pass
    with pytest.raises(InputError, match="not a bundle"), atomic_directory(tmp_path / "photos" / "me.jpg"):
        pass
    assert (tmp_path / "photos" / "me.jpg").read_text() == "precious"


def dead_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    return child.pid


def leave(folder: Path, target: str, process: int | str, ending: str = "abc", host: str = "") -> Path:
    """A temporary folder as `process` leaves it behind when it is killed."""
    with tempfile.TemporaryDirectory() as elsewhere, atomic_path(Path(elsewhere) / f"{target}.tmp") as temporary:
        prefix, _, _ = temporary.name.rsplit(".", 2)
    left = folder / f"{prefix.replace(f'.{os.getpid()}@', f'.{process}@{host}')}.{ending}"
    left.mkdir()
    fill(left, str(process))
    return left


def test_leftovers_of_dead_processes_go_and_all_else_stays(tmp_path):
    gone = leave(tmp_path, "bundle", dead_process())
    stay = [
        leave(tmp_path, "bundle", os.getppid()),
        leave(tmp_path, "other", dead_process()),
        leave(tmp_path, "bundle", dead_process(), host="another-host-"),
        leave(tmp_path, "bundle", "me"),
    ]
    with atomic_directory(tmp_path / "bundle") as temporary:
        fill(temporary, "new")
    assert not gone.exists()
    assert sorted(names_in(tmp_path)) == sorted([*(path.name for path in stay), "bundle"])


def test_bundle_that_had_just_stepped_aside_comes_back(tmp_path):
    leave(tmp_path, "bundle", dead_process(), ending="abc.old")
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "bundle"):
        raise RuntimeError
    assert (tmp_path / "bundle" / "manifest.json").read_text().isdigit()
    assert names_in(tmp_path) == ["bundle"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_what_is_no_regular_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="no regular file"), atomic_path(tmp_path / "pipe"):
        pass
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("check", [check_file, check_directory])
def test_places_that_cannot_be_written_are_known_before_the_work(tmp_path, check):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere/at/all")
    check(tmp_path / "new" / "folders" / "x")
    for folder, why in (("file", "is no folder"), ("file/inside", "is no folder"), ("link", "is no folder")):
        with pytest.raises(InputError, match=f"cannot write .*: .*{why}"):
            check(tmp_path / folder / "x")
    if os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(InputError, match="no permission"):
            check(tmp_path / "locked" / "x")
    assert sorted(names_in(tmp_path)) == sorted({"file", "link", *(["locked"] if os.geteuid() else [])})


def test_a_link_to_a_bundle_is_replaced_and_what_it_leads_to_is_left(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "manifest.json").write_text("old")
    (tmp_path / "bundle").symlink_to("far")
    with atomic_directory(tmp_path / "bundle") as temporary:
        (temporary / "manifest.json").write_text("new")
    assert (tmp_path / "bundle" / "manifest.json").read_text() == "new"
    assert (tmp_path / "far" / "manifest.json").read_text() == "old"
    assert sorted(names_in(tmp_path)) == ["bundle", "far"]


def test_a_folder_in_place_of_a_link_to_nowhere_is_refused_before_any_work(tmp_path):
    (tmp_path / "bundle").symlink_to("nowhere")
    with pytest.raises(InputError, match="it is a link to nowhere"), atomic_directory(tmp_path / "bundle"):
        pytest.fail("work began")
