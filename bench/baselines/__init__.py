"""What a careful user of PyTorch would write: the contenders that the benchmarks are measured against."""
