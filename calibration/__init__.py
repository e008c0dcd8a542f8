"""Post-training quantization: from float weights and a folder of images to `model.pt`, in seconds and without training.

Runs from a clone: `python -m calibration WEIGHTS.pt --network edsr --scale 4 --bits 4 --images DIR -o model.pt`.
"""
