# metaseg: `make train` and `make test` set up all they need; `make help` lists the rest.
TORCH ?= current
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One stamp for each set that is installed: asking for more installs it, asking for less finds it there.
STAMP := $(VENV)/.installed-$(TORCH)$(addprefix -,$(ALSO))

COMPILE := uv pip compile --universal --python-version 3.10 --upgrade --custom-compile-command 'make lock'
EXTRAS := python3 -c 'import sys, tomllib; \
	extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
	print(*(one for name in sys.argv[1:] for one in extras[name]), sep="\n")'
WORKERS ?= auto
# Tests start many processes: without bytecode each compiles the program again.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help install train test-fast test test-slow slurm tables-smoke bench docs lint format lock clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14
	@echo
	@echo 'TORCH=current (default) or TORCH=v100 (torch 2.7.1 with CUDA 12.6, which has kernels for sm_70) picks the lock file.'

install: $(STAMP) ## make .venv from the pinned versions of requirements/$(TORCH).txt; ALSO=tests for all that tests can use

$(STAMP): $(patsubst %,requirements/%.txt,$(TORCH) $(ALSO)) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("error: Python 3.10 or newer is needed, found %s; set PYTHON=" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(patsubst %,--requirement requirements/%.txt,$(TORCH) $(ALSO))
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/.installed-*
	@touch $(VENV)/.installed-$(TORCH) $@

train: $(STAMP) ## the main job on synthetic twins of the datasets, three minutes on two cores
	$(BIN)/python train.py learner=imaml shots=5 pair=ph2_kvasir data=synthetic model=pretrained adapt.recipe=quick \
		trainer=cpu trainer.max_epochs=1 starts.epochs=2 starts.shots=5 starts.query=10 tasks.count=20 tasks.validation=2 tasks.query=10 \
		evaluation.draws=3 evaluation.limit=60 evaluation.curve_limit=60 evaluation.curve=[0,5,10,20]

test-fast: $(STAMP) ## the tests that start no program, a minute and a half on two cores
	$(PYTEST) -m 'not slow and not gpu and not long'

test: $(STAMP) ## the default tests, six to twelve minutes on two cores
	$(PYTEST)

test-slow: $(STAMP) ## all tests but those on a GPU
	$(PYTEST) -m 'not gpu'

slurm: $(STAMP) ## the tests on a Slurm cluster that is started on this machine for them (Debian, as root), some minutes
	$(BIN)/pip install --quiet --disable-pip-version-check submitit==1.5.4
	scripts/slurm_here.sh start $(CURDIR)/$(VENV)/slurm
	$(BIN)/python -m pytest tests/sweeps/test_slurm.py -m slow; status=$$?; \
		scripts/slurm_here.sh stop $(CURDIR)/$(VENV)/slurm; exit $$status

tables-smoke: $(STAMP) ## all tables of the paper end to end on synthetic twins at toy size, and their report
	$(BIN)/python train.py -m experiment=table1 scale=toy hydra.sweep.dir=runs/tables-smoke
	$(BIN)/python train.py -m experiment=tables scale=toy shots=5 seed=0 tasks.count=4 hydra.sweep.dir=runs/tables-smoke
	$(BIN)/metaseg report runs/tables-smoke

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

lock: ## resolve the lock files again (needs uv and Python 3.11)
	$(COMPILE) --extra dev --constraint requirements/current.in pyproject.toml -o requirements/current.txt
	$(COMPILE) --extra dev --constraint requirements/current.in --constraint requirements/v100.in pyproject.toml \
		-o requirements/v100.txt
	$(EXTRAS) docs | $(COMPILE) --constraint requirements/current.txt -o requirements/docs.txt -
	$(EXTRAS) app benchmarks browser cluster dashboard docs | $(COMPILE) --constraint requirements/current.txt \
		--constraint requirements/docs.txt --constraint requirements/benchmarks.txt -o requirements/tests.txt -

clean: ## remove .venv, site and caches, never runs or data
	rm -rf $(VENV) site .pytest_cache .ruff_cache .mypy_cache *.egg-info
