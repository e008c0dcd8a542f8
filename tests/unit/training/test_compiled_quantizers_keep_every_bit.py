"""Compiled quantizers: the same bits forward, the same gradients, and models that still validate and freeze."""

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import config as inductor

from odm_deploy.errors import MissingError
from training.acceleration import compile_quantizers, exact_evaluation
from training.distributed import World
from training.methods.base import Step, gradients

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


def test_evaluation_leaves_precision_as_it_found_it():
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    with exact_evaluation():
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"


def test_without_a_compiler_the_line_says_so(attach, monkeypatch, tmp_path):
    _, model = attach("lsq", 3)
    monkeypatch.setattr(inductor.cpp, "cxx", (str(tmp_path / "no-such-compiler"),))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    with pytest.raises(MissingError, match=r"run\.compile = true"):
        compile_quantizers(model)
