"""What `verify` found, and what decides whether that is a yes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from odm_deploy.errors import InputError
from odm_deploy.imaging.pairs import Rgb
from odm_deploy.progress import counted
from odm_deploy.proof.evaluation import Quality
from odm_deploy.proof.golden import GoldenReport
from odm_deploy.proof.graph_check import GraphCheck
from odm_deploy.proof.layer_parity import LayerParity

FLOOR_FACTOR_DB = 2.0
"""How much further than the noise floor a runtime may be, in dB of PSNR between the two outputs."""
CLEAN_FACTOR_DB = 6.0
"""The same where every layer was compared and none flips more than ties explain: luck with ties is all that is left. Of
30 runs of random networks on OpenVINO, whose outputs were 34 to 53 dB from the reference's, none was further than the
furthest draw by more than 0.5 dB."""
CLEAN_DB = 45.0
"""PSNR between the outputs that is near enough in that case, even if the floor happens to be free of flips."""


@dataclass
class Distance:
    """How far the 8-bit outputs of two programs are apart, over all images so far."""

    values: int = 0
    """Colour values compared."""
    differing: int = 0
    max_lsb: int = 0
    """Largest difference, in 8-bit steps."""
    squared: float = 0.0

    def add(self, a: Rgb, b: Rgb) -> None:
        """Count one pair of images.

        Raises:
            InputError: images of different size.
        """
        if a.shape != b.shape:
            raise InputError("the outputs cannot be compared", why=f"shapes {a.shape} and {b.shape}")
        difference = np.abs(a.astype(np.int16) - b)
        self.values += difference.size
        self.differing += int((difference > 0).sum())
        self.max_lsb = max(self.max_lsb, int(difference.max(initial=0)))
        self.squared += float(np.square(difference.astype(np.int64)).sum())

    @property
    def identical(self) -> float:
        """Share of identical colour values."""
        return 1.0 - self.differing / self.values if self.values else 1.0

    @property
    def psnr_db(self) -> float:
        """PSNR between the two, dB; infinite when identical."""
        return 10.0 * math.log10(255.0**2 * self.values / self.squared) if self.squared else math.inf

    def to_dict(self) -> dict[str, Any]:
        """The keys of `verify --json`."""
        return {"identical_pixels": self.identical, "max_lsb": self.max_lsb, "psnr_between_db": self.psnr_db}


@dataclass(frozen=True)
class Gates:
    """What decides the verdict. With none set, agreement with the noise floor does."""

    max_lsb: int | None = None
    """Largest difference allowed, in 8-bit steps."""
    min_identical: float | None = None
    """Smallest share of identical colour values allowed."""
    max_psnr_drop_db: float | None = None
    """Largest loss against ground truth allowed, reference minus runtime, dB."""


NO_GATES = Gates()
"""Let the noise floor, the layers and the golden outputs decide."""


@dataclass
class ParityReport:
    """What `verify` found."""

    runtime: dict[str, Any]
    """The runtime's description of itself."""
    images: int = 0
    distance: Distance = field(default_factory=Distance)
    """Runtime against reference."""
    floor: Distance = field(default_factory=Distance)
    """The reference in float64 against itself in float32."""
    reference_quality: Quality = field(default_factory=Quality)
    runtime_quality: Quality = field(default_factory=Quality)
    layers: list[LayerParity] = field(default_factory=list[LayerParity])
    """Teacher-forced flip rates; empty when the layers were not checked."""
    draws: list[Distance] = field(default_factory=list[Distance])
    """Further draws of the noise floor: the reference with jittered roundings against itself."""
    exact: bool = False
    """Whether the model is proven exact, so that nothing but equality will do."""
    changed: bool = False
    """Whether the bundle's model.onnx is another file than its manifest describes."""
    contradictions: list[str] = field(default_factory=list[str])
    """What the manifest says of the model and is not so, one clause each."""
    graphs: list[GraphCheck] = field(default_factory=list[GraphCheck])
    """How each graph compares with what the model.pt lowers to; empty where there is none."""
    golden: GoldenReport | None = None
    """How the runtime fared on an exact bundle's golden images; None for other bundles."""

    @property
    def psnr_drop_db(self) -> float | None:
        """Reference minus runtime against ground truth; None without ground truth."""
        if not self.runtime_quality.psnr_y_db:
            return None
        return self.reference_quality.mean.psnr_y_db - self.runtime_quality.mean.psnr_y_db

    @property
    def furthest_floor_db(self) -> float:
        """PSNR between the reference and the furthest of its own legitimate results, dB."""
        return min(draw.psnr_db for draw in (self.floor, *self.draws))

    @property
    def deviating_layers(self) -> list[LayerParity]:
        """Layers that flip more codes than rounding ties explain."""
        return [layer for layer in self.layers if not layer.is_clean]

    @property
    def within_floor(self) -> bool:
        """Whether the runtime is no further from the reference than rounding moves the reference itself."""
        if self.deviating_layers or (self.exact and self.distance.differing):
            return False
        needed = self.furthest_floor_db - FLOOR_FACTOR_DB
        if self.layers:
            needed = min(self.furthest_floor_db - CLEAN_FACTOR_DB, CLEAN_DB)
        return self.distance.psnr_db >= needed

    def failures(self, gates: Gates = NO_GATES) -> list[str]:
        """Why the verdict is no; empty when it is yes.

        Raises:
            InputError: a gate on quality, but no ground truth to measure it.
        """
        found: list[str] = []
        distance = self.distance
        if self.changed:
            found.append("model.onnx is not the file that the manifest describes (its SHA-256 differs)")
        found += self.contradictions
        for graph in self.graphs:
            # Gates decide about files from elsewhere; those written here have to be what they are said to be.
            if gates == NO_GATES or graph.written_by is None:
                found += graph.failures
        if gates == NO_GATES and self.golden is not None:
            found += self.golden.failures
        if gates == NO_GATES and not self.within_floor:
            found += _described(self.deviating_layers)
            if self.exact:
                found.append(f"{distance.differing} of {distance.values} values differ, and an exact model allows none")
            else:
                floor = f"noise floor {floor_text(self.furthest_floor_db)}"
                found.append(f"PSNR between outputs {distance.psnr_db:.1f} dB, {floor}")
        if gates.max_lsb is not None and distance.max_lsb > gates.max_lsb:
            found.append(f"largest difference {counted(distance.max_lsb, 'step')} (allowed: {gates.max_lsb})")
        if gates.min_identical is not None and distance.identical < gates.min_identical:
            found.append(f"identical values {distance.identical:.4%} (required: {gates.min_identical:.4%})")
        if gates.max_psnr_drop_db is not None:
            drop = self.psnr_drop_db
            if drop is None:
                raise InputError("cannot check --max-psnr-drop", why="there is no ground truth", fix="add --truth DIR")
            if drop > gates.max_psnr_drop_db:
                found.append(f"PSNR drop {drop:.3f} dB (allowed: {gates.max_psnr_drop_db:g} dB)")
        return found

    def to_dict(self, gates: Gates = NO_GATES) -> dict[str, Any]:
        """The document of `verify --json`."""
        return {
            "runtime_info": self.runtime,
            "images": self.images,
            **self.distance.to_dict(),
            "reference": self.reference_quality.to_dict(),
            "runtime": self.runtime_quality.to_dict(),
            "noise_floor": {
                **self.floor.to_dict(),
                "furthest_psnr_between_db": self.furthest_floor_db,
                "draws": [draw.to_dict() for draw in self.draws],
            },
            "layers": [
                {
                    "name": layer.name,
                    "flip_rate": layer.flip_rate,
                    "tie_flip_rate": layer.tie_flip_rate,
                    "furthest_from_tie_steps": layer.furthest_steps,
                    "floor_flip_rate": layer.floor_flip_rate,
                    "max_step": layer.max_step,
                    "float_error_steps": layer.float_error_max,
                    "codes": layer.codes,
                }
                for layer in self.layers
            ],
            "exact": self.exact,
            "changed": self.changed,
            "contradictions": self.contradictions,
            "graphs": [graph.to_dict() for graph in self.graphs],
            "golden": None if self.golden is None else self.golden.to_dict(),
            "within_noise_floor": self.within_floor,
            "failures": self.failures(gates),
            "passed": not self.failures(gates),
        }


def floor_text(floor_db: float) -> str:
    """The noise floor for people; where no draw differs from the reference there is none."""
    return "none" if math.isinf(floor_db) else f"{floor_db:.1f} dB"


def _described(deviating: list[LayerParity]) -> list[str]:
    """The worst of the layers that flip too many codes, and of those whose float values are too far off."""
    found: list[str] = []
    flipping = [layer for layer in deviating if layer.flips]
    if flipping:
        worst = max(flipping, key=lambda layer: layer.flip_rate - layer.tie_flip_rate)
        outside = math.isinf(worst.furthest_steps)
        reach = "to codes outside of its grid" if outside else f"up to {worst.furthest_steps:.2g} steps from a tie"
        found.append(
            f"{_layers(len(flipping))} more codes than ties explain, worst {worst.name}: "
            f"{worst.flip_rate:.2%} of its codes by up to {worst.max_step}, {reach}"
        )
    drifting = [layer for layer in deviating if not layer.floats_are_clean]
    if drifting:
        worst = max(drifting, key=lambda layer: layer.float_error_max)
        found.append(
            f"what goes past {counted(len(drifting), 'quantizer')} in float is further off than rounding explains, "
            f"worst before {worst.name}: {worst.float_error_max:.2g} steps of its grid"
        )
    return found


def _layers(count: int) -> str:
    return "1 layer flips" if count == 1 else f"{count} layers flip"
