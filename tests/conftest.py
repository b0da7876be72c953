"""Fixtures for all tests. Real photos and golden numbers lie outside the project; tests that need them skip without."""

import os
import resource
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure():
    """Take Ctrl-C again where the shell ignores it, as it does for a background job: children would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder with golden files and photos: IPT_FAST_SHARED, by default ../shared beside the repository."""
    path = Path(os.environ.get("IPT_FAST_SHARED", ROOT.parent / "shared"))
    if not (path / "golden").is_dir():
        pytest.skip(f"no golden files and photos at {path}; set IPT_FAST_SHARED to their folder")
    return path


@pytest.fixture(scope="session")
def emulation(tmp_path_factory):
    """Return the kernels of csrc/ as g++ compiles them for the CPU."""
    from bench.csrc_emulation import Emulation

    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    try:
        return Emulation(tmp_path_factory.mktemp("csrc"))
    except RuntimeError as error:
        if "_Float16" in str(error):
            pytest.skip("needs a g++ that has _Float16 (12 or newer)")
        raise


@pytest.fixture(autouse=True)
def _own_seed_and_process(monkeypatch):
    torch.manual_seed(0)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def small_files():
    """Return a context manager under which no file grows beyond n bytes, as on a full disk."""

    @contextmanager
    def limit(size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit
