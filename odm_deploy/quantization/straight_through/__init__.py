"""The straight-through quantizers of training and fine-tuning: fake-quantize forward, closed-form gradients backward.

Forward arithmetic is that of `odm_deploy.grid` and `odm_deploy.quantization`, operation by operation, so that a frozen
layer gives the same bits as the trainable one. Gradients are METHODS' "common quantizer" (ODM, Eqs. 1-2, with the
rounding passed straight through, Bengio et al. 2013): with y the level and clip(x) the clipped input,

    dy/dx = [l <= x <= u]     dy/du = [x > u] + (y - clip(x)) / (u - l)     dy/dl = [x < l] - (y - clip(x)) / (u - l)

Everything is float32, also under autocast.
"""
