# A100, H100 and newer: the newest torch that the package takes, which brings its own CUDA.
#   docker build -f docker/cuda.Dockerfile -t ipt-fast:cuda .
#   docker run --rm --gpus all -v DATA:/data -v RUNS:/runs ipt-fast:cuda \
#       torchrun --nproc_per_node=8 train.py --data /data --preset base --out /runs/base --resume auto
FROM nvidia/cuda:13.0.1-base-ubuntu24.04
RUN apt-get update \
 && apt-get install --yes --no-install-recommends build-essential ca-certificates make python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/ipt-fast
COPY . .
# No driver answers while an image is built, so scripts/install_torch.sh, which asks it, is not used.
RUN python3 -m venv .venv \
 && .venv/bin/pip install --no-cache-dir --upgrade "setuptools>=77" wheel \
 && .venv/bin/pip install --no-cache-dir "torch>=2.13" \
 && .venv/bin/pip install --no-cache-dir --no-build-isolation --editable ".[train,demo,bench,dali-cu13]"
ENV PATH=/opt/ipt-fast/.venv/bin:$PATH
CMD ["ipt-fast", "info"]
