"""Files: written whole or not at all, with checksums; and the run folder that holds them."""
