"""What one training step asks of a device: launches, bytes, FLOPs, casts, waits; counted on tensors without data."""
