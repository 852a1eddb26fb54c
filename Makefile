# Commands for a fresh clone: `make demo`, `make demo-detection`, `make test` and `make docs`. Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The rooms whose annotations are shapes; the tests check them at run time.
SHAPED := parhelion.ops,parhelion.layers,parhelion.models

.PHONY: demo demo-detection test test-others test-all docs check format clean

demo: $(VENV)/installed
	$(BIN)/python scripts/demo.py --out demo

demo-detection: $(VENV)/installed-detection
	$(BIN)/python scripts/demo_detection.py --out demo-detection

# Two processes of one thread each: twice as fast on two cores as one of two, most tests being small.
QUICK := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --jaxtyping-packages=$(SHAPED),beartype.beartype
INTERPRETED := OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(BIN)/python -m pytest -q -n 2
COMPILED := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

# Every kind of fault.
test: $(VENV)/installed-dev
	$(QUICK) -m "not compile and not triton and not thorough"
	$(INTERPRETED) -m "triton and not thorough" tests/ops
	$(COMPILED) -m "compile and not thorough"

# The many more cases of the same tests.
test-others: $(VENV)/installed-dev
	$(QUICK) -m "not compile and not triton and thorough"
	$(INTERPRETED) -m "triton and thorough" tests/ops
	$(COMPILED) -m "compile and thorough"

test-all: test test-others

# A warning is an error: a link that leads nowhere, a docstring that does not read as it should.
docs: $(VENV)/installed-docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "build/docs/index.html"

check: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) demo demo-detection build dist src/*.egg-info

$(BIN)/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'parhelion needs Python 3.10 or newer, not ' + sys.version.split()[0])"
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --disable-pip-version-check -q -e .
	touch $@

$(VENV)/installed-detection: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --disable-pip-version-check -q -e ".[detection]"
	touch $@ $(VENV)/installed

$(VENV)/installed-dev: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --disable-pip-version-check -q -e ".[dev]"
	touch $@ $(VENV)/installed $(VENV)/installed-detection

$(VENV)/installed-docs: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --disable-pip-version-check -q -e ".[docs]"
	touch $@ $(VENV)/installed
