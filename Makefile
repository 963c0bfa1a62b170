# README commands. Needs Python 3.11 or newer and git; everything else goes into .venv.
PYTHON ?= python3
PY := .venv/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: train install install-test test test-quick test-long test-oldest faults lint figures docs bench bench-checkpoint bench-sweep clean

train: .venv/installed ## Train DQN without a learning rate on CartPole; what is handed over is well tested
	$(PY) -m alrao_rl.train --algo dqn --env CartPole-v1 --eval-budget 10

install: .venv/installed ## Set up .venv

install-test: .venv/installed-test

test: .venv/installed-test lint ## Lint, types, fast and slow tests
	$(PY) -m pytest -n 2

test-quick: .venv/installed-test ## What is not slow, in under two minutes on two cores
	$(PY) -m pytest -q -n 2 -m 'not slow and not long and not faults'

test-long: .venv/installed-test ## Tests of minutes each
	$(PY) -m pytest -n 2 --dist worksteal -rP -m long

test-oldest: .venv/installed-test ## The quick suite with the oldest releases that pyproject.toml allows, in a virtual environment of its own
	$(PY) -m pytest -q -rP -m long tests/test_oldest.py

faults: .venv/installed-test ## Every fault at full size, up to 90 minutes on two cores; given again it goes on
	$(PY) -m pytest -q -n 2 --dist worksteal -m faults tests/faults; status=$$?; $(PY) tests/faults/table.py; exit $$status

lint: .venv/installed-test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

figures: .venv/installed-test ## Remake the figures and tables of this page from the runs in results/
	$(PY) results/defaults/report.py
	$(PY) -m alrao_rl.report results/first-sweep --out results/first-sweep
	$(PY) results/first-sweep/summary.py

docs: .venv/installed-test ## Build the site into build/site; every link on it is checked
	$(PY) -m sphinx -q -W --keep-going -b html -c docs . build/site

bench: .venv/installed-test ## Training time against stock SB3, half an hour
	$(PY) benchmarks/speed.py

bench-checkpoint: .venv/installed-test ## Time and bytes of checkpoints, minutes and 12 GB of disk
	$(PY) benchmarks/checkpoint.py

bench-sweep: .venv/installed ## Time of a sweep on one core, two, and against rl-baselines3-zoo, some 30 to 90 minutes; given again it goes on
	$(PY) benchmarks/sweep.py

# torch first and alone: with it in place nothing pulls another build of it.
.venv/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit(f"Python {v[0]}.{v[1]} found, expected 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt hatch_build.py alrao_rl/fast/kernels.c
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) --editable .
	@touch $@

.venv/installed-test: .venv/installed
	$(PIP) --editable '.[test]'
	@touch $@

clean:
	rm -rf .venv dist build .pytest_cache .mypy_cache .ruff_cache
