# Two commands for a newcomer: `make demo` and `make test`. Each makes the environment it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint check bench study paper-table dist clean

demo: $(VENV)/.done
	$(BIN)/kcd demo

test: $(VENV)/.done
	$(BIN)/python -m pytest

lint: $(VENV)/.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy kcd_core adapters

check: lint test dist

bench: $(VENV)/.done
	$(BIN)/python benchmarks/selection.py
	$(BIN)/python benchmarks/recording.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/streams.py
	$(BIN)/python benchmarks/scale.py

# About an hour on two cores; goes on where it was interrupted.
study: $(VENV)/.done
	$(BIN)/python benchmarks/study.py

# A GPU, CIFAR-100, teachers and two checkouts: `make paper-table ARGS='--help'`; to try it, ARGS='--smoke DIR'.
paper-table: $(VENV)/.done
	$(BIN)/python -m pip install --quiet -c constraints.txt torchvision tensorboardX
	$(BIN)/python benchmarks/paper_table.py $(ARGS)

# Builds both archives, installs each into an empty folder, and imports from there.
dist: $(VENV)/.done
	rm -rf build dist && $(BIN)/python -m build --outdir dist
	set -e; for archive in dist/*.whl dist/*.tar.gz; do \
		$(BIN)/python -m pip install --quiet --no-deps --target build/installed $$archive; \
		(cd build && PYTHONPATH=installed ../$(BIN)/python -c 'import kcd_core, kcd_adapters.cli as c; \
			assert "installed" in kcd_core.__file__ and "installed" in c.__file__; c.main(["--version"])'); \
		rm -rf build/installed; \
	done

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The stamp is written last: an installation that was interrupted is done again.
$(VENV)/.done: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "kcd needs Python 3.10 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@
