"""What a process spawned under ``kcd run`` imports in the place of the main script."""

from importlib import import_module

# By its full name: this file is run from its path, outside any package.
globals().update(import_module("kcd_adapters.run").run_in_child())
