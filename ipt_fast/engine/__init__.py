"""Training: configuration, schedule, steps, checkpoints, logs."""
