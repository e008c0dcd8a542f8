"""A float ONNX file goes the whole way: converted, quantized, saved, exported, computing the same in ONNX Runtime."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional

from odm_deploy.errors import InputError, UsageError
from odm_deploy.graphs.plain_run import run_plainly
from odm_deploy.networks.loading import load_network
from odm_deploy.networks.onnx_files import convert_graph
from odm_deploy.networks.registry import build_network
from tests.command_line import run_cli
from tests.qdq_graphs import LEGAL, TRAPS
from tests.spandrel_here import require_spandrel

CHANNELS = 12


class Distilling(nn.Module):
    """Splits, attention over channels and a sum of parts, as IMDN has them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.second = nn.Conv2d(CHANNELS - 4, CHANNELS, 3, padding=1)
        self.squeeze = nn.Conv2d(CHANNELS, 4, 1)
        self.excite = nn.Conv2d(4, CHANNELS, 1)
        self.last = nn.Conv2d(CHANNELS + 4, 12, 3, padding=1)

    def forward(self, x):
        kept, rest = torch.split(functional.leaky_relu(self.first(x), 0.05), (4, CHANNELS - 4), dim=1)
        y = self.second(rest)
        y = y * torch.sigmoid(self.excite(functional.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return functional.pixel_shuffle(self.last(torch.cat([kept, y], 1)), 2)


class Dense(nn.Module):
    """Dense blocks and nearest-neighbour enlarging, as ESRGAN has them."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.grow = nn.Conv2d(CHANNELS, 8, 3, padding=1)
        self.join = nn.Conv2d(CHANNELS + 8, CHANNELS, 3, padding=1)
        self.up = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.tail = nn.Conv2d(CHANNELS, 3, 3, padding=1)

    def forward(self, x):
        x = self.head(x)
        x = x + 0.2 * self.join(torch.cat([x, functional.leaky_relu(self.grow(x), 0.2)], 1))
        return self.tail(functional.leaky_relu(self.up(functional.interpolate(x, scale_factor=2)), 0.2))


class Windows(nn.Module):
    """Attention in windows of an image padded to a multiple of 8: shapes computed from shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.norm = nn.LayerNorm(CHANNELS)
        self.qkv = nn.Linear(CHANNELS, 3 * CHANNELS)
        self.project = nn.Linear(CHANNELS, CHANNELS)
        self.tail = nn.Conv2d(CHANNELS, 12, 3, padding=1)

    def forward(self, x):
        h, w = x.shape[2:]
        x = self.head(functional.pad(x, (0, (8 - w % 8) % 8, 0, (8 - h % 8) % 8), mode="reflect"))
        n, c, rows, cols = x.shape
        windows = x.view(n, c, rows // 8, 8, cols // 8, 8).permute(0, 2, 4, 3, 5, 1).reshape(-1, 64, c)
        q, k, v = self.qkv(self.norm(windows)).chunk(3, -1)
        windows = windows + self.project(torch.softmax(q @ k.transpose(1, 2) * c**-0.5, -1) @ v)
        windows = windows.view(n, rows // 8, cols // 8, 8, 8, c).permute(0, 5, 1, 3, 2, 4)
        return functional.pixel_shuffle(self.tail(x + windows.reshape(n, c, rows, cols)), 2)[:, :, : 2 * h, : 2 * w]


def compact():
    require_spandrel()
    from spandrel.architectures.Compact.__arch.SRVGG import SRVGGNetCompact

    return SRVGGNetCompact(num_feat=CHANNELS, num_conv=2, upscale=2)


def edsr():
    return build_network("edsr", {"scale": 2, "features": CHANNELS, "blocks": 1})


NETWORKS = {"distilling": Distilling, "dense": Dense, "windows": Windows, "compact": compact, "edsr": edsr}


def export(network, path, *, size=(24, 32), fixed=False, opset=17):
    axes = {} if fixed else {"x": {0: "n", 2: "h", 3: "w"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (torch.rand(1, 3, *size),), path, dynamo=False, opset_version=opset, input_names=["x"],
            output_names=["y"], dynamic_axes=axes,
        )  # fmt: skip
    return path


@pytest.fixture
def image_folder(tmp_path):
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    rows, cols = np.mgrid[:48, :64]
    for index in range(2):
        waves = [127 + 100 * np.sin((0.1 + 0.05 * index) * rows + 0.07 * channel * cols) for channel in range(3)]
        Image.fromarray(np.stack(waves, 2).astype(np.uint8)).save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("fixed", [False, True])
def test_converted_network_is_the_network(name, fixed, tmp_path):
    if (name, fixed) == ("windows", True):
        pytest.skip("its file crops to one size: refused, see below")
    torch.manual_seed(4)
    network = NETWORKS[name]().eval()
    loaded = load_network(export(network, tmp_path / "model.onnx", fixed=fixed), settings={"input_range": 255})
    assert loaded.scale == 2
    image = torch.rand(1, 3, 27, 45)
    with torch.no_grad():
        wanted, got = network(image), loaded(image)
    assert (wanted - got).abs().max() < 1e-5 * max(1, wanted.abs().max())
    kinds = (nn.Conv2d, nn.Linear)
    assert sum(isinstance(each, kinds) for each in loaded.modules()) == sum(
        isinstance(each, kinds) for each in network.modules()
    )


class ChannelsLast(nn.Module):
    """A network of images [N, H, W, 3], as TensorFlow's are; with `turns`, features are so, too."""

    def __init__(self, network, *, turns) -> None:
        super().__init__()
        self.network, self.turns = network, turns

    def forward(self, x):
        x = (2 * x).permute(0, 3, 1, 2) / 2 if self.turns else x.permute(0, 3, 1, 2)
        y = self.network(x).permute(0, 2, 3, 1)
        return y * 1.5 if self.turns else y


@pytest.mark.parametrize("turns", [False, True])
@pytest.mark.parametrize("fixed", [False, True])
def test_file_of_images_with_channels_last_is_the_network(turns, fixed, tmp_path):
    torch.manual_seed(4)
    network, file = Dense().eval(), tmp_path / "model.onnx"
    whole = ChannelsLast(network, turns=turns)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(whole, (torch.rand(1, 24, 32, 3),), file, dynamo=False, opset_version=13, input_names=["x"],
                          output_names=["y"], dynamic_axes={} if fixed else {"x": {1: "h", 2: "w"}})  # fmt: skip
    loaded = load_network(file, settings={"input_range": 255})
    image = torch.rand(1, 3, 27, 45)
    with torch.no_grad():
        wanted, got = network(image) * (1.5 if turns else 1), loaded(image)
    assert (wanted - got).abs().max() < 1e-5 * max(1, wanted.abs().max())


@pytest.mark.parametrize("name", ["distilling", "windows"])
def test_from_a_file_to_a_bundle_that_verifies(name, tmp_path, image_folder):
    torch.manual_seed(4)
    file = export(NETWORKS[name]().eval(), tmp_path / "model.onnx")
    model, bundle = tmp_path / "model.pt", tmp_path / "bundle"
    made = run_cli("quantize", file, "--images", image_folder, "-o", model, "--set", "input_range=1")
    assert made.code == 0, made.stderr
    assert "ONNX Runtime" in made.stderr
    assert run_cli("export", model, "-o", bundle, "--no-engine").code == 0
    # A graph of dynamic size, which the converted network still is.
    graph = onnx.load(bundle / "model.onnx")
    for size in ((16, 24), (33, 27)):
        image = np.random.default_rng(1).uniform(0, 255, (1, 3, *size)).astype(np.float32)
        (result,) = run_plainly(graph, {graph.graph.input[0].name: image}, [graph.graph.output[0].name]).values()
        assert result.shape == (1, 3, 2 * size[0], 2 * size[1])
    checked = run_cli("verify", bundle, "--against", model, "--images", image_folder, "--runtime", "onnxruntime")
    assert checked.code == 0, checked.stderr


def test_a_choice_between_two_constants_is_converted(tmp_path):
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        agraph (float[N, 3, H, W] x) => (float[N, 12, H, W] y)
            <float half = {0.5}, float low = {0.2}, float high = {0.9}>
            { m = Greater (x, half)  f = Where (m, high, low)  g = Mul (x, f)  y = Conv (g, w) }""")
    weights = np.random.default_rng(0).random((12, 3, 1, 1), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    module, _ = convert_graph(model)
    x = np.random.default_rng(1).random((1, 3, 16, 24), np.float32)
    with torch.no_grad():
        found = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, run_plainly(model, {"x": x}, ["y"])["y"], rtol=1e-5)


def test_half_precision_file_becomes_float32(tmp_path):
    torch.manual_seed(4)
    network = Distilling().half().float().eval()
    model = onnx.load(export(network, tmp_path / "model.onnx"))
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.save(model, tmp_path / "half.onnx")
    loaded = load_network(tmp_path / "half.onnx", settings={"input_range": 255})
    image = torch.rand(1, 3, 20, 28)
    with torch.no_grad():
        assert (loaded(image) - network(image)).abs().max() < 1e-5


def test_file_for_one_size_is_refused_with_what_to_do(tmp_path):
    class Fixed(Distilling):
        def forward(self, x):
            return super().forward(x.reshape(1, 3, 24 * 32).reshape(1, 3, 24, 32))

    file = export(Fixed().eval(), tmp_path / "model.onnx", fixed=True)
    with pytest.raises(UsageError, match="dynamic height and width"):
        load_network(file)


@pytest.mark.parametrize("size", [(24, 32), (128, 144)])
def test_file_that_crops_to_one_size_is_refused_although_it_runs(tmp_path, size):
    file = export(Windows().eval(), tmp_path / "model.onnx", fixed=True, size=size)
    with pytest.raises(UsageError, match="dynamic height and width"):
        load_network(file)


def test_what_cannot_be_converted_is_one_line_and_exit_2(tmp_path, image_folder):
    model = onnx.load(export(Distilling().eval(), tmp_path / "model.onnx"))
    last = model.graph.output[0].name
    model.graph.node.append(helper.make_node("Hardmax", [last], ["sampled"]))
    model.graph.output[0].name = "sampled"
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / "odd.onnx")
    onnx.save(LEGAL["plain"](), tmp_path / "quantized.onnx")
    for file, words in (("odd.onnx", "Hardmax"), ("quantized.onnx", "lint --fix")):
        outcome = run_cli("quantize", tmp_path / file, "--images", image_folder, "-o", tmp_path / "model.pt")
        assert outcome.code == 2, outcome.stderr
        assert words in outcome.stderr
        assert len(outcome.stderr.strip().splitlines()) == 1
        assert not (tmp_path / "model.pt").exists()


def test_gigabytes_of_two_numbers_are_refused_before_anything_makes_them(tmp_path):
    model = onnx.load(export(Distilling().eval(), tmp_path / "model.onnx"))
    last = model.graph.output[0].name
    model.graph.initializer.append(numpy_helper.from_array(np.array([2**15, 2**14]), "size"))
    large = helper.make_node("ConstantOfShape", ["size"], ["large"])
    total = helper.make_node("ReduceSum", ["large"], ["total"], keepdims=0)
    model.graph.node.extend([large, total, helper.make_node("Add", [last, "total"], ["sum"])])
    model.graph.output[0].name = "sum"
    onnx.save(model, tmp_path / "large.onnx")
    with pytest.raises(InputError, match="its ConstantOfShape 'large' makes 32768x16384 values, 2 GiB"):
        load_network(tmp_path / "large.onnx")


@pytest.mark.parametrize("first", [False, True])
def test_constants_that_are_inputs_too_are_constants(first, tmp_path):
    torch.manual_seed(4)
    network = Distilling().eval()
    model = onnx.load(export(network, tmp_path / "model.onnx"))
    constants = [
        helper.make_tensor_value_info(each.name, each.data_type, each.dims) for each in model.graph.initializer
    ]
    inputs = list(model.graph.input)
    del model.graph.input[:]
    model.graph.input.extend([*constants, *inputs] if first else [*inputs, *constants])
    onnx.save(model, tmp_path / "model.onnx")
    image = torch.rand(1, 3, 20, 28)
    with torch.no_grad():
        got = load_network(tmp_path / "model.onnx", settings={"input_range": 255})(image)
        assert (got - network(image)).abs().max() < 1e-5


@pytest.mark.parametrize("where", ["weights", "arithmetic"])
def test_file_that_computes_no_numbers_is_refused(where, tmp_path):
    """No difference from ONNX Runtime is larger than any bound where both are NaN."""
    network = Distilling().eval()
    if where == "weights":
        network.last.weight.data[0, 0, 0, 0] = float("nan")
    model = onnx.load(export(network, tmp_path / "model.onnx"))
    if where == "arithmetic":
        model.graph.initializer.append(numpy_helper.from_array(np.float32(-1e9), "far"))
        result = model.graph.output[0].name
        model.graph.node.append(helper.make_node("Min", [result, "far"], ["below"]))
        model.graph.node.append(helper.make_node("Sqrt", ["below"], ["root"]))
        model.graph.output[0].name = "root"
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(InputError, match=r"NaN or infinite"):
        load_network(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        (["mask"], "mask is left out"),
        (["a", "b"], "a, b are left out"),
        (list("abcde"), "a, b, c, 2 more are left out"),
    ],
)
def test_outputs_that_are_left_out_are_named(outputs, words, tmp_path, capsys):
    model = onnx.load(export(Distilling().eval(), tmp_path / "model.onnx"))
    for name in outputs:
        model.graph.node.append(helper.make_node("Relu", ["x"], [name]))
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    onnx.save(model, tmp_path / "model.onnx")
    load_network(tmp_path / "model.onnx")
    assert f"its first output, y, is taken for the image; {words}\n" in capsys.readouterr().err


def test_channels_may_be_last_in_images_taken_and_first_in_those_given(tmp_path):
    network, file = Distilling().eval(), tmp_path / "model.onnx"
    model = onnx.load(export(network, file))
    model.graph.node.insert(0, helper.make_node("Transpose", ["image"], ["x"], perm=[0, 3, 1, 2]))
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", "h", "w", 3]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3, "H", "W"]))
    onnx.save(model, file)
    image = torch.rand(1, 3, 27, 45)
    with torch.no_grad():
        assert torch.allclose(load_network(file, settings={"input_range": 255})(image), network(image), atol=1e-5)


def test_integer_operators_are_not_sent_to_what_leaves_them(tmp_path):
    onnx.save(TRAPS["QLinearConv"].build(), tmp_path / "model.onnx")
    with pytest.raises(UsageError) as refused:
        load_network(tmp_path / "model.onnx")
    assert refused.value.fix == "take the float file"


@pytest.mark.parametrize("level", ["BASIC", "EXTENDED", "ALL"])
def test_what_a_runtime_fused_is_refused_with_what_to_take_instead(tmp_path, level):
    runtime = pytest.importorskip("onnxruntime")
    settings = runtime.SessionOptions()
    settings.log_severity_level = 4
    settings.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    settings.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2)
    )
    file = export(network.eval(), tmp_path / "model.onnx")
    runtime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    if level == "BASIC":
        load_network(tmp_path / "optimized.onnx")
        return
    with pytest.raises(UsageError, match=r"com\.microsoft\.") as refused:
        load_network(tmp_path / "optimized.onnx")
    assert "stop at ORT_ENABLE_BASIC" in refused.value.fix


def test_grey_images_are_refused(tmp_path):
    grey = onnx.load(export(Distilling().eval(), tmp_path / "model.onnx"))
    grey.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1
    onnx.save(grey, tmp_path / "grey.onnx")
    with pytest.raises(UsageError, match="FLOAT"):
        load_network(tmp_path / "grey.onnx")


@pytest.mark.parametrize(
    ("head", "shape"),
    [((nn.AdaptiveAvgPool2d(1), nn.Flatten()), "1x7 "), ((nn.AdaptiveAvgPool2d(1),), "1x7x1x1 "), ((), "1x7x")],
)
def test_classifiers_are_told_from_networks_for_one_size(head, shape, tmp_path):
    file = export(nn.Sequential(nn.Conv2d(3, 7, 3, padding=1), *head).eval(), tmp_path / "model.onnx")
    with pytest.raises(UsageError, match=f"makes no RGB image: its first output is {shape}") as refused:
        load_network(file)
    assert "dynamic height" not in str(refused.value)


def _without_output(graph):
    del graph.output[:]


def _of_bytes(graph):
    last = graph.output[0].name
    graph.node.append(helper.make_node("Cast", [last], ["bytes"], to=TensorProto.UINT8))
    graph.output[0].CopyFrom(helper.make_tensor_value_info("bytes", TensorProto.UINT8, None))


def _sparse(graph):
    weight = next(tensor for tensor in graph.initializer if len(tensor.dims) == 4)
    array = numpy_helper.to_array(weight)
    values = numpy_helper.from_array(array.reshape(-1), weight.name)
    places = numpy_helper.from_array(np.arange(array.size), f"{weight.name}.places")
    graph.initializer.remove(weight)
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, array.shape))


def _backwards(graph):
    nodes = list(graph.node)[::-1]
    del graph.node[:]
    graph.node.extend(nodes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without_output, "has no output"),
        (_of_bytes, "gives UINT8"),
        (_sparse, "sparse weights"),
        (_backwards, "made behind it"),
    ],
)
def test_what_onnxruntime_may_take_and_nobody_converts_is_said(change, words, tmp_path):
    model = onnx.load(export(Distilling().eval(), tmp_path / "model.onnx"))
    change(model.graph)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises((InputError, UsageError), match=words):
        load_network(tmp_path / "model.onnx")
