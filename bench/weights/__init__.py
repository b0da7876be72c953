"""The weights that come with the package: their pilots, their start, and what packs them."""
