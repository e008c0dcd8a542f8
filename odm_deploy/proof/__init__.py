"""Evidence that a runtime computes what the reference computes."""
