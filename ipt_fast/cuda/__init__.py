"""The kernels of ``csrc/`` on a GPU, by NVIDIA's ``cuda-core``: machine code, launch, one launcher an op.

Nothing here is imported before a call takes the backend "cuda". No nvcc is needed.
"""
