"""PyTorch's tracer comes without networks spread over machines, and these can be imported all the same."""

from __future__ import annotations

import subprocess
import sys


def _python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_what_is_left_out_is_not_imported_and_can_be_later():
    left_out = "from odm_deploy import torch_tracer; torch_tracer.import_tracer(); import sys; "
    seen = "print('torch._dynamo' in sys.modules, torch_tracer._LEFT_OUT in sys.modules); "
    # A newer PyTorch that has it elsewhere would import it again, and say nothing.
    assert _python(left_out + seen) == "True False"
    assert _python(left_out + "import torch.distributed.fsdp._fully_shard; " + seen) == "True True"
    assert _python("import torch._dynamo, sys; from odm_deploy import torch_tracer; " + seen) == "True True"


def test_a_tracer_that_does_not_do_without_is_left_to_whoever_needs_it():
    needed = "torch._dynamo.symbolic_convert"
    code = f"import torch; from odm_deploy import torch_tracer as t; t._LEFT_OUT = {needed!r}; t.import_tracer(); "
    assert _python(code + "import torch._dynamo; print(torch._dynamo.is_compiling())") == "False"
