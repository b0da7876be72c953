# Two commands on a fresh machine:
#   make pretrain   set up, then pre-train the tiny preset on packaged photos and print a table of PSNR
#   make test       set up, then run every test that this machine can run
# Another torch, of those that scripts/install_torch.sh lists or "newest", in a venv of its own:
#   make test TORCH=2.10
PYTHON ?= python3
TORCH  ?=
VENV   ?= .venv$(if $(TORCH),-$(TORCH))
RUN    ?= runs/tiny

BIN := $(VENV)/bin

# The part of the suite, besides the kernels, that tells whether another torch or Triton will do
TORCH_TESTS := tests/ops tests/acceleration tests/model tests/inference tests/bench/test_offline.py \
               tests/engine/test_step.py tests/engine/test_precision.py

.PHONY: pretrain weights test test-torch test-kernels lint docs dist bench fuzz clean
.DELETE_ON_ERROR:

pretrain: $(VENV)/.installed-demo
	$(BIN)/ipt-fast demo --out $(RUN)

# The network that comes with the package: hours on one core, on the photos in DATA. The same command goes on after a stop.
weights: $(VENV)/.installed-train
	$(BIN)/python -m bench.weights.start configs/pretrain_pocket.yaml runs/pocket/start.pt
	OMP_NUM_THREADS=1 $(BIN)/python train.py --config configs/pretrain_pocket.yaml --init runs/pocket/start.pt \
	    --data $(DATA) --out runs/pocket --resume auto

test: $(VENV)/.installed-dev $(VENV)/.installed-cuda-core test-kernels
	$(BIN)/python -m pytest tests --ignore tests/kernels

test-torch: $(VENV)/.installed-dev test-kernels
	$(BIN)/python -m pytest $(TORCH_TESTS)

# The Triton kernels under Triton's interpreter, in a process of their own: the switch is read at import.
test-kernels: $(VENV)/.installed-dev
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/kernels

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint --config docker/.hadolint.yaml docker/*.Dockerfile

# The documentation, as pages to open: build/site/index.html
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Random calls of what is public, ten minutes at most; the same ones each time. A fault is printed with its seed.
fuzz: $(VENV)/.installed-dev
	$(BIN)/python -m tests.fuzz --out tests/fuzz/results.md

# Wheel and source archive in dist/, as they would be published
dist: $(VENV)/.installed-dist
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

bench: $(VENV)/.installed-dev
	$(BIN)/ipt-fast bench

$(VENV)/.installed-torch: scripts/install_torch.sh
	PYTHON="$(PYTHON)" VENV="$(VENV)" TORCH="$(TORCH)" bash scripts/install_torch.sh
	@touch $@

$(VENV)/.installed-%: $(VENV)/.installed-torch pyproject.toml setup.py
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[$*]"
	@touch $@

$(VENV)/.installed-cuda-core: scripts/install_cuda_core.sh $(VENV)/.installed-torch pyproject.toml
	VENV="$(VENV)" bash scripts/install_cuda_core.sh
	@touch $@

.PRECIOUS: $(VENV)/.installed-torch $(VENV)/.installed-%

clean:
	rm -rf $(VENV) build dist *.egg-info runs
