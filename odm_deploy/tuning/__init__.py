"""What quantization costs, which layers cost most, and how to pay less: mixed widths, fine-tuning.

Everything here compares a quantized model with the float network it was made of. No ground truth is needed.
"""
