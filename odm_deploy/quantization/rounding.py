"""Adaptive rounding: weight codes chosen by the layer's output rather than weight by weight.

Rounding every weight to its nearest code ignores that errors of weights which read similar values add up, and those of
neighbouring pixels are very similar. What counts is the output,

    || X W^T + b  -  Q(X) V^T - b' ||^2        over patches X of the input, Q its quantizer, V the weight's levels

which is quadratic in V (Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, ICML 2020). It is
minimized by coordinate descent from the nearest codes: weight by weight, the level that is best while all others stay
(Behdin et al., QuantEase, 2023). No step is ever worse than the one before, nothing is drawn at random, and a layer
takes a second. The bias is one more coordinate, not rounded: its descent is bias correction (Nagel et al., ICCV 2019).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DAMPING = 0.01
"""Added to the diagonal, in parts of its mean: patches that were not seen should not come out much worse."""
SWEEPS = 4
"""Over all weights; later ones change next to nothing."""
BLOCK = 32
"""Weights whose gradients are kept up to date at once."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Rounded:
    """Weights on their levels, and the bias that fits them."""

    codes: Tensor
    """Whole numbers as float64 [O, K]."""
    bias: Tensor
    """float64 [O]."""


def round_to_output(
    weight: Tensor,
    bias: Tensor,
    scale: Tensor,
    limit: int,
    outputs: Tensor,
    quantized: Tensor,
    *,
    round_weights: bool = True,
    correct_bias: bool = True,
) -> Rounded:
    """The codes in [-limit, limit] and the bias whose output on quantized inputs comes closest to the float output.

    Args:
        weight: float [O, K].
        bias: float [O].
        scale: of the codes, float [O], > 0.
        limit: largest code.
        outputs: of the float layer, float [N, O]: its patches times `weight`, and the bias.
        quantized: the patches on the input's grid, float [N, K].
        round_weights: off keeps the nearest codes.
        correct_bias: off keeps the bias.
    """
    damping = _damping(quantized)
    hessian, wanted = _moments(outputs, quantized, weight, damping)
    steps = scale.double()[:, None]
    codes = torch.clamp(torch.round(weight.double() / steps), -limit, limit)
    start = torch.cat([codes, bias.double()[:, None] / steps], 1)
    found = _descend(
        start.numpy(),
        hessian.numpy(),
        (wanted / steps).numpy(),
        limit=limit,
        round_weights=round_weights,
        correct_bias=correct_bias,
    )
    codes, bias_steps = torch.from_numpy(found).split([weight.shape[1], 1], 1)
    return Rounded(codes, (bias_steps * steps)[:, 0] if correct_bias else bias.double())


def _descend(
    start: Array, hessian: Array, wanted: Array, *, limit: int, round_weights: bool, correct_bias: bool
) -> Array:
    """Coordinate descent on codes [O, K+1], the bias last, all in steps of their output's scale. numpy, because a step
    is too small to share among threads.

    What a coordinate has to move by is its gradient over the Hessian's diagonal. Within a block of coordinates only the
    block's gradients are kept up to date, each when its turn comes; the others follow once the block is done.
    """
    last = start.shape[1] - 1
    diagonal = hessian.diagonal()
    order = np.argsort(-diagonal[:last], kind="stable") if round_weights else np.arange(0)
    # Coordinates in the order of their turns, those of all outputs side by side.
    turns = np.append(order, last) if round_weights else np.arange(last + 1)
    found = np.ascontiguousarray(start[:, turns].T)
    # Divided by the diagonal, a gradient is the move that its coordinate wants.
    pull = np.ascontiguousarray(hessian[np.ix_(turns, turns)] / diagonal[turns])
    wish = (start @ hessian - wanted)[:, turns].T / diagonal[turns][:, None]
    for _ in range(SWEEPS):
        before = found.copy()
        if correct_bias:
            moved = -wish[last]
            found[last] += moved
            wish += np.outer(pull[last], moved)
        for first in range(0, len(order), BLOCK):
            block = slice(first, min(first + BLOCK, len(order)))
            codes, wishes, coupling = found[block], wish[block], np.ascontiguousarray(pull[block, block].T)
            moved = np.empty_like(codes)
            for k, (code, wished, move) in enumerate(zip(codes, wishes, moved, strict=True)):
                # In place, and no np.clip: calls of numpy are most of what a turn takes.
                np.subtract(code, wished, out=move)
                if k:
                    # What this block has moved so far pulls at it.
                    np.subtract(move, np.dot(coupling[k, :k], moved[:k]), out=move)
                np.minimum(np.maximum(np.rint(move, out=move), -limit, out=move), limit, out=move)
                np.subtract(move, code, out=move)
            codes += moved
            wish += pull[block].T @ moved
        if np.array_equal(found, before):
            break
    return found[np.argsort(turns)].T


def _damping(quantized: Tensor) -> float:
    return DAMPING * float(quantized.square().mean()) + torch.finfo(torch.float32).tiny


def _moments(outputs: Tensor, quantized: Tensor, weight: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """E[q q^T] [K+1, K+1] and E[y q^T] [O, K+1], float64, of patches with a one behind them for the bias; damped alike.

    The second is what descent goes to; E[x q^T], of which it is the weights' multiple, would take K/O times as long.
    """
    q = torch.cat([quantized, torch.ones(len(quantized), 1)], 1)
    # numpy sees that the factors are one matrix, and computes half of the product.
    rows = q.numpy()
    hessian = torch.from_numpy(rows.T @ rows).double() / len(q)
    wanted = (outputs.T @ q).double() / len(q)
    hessian.diagonal()[:-1] += damping
    wanted[:, :-1] += damping * weight.double()
    return hessian, wanted
