#!/usr/bin/env bash
# The proof on a machine with a GPU and this repository, in under ten minutes: tests, ceilings, all benchmarks, a trace
# of a training step, a short training on photos, decoding. Nothing is fetched. Results: bench/results/<device>/.
#   bash bench/gpu_proof.sh          on the GPU
#   bash bench/gpu_proof.sh --cpu    all of it small on the CPU, in under four minutes, into runs/proof
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
