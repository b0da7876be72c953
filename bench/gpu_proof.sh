#!/usr/bin/env bash
# The proof on a machine with a GPU and this repository, in two commands of at most ten minutes. Nothing is fetched.
#   bash bench/gpu_proof.sh correctness    is every result right? It also fills Triton's cache for the second
#   bash bench/gpu_proof.sh speed          ceilings, every contender, training
#   bash bench/gpu_proof.sh                one after the other
#   ... --cpu                              small, on the CPU, into runs/proof: does the proof itself work?
# Results: bench/results/<device>/proof.md. What tells most comes first, and is written when it is there.
# The Python is $PYTHON, or the first of .venv/bin/python, python3 and python whose torch sees the GPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

needs="import torch"
case " $* " in *" --cpu "*) ;; *) needs="import torch; assert torch.cuda.is_available()" ;; esac

for python in ${PYTHON:-.venv/bin/python python3 python}; do
    if "$python" -c "$needs" 2>/dev/null; then
        exec "$python" -m bench.proof "$@"
    fi
done
echo "gpu_proof: no Python here can run '$needs' (tried: ${PYTHON:-.venv/bin/python python3 python}); name one with PYTHON=..., or give --cpu" >&2
exit 2
