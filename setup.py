"""Packaging that pyproject.toml cannot say: where the packages lie, and machine code for GPUs.

``kernels/`` and ``csrc/`` at the top of the repository are installed as ``ipt_fast.kernels`` and ``ipt_fast.csrc``. A
top-level import package ``kernels`` would shadow the PyPI package of that name, so every package is named here one by
one.

``IPT_FAST_CUBINS`` decides about machine code of ``csrc/`` in the wheel: "auto" (default: for the GPUs that an
installed NVRTC compiles for), "require" (for all of them, or the build fails), "off". It needs what the extra cuda12
installs, in the environment that builds: pip install --no-build-isolation.
"""

import os
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.errors import SetupError

sys.path.insert(0, str(Path(__file__).parent))
from ipt_fast.cuda import code  # needs Python alone
from ipt_fast.cuda.kernels import ARCHS


class BuildWithCubins(build_py):
    """Copy the packages, then compile ``csrc/`` beside them."""

    def run(self):
        """Do both; an editable install compiles when it first runs."""
        super().run()
        mode = os.environ.get("IPT_FAST_CUBINS", "auto")
        if mode not in ("auto", "require", "off"):
            raise SetupError(f"IPT_FAST_CUBINS={mode}: choose auto, require or off")
        if mode == "off" or self.editable_mode:
            return
        for arch in ARCHS:
            try:
                self.add_cubins(arch)
            except RuntimeError as error:
                if mode == "require":
                    raise SetupError(f"IPT_FAST_CUBINS=require: no machine code for sm_{arch}: {error}") from error
                print(f"ipt-fast: the wheel has no machine code for sm_{arch}: {error}", file=sys.stderr)

    def add_cubins(self, arch):
        """Compile all files for one architecture."""
        if reason := code.compiler_missing(arch):
            raise RuntimeError(f"it {reason}")
        folder = Path(self.build_lib, "ipt_fast", "cuda", code.PACKAGED.name)
        folder.mkdir(exist_ok=True)
        for source in code.sources():
            (folder / code.packaged_name(source, arch)).write_bytes(code.compile_cubin(source, arch))


setup(
    packages=[
        *find_packages(include=["ipt_fast", "ipt_fast.*"], exclude=["ipt_fast.kernels*"]),
        "ipt_fast.kernels",
        "ipt_fast.csrc",
    ],
    package_dir={"ipt_fast.kernels": "kernels", "ipt_fast.csrc": "csrc"},
    cmdclass={"build_py": BuildWithCubins},
)
