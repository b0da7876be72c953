"""Files that hold weights or training state."""
