"""Runs a command in a third-party checkout, and writes down what was drawn and what the script itself read.

    python started.py CASE.json TRACE kcd run [options] SCRIPT ARGS...

The reading knows nothing of kcd: it is the keys of every batch that a DataLoader gave, and, where one line of the
script's training function is about to run, the script's own variables. After as many epochs as the case says, the
process ends. What a script needs that is not here is bridged from outside: CUDA, downloads, packages that only draw or
log, and checkpoints, where a model keeps the weights it has.
"""

import importlib
import importlib.machinery
import io
import json
import linecache
import os
import pickle
import random
import re
import runpy
import sys
import types

import numpy as np
import torch
import torchvision.datasets.cifar as cifar
from torch.utils.data import dataloader

from kcd_adapters.cli import main

PASSES = []  # of each: how long its data set is, the indices of each batch, what was read after it
LAST = []  # the pass that gave the last batch
LOGGING = (
    "matplotlib.pyplot", "matplotlib.patches", "seaborn", "wandb", "tensorboard_logger", "torch.utils.tensorboard",
    "h5py", "visdom", "six",
)  # fmt: skip


def watch_loaders(case):
    base = dataloader._BaseDataLoaderIter
    begin, draw, give = base.__init__, base._next_index, base.__next__

    def traced_begin(self, loader):
        done = [one for one in PASSES if one["read"]]
        if len(done) >= case["epochs"] and len(loader.dataset) == done[-1]["size"]:
            sys.exit(0)
        self.traced = {"size": len(loader.dataset), "keys": [], "read": [], "fetched": []}
        PASSES.append(self.traced)
        begin(self, loader)

    def traced_draw(self):
        keys = draw(self)
        self.traced["fetched"].append([key[0] if isinstance(key, tuple) else int(key) for key in keys])
        return keys

    def traced_give(self):
        batch = give(self)
        self.traced["keys"].append(self.traced["fetched"].pop(0))
        LAST[:] = [self.traced]
        return batch

    base.__init__, base._next_index, base.__next__ = traced_begin, traced_draw, traced_give


def watch_line(case):
    """Read the script's variables whenever the line of its function is about to run."""
    file, function, pattern = case["at"]
    logits, labels = (compile(name, "<case>", "eval") for name in case["read"])

    def called(frame, event, arg):
        if frame.f_code.co_name == function and frame.f_code.co_filename.endswith(file):
            return stepped
        return None

    def stepped(frame, event, arg):
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and re.search(pattern, line):
            values = [eval(name, frame.f_globals, frame.f_locals) for name in (logits, labels)]
            if values[0].requires_grad and len(LAST[0]["read"]) < len(LAST[0]["keys"]):
                LAST[0]["read"].append((values[0].detach().double().numpy(), values[1].numpy()))
        return stepped

    return called


def without_cuda():
    """For code that asks for CUDA, all of it is on the CPU."""

    def is_available():
        return not sys._getframe(1).f_globals.get("__name__", "").startswith(("torch", "kcd"))

    def moved(original):
        def to(self, *args, **kwargs):
            args = [one for one in args if not str(one).startswith("cuda")]
            return original(self, *args, **kwargs) if args or kwargs else self

        return to

    def nothing(*args, **kwargs):
        return None

    class Stream:
        def __enter__(self):
            return self

        def __exit__(self, *raised):
            return False

        def wait_stream(self, other):
            pass

    torch.Tensor.to, torch.nn.Module.to = moved(torch.Tensor.to), moved(torch.nn.Module.to)
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    torch.nn.Module.cuda = lambda self, *args, **kwargs: self
    torch.cuda.is_available, torch.cuda.Stream = is_available, Stream
    torch.cuda.set_device = nothing
    torch.cuda.current_stream = lambda *args: Stream()
    torch.cuda.stream = lambda stream: stream


class Weights(dict):
    """A checkpoint that is not there: whatever it is asked for."""

    def __missing__(self, key):
        return Weights()


def without_checkpoints():
    load, load_state_dict = torch.load, torch.nn.Module.load_state_dict

    def loaded(path, *args, **kwargs):
        return load(path, map_location="cpu", weights_only=False) if os.path.exists(path) else Weights()

    def state_loaded(self, state, *args, **kwargs):
        return None if isinstance(state, Weights) else load_state_dict(self, state, *args, **kwargs)

    torch.load, torch.nn.Module.load_state_dict = loaded, state_loaded


class Anything:
    """Stands for whatever a package that only draws or logs has."""

    def __init__(self, *args, **kwargs):
        pass

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()

    __call__ = __getitem__ = lambda self, *args, **kwargs: Anything()


class Package(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything


def without_packages():
    for name in LOGGING:
        try:
            importlib.import_module(name)
        except ImportError:
            parts = name.split(".")
            for whole in (".".join(parts[:end]) for end in range(1, len(parts) + 1)):
                if whole not in sys.modules:
                    sys.modules[whole] = Package(whole)
                    sys.modules[whole].__path__ = []
                    sys.modules[whole].__spec__ = importlib.machinery.ModuleSpec(whole, None)


def without_a_terminal():
    popen = os.popen
    os.popen = lambda command, *args: io.StringIO("24 80") if "stty" in command else popen(command, *args)


def local_data(folder, size):
    start = cifar.CIFAR10.__init__

    def opened(self, root=None, train=True, transform=None, target_transform=None, download=False):
        start(self, folder, train, transform, target_transform)
        self.data, self.targets = self.data[:size], self.targets[:size]

    cifar.CIFAR10._check_integrity = lambda self: True
    cifar.check_integrity = lambda *args: True
    cifar.CIFAR10.__init__ = opened


def seeded(case):
    run_path = runpy.run_path

    def run(path, run_name):
        torch.manual_seed(7)
        np.random.seed(7)  # noqa: NPY002 -- the scripts use it
        random.seed(7)
        sys.settrace(watch_line(case))
        return run_path(path, run_name=run_name)

    return run


if __name__ == "__main__":
    description, trace, _, *arguments = sys.argv[1:]
    with open(description) as file:
        case = json.load(file)
    torch.set_num_threads(1)
    local_data(case["data"], case["size"])
    without_packages()
    without_a_terminal()
    without_checkpoints()
    if not torch.cuda.is_available():
        without_cuda()
    exec(case["repair"], {"sys": sys, "types": types, "torch": torch, "importlib": importlib})
    watch_loaders(case)
    runpy.run_path = seeded(case)
    try:
        status = main(arguments)
    finally:
        sys.settrace(None)
        with open(trace, "wb") as file:
            pickle.dump(PASSES, file)
    sys.exit(status)
