"""What is quantized (policy), how (layers, weights, fake quantization), and the frozen result (model)."""
