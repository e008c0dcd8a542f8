import pytest
from torch import nn

from odm_deploy.errors import UsageError
from odm_deploy.networks.foreign import foreign_network
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
    with pytest.raises(UsageError, match=r"quantizes nothing: .*body\.1\.body\.2 \(the body\)"):
        QuantizationPolicy(LayerBits(4, 4), overrides={"*": None}).select(network)


def test_layers_that_run_on_small_and_enlarged_features_are_named_with_what_quantizes_them():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.both, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 3, 1)

        def forward(self, x):
            return self.last(self.both(nn.functional.interpolate(self.both(self.first(x)), scale_factor=2)))

    shared = foreign_network(Shared())
    with pytest.raises(
        UsageError,
        match=r"net\.first \(the first layer\); net\.both, net\.last \(the last layer, and .*enlarged.*"
        r"--profile deploy .*--layer net\.both=8",
    ):
        QuantizationPolicy(LayerBits(8, 8)).select(shared)
    assert list(QuantizationPolicy.parse("deploy", "8").select(shared)) == ["net.both", "net.last"]


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


def test_profile_paper_quantizes_the_body_alone():
    policy = QuantizationPolicy.parse("paper", "w4a8")
    assert policy == QuantizationPolicy(LayerBits(4, 8))
    assert (policy.head, policy.body_end, policy.tail) == (None, None, None)
    assert (policy.per_channel, policy.free, policy.power_of_two) == (True, False, False)


def test_every_text_reaches_the_policy():
    policy = QuantizationPolicy.parse(
        "paper",
        "4",
        head="8",
        body_end="w6a7",
        tail="5",
        overrides={"body.0.*": "float", "tail.1": "8"},
        per_channel=False,
        free=True,
    )
    assert (policy.head, policy.body_end, policy.tail) == (LayerBits(8, 8), LayerBits(6, 7), LayerBits(5, 5))
    assert policy.overrides == {"body.0.*": None, "tail.1": LayerBits(8, 8)}
    assert (policy.per_channel, policy.free) == (False, True)


def test_profile_deploy_quantizes_everything_but_the_first_layer(network):
    policy = QuantizationPolicy.parse("deploy", "4")
    selected = policy.select(network)
    assert list(selected) == quantizable_layers(network)[1:]
    assert {name: bits.weight for name, bits in selected.items() if not name.startswith("body.0")} == {
        **dict.fromkeys(("body.1.body.0", "body.1.body.2"), 4),
        **dict.fromkeys(("body.2", "tail.0.0", "tail.0.2", "tail.1"), 8),
    }
    assert policy.signals is None
    assert QuantizationPolicy.parse("deploy", "4", tail="6").tail == LayerBits(6, 6)


def test_profile_integer_has_signals_besides():
    integer = QuantizationPolicy.parse("integer", "2")
    assert integer == QuantizationPolicy.deploy(LayerBits(2, 2), signals=8)
    with pytest.raises(UsageError, match="free grids with signals"):
        QuantizationPolicy.parse("integer", "4", free=True)


def test_profile_engine_is_integer_with_grids_and_sums_as_engines_fuse_them():
    engine = QuantizationPolicy.parse("engine", "8")
    assert engine == QuantizationPolicy.integer(LayerBits(8, 8), symmetric=True, fused=True)
    assert QuantizationPolicy.parse("deploy", "8", symmetric=True).symmetric
    with pytest.raises(UsageError, match="symmetric grids that are free"):
        QuantizationPolicy.parse("deploy", "8", symmetric=True, free=True)


def test_profile_exact_quantizes_everything_on_dyadic_scales():
    policy = QuantizationPolicy.parse("exact", "4")
    assert policy == QuantizationPolicy.exact(LayerBits(4, 4))
    assert (policy.body, policy.head, policy.body_end, policy.tail) == (LayerBits(4, 4), *[LayerBits(8, 8)] * 3)
    assert policy.power_of_two is True
    narrow = QuantizationPolicy.parse("exact", "2", tail="w4a8", overrides={"body.0.*": "3"})
    assert narrow.tail == LayerBits(4, 8)
    assert narrow.overrides == {"body.0.*": LayerBits(3, 3)}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"free": True}, "free grids in profile exact"),
        ({"head": "float"}, "profile exact: head left float"),
        ({"tail": "float"}, "profile exact: tail left float"),
        ({"body_end": "float"}, "profile exact: body end left float"),
        ({"overrides": {"tail.1": "float"}}, r"profile exact: tail\.1 left float"),
    ],
)
def test_profile_exact_refuses_what_would_round(options, reason):
    with pytest.raises(UsageError, match=reason):
        QuantizationPolicy.parse("exact", "4", **options)


def test_power_of_two_scales_need_every_layer():
    with pytest.raises(UsageError, match="head, body end, tail left float"):
        QuantizationPolicy(LayerBits(4, 4), power_of_two=True)


@pytest.mark.parametrize("name", ["paper", "exact"])
@pytest.mark.parametrize("bits", ["17", "float", "many"])
def test_every_profile_refuses_impossible_widths(name, bits):
    with pytest.raises(UsageError):
        QuantizationPolicy.parse(name, bits)


def test_an_unknown_profile_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="known are paper"):
        QuantizationPolicy.parse("best", "4")


@pytest.mark.parametrize(
    ("profile", "body", "wide"), [("exact", "8", 1), ("integer", "w8a4", 0), ("deploy", "w4a8", 0)]
)
def test_for_any_cpu_weights_of_8_bits_with_inputs_of_8_get_7(network, profile, body, wide):
    plain, narrow = (
        QuantizationPolicy.parse(profile, body, any_cpu=any_cpu).select(network) for any_cpu in (False, True)
    )
    assert plain.keys() == narrow.keys()
    assert all(bits.activation == narrow[name].activation for name, bits in plain.items())
    assert all(2 * (2 ** (bits.weight - 1) - 1) * (2**bits.activation - 1) < 2**15 for bits in narrow.values())
    assert narrow["body.0.body.0"] == (LayerBits(7, 8) if wide else LayerBits.parse(body))
    assert narrow["tail.1"] == LayerBits(7, 8)
