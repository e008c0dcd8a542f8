"""Compiled quantizers: the same bits forward, the same gradients, and models that still validate and freeze."""

from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import config as inductor

from odm_deploy.errors import MissingError
from odm_deploy.quantization.straight_through.range import range_quantize
from training import acceleration
from training.acceleration import (
    accelerate,
    compile_quantizers,
    exact_evaluation,
    round_as_eager_kernels,
    use_tf32,
)
from training.distributed import World
from training.methods.base import Step, gradients
from training.recipe import RunSection

# torch's compiler touches what torch deprecates or warns of, and means it.
pytestmark = pytest.mark.filterwarnings("ignore")


def gradients_of(method, model, low):
    high = torch.rand(2, 3, low.shape[2] * 2, low.shape[3] * 2, generator=torch.Generator().manual_seed(5)) * 255
    with model.recording():
        output = model(low)
        return output.detach(), gradients(method, Step(model, low, high, output, 0, World()))


@pytest.mark.parametrize("options", [{}, {"power_of_two": True, "per_channel": True}], ids=["paper", "exact"])
def test_compiling_changes_no_bit_forward_and_no_gradient(attach, nudge, low, options):
    method, model = attach("odm_v2", 4, **options)
    nudge(model)
    expected, plain = gradients_of(method, model, low)
    compile_quantizers(model)
    output, compiled = gradients_of(method, model, low)
    assert torch.equal(output, expected)
    for kind in ("reconstruction", "auxiliary"):
        ours, theirs = getattr(compiled, kind), getattr(plain, kind)
        assert ours.keys() == theirs.keys()
        for name, gradient in ours.items():
            torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-4 * theirs[name].abs().max().item())


def test_a_compiled_model_runs_other_sizes_uncompiled_and_freezes(attach, low):
    _, model = attach("lsq", 3)
    compile_quantizers(model)
    compiled = model(low).detach()
    frames = counters["frames"]["total"]
    assert frames > 0
    with exact_evaluation(), torch.no_grad():
        model(low[:, :, :7, :9])
    assert counters["frames"]["total"] == frames
    assert torch.equal(model.freeze({})(low), compiled)


@pytest.fixture
def precision():
    """What torch is set to is set back afterwards."""
    yield
    use_tf32(False)
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = False


@pytest.mark.parametrize("enabled", [True, False])
def test_evaluation_rounds_nothing_and_leaves_precision_as_it_found_it(precision, enabled):
    use_tf32(enabled)
    with exact_evaluation():
        assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.backends.cudnn.allow_tf32 == enabled
    assert torch.get_float32_matmul_precision() == ("high" if enabled else "highest")


def test_old_and_new_flags_of_precision_agree(precision):
    """`torch.compile` of 2.9 and 2.10 reads the old ones; any torch refuses to read them where they differ."""
    for enabled in (True, False):
        use_tf32(enabled)
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == enabled
        if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
            assert torch.backends.cuda.matmul.fp32_precision == ("tf32" if enabled else "ieee")
            assert (torch.backends.cudnn.conv.fp32_precision == "tf32") == enabled


def test_training_on_a_cpu_leaves_precision_alone(attach):
    _, model = attach("lsq", 3)
    accelerate(model, RunSection(tf32=True))
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("name", ["eager_numerics.division_rounding", "emulate_divison_rounding", "of_2_9"])
def test_the_division_of_eager_kernels_is_asked_for_under_the_name_a_torch_has(name):
    """Stands in for the torch of a GPU machine, which may be another one than this."""
    config = SimpleNamespace(**{"emulate_precision_casts": False, name: False})
    assert round_as_eager_kernels(config) is (name != "of_2_9")
    assert config.emulate_precision_casts
    assert getattr(config, name) is (name != "of_2_9")


@pytest.mark.parametrize(("device", "told"), [("cpu", False), ("cuda", True)])
def test_a_gpu_whose_torch_cannot_round_divisions_is_told(attach, monkeypatch, precision, device, told):
    _, model = attach("lsq", 3)
    monkeypatch.setattr(acceleration, "round_as_eager_kernels", lambda config: False)
    note = accelerate(model, RunSection(compile=True, device=device))
    assert ("cannot compile divisions" in note) is told


def test_this_torch_compiles_divisions_as_it_runs_them(attach):
    _, model = attach("lsq", 3)
    assert compile_quantizers(model)
    assert getattr(inductor, "eager_numerics.division_rounding")


def test_without_a_compiler_the_line_says_so(attach, monkeypatch, tmp_path):
    _, model = attach("lsq", 3)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    missing = inductor.patch({"cpp.cxx": (str(tmp_path / "no-such-compiler"),)})
    with missing, pytest.raises(MissingError, match=r"run\.compile = true"):
        compile_quantizers(model)
    torch.compiler.reset()


def test_the_compiler_is_tried_where_gradients_are_off_too(attach):
    _, model = attach("lsq", 3)
    with torch.no_grad():
        assert compile_quantizers(model)


def test_a_compiler_that_loses_gradients_is_refused(attach, monkeypatch):
    """That of torch 2.11 did, of functions that write in place: ranges and the body then learn nothing."""
    _, model = attach("lsq", 3)
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda *args: function(*args) * 0.0)
    with pytest.raises(MissingError, match=r"gradients that sum to \[0\.0, 0\.0, 0\.0\], not \[\d"):
        compile_quantizers(model)


@pytest.mark.parametrize("settings", [{}, {"free": True}, {"power_of_two": True}])
def test_levels_are_the_same_bits_compiled_or_not(settings):
    x = torch.linspace(-9.0, 9.0, 4096)
    low = torch.tensor(-2.7 if not settings.get("free") else -2.3)
    both = [f(x, low, torch.tensor(5.1), 4, **settings) for f in (range_quantize, torch.compile(range_quantize))]
    assert torch.equal(*both)
