"""Image files: finding, reading, pairing, writing."""
