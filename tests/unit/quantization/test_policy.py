import pytest

from odm_deploy.errors import UsageError
from odm_deploy.networks.registry import build_network
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy, quantizable_layers


@pytest.fixture(scope="module")
def network():
    return build_network("edsr", {"scale": 4, "features": 4, "blocks": 2})


BLOCK_CONVS = ["body.0.body.0", "body.0.body.2", "body.1.body.0", "body.1.body.2"]


def test_by_default_only_the_convolutions_of_the_blocks(network):
    selected = QuantizationPolicy(LayerBits(4, 8)).select(network)
    assert list(selected) == BLOCK_CONVS
    assert set(selected.values()) == {LayerBits(4, 8)}


def test_every_region_can_have_a_width_of_its_own(network):
    policy = QuantizationPolicy(LayerBits(4, 4), LayerBits(6, 6), LayerBits(7, 7), LayerBits(8, 8))
    selected = policy.select(network)
    assert list(selected) == quantizable_layers(network)
    assert {name: selected[name].weight for name in ("head.0", "body.1.body.2", "body.2", "tail.0.2", "tail.1")} == {
        "head.0": 8,
        "body.1.body.2": 4,
        "body.2": 6,
        "tail.0.2": 7,
        "tail.1": 7,
    }


def test_later_overrides_win_and_float_removes(network):
    overrides = {"body.*.body.0": LayerBits(8, 8), "body.1.*": None, "head.0": LayerBits(5, 5)}
    selected = QuantizationPolicy(LayerBits(4, 4), overrides=overrides).select(network)
    assert selected == {"head.0": LayerBits(5, 5), "body.0.body.0": LayerBits(8, 8), "body.0.body.2": LayerBits(4, 4)}


def test_an_override_that_matches_nothing_is_refused(network):
    with pytest.raises(UsageError, match=r"--layer bdy\.0 matches nothing: layers are head\.0"):
        QuantizationPolicy(LayerBits(4, 4), overrides={"bdy.0": None}).select(network)


def test_quantizing_nothing_is_refused(network):
    with pytest.raises(UsageError, match="quantizes nothing"):
        QuantizationPolicy(LayerBits(4, 4), overrides={"*": None}).select(network)


@pytest.mark.parametrize(
    ("text", "bits"), [("8", LayerBits(8, 8)), ("w4a8", LayerBits(4, 8)), ("w2a3", LayerBits(2, 3)), ("float", None)]
)
def test_widths_are_read_as_written(text, bits):
    assert LayerBits.parse(text) == bits


@pytest.mark.parametrize("text", ["", "four", "4.0", "w4", "a8", "a8w4", "-4", "4 8"])
def test_what_is_no_width_is_refused(text):
    with pytest.raises(UsageError, match="no such width"):
        LayerBits.parse(text)


@pytest.mark.parametrize("text", ["17", "1", "9", "w1a8", "w8a9"])
def test_widths_outside_2_to_8_are_refused(text):
    with pytest.raises(UsageError, match="widths are 2 to 8 bits"):
        LayerBits.parse(text)
