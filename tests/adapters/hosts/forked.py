"""Runs the authors' own code (the KCD fork) and writes down what it recorded and decided at every stage.

    python forked.py RECORD VERSION super_train_student.py ARGS...

Observed from outside: the script runs as it is, and what its data set holds is copied before and after each
selection. VERSION is v1, v2 or v3; the fork's command line reaches v2 and v3 alone, so v1 is called in the
place of v2. For tests alone, as ``traced.py`` is.
"""

import random
import runpy
import sys
from pathlib import Path

import numpy as np
import torch
import torchvision.datasets.cifar as cifar

from kcd_adapters.hosts import shims

STAGES = []


def observe(dataset, version):
    select = getattr(dataset, f"update_dataset_mul_entropy_{version.upper()}")

    def observed(self):
        previous = len(self.remain)
        select(self)
        STAGES.append(
            {
                "record": self.entropy_record.copy(),
                "ranked": self.remain.copy(),
                "previous": previous,
                "dropped": None if self.lost is None else self.lost.copy(),
                "tail": None if self.mix_remain is None else self.mix_remain.copy(),
                "images": self.mix_up_data.numpy().copy(),
            }
        )

    setattr(dataset, f"update_dataset_mul_entropy_{'V3' if version == 'v3' else 'V2'}", observed)


if __name__ == "__main__":
    target, version, *command = sys.argv[1:]
    torch.set_num_threads(1)
    cifar.CIFAR10._check_integrity = lambda self: True
    cifar.check_integrity = lambda *args: True
    shims.install(("tensorboard_logger",), (), lambda text: None)
    sys.argv, sys.path[0] = command, str(Path(command[0]).resolve().parent)
    from dataset.cifar100 import SuperCIFAR100Instance

    observe(SuperCIFAR100Instance, version)
    # As traced.py does, at the same moment: before the script's first line.
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002 -- the script uses it
    random.seed(7)
    try:
        runpy.run_path(str(Path(command[0]).resolve()), run_name="__main__")
    except ValueError:  # without mixing, it has nothing to save at the very end, and fails
        if version == "v3":
            raise
    with open(target, "wb") as file:
        np.save(file, np.array(STAGES, dtype=object), allow_pickle=True)
