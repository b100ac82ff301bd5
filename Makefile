# Two commands matter: `make bench` measures this machine, `make test` passes the tests. Each sets up what it needs.
PYTHON ?= python3
BIN := .venv/bin
# bench writes into out/ (not tracked), under a new name each time: a run file is never overwritten
RUN := out/$(shell date -u +%Y%m%dT%H%M%SZ)

.PHONY: bench test gpu-test lint gate clean

bench: .venv/.installed
	$(BIN)/powerbench sweep --p 2 -o $(RUN).jsonl
	$(BIN)/powerbench report $(RUN).jsonl -o $(RUN).html

# One thread each: the tests share the cores, and the threads of their sweeps would wait for each other.
test: .venv/.installed-dev chromium
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

# On a machine with a GPU: its tests, compiling in parallel; those that judge times run alone, after the others.
gpu-test: .venv/.installed-dev
	$(BIN)/python -m tools.gpu_tests

# PyTorch kernels of this tree against the merge base, or against the last commit where there is none. On a busy machine
# nothing is sure, and that is no failure. One thread: docs/gate.md says why.
gate: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/powerbench check --against "$$(git merge-base origin/main HEAD 2>/dev/null || git rev-parse HEAD)" \
	  --device cpu --kernels power-torch,sdpa-cpu --rounds 1 --allow-inconclusive 1000 --junit out/gate.xml

lint: .venv/.installed-dev
	$(BIN)/pre-commit run --all-files

clean:
	rm -rf .venv out build dist *.egg-info

.venv/bin/python:
	$(PYTHON) -c 'import sys; v = "%d.%d" % sys.version_info[:2]; sys.exit(0 if sys.version_info >= (3, 11) else "powerbench needs Python 3.11 or later, %s is Python %s; set PYTHON=" % (sys.executable, v))'
	$(PYTHON) -m venv .venv

.venv/.installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

.venv/.installed-dev: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

# The page is tested in a real browser. Where apt-get cannot install one (no Debian, not root), those tests are skipped.
.PHONY: chromium
chromium:
	@command -v chromium >/dev/null || if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  apt-get update -q >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -qy chromium >/dev/null; \
	else echo 'no chromium here: the tests of the page in a browser will be skipped'; fi
