"""What a training run is: every setting, its meaning and its default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Literal

from odm_deploy.errors import UsageError
from odm_deploy.quantization.policy import QuantizationPolicy

_ABOVE_ZERO = (
    *("data.patch", "data.calibration_batches"),
    *("optimizer.learning_rate", "optimizer.range_learning_rate", "optimizer.halve_every"),
    *("run.iterations", "run.batch", "run.checkpoint_every", "run.validate_every", "run.log_every"),
)
_AT_LEAST_ZERO = ("network.weights_scale", "data.validation_images", "optimizer.warmup", "run.seed")


@dataclass(frozen=True)
class NetworkSection:
    """`[network]`: what is trained, and from which weights."""

    name: str = "edsr"
    """Name in the registry of networks."""
    scale: int = 4
    """Output pixels per input pixel along each axis."""
    weights: str = "{weights}/edsr_baseline_x4.pt"
    """Float state dict to start from; `{weights}` is $ODM_WEIGHTS, default ../shared/weights. Empty: fresh weights from
    `run.seed`."""
    weights_scale: int = 0
    """Scale the weights are of, where it is another one: what fits is taken over, the rest comes from `run.seed`."""
    equalize: bool = False
    """Even out the channels of features before training, by scaling the weights that write and read them: the float
    network computes the same, and nothing is added when it runs (`odm_deploy.quantization.cross_layer`)."""
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Hyper-parameters: of a fresh network those that differ from the published size, else those that a state dict does
    not show."""


@dataclass(frozen=True)
class QuantizationSection:
    """`[quantization]`: which regions are quantized, as `8`, `w4a8` or `float`."""

    profile: Literal["paper", "deploy", "integer", "exact", "exact-integer"] = "paper"
    """What a region is where its width says float. `paper`: float. `deploy`: 8 bits, but for the head. `integer`: the
    same, and what flows between layers is on 8-bit grids whose ranges are learned. `exact`: 8 bits everywhere, every
    value dyadic and every sum proven, so that all runtimes compute the same bits; the method's scales have to be powers
    of two."""
    body: str = "w4a4"
    """Width of the repeated blocks, the region the papers quantize."""
    body_end: str = "float"
    """Width of the convolutions between the last block and the upsampler."""
    tail: str = "float"
    """Width of the upsampler and the reconstruction convolution."""
    head: str = "float"
    """Width of the first convolution."""
    overrides: Mapping[str, str] = field(default_factory=dict[str, str])
    """Widths by layer name or pattern; later ones win."""

    def __post_init__(self) -> None:
        # What a model cannot be frozen as is refused here, not after all iterations.
        if self.body != "float":
            self.policy()

    def policy(self) -> QuantizationPolicy:
        """The policy these texts stand for.

        Raises:
            UsageError: a width that does not exist, a float body, or a layer left float in the exact profile.
        """
        if self.body == "float":
            raise UsageError("quantization.body is float", fix='for a float run choose [method] name = "float"')
        said = [None if width == "float" else width for width in (self.body_end, self.tail, self.head)]
        return QuantizationPolicy.parse(
            self.profile, self.body, body_end=said[0], tail=said[1], head=said[2], overrides=self.overrides
        )


@dataclass(frozen=True)
class DataSection:
    """`[data]`: training images. Test sets have no place here."""

    folders: tuple[str, ...] = ("{data}/train/T91", "{data}/train/BSDS400", "{data}/train/clean100")
    """Folders of high-resolution images. `{data}` is $ODM_DATA, default ../shared/data."""
    patch: int = 48
    """Side of a low-resolution patch, in pixels; the target's side is patch * scale."""
    small_images: Literal["refuse", "skip"] = "refuse"
    """What to do with images smaller than a patch; `skip` says how many it skipped."""
    validation_folders: tuple[str, ...] = ()
    """Folders of images to validate on; empty: hold back `validation_images` of the training images instead."""
    validation_images: int = 8
    """Images held back from training, evenly spread over the folders, to choose checkpoints by. Never a test set."""
    validation_psnr: Literal["luma", "rgb"] = "luma"
    """How validation images are judged: `luma` as test sets are, a border of `scale` pixels left out; `rgb` as DIV2K's
    own protocol has it, over all colours, `scale` + 6 pixels left out."""
    calibration_batches: int = 4
    """Batches through the float network before training, from which ranges are initialised."""


@dataclass(frozen=True)
class OptimizerSection:
    """`[optimizer]`: Adam(0.9, 0.999), eps 1e-8, no weight decay."""

    learning_rate: float = 1e-4
    """Of weights and biases."""
    range_learning_rate: float = 1e-3
    """Of what quantizers learn: ranges, steps, clipping scales and offsets."""
    rates: Mapping[str, float] = field(default_factory=dict[str, float])
    """Rates of single kinds of quantizer parameters: `ranges`, `steps`, `weight_steps`, `clipping`, `offsets`, `gates`.
    Kinds that are not named have `range_learning_rate`, or that of the weights where the method's authors did it so
    (DDTB's gates)."""
    schedule: Literal["halving", "cosine", "constant"] = "halving"
    """Factor on both rates over the run; a function of the iteration only."""
    halve_every: int = 15000
    """Iterations between two halvings."""
    warmup: int = 0
    """Iterations over which both rates grow linearly from zero."""
    ema_decay: float = 0.0
    """Decay of the moving average of all parameters that is validated and frozen; 0: none."""


@dataclass(frozen=True)
class RunSection:
    """`[run]`: how long, how often, how reproducibly."""

    iterations: int = 60000
    """Optimizer steps."""
    batch: int = 8
    """Patches a step, over all processes together."""
    seed: int = 1
    """Of patches and fresh parameters. Same seed, same run, to the bit on one kind of CPU and thread count."""
    checkpoint_every: int = 500
    """Iterations between two writes of last.pt."""
    validate_every: int = 1000
    """Iterations between two validations."""
    log_every: int = 10
    """Iterations between two lines of talk and of log.jsonl."""
    select: Literal["best", "last"] = "best"
    """Which parameters become model.pt: those of the best validation, or the last ones."""
    autocast: bool = False
    """Convolutions in bfloat16; every quantizer stays in float32."""
    tf32: bool = True
    """On NVIDIA GPUs: convolutions outside autocast round their operands to 11 significant bits while training.
    Validation never does."""
    channels_last: bool = False
    """Keep the channels of a pixel together in memory, as convolutions on NVIDIA GPUs compute: same losses, shorter
    steps there."""
    compile: bool = False
    """Compile the quantizers (`torch.compile`): a minute of waiting at the start, shorter steps after that."""
    cuda_graphs: bool = False
    """On an NVIDIA GPU: record forward and backward passes once and launch each as one."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to train."""


@dataclass(frozen=True)
class Recipe:
    """A whole training run."""

    network: NetworkSection = NetworkSection()
    """What is trained."""
    quantization: QuantizationSection = QuantizationSection()
    """Which layers, how many bits."""
    method: Mapping[str, Any] = field(default_factory=lambda: {"name": "odm_v2"})
    """The method's `name`, and its own options (see its `Options`)."""
    data: DataSection = DataSection()
    """Training images."""
    optimizer: OptimizerSection = OptimizerSection()
    """Learning rates."""
    run: RunSection = RunSection()
    """Length and bookkeeping."""

    def __post_init__(self) -> None:
        for name in _ABOVE_ZERO:
            if not attrgetter(name)(self) > 0:
                raise UsageError(f"cannot use {name} = {attrgetter(name)(self)}", fix="write a number above zero")
        for name in _AT_LEAST_ZERO:
            if attrgetter(name)(self) < 0:
                raise UsageError(f"cannot use {name} = {attrgetter(name)(self)}", fix="write zero or more")
        if self.network.weights_scale and not self.network.weights:
            raise UsageError(
                f"cannot use network.weights_scale = {self.network.weights_scale}",
                why="network.weights is empty",
                fix="name the weights, or leave it out",
            )
        for kind, rate in self.optimizer.rates.items():
            if not rate > 0:
                raise UsageError(f"cannot use optimizer.rates.{kind} = {rate}", fix="write a number above zero")
        if not 0.0 <= self.optimizer.ema_decay < 1.0:
            raise UsageError(f"cannot use optimizer.ema_decay = {self.optimizer.ema_decay}", fix="write 0 up to 1")
