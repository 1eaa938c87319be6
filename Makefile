# Everything runs from the checkout, in .venv. `make help` lists what there is.
PYTHON ?= python3
BITS ?= 4
ARGS ?=
PY := .venv/bin/python
GPU := $(shell nvidia-smi -L 2>/dev/null)

.PHONY: help bench test check proof gpu-test clean

help:
	@echo "make bench      measure this machine (BITS=8, ARGS='--model Qwen3-4B') and write a profile"
	@echo "make test       every quick test that needs no GPU"
	@echo "make check      linters and types"
	@echo "make proof      the slow proofs: all formats, targets and Triton versions"
	@echo "make gpu-test   the tests that need an NVIDIA GPU"
	@echo "make clean      remove .venv, caches and build output; results/ stays"

bench: .venv/installed
	$(PY) -m bench.dequant --bits $(BITS) $(ARGS)

test: .venv/installed
	$(PY) -m pytest -n 2 --dist loadfile -m "not gpu and not proof"

check: .venv/installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# The statistical proof has processes of its own. Builds of kernels stay in build/ptx. A part that fails stops none.
proof: .venv/installed .venv/triton-3.6/installed
	@trap 'exit 130' INT; failed=0; set -x; \
	$(PY) -m pytest -m proof tests/test_planted_truth.py || failed=1; \
	$(PY) -m pytest -n 2 --dist worksteal -m proof --ignore tests/test_planted_truth.py || failed=1; \
	.venv/triton-3.6/bin/python -m pytest -n 2 --dist loadfile -m "not gpu and not proof" \
	  tests/test_kernels_triton_interpret.py tests/test_kernels_triton_compile.py tests/test_kernels_triton_emulated.py \
	  || failed=1; exit $$failed

gpu-test: .venv/installed
	$(PY) -m pytest -m gpu

clean:
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .benchmarks .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Without an NVIDIA GPU the smallest PyTorch there is comes first; with one, the build that fits the driver.
.venv/installed: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" \
	  || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/it."; exit 1; }
	$(PYTHON) -m venv .venv
	$(if $(GPU),,$(PY) -m pip install --quiet torch==2.13.0)
	$(PY) -m pip install --quiet -e '.[dev$(if $(GPU),$(comma)cuda)]'
	@touch $@

# The oldest Triton that is supported, aside: it comes with the PyTorch of some GPU machines.
.venv/triton-3.6/installed: .venv/installed
	$(PYTHON) -m venv .venv/triton-3.6
	.venv/triton-3.6/bin/python -m pip install --quiet torch==2.13.0
	.venv/triton-3.6/bin/python -m pip install --quiet triton==3.6.0 numpy numba pydantic pytest pytest-benchmark pytest-xdist
	@touch $@

comma := ,
