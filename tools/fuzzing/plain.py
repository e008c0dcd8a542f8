"""Fuzzing without atheris: the corpus, mutated with knowledge of its structure, for a number of inputs or seconds."""

from __future__ import annotations

import math
import random
import time
import traceback
from dataclasses import dataclass, field

from torture.mutating import damaged_bytes, damaged_json, damaged_torch_file

from fuzzing.corpus import inputs
from fuzzing.targets import TARGETS, survives

_STRUCTURED = {
    "checkpoint": damaged_torch_file,
    "weights": damaged_torch_file,
    "manifest": damaged_json,
    "golden": damaged_json,
}


@dataclass
class Findings:
    """What a series found: one input for each place in the program that it broke."""

    executions: int = 0
    slowest_s: float = 0.0
    by_place: dict[str, bytes] = field(default_factory=dict[str, bytes])


def mutated(target: str, data: bytes, rng: random.Random) -> bytes:
    """A damaged input of a target."""
    damage = _STRUCTURED.get(target)
    if damage is None or rng.randrange(3) == 0:
        return damaged_bytes(data, rng, rng.choice(inputs(target)))
    try:
        return damage(data, rng)
    except Exception:  # what was damaged before may be no document any more
        return damaged_bytes(data, rng)


def fuzz(target: str, seed: int, *, count: float = math.inf, seconds: float = math.inf) -> Findings:
    """Mutate the corpus of a target until either is reached."""
    rng, found, kept = random.Random(seed), Findings(), inputs(target)
    deadline = time.monotonic() + seconds
    while found.executions < count and time.monotonic() < deadline:
        data = mutated(target, rng.choice(kept), rng)
        started = time.monotonic()
        try:
            survives(TARGETS[target], data)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            found.by_place.setdefault(f"{type(error).__name__} at {last.filename}:{last.lineno}: {error}"[:300], data)
        found.slowest_s = max(found.slowest_s, time.monotonic() - started)
        found.executions += 1
    return found
