# Two commands on a fresh machine:
#   make pretrain   set up, then pre-train the tiny preset on packaged photos and print a table of PSNR
#   make test       set up, then run every test that this machine can run
PYTHON ?= python3
VENV   ?= .venv
RUN    ?= runs/tiny

BIN := $(VENV)/bin

.PHONY: pretrain test test-kernels lint docs bench clean
.DELETE_ON_ERROR:

pretrain: $(VENV)/.installed-demo
	$(BIN)/ipt-fast demo --out $(RUN)

test: $(VENV)/.installed-dev $(VENV)/.installed-cuda-core test-kernels
	$(BIN)/python -m pytest tests --ignore tests/kernels

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

bench: $(VENV)/.installed-dev
	$(BIN)/ipt-fast bench

$(VENV)/.installed-torch: scripts/install_torch.sh
	PYTHON="$(PYTHON)" VENV="$(VENV)" bash scripts/install_torch.sh
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
