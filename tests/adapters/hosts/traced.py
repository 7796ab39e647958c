"""Runs a command in a third-party checkout and writes down what was drawn and observed.

    python traced.py TRACE kcd run [options] SCRIPT ARGS...
    python traced.py TRACE patched SCRIPT ARGS...        (after `kcd patch`)
    python traced.py TRACE plain SCRIPT ARGS...          (the shims, but no KCD)

For tests alone: a fake CIFAR-100 passes torchvision's integrity check, random numbers are seeded, and
where there is no CUDA, ``.cuda()`` is the identity for hosts that hard-code it (FAKE_CUDA=1). With
SEED_PASSES=1 they are seeded before every pass as well, as no host that resumes does it; with KILL_IN=N the
process kills itself in the middle of its Nth pass.
"""

import os
import random
import runpy
import signal
import sys
from pathlib import Path

import numpy as np
import torch
import torchvision.datasets.cifar as cifar

from kcd_adapters.cli import main
from kcd_adapters.hosts import install, loader, run, shims
from kcd_adapters.profiles import find
from kcd_core.loading.keys import KeyBatches

PASSES = []  # of each: the loader's id, the keys drawn, what was observed


def trace():
    start, batches, record = loader.HostedLoader.start, KeyBatches.__iter__, loader.HostedLoader.record

    def traced_start(self, *args):
        PASSES.append({"keys": [], "observed": []})
        if "SEED_PASSES" in os.environ:
            seed(100 + install._INSTALLED[0].journal.epochs)
        return start(self, *args)

    def traced_batches(self):
        return noted(batches(self))

    def noted(drawn):
        for batch in drawn:
            PASSES[-1]["keys"].append(list(batch))
            yield batch

    def traced_record(self, one, indices, prediction, targets):
        logits = prediction.detach().double().cpu().numpy()
        PASSES[-1]["observed"].append((indices.tolist(), logits, targets.cpu().numpy()))
        if len(PASSES) == int(os.environ.get("KILL_IN", 0)) and len(PASSES[-1]["observed"]) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return record(self, one, indices, prediction, targets)

    loader.HostedLoader.start = traced_start
    KeyBatches.__iter__ = traced_batches
    loader.HostedLoader.record = traced_record


def identity(self, *args, **kwargs):
    return self


def fake_cuda():
    def is_available():
        return not sys._getframe(1).f_globals.get("__name__", "").startswith(("torch", "kcd"))

    to = torch.nn.Module.to
    torch.nn.Module.to = lambda self, *a, **k: (
        self if a and str(a[0]).startswith("cuda") else to(self, *a, **k)
    )
    torch.Tensor.cuda = torch.nn.Module.cuda = identity
    torch.cuda.is_available = is_available


def seed(number):
    torch.manual_seed(number)
    np.random.seed(number)  # noqa: NPY002 -- the hosts use it
    random.seed(number)


def seeded(path, run_name):
    seed(7)
    return ORIGINAL(path, run_name=run_name)


ORIGINAL = runpy.run_path
if __name__ == "__main__":
    target, mode, *rest = sys.argv[1:]
    torch.set_num_threads(1)
    cifar.CIFAR10._check_integrity = lambda self: True
    cifar.check_integrity = lambda *args: True
    if "FAKE_CUDA" in os.environ and not torch.cuda.is_available():
        fake_cuda()
    run.runpy.run_path = seeded
    status = 0
    if mode != "plain":
        trace()
    if mode == "kcd":
        status = main(rest)
    else:
        script = Path(rest[0]).resolve()
        if mode == "plain":
            shims.install(find(script).shims, (), lambda text: None)
        sys.argv, sys.path[0] = rest, str(script.parent)
        seeded(str(script), "__main__")
    if mode != "plain":
        with open(target, "wb") as file:
            np.save(file, np.array(PASSES, dtype=object), allow_pickle=True)
    sys.exit(status)
