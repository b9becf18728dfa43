# One line a verb. `make demo` and `make test` need Python 3.11 and the package index, nothing else.
PYTHON ?= python3.11
BIN := .venv/bin
INPUTS := pyproject.toml zoo/pyproject.toml constraints.txt
SOURCES := src zoo/src zoo/training tests benchmarks examples
export HF_HUB_OFFLINE ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup demo test lint types imports docs zoo bench validation clean

setup: .venv/.runtime  ## what the product needs

demo: .venv/.runtime  ## the embedded study; writes runs/demo/report.html
	$(BIN)/polysem demo --out runs/demo

test: .venv/.dev  ## every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/.dev  ## check mode: changes nothing
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

types: .venv/.dev
	$(BIN)/basedpyright

imports: .venv/.dev  ## the layer contract
	$(BIN)/lint-imports

bench: .venv-bench/.ready  ## every figure of docs/performance.md, which it writes; ARGS="--only mining", ARGS=--json
	OMP_NUM_THREADS=1 .venv-bench/bin/python -m benchmarks $(ARGS)

clean:
	rm -rf .venv .venv-bench build dist *.egg-info

.venv/.runtime: $(INPUTS)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e . -e zoo
	touch $@

.venv/.dev: .venv/.runtime
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

.venv-bench/.ready: $(INPUTS) benchmarks/requirements.txt  # peers live apart: they are no part of the product
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet -c constraints.txt torch
	.venv-bench/bin/pip install --quiet -c constraints.txt -e . -e zoo -r benchmarks/requirements.txt
	touch $@

validation: .venv/.dev  ## the full selftest: docs/validation.md and the verdict that comes with the library
	nice -n 10 $(BIN)/polysem selftest --full --out runs/validation
	cp runs/validation/validation.md docs/validation.md
	cp runs/validation/selftest.json src/polysem/selftest/latest.json
	mkdir -p docs/img/worlds && cp runs/validation/img/worlds/*.svg docs/img/worlds/
	$(BIN)/python examples/toy_models.py --out docs/img/worlds
