"""One run of the published table, in a process of its own: ``kcd run`` with the random numbers seeded.

    python benchmarks/_paper/host.py --seed S [--smoke] run [kcd's options] SCRIPT ARGS...

Run by paper_table.py. RepDistiller has no option for a seed, so it is seeded here, before its script starts. With
``--smoke``, data that are not CIFAR-100 pass torchvision's checksums; and where there is no CUDA, ``.cuda()`` does
nothing, since SSKD calls it always.
"""

from __future__ import annotations

import argparse
import random
import sys
from typing import Any

import numpy as np
import torch

from kcd_adapters.cli import main


def take_any_data() -> None:
    from torchvision.datasets import cifar

    cifar.CIFAR10._check_integrity = lambda dataset: True
    cifar.check_integrity = lambda *arguments: True


def do_without_cuda() -> None:
    def here(moved: Any, *args: Any, **kwargs: Any) -> Any:
        return moved

    torch.Tensor.cuda = torch.nn.Module.cuda = here  # type: ignore[assignment,method-assign]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, required=True, help="of all random numbers")
    parser.add_argument("--smoke", action="store_true", help="take any data, and do without CUDA")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="kcd's")
    args = parser.parse_args()
    if args.smoke:
        take_any_data()
        if not torch.cuda.is_available():
            do_without_cuda()
    torch.manual_seed(args.seed)
    np.random.seed(args.seed)  # noqa: NPY002 -- the hosts use it
    random.seed(args.seed)
    sys.exit(main(args.command))
