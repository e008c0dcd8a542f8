"""The training loop: one run from its recipe to its `model.pt`, resumable to the bit."""
