# Two commands set everything up: `make run` and `make test`. Python >= 3.11 is all they need.
PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python

.PHONY: run test setup clean

run: $(VENV)/.core
	$(PY) run.py experiments/base.yaml

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

setup: $(VENV)/.dev

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "slm needs Python >= 3.11, $(PYTHON) is $$($(PYTHON) --version); try make PYTHON=python3.12 run"; exit 2; }
	$(PYTHON) -m venv $(VENV)

INSTALL := $(PY) -m pip install --disable-pip-version-check -q -c constraints.txt

$(VENV)/.core: pyproject.toml constraints.txt | $(PY)
	$(INSTALL) torch
	$(INSTALL) -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(PY)
	$(INSTALL) torch
	$(INSTALL) -e '.[dev]'
	@touch $(VENV)/.core $@

clean:
	rm -rf $(VENV) build *.egg-info
