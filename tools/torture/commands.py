"""The programs' commands, and everything they import, imported once: forked processes then start in milliseconds."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from toolbox import ROOT

_OTHERS = (
    *("PIL.Image", "av", "jinja2", "onnx_ir", "onnxscript", "rich.progress", "rich.table", "sympy", "torch._dynamo"),
    *("torch._refs", "torch.onnx._internal.exporter._core", "torch.onnx._internal.exporter._fx_passes", "uvicorn"),
)
"""What commands import when they need it. Without OpenVINO, whose import starts a thread."""


@dataclass(frozen=True)
class Command:
    """Words of a command line, and the module that takes them; calling it runs it in this process."""

    module: str
    words: tuple[str, ...]
    stdin: Path | None = None
    """A file to read standard input from; nothing is there otherwise."""
    stdout: Path | None = None
    """A file that what it prints goes to; nowhere otherwise."""
    scratch: Path | None = None
    """The folder for its temporary files, where it is not the system's."""

    @property
    def line(self) -> list[str]:
        """How a user starts it."""
        return [sys.executable, "-P", "-m", self.module, *self.words]

    def __call__(self) -> None:
        """Run it as a user's process does from its first line on, but for the imports; ends with SystemExit."""
        sys.argv = [self.module, *self.words]
        if self.scratch is not None:
            tempfile.tempdir = os.environ["TMPDIR"] = str(self.scratch)
        if self.module == "odm_deploy":
            from odm_deploy.cli import main

            main()
        else:
            from odm_deploy.terminal import run
            from training.__main__ import command

            run(command, "python -m training")


def odm_deploy(*words: str | Path, stdin: Path | None = None, stdout: Path | None = None) -> Command:
    """The command `odm-deploy WORDS`."""
    return Command("odm_deploy", tuple(map(str, words)), stdin, stdout)


def training(*words: str | Path) -> Command:
    """The command `python -m training WORDS`."""
    return Command("training", tuple(map(str, words)))


def import_commands() -> None:
    """Import whatever commands import, without starting a thread: a forked process has only the one that forked."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    # For commands that are started anew, from whatever folder.
    os.environ["PYTHONPATH"] = str(ROOT)
    import odm_deploy
    import training

    for package in (odm_deploy, training):
        _import_all(package)
    for name in _OTHERS:
        with suppress(ImportError):
            importlib.import_module(name)
    import onnxruntime
    import torch
    from PIL import Image

    Image.init()
    torch.set_num_threads(1)
    onnxruntime.set_default_logger_severity(4)
    assert threading.active_count() == 1, threading.enumerate()


def _import_all(package: ModuleType) -> None:
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        # Bindings of a runtime or a GPU that is not here; and a module that runs when it is imported.
        if not found.name.endswith("__main__"):
            with suppress(Exception):
                importlib.import_module(found.name)
