"""The older name of `odm-deploy quantize`, for scripts that call `python -m calibration`."""
