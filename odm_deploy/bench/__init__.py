"""How fast a bundle is, always beside its float twin."""
