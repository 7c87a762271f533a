# Two commands on a fresh machine: make demo, make test. Each sets up .venv first.
PY := .venv/bin/python

# A worker a core, of which each has a process with Megatron imported; files stay whole. PYTEST_ARGS="-n 0" is one process.
WORKERS := -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

# Every shell script: by its ending, and the one without.
SHELL_SCRIPTS = .ci/run $(shell find . -path './.venv*' -prune -o -path ./runs -prune -o \( -name '*.sh' -o -name '*.sbatch' \) -print)

.PHONY: help setup demo demo-vlm test test-slow test-mutations test-faults test-slurm test-docker test-bridge test-lmms test-pages test-all benchmark benchmark-gpu benchmark-preprocess lint format clean

help:
	@echo "make demo    train, export and check a small competing model on this machine's CPUs (runs/demo)"
	@echo "make demo-vlm  train, upcycle, export and ask a vision-language model about pictures of digits (runs/demo-vlm)"
	@echo "make test    what this does, in minutes and without a GPU (PYTEST_ARGS: more for pytest)"
	@echo "make test-slow  every layout, thousands of draws, 200 steps, 100 MB of text, launchers, stops, killed studies"
	@echo "make test-mutations  mistakes in routing, layers and schedule, each noticed by its test"
	@echo "make test-faults  kills, full disks, stuck ranks and damage in real runs, and what becomes of them"
	@echo "make test-slurm  a job's life on a real Slurm of four nodes on this machine (needs root)"
	@echo "make test-docker  the container image built by buildah on a stand-in for NVIDIA's (needs root)"
	@echo "make test-bridge  competition in Megatron-Bridge's real trainer (sets up .venv-bridge beside .venv)"
	@echo "make test-lmms  examples/evaluate_vlm.sh with lmms-eval (sets up .venv-lmms beside .venv)"
	@echo "make test-pages  reports in headless Chromium (apt-get install chromium), skipped where there is none"
	@echo "make test-all  all of these, one after the other"
	@echo "make benchmark  what a competing step costs"
	@echo "make benchmark-gpu  everything that one GPU can tell, in nine minutes (runs/gpu)"
	@echo "make benchmark-preprocess  preprocessing beside Megatron-LM's loop"
	@echo "make lint    ruff, formatting, mypy, shellcheck, hadolint"
	@echo "make docs    the documentation site, into site/; make docs-serve shows it on 127.0.0.1:8000"
	@echo "make setup   create .venv only; the others do this first"

setup:
	@tools/setup_environment.sh

demo: setup
	@$(PY) examples/demo.py

demo-vlm: setup
	@$(PY) examples/demo_vlm.py

test: setup
	@$(PY) -m pytest -q $(WORKERS) $(PYTEST_ARGS)

test-slow: setup
	@$(PY) -m pytest -q -m slow --ignore tests/mutations/test_mutations.py $(WORKERS) $(PYTEST_ARGS)

test-mutations: setup
	@$(PY) -m pytest -q -m slow tests/mutations -n 2 --dist loadgroup $(PYTEST_ARGS)

test-faults: setup
	@$(PY) -m pytest -q -m faults tests/faults $(PYTEST_ARGS)

test-slurm: setup
	@$(PY) -m pytest -q tests/slurm $(PYTEST_ARGS)

test-docker: setup
	@$(PY) -m pytest -q -m docker tests/docker $(PYTEST_ARGS)

test-bridge: setup
	@tools/setup_bridge_environment.sh
	@.venv-bridge/bin/python -m pytest -q -n 0 tests/bridge $(PYTEST_ARGS)

test-lmms: setup
	@tools/setup_lmms_environment.sh
	@.venv-lmms/bin/python -m pytest -q -n 0 tests/lmms $(PYTEST_ARGS)

test-pages: setup
	@$(PY) -m pytest -q -m pages -n 0 tests/report tests/audit $(PYTEST_ARGS)

test-all: test test-slow test-mutations test-pages test-bridge test-lmms test-faults test-slurm test-docker

benchmark: setup
	@$(PY) benchmarks/competition_step.py

benchmark-gpu: setup
	@PYTHON=$(PY) bash benchmarks/gpu_suite.sh runs/gpu

benchmark-preprocess: setup
	@$(PY) benchmarks/preprocess.py

lint: setup
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@.venv/bin/shellcheck $(SHELL_SCRIPTS)
	@.venv/bin/hadolint docker/Dockerfile

format: setup
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

.PHONY: docs docs-serve
docs: setup
	@$(PY) -m mkdocs build --strict --quiet

docs-serve: docs
	@$(PY) -m mkdocs serve --dev-addr 127.0.0.1:8000

clean:
	rm -rf .venv .venv-bridge .venv-lmms runs site build dist *.egg-info
