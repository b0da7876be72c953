# V100: torch 2.10, the last release with sm_70, its CUDA 12.8, DALI for CUDA 12, and Apex from source.
#   docker build -f docker/v100.Dockerfile -t ipt-fast:v100 .
#   docker run --rm --gpus all -v DATA:/data -v RUNS:/runs ipt-fast:v100 \
#       torchrun --nproc_per_node=8 train.py --data /data --preset base --out /runs/base --resume auto
FROM nvidia/cuda:12.8.1-devel-ubuntu22.04
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN apt-get update \
 && apt-get install --yes --no-install-recommends build-essential ca-certificates git make python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/ipt-fast
COPY . .
# Torch is named twice: its CUDA 12.8 and the newest toolkit of "cuda12" exclude each other, and pip alone would rather
# change torch, for one without sm_70.
RUN python3 -m venv .venv \
 && .venv/bin/pip install --no-cache-dir --upgrade pip "setuptools>=77" wheel \
 && .venv/bin/pip install --no-cache-dir "torch==2.10.*" "numpy<2.4" \
 && .venv/bin/pip install --no-cache-dir --no-build-isolation --editable ".[train,demo,bench,dali-cu12,cuda12]" \
    "torch==2.10.*" "numpy<2.4"
# NVIDIA's Apex has no wheel, and "apex" on the package index is another project.
RUN .venv/bin/pip install --no-cache-dir packaging ninja \
 && APEX_CPP_EXT=1 APEX_CUDA_EXT=1 TORCH_CUDA_ARCH_LIST=7.0 .venv/bin/pip install --no-cache-dir --no-build-isolation \
    git+https://github.com/NVIDIA/apex@6424da3b
ENV PATH=/opt/ipt-fast/.venv/bin:$PATH
CMD ["ipt-fast", "info"]
