"""Building TensorRT engines in a child process, and reading which layers became int8."""
