"""A student whose every step is read a second time: by index, in float64, beside whatever a trainer does."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers import SECONDS
from reference import condense, entropy
from torch.utils.data import Dataset

from kcd_core import CondensationSchedule

CLASSES = 5
WIDTH = 8


class Samples(Dataset):  # type: ignore[type-arg]
    """(x, label) pairs, or dicts of them; the first feature says which sample it is, exactly."""

    def __init__(self, n: int = 203, *, dicts: bool = False, keys: tuple[str, str] = ("x", "labels")) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(n, WIDTH, generator=generator)
        self.x[:, 0] = torch.arange(n) / 256  # exact in float32, bfloat16 up to 256 samples too
        self.labels = torch.randint(0, CLASSES, (n,), generator=generator)
        self.dicts, self.keys = dicts, keys

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        pair = self.x[index].clone(), int(self.labels[index])
        return dict(zip(self.keys, pair, strict=True)) if self.dicts else pair


def which(x: torch.Tensor) -> list[int]:
    """The indices of the samples in a batch of `Samples`."""
    return (x[:, 0].double() * 256).round().long().tolist()


class Student(torch.nn.Module):
    """Classifies `Samples`, and keeps a reading of its own of all it says in training: (index, entropy), by epoch."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layer = torch.nn.Linear(WIDTH - 1, CLASSES)
        self.read: list[list[tuple[int, float]]] = [[]]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layer(x[:, 1:])
        if self.training and torch.is_grad_enabled():
            self.read[-1] += zip(which(x), map(entropy, logits.detach().double().tolist()), strict=True)
        return logits

    def new_epoch(self) -> None:
        """What is read from now on is of the next epoch."""
        self.read.append([])


def summed(read: list[tuple[int, float]], n: int) -> tuple[np.ndarray, np.ndarray]:
    """V and F of everything that was read: float64 [n], NaN where nothing was, and int64 [n]."""
    values: list[list[float]] = [[] for _ in range(n)]
    for index, value in read:
        values[index].append(value)
    mean = [math.fsum(one) / len(one) if one else math.nan for one in values]
    return np.array(mean), np.array([len(one) for one in values])


def expected_sets(epochs: list[list[tuple[int, float]]], n: int, schedule: Any) -> list[np.ndarray]:
    """The set that the reference keeps after each of the epochs at which a stage ends, ascending.

    ``epochs`` holds what was read in each, duplicates that only pad left out.
    """
    sets, size, read = [], n, []
    for epoch, one in enumerate(epochs, 1):
        read += one
        if schedule.due(epoch):
            value, count = summed(read, n)
            target = schedule.target(n, size)
            sets.append(np.sort(condense(value, count, previous=size, target=target).kept))
            size = target
    return sets


def check_asked(
    ranks: list[list[list[tuple[list[tuple[int, float]], list[int]]]]], n: int, schedule: Any, ask: float
) -> None:
    """The rows asked are those of a batch's samples that rank high by all that was read on all ranks in the epochs before.

    ``ranks`` holds, for each rank and epoch, its batches: the (index, entropy) of each row, -1 where one only pads, and the
    rows asked. Nothing is mixed.
    """
    every = CondensationSchedule(ask, stages=1, period=1)
    read = [
        [pair for rank in ranks for batch, _ in rank[epoch] for pair in batch if pair[0] >= 0]
        for epoch in range(len(ranks[0]))
    ]
    drawn, asked = set(range(n)), set(range(n))
    gates, sets = (
        expected_sets(read, n, every),
        iter(() if schedule is None else expected_sets(read, n, schedule)),
    )
    for epoch, gate in enumerate(gates):
        assert {index for index, _ in read[epoch]} == drawn
        for rank in ranks:
            for batch, rows in rank[epoch]:
                assert rows == [row for row, (index, _) in enumerate(batch) if index in asked]
        asked = set(gate.tolist())
        if schedule is not None and schedule.due(epoch + 1):
            drawn = set(next(sets).tolist())


def on_ranks(work: Callable[..., Any], folder: Path, *args: Any, world: int = 2) -> list[Any]:
    """What ``work(folder, *args)`` returns on each of ``world`` ranks: processes that find each other as torchrun's do.

    ``work`` is a function of a module. No process is left behind.
    """
    # As torchrun's agent does, it keeps the ranks' store: no other process can take the port before they do.
    store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    processes = torch.multiprocessing.start_processes(  # type: ignore[no-untyped-call]
        _rank, (work, world, store.port, folder, *args), nprocs=world, join=False, start_method="spawn"
    )
    deadline = time.monotonic() + 2 * SECONDS
    try:
        while not processes.join(timeout=1):  # raises what a rank raised
            assert time.monotonic() < deadline, "the ranks hang"
    finally:
        for process in processes.processes:
            process.kill()
            process.join()
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(world)]


def _rank(rank: int, work: Callable[..., Any], world: int, port: int, folder: Path, *args: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        {
            "RANK": f"{rank}",
            "LOCAL_RANK": f"{rank}",
            "WORLD_SIZE": f"{world}",
            "LOCAL_WORLD_SIZE": f"{world}",
        },
        MASTER_ADDR="localhost",
        MASTER_PORT=f"{port}",
        TORCHELASTIC_USE_AGENT_STORE="True",
        TORCHELASTIC_RESTART_COUNT="0",
    )
    result = work(folder, *args)
    torch.save(result, folder / f"unfinished{rank}")
    (folder / f"unfinished{rank}").rename(folder / f"rank{rank}.pt")
    while len(list(folder.glob("rank?.pt"))) < world:  # none leaves the others in a collective
        time.sleep(0.02)
    os._exit(0)
