"""Quantization-aware training of super-resolution networks: ODM and its rivals under one protocol.

Runs from a clone (`python -m training RECIPE.toml --out DIR`), is not installed, and ends with a `model.pt` that
`odm_deploy` deploys.
"""
