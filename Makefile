# Everything runs in the virtual environment .venv; PYTHON says which interpreter makes it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

# The root links guides and models are the package's own folders: tools get these paths, never the root.
CODE := pyrostoch $(wildcard tests examples docs)

# The other libraries of `make peers` live apart: nothing else needs them, and their pins are their own.
PEERS     := .venv-peers
PEERS_PIP := $(PEERS)/bin/python -m pip install --disable-pip-version-check -c constraints.txt

# Flower has pins of its own that pyproject.toml contradicts: constraints-federated.txt says which.
FEDERATED     := .venv-federated
FEDERATED_PIP := $(FEDERATED)/bin/python -m pip install --disable-pip-version-check -c constraints-federated.txt

# The lowest versions that pyproject.toml allows live apart, too.
LOWEST := .venv-lowest

# make test PYTEST_ARGS="tests/test_architecture.py -x"; COVER=90 measures coverage and fails below that percentage.
PYTEST_ARGS ?=
COVER       ?=
COVER_ARGS   = $(if $(COVER),--cov=pyrostoch --cov-report=term --cov-fail-under=$(COVER))
# Several processes share the tests, one a core; WORKERS=0 runs them in this one, for a debugger or -x.
WORKERS     ?= auto
WORKER_ARGS  = $(if $(filter-out 0,$(WORKERS)),-n $(WORKERS) --maxprocesses 4 --dist worksteal)
# Every test starts from this seed, and holds under any other.
SEED        ?= 0
DEMO_ARGS   ?=
ZOO_ARGS    ?=
FUZZ        ?= 2000
KILLS       ?= 20
DIST        ?= dist

# The tests' tensors are small: one thread is faster than many, and as repeatable.
TEST_THREADS ?= 1

MAKEFLAGS += --no-builtin-rules
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help venv demo test cells zoo fuzz lowest docs lint cov wheel peers federated clean distclean

help:  ## print this list
	@echo "usage: make TARGET [PYTHON=python3.12]"
	@awk 'BEGIN { FS = ":.*## " } /^[a-z]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' Makefile

venv: $(VENV)/.runtime  ## make .venv and install pyrostoch in it (editable)

demo: $(VENV)/.runtime  ## train the five guides on the bundled digits, print the table, write runs/
	$(BIN)/pyrostoch compare --data digits $(DEMO_ARGS)

test: $(VENV)/.test  ## run the test suite (PYTEST_ARGS=..., COVER=90, SEED=3)
	PYROSTOCH_TEST_SEED=$(SEED) OMP_NUM_THREADS=$(TEST_THREADS) MKL_NUM_THREADS=$(TEST_THREADS) $(BIN)/python -m pytest $(WORKER_ARGS) $(COVER_ARGS) $(PYTEST_ARGS)

cells: $(VENV)/.test  ## build, draw and differentiate every stochastic layer in every embodiment, write their table
	OMP_NUM_THREADS=1 $(BIN)/python tests/cells.py

zoo: $(VENV)/.test  ## measure every treatment on the networks of tests/zoo, write their table (ZOO_ARGS=--draws=500)
	$(PIP) -e ".[zoo]"
	PYTHONPATH=tests $(BIN)/python -m zoo.table $(ZOO_ARGS)

fuzz: $(VENV)/.test  ## damage checkpoints and kill runs, many times (FUZZ=2000 mutations, KILLS=20 in each setting)
	PYROSTOCH_TEST_SEED=$(SEED) PYROSTOCH_FUZZ=$(FUZZ) PYROSTOCH_KILLS=$(KILLS) OMP_NUM_THREADS=$(TEST_THREADS) $(BIN)/python -m pytest -s tests/test_checkpoint_fuzz.py tests/test_kill_resume.py

# Old releases warn about their own dependencies, so that warnings are no errors here.
lowest: $(LOWEST)/.ready  ## run the test suite with the lowest version of each dependency (torch keeps its pin)
	PYROSTOCH_TEST_SEED=$(SEED) OMP_NUM_THREADS=$(TEST_THREADS) $(LOWEST)/bin/python -m pytest -p no:cacheprovider -o filterwarnings= $(WORKER_ARGS) tests $(PYTEST_ARGS)

docs: $(VENV)/.docs  ## build the site into docs/_build/html, with warnings as errors
	OMP_NUM_THREADS=$(TEST_THREADS) $(BIN)/python -m sphinx -W --keep-going -q -j auto docs docs/_build/html

cov:  ## run the test suite and fail below 90 % coverage
	@$(MAKE) --no-print-directory test COVER=90

lint: $(VENV)/.test  ## ruff check, ruff format --check, mypy
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy -p pyrostoch

wheel: $(VENV)/.test  ## build the wheel into dist/ (DIST=...)
	rm -rf build
	$(BIN)/python -m build --wheel --no-isolation --outdir "$(DIST)"
	rm -rf build

peers: $(PEERS)/.ready  ## make .venv-peers with the libraries that `pyrostoch bench speed` compares with

federated: $(FEDERATED)/.ready  ## make .venv-federated with Flower and run the tests that need it (PYTEST_ARGS=...)
	PYROSTOCH_TEST_SEED=$(SEED) OMP_NUM_THREADS=$(TEST_THREADS) $(FEDERATED)/bin/python -m pytest tests/test_federated.py tests/test_federated_rounds.py tests/test_federated_flower.py tests/test_federated_processes.py $(PYTEST_ARGS)

clean:  ## remove builds and caches (keeps .venv and runs/)
	rm -rf build dist docs/_build docs/gallery docs/sg_execution_times.rst htmlcov .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache *.egg-info
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## clean, and remove .venv, .venv-lowest, .venv-peers and .venv-federated
	rm -rf $(VENV) $(LOWEST) $(PEERS) $(FEDERATED)

# The stamps: an interpreter, then the runtime, then the test tools. Only a change of the two files installs anew.
$(VENV)/.created:
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { \
	  echo "error: no interpreter '$(PYTHON)' found; install Python 3.11 or later, or say make PYTHON=/path/to/python" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: pyrostoch needs Python 3.11 or later, but '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1); say make PYTHON=python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: '$(PYTHON)' cannot make virtual environments; install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	@touch $@

$(VENV)/.runtime: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP) -e .
	@touch $@

$(VENV)/.test: $(VENV)/.runtime
	$(PIP) -e ".[test]"
	@touch $@

$(VENV)/.docs: $(VENV)/.runtime
	$(PIP) -e ".[docs]"
	@touch $@

# bayesian-torch and TyXe would pull torchvision, whose wheels do not fit a CPU build of torch.
$(PEERS)/.ready: constraints.txt
	"$(PYTHON)" -m venv $(PEERS)
	$(PEERS_PIP) torch pyro-ppl torchbnn==1.2 numpyro==0.22.0 "jax[cpu]==0.10.2"
	$(PEERS_PIP) --no-deps bayesian-torch==0.5.0 tyxe==0.0.2
	@touch $@

$(FEDERATED)/.ready: constraints-federated.txt
	"$(PYTHON)" -m venv $(FEDERATED)
	$(FEDERATED_PIP) arviz filelock flwr h5netcdf h5py matplotlib numpy pyro-ppl pytest rich safetensors torch tqdm typer
	$(FEDERATED_PIP) --no-deps -e .
	@touch $@

$(LOWEST)/.ready: pyproject.toml constraints.txt tests/lowest.py
	"$(PYTHON)" -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python tests/lowest.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --disable-pip-version-check -c $(LOWEST)/constraints.txt -e . mpmath pillow pytest pytest-xdist scikit-learn scipy
	@touch $@
