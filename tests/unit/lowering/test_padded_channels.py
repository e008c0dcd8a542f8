"""The image's few channels are computed as sixteen, and cut off again: the same bytes."""

from __future__ import annotations

import numpy as np
import onnxruntime
import torch
from onnx import numpy_helper

from odm_deploy.lowering.dialects import cpu
from odm_deploy.lowering.lower import LoweringOptions, lower
from odm_deploy.quantization.policy import QuantizationPolicy
from odm_deploy.quantization.post_training import calibrate
from tests.exact_models import small_network
from tests.factories import random_images


def test_the_last_convolution_is_padded_and_gives_the_same_bytes(monkeypatch):
    images = [torch.from_numpy(random_images(20, 24))]
    model, _ = calibrate(small_network("edsr"), images, QuantizationPolicy.parse("integer", "8"))
    padded = lower(model, LoweringOptions(target="cpu"))
    monkeypatch.setattr(cpu, "pad_channels", lambda *_: None)
    plain = lower(model, LoweringOptions(target="cpu"))
    widths = [
        {len(numpy_helper.to_array(each)) for each in proto.graph.initializer if each.name.startswith("tail.1.codes")}
        for proto in (padded, plain)
    ]
    assert widths[0] == {16}
    assert max(widths[1]) < 16
    assert "Slice" in {node.op_type for node in padded.graph.node} - {node.op_type for node in plain.graph.node}
    results = [
        onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, {"input": images[0].numpy()}
        )[0]
        for proto in (padded, plain)
    ]
    np.testing.assert_array_equal(*results)
