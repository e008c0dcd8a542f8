"""What runs or builds a bundle: ONNX Runtime, OpenVINO, TensorRT, and the torch reference."""
