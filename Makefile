# Everything runs in .venv, made on first use. `make demo` and `make test` need nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench models clean

demo: $(VENV)/installed
	$(BIN)/python -m jobs run jobs/recipes/demo.yaml

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks.overhead

# Trains every embedded model again (hours on two cores) and measures them for the model card.
models: $(VENV)/installed-dev
	for model in policy-0.1m policy-0.6m policy-3m prm-2m; do \
		$(BIN)/python -m embedded.train $$model || exit 1; \
	done
	$(BIN)/python -m embedded.card

$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
