"""Trainable quantizers: straight-through rounding, learnable ranges, and the layers they plug into."""
