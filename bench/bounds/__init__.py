"""What no schedule of a kernel can beat: the time of each pipe of a GPU at its peak rate, and which one limits.

``bench/bounds/<op>.py`` states the arithmetic of the kernels that ``bench/offline_cases/<op>.py`` registers, at the
shapes of the ``base`` network: ``launches(B, device) -> list[Launch]``, one launch a kernel. ``csrc.py`` does for the
CUDA C++ kernels.
"""
