import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from odm_deploy.errors import InputError
from odm_deploy.networks.base import Region
from odm_deploy.networks.blocks import DIV2K_MEAN_RGB
from odm_deploy.networks.edsr import EDSR, EdsrConfig
from odm_deploy.networks.loading import load_network
from odm_deploy.networks.registry import network_from_state_dict


def learnable(network: EDSR) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (EdsrConfig(4), 1_517_571),  # Lim et al., Table 1 and the ODM paper's 1517.6K
        (EdsrConfig(2), 1_369_859),
        (EdsrConfig(3), 1_554_499),
        (EdsrConfig(2, 256, 32, 0.1), 40_729_603),
        (EdsrConfig(3, 256, 32, 0.1), 43_680_003),
        (EdsrConfig(4, 256, 32, 0.1), 43_089_923),
    ],
)
def test_has_as_many_parameters_as_published(config, parameters):
    with torch.device("meta"):
        assert learnable(EDSR(config)) == parameters


def by_definition(state: dict[str, Tensor], x: Tensor, scale: int, blocks: int, residual_scale: float) -> Tensor:
    """EDSR written down from the paper, without a module."""

    def conv(key: str, values: Tensor) -> Tensor:
        return F.conv2d(values, state[f"{key}.weight"], state[f"{key}.bias"], padding=1)

    mean = 255 * torch.tensor(DIV2K_MEAN_RGB).reshape(1, 3, 1, 1)
    shallow = conv("head.0", x - mean)
    deep = shallow
    for block in range(blocks):
        residual = conv(f"body.{block}.body.2", F.relu(conv(f"body.{block}.body.0", deep)))
        deep = deep + residual_scale * residual
    deep = conv(f"body.{blocks}", deep) + shallow
    for stage, factor in enumerate({2: [2], 3: [3], 4: [2, 2]}[scale]):
        deep = F.pixel_shuffle(conv(f"tail.0.{2 * stage}", deep), factor)
    return conv("tail.1", deep) + mean


@pytest.mark.parametrize(
    "config", [EdsrConfig(2, 8, 3), EdsrConfig(3, 6, 2), EdsrConfig(4, 8, 2), EdsrConfig(2, 4, 2, 0.1)]
)
def test_computes_what_the_paper_defines(config):
    torch.manual_seed(0)
    network = EDSR(config)
    x = torch.rand(2, 3, 9, 7) * 255
    with torch.no_grad():
        y = network(x)
        expected = by_definition(network.state_dict(), x, config.scale, config.blocks, config.residual_scale)
    assert y.shape == (2, 3, 9 * config.scale, 7 * config.scale)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("features", [8, 256])
def test_reads_its_hyper_parameters_off_the_public_keys(scale, features):
    config = EdsrConfig(scale, features, 2, 0.1 if features == 256 else 1.0)
    state = EDSR(config).state_dict()
    assert EdsrConfig.from_state_dict(state, scale) == config


@pytest.mark.parametrize(("found", "asked"), [(4, 2), (4, 3), (2, 4), (2, 3), (3, 2), (3, 4)])
def test_weights_of_another_scale_are_refused_by_their_name(found, asked):
    state = EDSR(EdsrConfig(found, 8, 1)).state_dict()
    with pytest.raises(InputError, match=rf"weights of EDSR x{found}.*--scale {found}"):
        EdsrConfig.from_state_dict(state, asked)


def test_keys_of_another_network_are_refused():
    with pytest.raises(InputError, match=r"not an EDSR state dict: .*conv_first\.weight"):
        EdsrConfig.from_state_dict({"conv_first.weight": torch.zeros(1)}, 4)


@pytest.mark.parametrize("config", [(1, 8, 1), (5, 8, 1), (2, 0, 1), (2, 8, 0)])
def test_impossible_hyper_parameters_are_refused(config):
    with pytest.raises(InputError, match="no such EDSR"):
        EdsrConfig(*config)


def test_knows_where_its_layers_sit():
    network = EDSR(EdsrConfig(4, 4, 12))
    regions = {name: network.region_of(name) for name in ("head.0", "body.1.body.0", "body.12", "tail.0.2", "tail.1")}
    assert list(regions.values()) == [Region.HEAD, Region.BODY, Region.BODY_END, Region.TAIL, Region.TAIL]
    with pytest.raises(InputError, match="has no layer neck"):
        network.region_of("neck.0")


def test_a_mean_shift_that_mixes_channels_is_refused():
    state = EDSR(EdsrConfig(2, 4, 1)).state_dict()
    state["sub_mean.weight"] = state["sub_mean.weight"] / 2
    with pytest.raises(InputError, match=r"unsupported sub_mean\.weight"):
        network_from_state_dict("edsr", state, 2)


def test_a_mean_of_its_own_is_used():
    state = EDSR(EdsrConfig(2, 4, 1)).state_dict()
    state["add_mean.bias"] = torch.tensor([1.0, 2.0, 3.0])
    network = network_from_state_dict("edsr", state, 2)
    assert network.get_buffer("add_mean.bias").tolist() == [1.0, 2.0, 3.0]


def test_the_public_weights_load(weights_root):
    network = load_network(weights_root / "edsr_baseline_x4.pt")
    assert network.config == EdsrConfig(4)
    image = torch.full((1, 3, 8, 8), 128.0)
    with torch.no_grad():
        upscaled = network(image)
    # A trained network leaves a flat gray image flat and gray, borders aside.
    assert float((upscaled[..., 8:-8, 8:-8] - 128).abs().max()) < 3


def head_output(network: EDSR, images: Tensor) -> Tensor:
    """What enters the body, float [N, features, H, W]."""
    with torch.no_grad():
        return network.head(network.sub_mean(images))


def rounded(network: EDSR) -> EDSR:
    """A copy with its float edges rounded."""
    copied = copy.deepcopy(network)
    copied.round_float_edges()
    return copied


@pytest.mark.parametrize("gain", [0.1, 1.0, 10.0])
def test_rounded_head_computes_pixels_exactly(gain):
    torch.manual_seed(3)
    network = EDSR(EdsrConfig(2, 16, 1))
    with torch.no_grad():
        network.head[0].weight.mul_(gain)
    noise = torch.randint(0, 256, (1, 3, 40, 48), generator=torch.Generator().manual_seed(0))
    # Saturated pixels make the largest sums there are.
    images = torch.cat([noise, noise // 128 * 255]).float()
    after = rounded(network)
    double = copy.deepcopy(after).double()
    assert torch.equal(head_output(after, images).double(), head_output(double, images.double()))
    # The test would see sums that round: those of the original weights do.
    original = copy.deepcopy(network).double()
    assert not torch.equal(head_output(network, images).double(), head_output(original, images.double()))


def test_rounded_head_stays_close_and_is_rounded_once():
    torch.manual_seed(3)
    network = EDSR(EdsrConfig(2, 16, 1))
    images = torch.randint(0, 256, (1, 3, 40, 48), generator=torch.Generator().manual_seed(0)).float()
    after = rounded(network)
    before, found = head_output(network, images), head_output(after, images)
    # Ten bits of the largest weights are left; errors of 27 products mostly cancel.
    moved = (after.head[0].weight - network.head[0].weight).detach().abs()
    assert 0 < float(moved.max()) <= 2.0**-9 * float(network.head[0].weight.detach().abs().flatten(1).sum(1).max())
    # Weights of rms 0.11 rounded to multiples of 2^-9 are off by 2^-9 / sqrt(12) rms: half a percent, and so are sums.
    assert float((found - before)[..., 1:-1, 1:-1].square().mean() / before.square().mean()) < 0.0075**2
    # What the mean moved by is in the head's bias: a flat image stays on average where it was.
    flat = torch.full((1, 3, 8, 8), 113.0)
    shift = (head_output(after, flat) - head_output(network, flat))[..., 1:-1, 1:-1]
    assert float(shift.abs().max()) < 0.25
    # Only the head and its mean: what leaves the network is shifted back by the mean it always was.
    untouched = {key for key, value in network.state_dict().items() if torch.equal(value, after.state_dict()[key])}
    assert set(network.state_dict()) - untouched == {"head.0.weight", "head.0.bias", "sub_mean.bias"}
    again = rounded(after).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in after.state_dict().items())


def test_learned_shortcuts_are_read_off_the_keys_and_scale_what_passes_a_block():
    torch.manual_seed(1)
    network = EDSR(EdsrConfig(scale=2, features=8, blocks=2, learned_shortcuts=True)).eval()
    state = network.state_dict()
    config = EdsrConfig.from_state_dict(state, 2)
    assert config.learned_shortcuts
    assert EdsrConfig.from_dict(config.to_dict()) == config
    assert "learned_shortcuts" not in EdsrConfig(2).to_dict()  # so that programs from before it read the file
    plain = EDSR(EdsrConfig(scale=2, features=8, blocks=2)).eval()
    plain.load_state_dict({key: value for key, value in state.items() if "shortcut" not in key})
    block, other = network.body[0], plain.body[0]
    x = torch.randn(1, 8, 5, 5)
    with torch.no_grad():
        block.shortcut.fill_(0.5)
        assert torch.allclose(block(x), other(x) - 0.5 * x, atol=1e-6)
    with pytest.raises(InputError, match="cannot be exact"):
        network.make_exact()
