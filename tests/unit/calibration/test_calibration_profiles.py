import pytest

from calibration.profiles import WidthOptions, policy_of, profile_names
from odm_deploy.errors import UsageError
from odm_deploy.quantization.policy import LayerBits


def test_paper_quantizes_the_body_alone():
    policy = policy_of("paper", WidthOptions("w4a8"))
    assert policy.body == LayerBits(4, 8)
    assert (policy.head, policy.body_end, policy.tail) == (None, None, None)
    assert (policy.per_channel, policy.free, policy.power_of_two) == (True, False, False)


def test_every_option_reaches_the_policy():
    options = WidthOptions("4", "8", "w6a7", "5", {"body.0.*": "float", "tail.1": "8"}, per_channel=False, free=True)
    policy = policy_of("paper", options)
    assert (policy.head, policy.body_end, policy.tail) == (LayerBits(8, 8), LayerBits(6, 7), LayerBits(5, 5))
    assert policy.overrides == {"body.0.*": None, "tail.1": LayerBits(8, 8)}
    assert (policy.per_channel, policy.free) == (False, True)


def test_exact_quantizes_everything_on_dyadic_scales():
    policy = policy_of("exact", WidthOptions("4"))
    assert (policy.body, policy.head, policy.body_end, policy.tail) == (LayerBits(4, 4), *[LayerBits(8, 8)] * 3)
    assert policy.power_of_two is True
    narrow = policy_of("exact", WidthOptions("2", tail="w4a8", overrides={"body.0.*": "3"}))
    assert narrow.tail == LayerBits(4, 8)
    assert narrow.overrides == {"body.0.*": LayerBits(3, 3)}


@pytest.mark.parametrize(
    "options",
    [
        WidthOptions("4", free=True),
        WidthOptions("4", head="float"),
        WidthOptions("4", tail="float"),
        WidthOptions("4", body_end="float"),
        WidthOptions("4", overrides={"tail.1": "float"}),
    ],
)
def test_exact_refuses_what_would_round(options):
    with pytest.raises(UsageError, match="--profile exact"):
        policy_of("exact", options)


@pytest.mark.parametrize("name", profile_names())
@pytest.mark.parametrize("bits", ["17", "float", "many"])
def test_every_profile_refuses_impossible_widths(name, bits):
    with pytest.raises(UsageError):
        policy_of(name, WidthOptions(bits))


def test_an_unknown_profile_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="known are paper"):
        policy_of("best", WidthOptions("4"))
