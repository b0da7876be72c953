"""The proof on a GPU: tests, ceilings, benchmarks, a trace and a short training, each within its own time.

``python -m bench.proof`` is what ``bench/gpu_proof.sh`` runs.
"""
