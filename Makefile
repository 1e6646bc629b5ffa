# make quickstart   from a fresh clone to a trained model and a picture; run again, it goes on
# make test         what CI runs: ruff, mypy, pytest
# make test-tpu     the published sizes of BiGR, compiled for 256 chips; no TPU is needed
# make test-demo    the page of `bigr demo` in a real browser, chromium
# make notebooks    the notebooks, run in full, with what they show: half an hour
# make docs         the documentation, into build/site
# make test PYTHON=python3.12 VENV=.venv/latest REQUIREMENTS=requirements/latest.txt

PYTHON ?= python3
VENV ?= .venv
REQUIREMENTS ?= requirements/min.txt
WORKERS ?= 2
BIN := $(VENV)/bin

.PHONY: quickstart test test-tpu test-demo notebooks docs lint clean

quickstart: $(VENV)/run.stamp
	$(BIN)/bigr train --config=bigr:small --workdir=runs/quickstart

test: lint
	BIGR_TEST_CACHE=$(CURDIR)/.cache/jax $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile \
		--no-loadscope-reorder --durations=15

# Apart, since a program for 256 chips takes minutes to compile.
test-tpu: $(VENV)/test.stamp
	BIGR_TPU_LARGE=1 $(BIN)/python -m pytest tests/tpu -x --durations=0

# Apart, since gradio wants an older Pillow, and a chromium that is not a package of Python's.
test-demo:
	$(PYTHON) -m venv .venv/demo
	.venv/demo/bin/python -m pip install --quiet --disable-pip-version-check \
		--editable '.[test,browser]'
	.venv/demo/bin/python -m pytest tests/demo tests/cli/test_cli_demo.py

notebooks: $(VENV)/test.stamp
	$(BIN)/python scripts/notebooks.py

docs: $(VENV)/test.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

lint: $(VENV)/test.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy bigr_jax experiments configs benchmarks scripts

clean:
	rm -rf $(VENV) .cache build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/run.stamp: setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/test.stamp: setup.py pyproject.toml $(REQUIREMENTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(REQUIREMENTS) --editable '.[test]'
	touch $@
