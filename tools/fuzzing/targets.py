"""One function a reader of strangers' files. It may raise OdmError; whatever else it raises is a finding."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from odm_deploy.errors import OdmError

Target = Callable[[bytes], None]
_SCRATCH = Path(tempfile.mkdtemp(prefix="fuzz-"))


def _file(name: str, data: bytes) -> Path:
    path = _SCRATCH / name
    path.write_bytes(data)
    return path


def checkpoint(data: bytes) -> None:
    """A model.pt."""
    from odm_deploy.checkpoint import load_model

    load_model(_file("model.pt", data))


def weights(data: bytes) -> None:
    """Float weights of an unknown network."""
    from odm_deploy.networks.weight_files import read_weights

    read_weights(_file("weights.pth", data))


def manifest(data: bytes) -> None:
    """A manifest.json, and what is told from it."""
    from odm_deploy.bundle.image_format import ImageFormat
    from odm_deploy.bundle.manifest import read_manifest

    _file("manifest.json", data)
    found = read_manifest(_SCRATCH)
    ImageFormat.stated_in(found)
    for layer in found.layers:
        found.bits_of(layer)
    assert found.scale is not None


def golden(data: bytes) -> None:
    """A golden.json."""
    from odm_deploy.bundle.golden import read_golden

    _file("golden.json", data)
    found = read_golden(_SCRATCH)
    assert found is not None
    for record in found.images:
        assert "" not in record.codes or isinstance(record.codes[""], str)


def onnx(data: bytes) -> None:
    """A model.onnx: read, linted, its metadata, shapes and reach."""
    from odm_deploy.graphs.files import read_onnx
    from odm_deploy.graphs.input_shapes import InputShapes
    from odm_deploy.graphs.shapes import infer_shapes
    from odm_deploy.lowering.lint import lint
    from odm_deploy.lowering.receptive_field import receptive_radius_px
    from odm_deploy.proof.teacher_forcing import force_by_teacher
    from odm_deploy.runtimes.onnx.base import graph_inputs, graph_outputs

    graph, _ = read_onnx(_file("model.onnx", data))
    for step in (
        lambda: lint(graph),
        lambda: (graph_inputs(graph), graph_outputs(graph)),
        lambda: receptive_radius_px(graph),
        lambda: force_by_teacher(graph),
        lambda: infer_shapes(graph, InputShapes.static(1, 16, 16)),
    ):
        try:
            step()
        except OdmError:
            continue


def recipe(data: bytes) -> None:
    """A training recipe."""
    from training.recipe_files import load_recipe

    load_recipe(_file("recipe.toml", data), [])


def override(data: bytes) -> None:
    """A `--set` of a recipe."""
    from training.recipe_files import load_recipe

    path = _SCRATCH / "plain.toml"
    if not path.exists():
        path.write_bytes((Path(__file__).parents[2] / "training/recipes/edsr_x2_odm_w4a4.toml").read_bytes())
    load_recipe(path, [data.decode("utf-8", "replace")])


def image(data: bytes) -> None:
    """An image."""
    from odm_deploy.imaging.reading import read_image

    read_image(data, max_pixels=2**20, max_bits=16)


def plan_header(data: bytes) -> None:
    """The first bytes of an engine."""
    from odm_deploy.bundle.plan_header import PlanHeader
    from odm_deploy.bundle.plan_target import where_it_runs

    header = PlanHeader.of_bytes(data)
    assert str(header)
    where_it_runs(header, {}, [])


TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (checkpoint, weights, manifest, golden, onnx, recipe, override, image, plan_header)
}
"""All targets by name."""


def survives(target: Target, data: bytes) -> None:
    """Run a target on one input.

    Raises:
        Exception: a finding: whatever is not a deliberate error.
    """
    try:
        target(data)
    except OdmError as error:
        length = len(str(error))
        if length > LONGEST_LINE:
            raise ValueError(f"a line of {length} characters") from error


LONGEST_LINE = 3100
"""Characters of an error's line: three parts that are bounded each."""
