"""Anybody's QDQ graph, rewritten exactly to what TensorRT takes.

    normal_form   one flat graph, standard Q and DQ, names of their own
    weights       int8 codes with zero point 0; biases as floats
    edges         codes that are inputs or outputs of the graph
    sinking       operations between DQ and a layer, moved before Q
    activations   int8 with zero point 0 and a scalar scale, by bounds or by a shift
    equality      the proof, in ONNX Runtime

Nothing is calibrated or rounded anew: a graph that cannot be kept exact keeps its numbers, and runs in float there.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx_ir as ir
from onnx import ModelProto

from odm_deploy.errors import GateError, InputError
from odm_deploy.graphs.growth import refuse_growth
from odm_deploy.lowering.fixing.activations import fix_activations
from odm_deploy.lowering.fixing.changes import Changes
from odm_deploy.lowering.fixing.constants import Constants
from odm_deploy.lowering.fixing.edges import fix_edges
from odm_deploy.lowering.fixing.edit import Rewriter
from odm_deploy.lowering.fixing.equality import NARROW, Equality, compare
from odm_deploy.lowering.fixing.normal_form import normalize
from odm_deploy.lowering.fixing.sinking import sink_quantizers
from odm_deploy.lowering.fixing.weights import fix_weights
from odm_deploy.lowering.lint import quantizing_branches
from odm_deploy.lowering.lint.graph import DEQUANTIZE, QUANTIZE

__all__ = ["Equality", "Fixed", "fix"]


@dataclass(frozen=True)
class Fixed:
    """A rewritten graph, and what is known about it."""

    model: ModelProto
    done: dict[str, int]
    """What was rewritten, and how many times."""
    left: tuple[str, ...]
    """What could not be kept exact in int8, with the reason."""
    equality: Equality


def fix(model: ModelProto) -> Fixed:
    """Rewrite a quantized graph so that TensorRT runs it as int8, and prove that it computes the same.

    Args:
        model: a graph with Q and DQ nodes, all its data inside; it is not changed.

    Raises:
        InputError: nothing in it is quantized, some tensor is huge, an input has less than 8 bits, or ONNX Runtime does
            not run it.
        GateError: the rewritten graph computes something else; nothing is returned then.
        MissingError: ONNX Runtime is not installed.
    """
    refuse_growth(model, "the graph")
    if narrow := [value.name for value in model.graph.input if value.type.tensor_type.elem_type in NARROW]:
        raise InputError(
            "cannot prove what would be rewritten",
            why=f"the input {narrow[0]} holds codes of less than 8 bits, which ONNX Runtime takes from no Python",
            fix="let the graph quantize a float input",
        )
    changes = Changes()
    flat = normalize(model, changes)
    if not any(node.op_type in (QUANTIZE, DEQUANTIZE) for node in flat.graph.node):
        if branching := quantizing_branches(model):
            raise InputError(
                "nothing to fix",
                why=f"QuantizeLinear and DequantizeLinear are only inside of {', '.join(branching[:3])}, and branches "
                "are kept as they are",
                fix="export the network without control flow: onnxsim, or onnxslim, folds conditions that are constant",
            )
        raise InputError(
            "nothing to fix",
            why="the graph has no QuantizeLinear or DequantizeLinear",
            fix="quantize the float graph first: odm-deploy quantize FILE.onnx --images DIR",
        )
    fixed = _rewrite(flat, changes)
    equality = compare(model, flat, fixed, changes)
    if not equality.holds:
        raise GateError(
            "the rewritten graph is not the original",
            why=f"{equality}; between quantizers {equality.error:.1e} of the largest value",
            fix="please report this graph; nothing was written",
        )
    return Fixed(fixed, changes.done, tuple(changes.left), equality)


def _rewrite(flat: ModelProto, changes: Changes) -> ModelProto:
    constants = Constants(flat)
    graph = ir.from_proto(flat)
    editor = Rewriter(graph.graph)
    weights = fix_weights(editor, constants, changes)
    fix_edges(editor, constants, changes)
    sink_quantizers(editor, constants, changes, weights)
    fix_activations(editor, constants, changes, weights)
    editor.remove_dead()
    kept = {tap.after for tap in changes.taps} & {value.name for node in graph.graph for value in node.outputs}
    changes.taps = [tap for tap in changes.taps if tap.after in kept]
    fixed = ir.to_proto(graph)
    # What was inferred for the old graph says nothing about the new one.
    del fixed.graph.value_info[:]
    try:
        return onnx.shape_inference.infer_shapes(fixed)
    except (onnx.shape_inference.InferenceError, ValueError) as error:
        raise InputError("the ONNX graph contradicts itself", why=" ".join(str(error).split())[:300]) from error
