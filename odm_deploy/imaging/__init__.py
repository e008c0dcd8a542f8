"""Images in, images out: files, resizing, tiling, benchmark sets."""
