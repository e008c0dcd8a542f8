import copy
import dataclasses
import subprocess
import sys

import pytest
import torch

from odm_deploy.checkpoint import load_model, save_model
from odm_deploy.errors import InputError
from odm_deploy.files import file_sha256
from odm_deploy.grid import Grid
from odm_deploy.networks.registry import build_network
from odm_deploy.networks.trusted_builders import trusting
from odm_deploy.quantization.layers import FrozenLayer
from odm_deploy.quantization.model import QuantizedModel, freeze
from odm_deploy.quantization.signals import with_signals
from odm_deploy.quantization.weights import WeightCodes, quantize_weight
from tests.exact_models import calibrated_exact

LAYER = "body.0.body.0"
DELETED = object()
METADATA = {"method": "a test", "images": 3, "psnr_db": 31.5, "nested": {"list": [1, 2]}, "nothing": None}


def mid_rise(weight: torch.Tensor, bits: int) -> WeightCodes:
    """Odd codes, as ODM v2 trains them."""
    scale = weight.abs().flatten(1).amax(1) / (2**bits - 1)
    last = 2**bits - 1
    codes = 2 * torch.floor(weight / (2 * scale.reshape(-1, 1, 1, 1))) + 1
    return WeightCodes(codes.clamp(-last, last).to(torch.int8), scale, bits, first=-last, step=2)


def quantized(weights, grid: Grid) -> QuantizedModel:
    """A small EDSR with both block convolutions quantized: `weights` turns a float weight into codes."""
    torch.manual_seed(0)
    network = build_network("edsr", {"scale": 2, "features": 5, "blocks": 1})
    convs = {name: network.get_submodule(name) for name in (LAYER, "body.0.body.2")}
    layers = {name: FrozenLayer(weights(conv.weight), grid, conv.bias) for name, conv in convs.items()}
    return freeze(network, layers, METADATA)


def assert_same(loaded: QuantizedModel, model: QuantizedModel) -> None:
    assert loaded.metadata == model.metadata
    assert loaded.network.name == model.network.name
    assert loaded.network.config == model.network.config
    assert list(loaded.layers) == list(model.layers)
    for name, layer in model.layers.items():
        other = loaded.layers[name]
        assert other.grid == layer.grid
        ours, theirs = layer.weight_codes, other.weight_codes
        assert (theirs.bits, theirs.first, theirs.step) == (ours.bits, ours.first, ours.step)
    state, other_state = model.network.state_dict(), loaded.network.state_dict()
    assert list(other_state) == list(state)
    for key, value in state.items():
        assert other_state[key].dtype == value.dtype
        assert torch.equal(other_state[key], value)
    x = torch.rand(1, 3, 7, 6) * 255
    assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("bits", range(2, 9))
def test_mid_tread_weights_survive_to_the_bit(tmp_path, bits):
    model = quantized(lambda weight: quantize_weight(weight, bits), Grid.from_range(-20.0, 90.0, bits))
    save_model(model, tmp_path / "model.pt")
    assert_same(load_model(tmp_path / "model.pt"), model)


@pytest.mark.parametrize("bits", range(2, 8))
def test_mid_rise_weights_survive_to_the_bit(tmp_path, bits):
    model = quantized(lambda weight: mid_rise(weight, bits), Grid.from_range(-20.0, 90.0, bits))
    save_model(model, tmp_path / "model.pt")
    assert_same(load_model(tmp_path / "model.pt"), model)


def test_free_grids_and_layer_wide_scales_survive_to_the_bit(tmp_path):
    model = quantized(lambda weight: quantize_weight(weight, 4, per_channel=False), Grid.free(-1.7, 30.3, 3))
    save_model(model, tmp_path / "model.pt")
    assert_same(load_model(tmp_path / "model.pt"), model)


def test_saving_a_loaded_model_gives_the_same_bytes(tmp_path):
    model = quantized(lambda weight: quantize_weight(weight, 4), Grid.from_range(0.0, 50.0, 4))
    save_model(model, tmp_path / "a" / "model.pt")
    save_model(load_model(tmp_path / "a" / "model.pt"), tmp_path / "b" / "model.pt")
    documents = [torch.load(tmp_path / folder / "model.pt", weights_only=True) for folder in "ab"]
    assert str(documents[0]) == str(documents[1])


def test_low_bits_make_small_files(tmp_path):
    size = {}
    for bits in (2, 8):
        model = quantized(lambda weight, bits=bits: quantize_weight(weight, bits), Grid.from_range(0.0, 50.0, 4))
        save_model(model, tmp_path / "model.pt")
        document = torch.load(tmp_path / "model.pt", weights_only=True)
        size[bits] = document["layers"][LAYER]["weight"]["packed"].numel()
    assert size == {2: 5 * 5 * 9 * 2 // 8 + 1, 8: 5 * 5 * 9}


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    """The content of a sound model.pt."""
    path = tmp_path_factory.mktemp("sound") / "model.pt"
    save_model(quantized(lambda weight: quantize_weight(weight, 4), Grid.from_range(0.0, 50.0, 4)), path)
    return torch.load(path, weights_only=True)


def load_document(document, tmp_path) -> QuantizedModel:
    torch.save(document, tmp_path / "model.pt")
    return load_model(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (("network", "name"), "vgg", "no network 'vgg'"),
        (("network", "config", "scale"), 5, "scale 5"),
        (("network", "config", "colour"), 1, "unknown keys"),
        (("network",), DELETED, "KeyError"),
        (("network", "config", "features"), 6, "unusable"),
        (("network", "config", "blocks"), 2, "tensors do not fit"),
        (("tensors", "head.0.weight"), DELETED, "tensors do not fit"),
        (("tensors", "extra"), torch.zeros(1), "extra"),
        (("tensors", "head.0.bias"), torch.zeros(4), "head.0.bias is unusable"),
        (("tensors", "head.0.bias"), torch.full((5,), float("nan")), "head.0.bias is unusable"),
        (("tensors", "head.0.bias"), "zeros", "AttributeError"),
        (("tensors",), [], "damaged"),
        (("layers",), [], "damaged"),
        (("layers", LAYER), DELETED, "tensors do not fit"),
        (("layers", "head.9"), "layer", "damaged"),
        (("layers", LAYER, "grid", "scale"), 0.0, "scale 0.0"),
        (("layers", LAYER, "grid", "scale"), DELETED, "not a grid"),
        (("layers", LAYER, "grid", "zero_point"), 99, "zero point 99"),
        (("layers", LAYER, "grid", "bits"), 17, "17 bits"),
        (("layers", LAYER, "weight", "packed"), torch.zeros(3, dtype=torch.uint8), "3 bytes for 225 codes"),
        (("layers", LAYER, "weight", "packed"), torch.zeros(113), "TypeError"),
        (("layers", LAYER, "weight", "shape"), [5, 45], "codes do not fit"),
        (("layers", LAYER, "weight", "shape"), [5, 5, 3, 4], "bytes for 300 codes"),
        (("layers", LAYER, "weight", "shape"), [10**12, 10**12], "damaged"),
        (("layers", LAYER, "weight", "bits"), 5, "codes of 5 bits"),
        (("layers", LAYER, "weight", "bits"), "4", "damaged"),
        (("layers", LAYER, "weight", "first"), 120, "weight codes beyond int8"),
        (("layers", LAYER, "weight", "first"), 2**40, "OverflowError"),
        (("layers", LAYER, "weight", "first"), -7.5, "damaged"),
        (("layers", LAYER, "weight", "step"), 0, "damaged"),
        (("layers", LAYER, "weight", "scale"), torch.zeros(5), "not a weight scale"),
        (("layers", LAYER, "weight", "scale"), torch.ones(4), "not a weight scale"),
        (("layers", LAYER, "weight", "scale"), torch.full((5,), float("inf")), "not a weight scale"),
        (("layers", LAYER, "bias"), torch.zeros(6), "bias is unusable"),
        (("layers", LAYER, "bias"), torch.full((5,), float("nan")), "bias is unusable"),
        (("metadata",), "text", "damaged"),
    ],
)
def test_damage_is_refused(tmp_path, document, place, value, reason):
    damaged = copy.deepcopy(document)
    *path, last = place
    parent = damaged
    for key in path:
        parent = parent[key]
    if value is DELETED:
        del parent[last]
    else:
        parent[last] = value
    with pytest.raises(InputError, match=r"model\.pt is damaged") as caught:
        load_document(damaged, tmp_path)
    assert reason in str(caught.value)


@pytest.mark.parametrize("section", ["network", "tensors", "layers", "metadata"])
def test_a_missing_section_is_refused(tmp_path, document, section):
    damaged = {key: value for key, value in document.items() if key != section}
    with pytest.raises(InputError, match=f"model.pt is damaged: KeyError: '{section}'"):
        load_document(damaged, tmp_path)


@pytest.mark.parametrize("version", [torch.zeros(3), "4", None, [4], 4.5])
def test_a_version_that_is_no_number_is_refused(tmp_path, document, version):
    with pytest.raises(InputError, match=r"its format version is .*, this program reads 1 to 5"):
        load_document({**document, "version": version}, tmp_path)


@pytest.mark.parametrize("place", ["layers", "tensors", "a layer", "its weight"])
def test_a_tensor_in_the_place_of_names_is_refused_without_a_warning(tmp_path, document, place):
    damaged = copy.deepcopy(document)
    if place in damaged:
        damaged[place] = torch.zeros(3)
    elif place == "a layer":
        damaged["layers"][LAYER] = torch.zeros(3)
    else:
        damaged["layers"][LAYER]["weight"] = torch.zeros(3)
    with pytest.raises(InputError, match="is damaged"):
        load_document(damaged, tmp_path)


def test_a_newer_version_is_refused(tmp_path, document):
    with pytest.raises(InputError, match="its format version is 6, this program reads 1 to 5"):
        load_document({**document, "version": 6}, tmp_path)


def test_signals_survive_to_the_bit_and_older_programs_refuse_the_file(tmp_path):
    grids = {"body.0.sum.output": Grid.from_range(-60.0, 90.0, 8), "head.0.output": Grid.from_range(-50.0, 50.0, 6)}
    model = quantized(lambda weight: quantize_weight(weight, 8), Grid.from_range(-20.0, 90.0, 8))
    with_signals(model.network, grids)
    save_model(model, tmp_path / "model.pt")
    loaded = load_model(tmp_path / "model.pt")
    assert_same(loaded, model)
    assert {name: signal.grid for name, signal in loaded.signals.items()} == grids
    assert torch.load(tmp_path / "model.pt", weights_only=True)["version"] == 4


@pytest.mark.parametrize(
    ("signals", "reason"),
    [
        ({"body.9.output": {"scale": 1.0, "zero_point": 3, "bits": 8}}, "no signal body.9.output"),
        ({"body.0": {"scale": 1.0, "zero_point": 3, "bits": 8}}, "no signal body.0"),
        ({"head.0.output": {"scale": float("nan"), "zero_point": 3, "bits": 8}}, "scale nan"),
        ({"head.0.output": {"scale": 1.0, "zero_point": 300, "bits": 8}}, "zero point 300"),
        ({"head.0.output": {"scale": 1.0, "zero_point": 128, "bits": 8, "center": 0.5}}, "a free grid"),
        ({"head.0.output": 3}, "damaged"),
        ([1], "damaged"),
    ],
)
def test_hostile_signals_are_refused(tmp_path, document, signals, reason):
    with pytest.raises(InputError, match=reason):
        load_document({**document, "version": 4, "signals": signals}, tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"head.0.weight": torch.zeros(3)}, "a plain state dict"),
        ({"params": {"head.0.weight": torch.zeros(3)}}, "it holds a dict"),
        ([1, 2], "it holds a list"),
        (torch.zeros(3), "it holds a Tensor"),
    ],
)
def test_what_is_no_model_is_refused_with_the_command_that_makes_one(tmp_path, content, reason):
    with pytest.raises(InputError, match="is not a quantized model") as caught:
        load_document(content, tmp_path)
    assert reason in caught.value.why
    assert "odm-deploy quantize" in caught.value.fix


def test_the_hash_recognises_a_file(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert file_sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_config_is_kept_in_full(document):
    assert document["network"]["config"] == {"scale": 2, "features": 5, "blocks": 1, "residual_scale": 1.0}


@pytest.fixture(scope="module")
def exact_document(tmp_path_factory):
    """The content of an exact model's file."""
    path = tmp_path_factory.mktemp("exact") / "model.pt"
    save_model(calibrated_exact("edsr"), path)
    return torch.load(path, weights_only=True)


def test_an_exact_model_keeps_its_proof_and_older_programs_refuse_the_file(tmp_path, exact_document):
    model = calibrated_exact("edsr")
    loaded = load_document(exact_document, tmp_path)
    assert_same(loaded, model)
    assert loaded.exact == model.exact
    # Programs that read up to version 2 would let its engines use TF32.
    assert exact_document["version"] == 3


def test_slopes_that_only_code_has_are_rounded_again(tmp_path):
    model, path = calibrated_exact("compact"), tmp_path / "model.pt"
    save_model(model, path)
    with trusting("tests.exact_models:Chain"):
        loaded = load_model(path)
    assert_same(loaded, model)
    assert loaded.exact == model.exact


def test_a_claim_that_is_not_true_is_refused(tmp_path, document, exact_document):
    claim = exact_document["exact"]
    with pytest.raises(InputError, match="is damaged: edsr is not integer arithmetic throughout"):
        load_document({**document, "exact": claim}, tmp_path)
    edited = copy.deepcopy(exact_document)
    # A bias that no sum of products can be added to without rounding.
    edited["layers"][LAYER]["bias"] += 2.0**-19
    with pytest.raises(InputError, match=r"is damaged: .* is not exact in float32"):
        load_document(edited, tmp_path)
    with pytest.raises(InputError, match="is damaged"):
        load_document({**exact_document, "exact": True}, tmp_path)


def test_editing_metadata_makes_no_model_exact_or_inexact(tmp_path, document, exact_document):
    claim = exact_document["exact"]
    assert load_document({**document, "metadata": {"exact": claim}}, tmp_path).exact is None
    # A model whose sums are exact, but which nobody has frozen as such.
    unclaimed = {**exact_document, "exact": None, "version": 1}
    assert load_document({**unclaimed, "metadata": {"exact": claim}}, tmp_path).exact is None
    for metadata in ({}, {"exact": None}, {"exact": {"bits": {}}}):
        found = load_document({**exact_document, "metadata": metadata}, tmp_path)
        assert found.exact == calibrated_exact("edsr").exact


def test_files_that_claim_in_their_metadata_are_read_and_their_claim_is_proven(tmp_path, document, exact_document):
    """As programs before version 3 wrote them."""
    claim, provenance = {**exact_document["exact"], "coarsened_channels": 5}, {"method": "a test"}

    def old(content):
        return {
            **{key: value for key, value in content.items() if key != "exact"},
            "version": 1,
            "metadata": {**provenance, "exact": claim},
        }

    found = load_document(old(exact_document), tmp_path)
    assert found.exact == dataclasses.replace(calibrated_exact("edsr").exact, coarsened_channels=5)
    assert found.metadata == provenance
    pretended = load_document(old(document), tmp_path)
    assert pretended.exact is None
    assert pretended.metadata == provenance


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"features": 5000}, "config.features is 5000, of which nothing is in the file"),
        ({"blocks": 10**9}, "config.blocks is 1000000000, of which nothing is in the file"),
        ({"blocks": 10**30}, "config.blocks is 10000000000000000000, of which"),
        ({"features": 4000, "blocks": 400}, "its tensors do not fit its network"),
        ({"features": 4000}, "its tensor head.0.weight is unusable: shape [5, 3, 3, 3], not [4000, 3, 3, 3]"),
    ],
)
def test_a_config_larger_than_its_file_is_refused_before_anything_is_built(tmp_path, monkeypatch, config, reason):
    model = quantized(lambda weight: quantize_weight(weight, 4), Grid.from_range(-20.0, 90.0, 4))
    save_model(model, tmp_path / "model.pt")
    document = torch.load(tmp_path / "model.pt", weights_only=True)
    document["network"]["config"] |= config
    built: list[str] = []
    monkeypatch.setattr(
        "odm_deploy.checkpoint.build_network",
        lambda *args: built.append(torch.get_default_device().type) or build_network(*args),
    )
    with pytest.raises(InputError) as caught:
        load_document(document, tmp_path)
    assert reason in str(caught.value)
    assert "cpu" not in built


def nested(levels: int) -> dict:
    value: dict = {}
    for _ in range(levels):
        value = {"deeper": value}
    return value


@pytest.mark.parametrize(
    "metadata",
    [{"t": torch.zeros(3)}, {"b": b"x"}, {"deep": {(1, 2): 3}}, {"list": [{1, 2}]}, nested(400), [torch.zeros(1)]],
)
def test_metadata_of_anything_but_plain_values_is_refused(tmp_path, metadata):
    model = quantized(lambda weight: quantize_weight(weight, 4), Grid.from_range(-20.0, 90.0, 4))
    save_model(model, tmp_path / "model.pt")
    document = torch.load(tmp_path / "model.pt", weights_only=True)
    document["metadata"] = metadata
    with pytest.raises(InputError, match=r"is not a plain value|levels of others") as caught:
        load_document(document, tmp_path)
    assert len(str(caught.value)) < 400


def test_an_edsr_is_read_without_importing_torchs_compiler(tmp_path):
    """Arithmetic on the meta device, where a file is checked before anything is built, would: a second each time."""
    save_model(calibrated_exact("edsr"), tmp_path / "model.pt")
    code = "import sys; from odm_deploy.checkpoint import load_model; load_model(sys.argv[1]); "
    code += "assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, tmp_path / "model.pt"], check=True, timeout=120)
