"""What degrades a clean photo: bicubic shrinking, noise, rain. Whole photos or crops, any device, no state."""
