#!/usr/bin/env bash
# Puts what compiles csrc/ into the virtual environment: the extra cuda13 where torch was built for CUDA 13, otherwise
# cuda12, whose compiler still knows V100. No GPU, driver or nvcc is needed. Without it the tests that compile skip.
set -euo pipefail
VENV=${VENV:-.venv}

read -r extra torch < <("$VENV/bin/python" -c '
import torch
print("cuda13" if (torch.version.cuda or "").startswith("13") else "cuda12", torch.__version__)')
# Torch is named, as otherwise pip may change it for one that goes with the newest toolkit.
if ! "$VENV/bin/python" -m pip --disable-pip-version-check install --quiet --no-build-isolation --editable ".[$extra]" \
    "torch==$torch"; then
    echo "ipt-fast: the extra $extra cannot be installed here; tests that compile CUDA C++ will skip" >&2
fi
