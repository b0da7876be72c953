#!/usr/bin/env bash
# Makes the virtual environment and puts the right torch into it.
#   an NVIDIA driver answers, capability 7.5 or newer : the registry's GPU build
#   an NVIDIA driver answers, V100 (capability 7.0)   : torch 2.10, the last release with sm_70 kernels
#   otherwise                                         : torch 2.13.0, and the triton it pairs with
# A GPU build of torch brings its own triton; on CPU triton is installed alone, for its interpreter and compiler.
set -euo pipefail
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}

if ! command -v "$PYTHON" >/dev/null; then
    echo "ipt-fast: no '$PYTHON' on the PATH; install Python 3.10 to 3.13, or name yours: make PYTHON=/path/to/python3.12 test" >&2
    exit 1
fi
if ! "$PYTHON" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'; then
    echo "ipt-fast: $("$PYTHON" --version) found, Python 3.10 to 3.13 needed; choose one with: make PYTHON=python3.12 test" >&2
    exit 1
fi

[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check "$@"; }
pip install --quiet --upgrade pip "setuptools>=77" wheel

if capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -V | head -n 1) && [ -n "$capability" ]; then
    case "$capability" in
        7.0 | 7.2) pip install --quiet "torch==2.10.*" ;;
        *) pip install --quiet "torch>=2.10" ;;
    esac
else
    pip install --quiet torch==2.13.0
    pip install --quiet --no-deps triton==3.7.1
fi
"$VENV/bin/python" -c 'import torch; print(f"torch {torch.__version__} on", torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU")'
