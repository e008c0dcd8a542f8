"""The exact profile: integer programs whose sums never round, and the proof of it."""
