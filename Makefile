# metaseg: `make train` and `make test` set up all they need; `make help` lists the rest.
TORCH ?= current
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(TORCH)

.DEFAULT_GOAL := help
.PHONY: help install train test-fast test test-slow tables-smoke bench docs lint format lock clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14
	@echo
	@echo 'TORCH=current (default) or TORCH=v100 (torch 2.7.1 with CUDA 12.6, which has kernels for sm_70) picks the lock file.'

install: $(STAMP) ## make .venv from the pinned versions of requirements/$(TORCH).txt

$(STAMP): requirements/$(TORCH).txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("error: Python 3.10 or newer is needed, found %s; set PYTHON=" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements/$(TORCH).txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/.installed-*
	@touch $@

train: $(STAMP) ## the main job on synthetic twins of the datasets, three minutes on two cores
	$(BIN)/python train.py learner=imaml shots=5 pair=ph2_kvasir data=synthetic model=pretrained adapt.recipe=quick \
		trainer=cpu trainer.max_epochs=2 tasks.count=20 tasks.validation=2 tasks.query=10 \
		evaluation.draws=3 evaluation.limit=60 evaluation.curve_limit=60 evaluation.curve=[0,5,10,20]

test-fast: $(STAMP) ## the tests that train through no whole program
	$(BIN)/python -m pytest -m 'not slow and not gpu and not program'

test: $(STAMP) ## the default tests
	$(BIN)/python -m pytest

test-slow: $(STAMP) ## the slow tests as well
	$(BIN)/python -m pytest -m 'not gpu'

tables-smoke: $(STAMP) ## all tables of the paper end to end on synthetic twins at toy size, and their report
	$(BIN)/python train.py -m experiment=table1 scale=toy hydra.sweep.dir=runs/tables-smoke
	$(BIN)/python train.py -m experiment=tables scale=toy shots=5 seed=0 tasks.count=4 hydra.sweep.dir=runs/tables-smoke
	$(BIN)/python -m metaseg.reporting runs/tables-smoke

bench: $(STAMP) ## outer steps beside those of other libraries (installs these), some ten minutes
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements/benchmarks.txt
	$(BIN)/python -m benchmarks outer_step

docs: $(STAMP) ## the documentation into site/ (installs what builds it); broken links are errors
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements/docs.txt
	$(BIN)/mkdocs build --strict

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## let ruff format and fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: ## resolve the lock files anew (needs uv and Python 3.11)
	uv pip compile --universal --python-version 3.10 --extra dev --upgrade pyproject.toml \
		--custom-compile-command 'make lock' -o requirements/current.txt
	uv pip compile --universal --python-version 3.10 --extra dev --upgrade --constraint requirements/v100.in pyproject.toml \
		--custom-compile-command 'make lock' -o requirements/v100.txt
	python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' \
		| uv pip compile --universal --python-version 3.10 --upgrade --constraint requirements/current.txt \
		--custom-compile-command 'make lock' -o requirements/docs.txt -

clean: ## remove .venv, site and caches, never runs or data
	rm -rf $(VENV) site .pytest_cache .ruff_cache .mypy_cache *.egg-info
