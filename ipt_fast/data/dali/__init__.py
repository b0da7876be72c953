"""The loader on NVIDIA DALI. Nothing outside this folder imports its insides but ``make_loader``, on demand."""

import importlib


def unavailable_reason() -> str | None:
    """Return None where DALI can be used, else the reason."""
    try:
        importlib.import_module("nvidia.dali")
    except Exception as error:  # whatever keeps it from loading (a missing library, a wrong numpy)
        if isinstance(error, ModuleNotFoundError) and error.name in ("nvidia", "nvidia.dali"):
            return 'DALI is not installed (pip install "ipt-fast[dali-cu12]" or "ipt-fast[dali-cu13]")'
        return f"DALI is installed and does not load: {error}"
    return None
