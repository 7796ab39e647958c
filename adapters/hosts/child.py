"""What a process spawned under ``kcd run`` imports instead of the main script."""

from importlib import import_module

# By its full name: this file is run from its path, outside any package.
# It keeps its own path, by which processes forked from this one (forkserver, the default from Python 3.14 on) see
# that they have the script already.
globals().update(import_module("kcd_adapters.hosts.run").run_in_child() | {"__file__": __file__})
