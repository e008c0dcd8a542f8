"""Runtimes that load `model.onnx`: ONNX Runtime and OpenVINO."""
