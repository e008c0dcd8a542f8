"""Bundles as servers want them."""
