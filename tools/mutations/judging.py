"""One mutant: planted into a copy of a bundle, run beside the original, and put before lint, inspect and verify.

A mutant is written as a faulty export would write it: the manifest's hash and the golden record's hashes of the graph
are those of the faulty file. So none of them gives it away, and only what it computes does.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from mutations.faults import Fault
from mutations.graph import Graph, NoSuchPlaceError
from odm_deploy.building.bundle_coverage import bundle_coverage
from odm_deploy.bundle import Bundle
from odm_deploy.bundle.manifest import ONNX_FILE
from odm_deploy.engine import Engine
from odm_deploy.errors import MissingError, OdmError
from odm_deploy.files import file_sha256
from odm_deploy.graphs.input_shapes import InputShapes
from odm_deploy.imaging.pixels import to_batch, to_pixels
from odm_deploy.imaging.reading import list_images, read_rgb
from odm_deploy.lowering.lint import lint
from odm_deploy.proof.golden import hashes_by_layer
from odm_deploy.proof.reference import TorchReference, reference_of
from odm_deploy.proof.verify import VerifyOptions, verify

SHAPES = InputShapes.static(1, 48, 48)
TILE = 24
"""Side of the tiles that images are upscaled in: faults of their overlap show."""
_DRAWS = 32


@dataclass
class Verdict:
    """What became of one mutant."""

    where: str
    changed: int = 0
    """Output values that differ from the original's."""
    values: int = 0
    explained: int = 0
    """So many would differ by rounding alone: the reference's furthest draw, or the sound bundle itself."""
    lint: str = ""
    """What lint found that it does not find in the original; empty for nothing."""
    inspect: str = ""
    verify: str = ""
    """Why verify said no; empty where it said yes."""
    computed: str = ""
    """Why it would have said no had it seen only what the runtime computes, not the constants and the wiring."""

    @property
    def escaped(self) -> bool:
        """Whether more values changed than ties explain, and verify said yes."""
        return not self.verify and self.changed > self.explained

    @property
    def caught_by(self) -> str:
        """The first who noticed."""
        return next((name for name in ("lint", "inspect", "verify") if getattr(self, name)), "nothing")


@dataclass(frozen=True)
class Sound:
    """A bundle without a fault, and what it computes."""

    bundle: Path
    images: Path
    runtime: str
    pictures: list[NDArray[np.uint8]]
    explained: int
    lint: frozenset[tuple[str, str]]
    int8_layers: int | None
    graph: str = ONNX_FILE
    """The file that faults go into."""


def judge_sound(bundle: Path, images: Path, runtime: str, *, inspecting: bool, graph: str = ONNX_FILE) -> Sound:
    """What the bundle computes without a fault, and what is known about it."""
    report = verify(bundle, images, VerifyOptions(runtime=runtime))
    if failures := report.failures():
        raise AssertionError(f"verify refuses the sound bundle: {failures}")
    explained = max(each.differing for each in (report.distance, report.floor, *report.draws))
    if not report.exact:
        explained = max(explained, _moved_by_ties(bundle, images))
    found = frozenset((each.rule, each.node) for each in lint(bundle / graph))
    int8 = _int8_layers(bundle) if inspecting else None
    return Sound(bundle, images, runtime, upscaled(bundle, images, runtime), explained, found, int8, graph)


def _moved_by_ties(bundle: Path, images: Path) -> int:
    """How many output values differ if what quantizers are given moves by one unit in its last place, at worst.

    Where sums are exact, the proof draws no such results, because runtimes need not differ there; but one that flips
    ties may. In a small network a draw flips a code now and then, or none: it takes many to see what one flip does.
    """
    reference = TorchReference(reference_of(Bundle.open(bundle)))
    batches = [to_batch(read_rgb(path)) for path in list_images(images)]
    straight = [to_pixels(reference.upscale(batch)) for batch in batches]
    draws = [[to_pixels(reference.upscale_jittered(batch, seed)) for batch in batches] for seed in range(_DRAWS)]
    return max(sum(int((a != b).sum()) for a, b in zip(straight, draw, strict=True)) for draw in draws)


def judge(fault: Fault, sound: Sound) -> Verdict | None:
    """Plant a fault and ask everybody; None where the bundle has no place for it."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        bundle = Path(folder) / "bundle"
        shutil.copytree(sound.bundle, bundle)
        try:
            where = plant(fault, bundle, sound.graph)
        except NoSuchPlaceError:
            return None
        verdict = Verdict(where, explained=sound.explained)
        verdict.values = sum(picture.size for picture in sound.pictures)
        verdict.lint = _linted(bundle, sound)
        if sound.int8_layers is not None:
            verdict.inspect = _inspected(bundle, sound.int8_layers)
        verdict.verify, verdict.computed = _verified(bundle, sound)
        try:
            pictures = upscaled(bundle, sound.images, sound.runtime)
            pairs = zip(pictures, sound.pictures, strict=True)
            verdict.changed = sum(int((a != b).sum()) if a.shape == b.shape else b.size for a, b in pairs)
        except OdmError:
            verdict.changed = verdict.values
        return verdict


def plant(fault: Fault, bundle: Path, graph: str = ONNX_FILE) -> str:
    """Change a bundle's graph or manifest as a faulty export would have written it; returns where.

    Raises:
        NoSuchPlaceError: there is no place for it; nothing is changed.
    """
    manifest = bundle / "manifest.json"
    document = json.loads(manifest.read_text())
    path, entry = bundle / graph, "onnx" if graph == ONNX_FILE else "cpu_onnx"
    if fault.describe is not None:
        # What a fault says about the graph, it says about the one that runs.
        seen = {**document, "onnx": document[entry]}
        where = fault.describe(seen)
        document |= {key: value for key, value in seen.items() if key != "onnx"}
    else:
        assert fault.change is not None
        model = onnx.load(path)
        where = fault.change(Graph(model))
        path.write_bytes(model.SerializeToString(deterministic=True))
        document[entry]["sha256"] = file_sha256(path)
        _rewrite_golden(bundle, model, entry)
    manifest.write_text(json.dumps(document))
    return where


def claim_another_version(bundle: Path, graph: str = ONNX_FILE) -> None:
    """Let a bundle say that another version wrote its graph, and wire that otherwise: with one node more."""
    plant(Fault("a node more", change=_one_node_more), bundle, graph)
    manifest = bundle / "manifest.json"
    document = json.loads(manifest.read_text())
    document["onnx" if graph == ONNX_FILE else "cpu_onnx"]["written_by"] = "odm-deploy 0.0.0"
    manifest.write_text(json.dumps(document))


def _one_node_more(graph: Graph) -> str:
    output = graph.model.graph.output[0].name
    graph.producers[output].output[:] = [f"{output}.before"]
    graph.nodes.append(onnx.helper.make_node("Identity", [f"{output}.before"], [output]))
    return output


def _rewrite_golden(bundle: Path, model: onnx.ModelProto, entry: str) -> None:
    golden = Bundle.open(bundle).golden
    if golden is not None:
        hashes = hashes_by_layer(model, [layer for layer in golden.graph if layer])
        (replace(golden, graph=hashes) if entry == "onnx" else replace(golden, cpu_graph=hashes)).write(bundle)


def upscaled(bundle: Path, images: Path, runtime: str) -> list[NDArray[np.uint8]]:
    """Every image as `upscale` gives it, in tiles where the network does not see all of it at once."""
    radius = Bundle.open(bundle).require_manifest().receptive_radius_px
    # Between the margins of a tile, something has to be left.
    tile = 0 if radius is None else max(TILE, 2 * radius + 8)
    with Engine.open(bundle, runtime=runtime) as engine:
        return [engine.upscale(read_rgb(path), tile=tile, bits=8) for path in list_images(images)]


def _verified(bundle: Path, sound: Sound) -> tuple[str, str]:
    try:
        report = verify(bundle, sound.images, VerifyOptions(runtime=sound.runtime))
    except OdmError as error:
        return str(error), str(error)
    everything = "; ".join(report.failures())
    report.graphs = []
    return everything, "; ".join(report.failures())


def _linted(bundle: Path, sound: Sound) -> str:
    new = [each for each in lint(bundle / sound.graph) if (each.rule, each.node) not in sound.lint]
    return ", ".join(sorted({each.rule for each in new if each.severity.fails_gate}))


def _inspected(bundle: Path, int8: int) -> str:
    try:
        found = _int8_layers(bundle)
    except MissingError:
        raise
    except OdmError as error:
        return f"does not build: {error}"[:200]
    return f"{found} layers int8 instead of {int8}" if found < int8 else ""


def _int8_layers(bundle: Path) -> int:
    coverage, _ = bundle_coverage(Bundle.open(bundle), SHAPES, rebuild=True)
    return coverage.int8_layers


def to_dict(verdict: Verdict) -> dict[str, object]:
    """For the kept results."""
    return asdict(verdict)
