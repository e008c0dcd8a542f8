"""Losses of the methods, and the rules by which gradients of several losses are combined."""
