"""What this machine has: CPU, GPUs, installed builders and packages."""
