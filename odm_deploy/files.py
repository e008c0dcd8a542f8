"""Outputs appear whole or not at all.

Everything is written beside its destination under a temporary name and renamed into place, so that a crash, a full
disk or Ctrl-C leaves what was there before. Nobody can clean up after `kill -9`; temporary names therefore tell the
process they belong to, and whoever writes to the same destination next removes what dead processes left.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Collection, Container, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from odm_deploy.errors import InputError, UsageError
from odm_deploy.kinds_of_files import why_no_file

MARKDOWN = (".md", ".markdown", ".txt")
"""How names of Markdown files end."""
_RETIRED = ".old"
_PART_BYTES = 64
"""Of a temporary name: file systems take 255 bytes for the whole."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""What the place written to is to blame for; anything else that fails on the way may be about another file."""
_BUNDLE = {"manifest.json", "model.onnx", "model.cpu.onnx", "engine.plan", "golden.json"}
_TRITON = {"manifest.json", "config.pbtxt", "1"}
_REPLACED = {*_BUNDLE, *_TRITON}
"""What a folder that is replaced may hold, besides the hidden files of file managers and of who was killed."""


def require_file(path: Path | str, wanted: str) -> None:
    """See that a file lies where one is to be read; `wanted` is what to do, for whoever named something else.

    Raises:
        InputError: nothing lies there, or something that is no file.
    """
    if why := why_no_file(path):
        raise InputError(f"cannot read {path}", why=why, fix=wanted if Path(path).exists() else "check the path")


@contextmanager
def atomic_path(destination: Path | str) -> Generator[Path]:
    """Yield a temporary path to write to; on success it becomes `destination`, on any exception it is removed.

    The temporary name keeps the destination's suffix, because image writers choose their format by it.

    Raises:
        InputError: the folder cannot be made or written to, or `destination` is a folder or a device.
    """
    target = Path(destination)
    check_file(target)
    with _room_for(target):
        _make_place(target, target.stem)
        descriptor, name = tempfile.mkstemp(prefix=_prefix(target.stem), suffix=target.suffix, dir=target.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        with _room_for(target, _FULL):
            yield temporary
            # mkstemp makes files private; give them the mode the user's umask asks for.
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_text(path: Path | str, text: str) -> None:
    """Write a file in UTF-8, whole or not at all; what names of files hold beyond it is spelled out.

    Raises as `atomic_path`.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextmanager
def atomic_directory(destination: Path | str) -> Generator[Path]:
    """Yield a temporary directory; on success it replaces `destination`, on any exception it is removed.

    An existing `destination` is only replaced when it is empty or itself a bundle (a manifest.json, and nothing that
    bundles do not hold): a typo in `-o` must never delete somebody's folder, nor somebody's file.

    Raises:
        InputError: `destination` exists and is neither, or the place cannot be written to.
    """
    check_directory(destination)
    target = Path(destination)
    with _room_for(target):
        _make_place(target, target.name)
        temporary = Path(tempfile.mkdtemp(prefix=_prefix(target.name), dir=target.parent))
    try:
        with _room_for(target, _FULL):
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            retired = None
            if target.exists():
                # A rename cannot replace a non-empty directory, so the old one steps aside first.
                retired = temporary.with_name(temporary.name + _RETIRED)
                target.rename(retired)
            temporary.rename(target)
            if retired is not None:
                _remove(retired)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def check_file(destination: Path | str, replaced: Collection[str] = ()) -> None:
    """Refuse what `atomic_path` could not write: for whoever works for minutes before there is something to write.

    Args:
        destination: of the file.
        replaced: how the name of one that is there has to end, as in `.md`; a photo named by mistake is kept then.

    Raises:
        InputError: `destination` is a folder, a pipe or a device, or its folder can be neither made nor written to.
        UsageError: it is there and is something else.
    """
    target = Path(destination)
    if replaced and target.is_file() and target.suffix.lower() not in replaced:
        why = f"a file is there that does not end in {' or '.join(replaced)}, and would be lost"
        raise UsageError(f"cannot write {target}", why=why, fix="name another file, or remove it first")
    if target.exists() and not target.is_file():
        raise InputError(f"cannot write {target}", why=why_no_file(target), fix="name a file with -o")
    _check_place(target)


def check_directory(destination: Path | str) -> None:
    """Refuse what `atomic_directory` would not replace.

    Raises:
        InputError: `destination` exists and is neither empty nor a bundle, or holds other files than a bundle's, or its
            folder can be neither made nor written to.
    """
    target = Path(destination)
    if target.is_symlink() and not target.exists():
        # Of a link, a folder can take the place only where it leads to one.
        raise InputError(f"cannot write {target}", why="it is a link to nowhere", fix="remove it, or name its end")
    if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not (target / "manifest.json").exists())):
        raise InputError(
            f"cannot write {target}",
            why="it exists and is not a bundle",
            fix="choose another place, or remove it first",
        )
    present = [entry.name for entry in target.iterdir()] if target.is_dir() else []
    if others := sorted(name for name in present if name not in _REPLACED and not name.startswith(".")):
        raise InputError(
            f"cannot write {target}",
            why=f"besides a bundle it holds {others[0]}, which would be lost",
            fix="choose another place, or move that away first",
        )
    _check_place(target)


def _check_place(target: Path) -> None:
    """Refuse a place in which nothing can be made, as far as that can be seen without trying."""
    folder = next(folder for folder in target.absolute().parents if os.path.lexists(folder))
    why = "" if folder.is_dir() else f"{folder} is no folder"
    if not why and not os.access(folder, os.W_OK | os.X_OK):
        why = f"nothing can be made in {folder}: no permission, or it is read-only"
    if why:
        raise InputError(f"cannot write {target}", why=why, fix="choose another place")


def _make_place(target: Path, name: str) -> None:
    """Make `target`'s folder, and remove what dead processes left there for `name`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target.parent, name)


@contextmanager
def _room_for(target: Path, only: Container[int | None] | None = None) -> Generator[None]:
    """Say of what fails meanwhile, with one of the error numbers `only`, that `target` cannot be written."""
    try:
        yield
    except OSError as error:
        if only is not None and error.errno not in only:
            raise
        raise InputError(
            f"cannot write {target}", why=str(error.strerror or error), fix="choose another place"
        ) from error


def path_from(folder: Path | str, path: Path | str) -> str:
    """How `path` is reached from within `folder`, with forward slashes; absolute where it lies on another drive."""
    target = Path(path).resolve()
    try:
        return Path(os.path.relpath(target, Path(folder).resolve())).as_posix()
    except ValueError:
        return str(target)


def file_sha256(path: Path | str) -> str:
    """Hex SHA-256 of a file, to recognise it again.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with Path(path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path}", why=str(error.strerror or error)) from error


def _prefix(name: str, process: str = "") -> str:
    """How temporary names for `name` begin: with the process they belong to, and its host, for shared folders."""
    host = re.sub(r"[^A-Za-z0-9-]+", "-", platform.node())[:_PART_BYTES]
    encoded = os.fsencode(name)
    if len(encoded) > _PART_BYTES:
        # With what is added, the temporary name of a file whose own name fits would not.
        name = hashlib.sha256(encoded).hexdigest()
    return f".{name}.{process or os.getpid()}@{host}."


def _remove_leftovers(folder: Path, name: str) -> None:
    """Remove temporary files and folders for `name` of processes of this host that are no more."""
    if os.name != "posix":
        # There, asking whether a process lives by signalling it would end it.
        return
    before, after = _prefix(name, "\0").split("\0")
    for path in folder.iterdir():
        process, found, _ = path.name.removeprefix(before).partition(after)
        if path.name.startswith(before) and found and process.isdigit() and not _is_alive(int(process)):
            if path.name.endswith(_RETIRED) and not (folder / name).exists():
                # The process died between the two renames that replace a directory: the old one comes back.
                path.rename(folder / name)
                continue
            _remove(path)


def _remove(path: Path) -> None:
    """Remove a folder with all that is in it, a file, or a link but not what it leads to, as far as that goes."""
    shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.unlink()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
