"""Find, in anybody's QDQ ONNX, what TensorRT refuses, silently runs as float, or silently computes otherwise.

One rule is one small function; importing the modules below registers them:

    activations  types, zero points, granularity of activation quantizers
    bounds       clipping before Q, ranges that saturate
    weights      types, zero points and scale axes of weights, biases
    scales       the numbers scales may be
    structure    where Q and DQ stand, the graph as a whole

The rules follow what TensorRT-RTX 1.7 does with such graphs, which the tests repeat with the real builder.
"""

from __future__ import annotations

from pathlib import Path

from onnx import GraphProto, ModelProto

from odm_deploy.graphs.files import read_onnx
from odm_deploy.lowering.lint import activations, bounds, scales, structure, weights
from odm_deploy.lowering.lint.finding import RULES, Finding, Rule, Severity
from odm_deploy.lowering.lint.graph import DEQUANTIZE, QUANTIZE, QdqGraph
from odm_deploy.lowering.lint.operands import find_layers

__all__ = [
    "RULES",
    "Finding",
    "Rule",
    "Severity",
    "activations",
    "bounds",
    "is_quantized",
    "lint",
    "scales",
    "structure",
    "weights",
]

_SEVERITY_ORDER = list(Severity)


def lint(model: ModelProto | Path | str) -> list[Finding]:
    """Apply every rule to a graph.

    Args:
        model: a loaded model or the path of an ONNX file. Local functions are inlined for the analysis; bodies of If
            and Loop are not looked into.

    Returns:
        Findings, worst first, within a severity in the order of the rules and of the nodes.

    Raises:
        InputError: the file is missing, cut off, or no ONNX.
    """
    graph = QdqGraph(model if isinstance(model, ModelProto) else read_onnx(Path(model))[0])
    findings = [finding for rule in RULES.values() for finding in rule.findings(graph)]
    return sorted(findings, key=lambda finding: _SEVERITY_ORDER.index(finding.severity))


def is_quantized(model: ModelProto) -> bool:
    """Whether any convolution or matrix product of a graph has a DequantizeLinear before it."""
    return any(layer.quantized for layer in find_layers(QdqGraph(model)))


def quantizing_branches(model: ModelProto) -> list[str]:
    """The If, Loop and Scan nodes whose branches quantize something, as `If out`; no rule looks into these."""
    return [
        f"{node.op_type} {node.name or node.output[0]}"
        for node in model.graph.node
        for attribute in node.attribute
        if attribute.HasField("g") and _quantizes(attribute.g)
    ]


def _quantizes(graph: GraphProto) -> bool:
    """Whether there is a Q or DQ in a graph, or in any branch of its own."""
    return any(
        node.op_type in (QUANTIZE, DEQUANTIZE) or any(a.HasField("g") and _quantizes(a.g) for a in node.attribute)
        for node in graph.node
    )
