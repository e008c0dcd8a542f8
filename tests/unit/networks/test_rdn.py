"""RDN: parameter count, an independent definition, public keys and their errors, regions, export."""

import pytest
import torch
import torch.nn.functional as F

from odm_deploy.errors import InputError
from odm_deploy.networks.base import Region
from odm_deploy.networks.rdn import RDN, RdnConfig
from odm_deploy.networks.registry import build_network, network_from_state_dict
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy


def rdn_by_definition(state, x, *, scale, blocks, convolutions):
    """Sec. 3 of the paper in plain functions: dense blocks keep a list of all features so far."""

    def conv(features, key):
        weight = state[f"{key}.weight"]
        return F.conv2d(features, weight, state[f"{key}.bias"], padding=weight.shape[-1] // 2)

    f_minus_1 = conv(x, "SFENet1")
    features = conv(f_minus_1, "SFENet2")
    local = []
    for d in range(blocks):
        dense = [features]
        for c in range(convolutions):
            dense.append(conv(torch.cat(dense, 1), f"RDBs.{d}.convs.{c}.conv.0").clamp(min=0))
        features = features + conv(torch.cat(dense, 1), f"RDBs.{d}.LFF")
        local.append(features)
    y = conv(conv(torch.cat(local, 1), "GFF.0"), "GFF.1") + f_minus_1
    for index, factor in enumerate([2, 2] if scale == 4 else [scale]):
        y = F.pixel_shuffle(conv(y, f"UPNet.{2 * index}"), factor)
    return conv(y, "UPNet.4" if scale == 4 else "UPNet.2")


def small(scale=4, **changes):
    torch.manual_seed(0)
    return RDN(RdnConfig(scale, **{"blocks": 3, "convolutions": 2, "growth": 5, "features": 7, **changes})).eval()


def test_published_parameter_count():
    with torch.device("meta"):
        network = build_network("rdn", {"scale": 4})
    assert sum(parameter.numel() for parameter in network.parameters()) == 22_271_107


@pytest.mark.parametrize(
    ("scale", "changes"),
    [(2, {}), (3, {}), (4, {}), (4, {"growth": 7}), (2, {"blocks": 1, "convolutions": 1, "growth": 1, "features": 1})],
)
@torch.no_grad()
def test_equals_the_definition(scale, changes):
    network = small(scale, **changes).double()
    x = torch.rand(2, 3, 9, 13, dtype=torch.float64) * 255
    config = network.config
    expected = rdn_by_definition(
        network.state_dict(), x, scale=scale, blocks=config.blocks, convolutions=config.convolutions
    )
    found = network(x)
    assert found.shape == (2, 3, 9 * scale, 13 * scale)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_state_dict_describes_the_network(scale):
    network = small(scale)
    again = network_from_state_dict("rdn", network.state_dict(), scale)
    assert again.config == network.config
    x = torch.rand(1, 3, 5, 6) * 255
    with torch.no_grad():
        assert torch.equal(again(x), network(x))


def test_public_keys():
    keys = set(small(4, blocks=2).state_dict())
    layers = {key.rpartition(".")[0] for key in keys}
    blocks = {f"RDBs.{d}.{part}" for d in (0, 1) for part in ("convs.0.conv.0", "convs.1.conv.0", "LFF")}
    assert layers == blocks | {"SFENet1", "SFENet2", "GFF.0", "GFF.1", "UPNet.0", "UPNet.2", "UPNet.4"}


def test_another_networks_weights_are_refused():
    with pytest.raises(InputError, match=r"not an RDN state dict.*head\.0\.weight"):
        network_from_state_dict("rdn", {"head.0.weight": torch.zeros(64, 3, 3, 3)}, 4)


def test_another_scale_is_refused():
    with pytest.raises(InputError, match="weights of RDN x3: scale 2 was asked for"):
        network_from_state_dict("rdn", small(3).state_dict(), 2)


def test_missing_and_misshapen_keys_are_named():
    state = small().state_dict()
    state["GFF.1.weight"] = state["GFF.1.weight"][:, :3]
    del state["RDBs.1.LFF.bias"]
    with pytest.raises(InputError, match=r"RDBs\.1\.LFF\.bias.*GFF\.1\.weight is \[7, 3, 3, 3\], expected \[7, 7"):
        network_from_state_dict("rdn", state, 4)


@pytest.mark.parametrize("changes", [{"scale": 5}, {"blocks": 0}, {"growth": -1}])
def test_impossible_hyper_parameters_are_refused(changes):
    with pytest.raises(InputError, match="no such RDN"):
        RdnConfig(**{"scale": 4, **changes})


def test_the_papers_region_is_all_dense_blocks_and_the_fusion():
    network = small(blocks=2)
    selected = QuantizationPolicy(body=LayerBits(4, 4)).select(network)
    assert len(selected) == 2 * (2 + 1) + 2
    assert {"RDBs.0.convs.0.conv.0", "RDBs.1.LFF", "GFF.0", "GFF.1"} <= set(selected)
    assert network.region_of("SFENet2") is Region.BODY_END
    assert network.region_of("UPNet.4") is Region.TAIL
    with pytest.raises(InputError, match="no layer tail"):
        network.region_of("tail.0")
