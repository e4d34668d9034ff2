# Two commands: make demo, make test. Each makes .venv and installs what it needs by itself.
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.installed
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo test lint bench install clean

demo: $(STAMP)
	egs/contacts/run.sh

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check lm decoding asr recipes tests
	$(BIN)/ruff format --check lm decoding asr recipes tests
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python tests/benchmarks/loss.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/search.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/fusion.py
	$(BIN)/python tests/benchmarks/training.py

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[torchaudio,contacts,dev]'
	@echo 'compiling the search for this machine, once'
	OMP_NUM_THREADS=1 $(BIN)/python -m decoding.compile
	touch $(STAMP)

clean:
	rm -rf .venv exp
