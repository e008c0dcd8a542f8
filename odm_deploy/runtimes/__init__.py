"""What runs or builds a bundle: ONNX Runtime, OpenVINO, TensorRT, and the torch reference.

Every runtime is a subclass of `base.Runtime`, found by name in `registry`; most callers want `odm_deploy.Engine`.

    the protocol             base  registry  model_file  onnx_io  dlpack
    ONNX Runtime, OpenVINO   onnx_runtime  openvino_cpu  openvino_probe  openvino_shapes  cpu
    the reference            torch_reference
    running engines          tensorrt_engine  tensorrt_binding  cuda  device_array  kernel_cache  plan_file
    building engines         build  builder_child  bundle_engine  throwaway  profiles
    what is in an engine     layer_table  coverage  shape_inference
    what this machine has    compat  environment
"""
