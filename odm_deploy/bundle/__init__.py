"""The bundle: the folder that `export` writes and everything else reads.

bundle         a bundle, or one of its files, opened: each thing in it is read when asked for, and once
manifest       manifest.json: what the bundle says about itself
image_format   type, layout and channel order of the images that a model takes and gives
plan_header    the first bytes of engine.plan: who built it
golden         golden.json: what an exact model computes on fixed images
"""

from odm_deploy.bundle.bundle import Bundle, ModelKind, Target

__all__ = ["Bundle", "ModelKind", "Target"]
