"""What runs a bundle. Most callers want `odm_deploy.Engine`.

Every runtime is a subclass of `base.Runtime`, found by name in `registry`: `onnx/` loads the model.onnx,
`tensorrt/` the engine.plan, and `proof.reference` is what both are held against.
"""
