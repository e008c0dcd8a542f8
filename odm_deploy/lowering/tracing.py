"""Tracing a quantized model with PyTorch's ONNX exporter, and seeing that the trace is the network at other sizes, too.

The exporter runs a network once and writes down what happened. Where the code turned a size into a number
(`int(x.shape[0] / n)`) or decided by one (`if h % 8`), the trace holds the example's for every image, and the exporter
says nothing. For the networks of this project the tests show that nothing of the kind happens; the trace of anybody
else's is compared with the network it came from.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odm_deploy.errors import InputError, UsageError
from odm_deploy.lowering import exporter
from odm_deploy.lowering.branches_by_size import sizes_decided_otherwise
from odm_deploy.lowering.sizes_from_images import SizesFromImages
from odm_deploy.networks.foreign import ForeignNetwork
from odm_deploy.networks.running import EXPORTED_PX
from odm_deploy.quantization.model import QuantizedModel

OPSET = 20
"""The newest opset TensorRT 10.0 parses. From 21 on ONNX Runtime mishandles int8 DQ -> Transpose -> MatMul."""

_EXAMPLE_PX = EXPORTED_PX[1]
"""Of this project's own networks."""
_OTHER_PX = ((64, 48), (50, 43))
"""Sizes to compare a trace at: one to pad and one not to."""
_TOLERANCE = 1e-5
"""Mean distance in standard deviations of the output: far below one changed code, above float32 rounding."""

_OTHERWISE = "its code fixes sizes while it is traced: for other images the graph computes something else"
_WITHOUT_INT = "compute with tensors' sizes as they are, without int() and without branching on them"
_LONGEST = 300
_FIXED = re.compile(r"size\(\)\[(\d)\] as dynamic but your code specialized it to be a constant \((\d+)\)")
_OPERATOR = re.compile(r"Error when translating node .*?call_function\[target=([\w.:]+)\]")

TRACE_PARTS = (50, 40)
"""Tracing a network and translating the trace: how their times are to each other, which may be minutes."""

TranslationTable = dict[Callable[..., Any], Callable[..., Any]]


def trace(
    model: QuantizedModel, table: TranslationTable, begin: Callable[[], None] = lambda: None
) -> tuple[torch.onnx.ONNXProgram, int | None]:
    """Trace `model` for images of any height and width.

    Args:
        model: what to trace; input and output float32 [N, 3, H, W].
        table: how to translate this project's own operators, by the operator.
        begin: called when each of `TRACE_PARTS` begins.

    Returns:
        The program and its batch size: None for any, 1 where the network's code allows nothing else.

    Raises:
        InputError: the exporter cannot follow the network, its trace is another function at other sizes, or what it
            computes depends on more than the image.
    """
    begin()
    if not isinstance(model.network, ForeignNetwork):
        program = _capture(model, (2, 3, *_EXAMPLE_PX))
        begin()
        return _translate(model, program, table), None
    size = next((size for size in EXPORTED_PX if _run(model, _image(size)) is not None), None)
    if size is None:
        raise InputError(
            f"cannot export {network_name(model)}",
            why=f"it does not run on images of {EXPORTED_PX[-1][1]} x {EXPORTED_PX[-1][0]} pixels",
            fix="pad to the sizes it needs inside the network",
        )
    refused: InputError | None = None
    for batch in (None, 1):
        try:
            program = _capture(model, (batch or 2, 3, *size))
            refused = None
            _refuse_training(program, model)
            # Before the translation, which takes minutes for large networks.
            if _is_the_network(program, model):
                begin()
                return _translate(model, program, table), batch
        except InputError as error:
            refused = error
    why, fix = _changing(model, _image(size)) or (
        _OTHERWISE,
        _WITHOUT_INT,
    )
    raise refused or InputError(f"cannot export {network_name(model)}", why=why, fix=fix)


def _capture(model: QuantizedModel, shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    """Trace the network on one example, N (if more than 1), H and W dynamic.

    Not left to `torch.onnx.export`, which after a failure tries other ways of tracing, for minutes and without success
    on any network seen so far.
    """
    dynamic = dict.fromkeys((2, 3) if shape[0] == 1 else (0, 2, 3), torch.export.Dim.DYNAMIC)
    try:
        # As the exporter does: sizes of 0 and 1 are not told apart from others.
        oblivious = torch.fx.experimental._config.patch(backed_size_oblivious=True)  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
        with exporter.quiet(), oblivious, SizesFromImages():
            program = torch.export.export(model.network.eval(), (torch.zeros(shape),), dynamic_shapes=(dynamic,))
            exporter.inline_regions(program)
            return program
    except Exception as error:  # somebody else's code may raise anything, and the tracer whatever it met
        raise _refused(model, error) from error


def _translate(
    model: QuantizedModel, program: torch.export.ExportedProgram, table: TranslationTable
) -> torch.onnx.ONNXProgram:
    """The trace in ONNX."""

    def check(again: torch.export.ExportedProgram) -> None:
        # Operators that are taken apart may be by the example's sizes.
        if isinstance(model.network, ForeignNetwork) and not _is_the_network(again, model):
            raise InputError(f"cannot export {network_name(model)}", why=_OTHERWISE, fix=_WITHOUT_INT)

    try:
        with (
            exporter.quiet(),
            exporter.without_quadratic_rewriting(),
            exporter.without_second_trace(check),
            exporter.with_translations_of(program),
            exporter.without_needless_promotion(),
        ):
            translated = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                custom_translation_table={**exporter.OWN_TRANSLATIONS, **table},
                input_names=["input"],
                output_names=["output"],
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        cause = error.__cause__ or error
        raise cause if isinstance(cause, InputError) else _refused(model, cause) from error
    assert translated is not None
    return translated


def _refused(model: QuantizedModel, cause: BaseException) -> InputError:
    """What the tracer or the exporter met, in a line."""
    what, text = f"cannot export {network_name(model)}", str(cause).strip()
    if fixed := _FIXED.findall(text):
        sizes = " and ".join(f"{('batch', 'channels', 'height', 'width')[int(axis)]} to {size}" for axis, size in fixed)
        return InputError(what, why=f"its code fixes {sizes} while it is traced", fix=_WITHOUT_INT)
    if operator := _OPERATOR.match(text):
        while cause.__cause__ is not None:
            cause = cause.__cause__
        text = f"its operator {operator[1]} has no translation to ONNX: {str(cause).strip()}"
    return InputError(what, why=(text.splitlines() or ["no reason given"])[0][:_LONGEST])


def _is_the_network(program: torch.export.ExportedProgram, model: QuantizedModel) -> bool:
    """Whether the trace computes what the network does, on images of other sizes than the example."""
    # The graph has none of the guards, and knows nothing of the ranges, that the trace would stop at.
    traced = program.module(check_guards=False)
    setattr(traced, "validate_inputs", False)  # noqa: B010 - none of a module's own
    seen: list[tuple[int, int]] = []
    for sizes in itertools.chain(([size] for size in _OTHER_PX), sizes_decided_otherwise(program, seen)):
        # Of several sizes, the first that the network takes.
        for size in sizes:
            image = _image(size)
            expected = _run(model, image)
            if expected is None:
                continue
            seen.append(size)
            found = _run(traced, image)
            if found is None or found.shape != expected.shape or not _is_close(found, expected):
                return False
            break
    return True


def _refuse_training(program: torch.export.ExportedProgram, model: QuantizedModel) -> None:
    """Refuse batch norms that normalize by the image's statistics and keep them: the exporter takes the kept ones."""
    buffers = program.graph_signature.inputs_to_buffers
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.batch_norm.default and node.args[5] and node.args[3] is not None:
            name = buffers.get(node.args[3].name, "a buffer of its")
            raise InputError(
                f"cannot export {network_name(model)}",
                why=f"{name} changes with every image: a batch norm runs in train mode",
                fix="leave it in eval mode, or keep no statistics: nn.BatchNorm2d(.., track_running_stats=False)",
            )


def _changing(model: QuantizedModel, image: Tensor) -> tuple[str, str] | None:
    """Why a network makes another picture of the same image each time, or none, and what to do; None where it is the
    same.
    """
    before = {name: buffer.clone() for name, buffer in model.network.named_buffers()}
    first, second = _run(model, image), _run(model, image)
    if first is None or second is None or _is_close(second, first):
        return None
    if not bool(torch.isfinite(first).all()):
        return "what it makes of an image of noise holds NaN or infinity", "check its weights and its input range"
    changed = [name for name, buffer in model.network.named_buffers() if not torch.equal(buffer, before[name])]
    what = f"its buffer {changed[0]} changes" if changed else "it draws random numbers"
    return (
        f"it computes something else each time it is given the same image: {what}",
        "change nothing in eval mode" if changed else "leave out noise and dropout in eval mode",
    )


def _is_close(found: Tensor, expected: Tensor) -> bool:
    """Whether two pictures differ by no more than rounding. Written so that NaN fails."""
    return bool((found - expected).abs().mean() <= _TOLERANCE * expected.std())


@torch.no_grad()
def _run(network: Callable[[Tensor], Tensor], image: Tensor) -> Tensor | None:
    """What a network makes of an image; None where its code does not take that size."""
    try:
        return network(image)
    except (InputError, UsageError, RuntimeError, AssertionError, ValueError, TypeError, IndexError):
        return None


def _image(size_px: tuple[int, int]) -> Tensor:
    """Noise, float32 [1, 3, *size_px] in 0..255."""
    return torch.rand(1, 3, *size_px, generator=torch.Generator().manual_seed(0)) * 255


def network_name(model: QuantizedModel) -> str:
    """What a model's network goes by in errors: what builds it, where that is somebody's code."""
    network = model.network
    return network.config.builder or network.name if isinstance(network, ForeignNetwork) else network.name
