"""Packaging that pyproject.toml cannot say: where the packages lie.

``kernels/`` at the top of the repository is installed as ``ipt_fast.kernels``. A top-level import package of
that name would shadow the PyPI package ``kernels``, so every package is named here one by one.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["ipt_fast", "ipt_fast.*"], exclude=["ipt_fast.kernels*"]),
        "ipt_fast.kernels",
    ],
    package_dir={"ipt_fast.kernels": "kernels"},
)
