"""Fuzzing guided by coverage: atheris, that is libFuzzer, mutates what reaches new code of this package."""

from __future__ import annotations

import importlib
import random
import sys
from pathlib import Path
from typing import Any

from odm_deploy.errors import MissingError

INSTRUMENTED = (
    "odm_deploy.bundle.golden",
    "odm_deploy.bundle.plan_target",
    "odm_deploy.checkpoint",
    "odm_deploy.imaging.reading",
    "odm_deploy.lowering.lint",
    "odm_deploy.networks.weight_files",
    "odm_deploy.proof.teacher_forcing",
    "training.recipe_files",
)
"""Modules whose coverage guides; they are imported when atheris watches."""


def fuzz_guided(target: str, seconds: int, found: Path) -> None:
    """Fuzz a target, then end the process: libFuzzer does. What breaks it is written into the folder `found`.

    Raises:
        MissingError: atheris is not installed.
    """
    try:
        atheris: Any = importlib.import_module("atheris")
    except ModuleNotFoundError:
        raise MissingError("atheris is not installed", fix="pip install atheris, or leave --guided out") from None
    with atheris.instrument_imports(include=["odm_deploy", "training"]):
        for module in INSTRUMENTED:
            importlib.import_module(module)
    from fuzzing.corpus import CORPUS
    from fuzzing.plain import mutated
    from fuzzing.targets import TARGETS, survives

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.randrange(2):
            return atheris.Mutate(data, max_size)
        return mutated(target, data, rng)[:max_size]

    found.mkdir(parents=True, exist_ok=True)
    grown = found / "corpus"
    grown.mkdir(exist_ok=True)
    options = [f"-max_total_time={seconds}", f"-artifact_prefix={found}/", "-timeout=60", "-rss_limit_mb=6144"]
    arguments = [sys.argv[0], *options, "-print_final_stats=1", str(grown), str(CORPUS / target)]
    atheris.Setup(arguments, lambda data: survives(TARGETS[target], data), custom_mutator=mutate)
    atheris.Fuzz()
