"""One quantization method a file; `registry` finds them by name."""
