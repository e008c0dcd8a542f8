"""Super-resolution networks, one architecture a file, loading public state dicts as they are."""
