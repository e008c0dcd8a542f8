"""What a quantized network costs: storage and bit operations, the papers' way and the honest way.

    storage = sum over tensors of numbers * bits / 32            in 32-bit words
    BitOPs  = sum over layers of 2 * MAC * b_w * b_a             for one output image of a given size

Biases, activations and additions cost no bit operations. Everything is counted from the network itself: multiply-adds
by running it without data, numbers by looking at its tensors. A float network is counted as a policy would have it, a
quantized model as it is.

Two conventions:

- `paper` reproduces Table 4 of the ODM paper (Hong & Lee, ECCV 2024). Its rules, see `paper_rules`, follow the official
  code of the methods compared there, which leaves the inputs of some layers unquantized. Constants, weight scales and
  running statistics are not counted.
- `honest` counts what `model.pt` holds and what an engine of this project computes: packed codes, every scale and zero
  point (those of signals between layers, too), batch norms folded, every quantized layer fed by a quantizer of its own.

count         `account`: layer by layer
macs          multiply-adds
numbers       numbers and the bits they take
paper_rules   the two conventions
"""

from odm_deploy.accounting.count import (
    Accounting,
    FloatShare,
    LayerCost,
    account,
    body_policy,
    float_shares,
    full_hd_macs,
)
from odm_deploy.accounting.macs import FULL_HD_PX, count_macs
from odm_deploy.accounting.numbers import FLOAT_BITS
from odm_deploy.accounting.paper_rules import PAPER_RULES, Convention, PaperRule, accounted_network

__all__ = [
    "FLOAT_BITS",
    "FULL_HD_PX",
    "PAPER_RULES",
    "Accounting",
    "Convention",
    "FloatShare",
    "LayerCost",
    "PaperRule",
    "account",
    "accounted_network",
    "body_policy",
    "count_macs",
    "float_shares",
    "full_hd_macs",
]
