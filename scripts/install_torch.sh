#!/usr/bin/env bash
# Makes the virtual environment and puts the right torch into it, with the triton and the numpy it pairs with.
# TORCH=2.10 or TORCH=newest chooses a row of the table. Without it:
#   an NVIDIA driver answers, capability 7.5 or newer : the newest row
#   an NVIDIA driver answers, V100 (capability 7.0)   : torch 2.10, the last release with sm_70 kernels
#   otherwise                                         : torch 2.13
set -euo pipefail
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}
TORCH=${TORCH:-}

# What the suite passes on, oldest first. Triton 3.6's interpreter cannot read the scalars of numpy 2.4.
PAIRINGS="\
2.10 triton==3.6.0 numpy<2.4
2.13 triton==3.7.1 numpy
2.14 triton==3.8.0 numpy"

if ! command -v "$PYTHON" >/dev/null; then
    echo "ipt-fast: no '$PYTHON' on the PATH; install Python 3.10 to 3.13, or name yours: make PYTHON=/path/to/python3.12 test" >&2
    exit 1
fi
if ! "$PYTHON" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'; then
    echo "ipt-fast: $("$PYTHON" --version) found, Python 3.10 to 3.13 needed; choose one with: make PYTHON=python3.12 test" >&2
    exit 1
fi

if [ -z "$TORCH" ]; then
    capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -V | head -n 1) || capability=
    case "$capability" in
        7.0 | 7.2) TORCH=2.10 ;;
        "") TORCH=2.13 ;;
        *) TORCH=newest ;;
    esac
fi
[ "$TORCH" != newest ] || TORCH=$(tail -n 1 <<<"$PAIRINGS" | cut -d ' ' -f 1)
if ! read -r torch triton numpy < <(grep "^${TORCH//./\\.} " <<<"$PAIRINGS"); then
    echo "ipt-fast: TORCH=$TORCH is not among those tried: $(cut -d ' ' -f 1 <<<"$PAIRINGS" | paste -s -d ' '), newest" >&2
    exit 1
fi

[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check "$@"; }
pip install --quiet --upgrade pip "setuptools>=77" wheel
pip install --quiet "torch==$torch.*" "$numpy"
pip install --quiet --no-deps "$triton"  # a CPU build of torch brings none; its interpreter and compiler need no GPU
"$VENV/bin/python" -c 'import torch; print(f"torch {torch.__version__} on", torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU")'
