"""The public functions: those in ``__all__`` of a package, and all that are ``@checked``."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable

import ipt_fast

# Rooms that a person reaches by a command, or that need what is not installed everywhere.
_ELSEWHERE = ("ipt_fast.kernels", "ipt_fast.cli", "ipt_fast.app", "ipt_fast.data.dali")


def public_functions() -> dict[str, Callable]:
    """Return every public function and ``@checked`` class by name."""
    found: dict[str, Callable] = {}
    for info in pkgutil.walk_packages(ipt_fast.__path__, "ipt_fast."):
        if info.name.startswith(_ELSEWHERE):
            continue
        module = importlib.import_module(info.name)
        listed = getattr(module, "__all__", ()) if info.ispkg else ()
        for name, value in vars(module).items():
            ours = getattr(value, "__module__", None) == info.name
            made = value.__init__ if inspect.isclass(value) else value
            checked = ours and getattr(getattr(made, "__code__", None), "co_filename", "").endswith("arguments.py")
            if (checked and hasattr(made, "__wrapped__")) or (name in listed and inspect.isfunction(value)):
                found[name] = value
    return found
