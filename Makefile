# `make` alone lists the targets. PYTHON chooses the interpreter the environment is built with.
PYTHON ?= python3
BIN := .venv/bin
# A worker that dies ends the run: with files given to workers whole, pytest-xdist would wait for ever for the rest of its file.
PYTEST_ARGS ?= -n auto --maxprocesses 4 --dist loadfile --max-worker-restart 0

.DEFAULT_GOAL := help
.PHONY: help demo test lint format clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[.a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The stamp is older than the project's requirements whenever those changed: then pip runs again.
.venv: .venv/.installed  ## Create the environment with the pinned versions

.venv/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing quantsr and what it needs into .venv (several minutes the first time)"
	@$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e '.[dev]'
	@# On all cores, where pip would take minutes on one. A file that is no Python 3 is nobody's to import.
	@$(BIN)/python -m compileall -qq -j 0 $(CURDIR)/.venv/lib || true
	@touch $@

demo: .venv/.installed  ## Quantize the packaged teacher on packaged photographs, run it as integers (minutes, CPU)
	@run=runs/demo/$$(date +%Y-%m-%d_%H-%M-%S) && set -x && \
	$(BIN)/python train.py hydra.run.dir=$$run && \
	$(BIN)/python export.py artefact=$$run && \
	$(BIN)/python -m quantsr.speed $$run
	@echo "Every run has its own folder in runs/: configuration, artefact, metrics and comparison images."
	@echo "Other methods, bits and data: $(BIN)/python train.py --help"

test: lint  ## Check the style and run all tests, slow ones too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

lint: .venv/.installed  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.installed  ## Put the code into house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove caches and build products; runs/ and .venv stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
