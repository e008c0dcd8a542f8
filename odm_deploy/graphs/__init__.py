"""ONNX graphs: read, edited, and their shapes inferred."""
