"""Kernel tests run in Triton's interpreter (TRITON_INTERPRET=1, on CPU tensors) or on a GPU."""

import os

import pytest
import torch


def pytest_collection_modifyitems(items):
    if os.environ.get("TRITON_INTERPRET") == "1" or torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs TRITON_INTERPRET=1 or a CUDA device")
    for item in items:
        if "/kernels/" in str(item.path):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """CPU where the interpreter runs, otherwise the GPU."""
    return torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")


@pytest.fixture(autouse=True)
def poisoned():
    """Memory that no kernel has written reads as NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
