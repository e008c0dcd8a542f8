"""How a marked graph is written down for one family of runtimes; the codes are the same in all of them.

tensorrt   int8, zero point 0, bounds and shifts in front of the quantizer: all that TensorRT takes, and others run, too
cpu        uint8 with zero points, as kernels of OpenVINO and ONNX Runtime have them
moving     of a marked graph for CPUs: quantizers in front of pixel shuffles, quantizers in a row become one
shared     what they have in common
"""
