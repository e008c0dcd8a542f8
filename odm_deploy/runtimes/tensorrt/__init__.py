"""Running a built `engine.plan` with TensorRT or TensorRT for RTX."""
