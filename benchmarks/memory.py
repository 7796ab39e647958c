"""What a run holds and takes at its peak, in bytes a sample of the whole process.

    python benchmarks/memory.py [--quick] [--out DIR] [--samples N]

Every sample is recorded before each of two stages, and the figures of the second are shown, in which an earlier set is
in force, too. The state is saved, and loaded in a new process. Figures are resident memory beyond that of the process
after a small run of the same kind, so torch and the interpreter are not among them; peaks are Linux's (VmHWM), started
anew before each step. *Held after loading* is without the state that was loaded, *peak of loading* with it. The
data set takes no memory. One thread.
"""

from __future__ import annotations

import gc
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common.memory import resident, restart_peak
from _common.progress import Progress
from _common.report import Report, bounded, named, parser
from torch.utils.data import DataLoader, Dataset

import kcd_core as kcd
from kcd_core.algorithms.ranks import blocks
from kcd_core.base.arrays import to_numpy
from kcd_core.sums import SCALE

SCHEDULE = kcd.CondensationSchedule(ratio=0.7, stages=6, period=1)
SAMPLES = 3e7
#: What `wrap_loader` is given.
KINDS: dict[str, dict[str, Any]] = {
    "default, without mixing": {"mixing": None},
    "default, values on device='cpu', without mixing": {"mixing": None, "device": "cpu"},
    "default, with mixing": {},
    "sharded, without mixing": {"mixing": None, "sharded": True},
    "sharded, with mixing": {"sharded": True},
}


class Images(Dataset[Any]):
    """One image under every index."""

    def __init__(self, samples: int) -> None:
        self.data: Any = np.broadcast_to(np.arange(4, dtype=np.uint8).reshape(1, 2, 2), (samples, 2, 2))

    def __getitem__(self, index: int) -> Any:
        return self.data[index]

    def __len__(self) -> int:
        return len(self.data)


def wrapped(kind: str, samples: int) -> kcd.CondensedLoader:
    loader: Any = DataLoader(Images(samples), batch_size=128, shuffle=True)
    return kcd.wrap_loader(loader, schedule=SCHEDULE, **KINDS[kind])


def record(loader: kcd.CondensedLoader, samples: int) -> None:
    """As after an epoch more; but for one sample, filled in place, which is faster."""
    loader.tracker.record([0], [1.0])
    sums, rng = loader.tracker.recordings.sums, np.random.default_rng(loader.epoch)
    total, count = to_numpy(sums.total), to_numpy(sums.count)
    for block in blocks(samples):
        total[block] += rng.integers(0, int(4.6 * SCALE), len(total[block]))
        count[block] += 1
    loader.tracker.skipped  # noqa: B018  (adds what waits)


class Figures:
    """What is held beyond the baseline, and what was the peak of a step."""

    def __init__(self) -> None:
        gc.collect()
        self.base = resident("VmRSS")
        self.bytes: dict[str, int] = {}

    def held(self, what: str) -> None:
        gc.collect()
        self.bytes[what] = resident("VmRSS") - self.base
        restart_peak()

    def peak(self, what: str) -> None:
        self.bytes[what] = resident("VmHWM") - self.base


def made(kind: str, samples: int, path: Path) -> dict[str, int]:
    """A run of two stages, which is saved."""
    figures = Figures()
    loader = wrapped(kind, samples)
    for _ in range(2):
        record(loader, samples)
        figures.held("held after recording")
        loader.end_epoch()
        figures.peak("peak of a stage")
        figures.held("held after it")
    kcd.save_checkpoint(path, loader.state_dict())
    figures.peak("peak of saving")
    return figures.bytes


def loaded(kind: str, samples: int, path: Path) -> dict[str, int]:
    """The run that was saved, in a new process."""
    figures = Figures()
    loader = wrapped(kind, samples)
    restart_peak()
    state = kcd.load_checkpoint(path)
    loader.load_state_dict(state)
    figures.peak("peak of loading")
    del state
    figures.held("held after loading")
    return figures.bytes


def warm(kind: str, folder: Path) -> None:
    """Let whatever is imported or allocated once be there."""
    torch.set_num_threads(1)
    path = folder / "small"
    made(kind, 1000, path)
    loaded(kind, 1000, path)


def in_new_processes(kind: str, samples: int, progress: Progress) -> dict[str, float]:
    """Bytes a sample."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for step, what in ((made, "a run of two stages"), (loaded, "the run loaded")):
            progress.begin(f"{kind}: {what}")
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as one:
                one.submit(warm, kind, folder).result()
                found = one.submit(step, kind, samples, folder / "state").result()
            figures.update({what: number / samples for what, number in found.items()})
    return figures


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--samples", type=float, default=SAMPLES, metavar="N", help="of the data set")
    args = options.parse_args()
    bounded(options, args, samples=10**5)
    samples = 10**6 if args.quick else int(args.samples)
    report = Report(
        named("memory", options, args, "quick", "samples"),
        f"Bytes a sample, N = {samples:,}. A ratio is the peak of loading / what is held after it.",
    )
    for kind in KINDS:
        figures = in_new_processes(kind, samples, report.progress)
        loading = figures["peak of loading"] / figures["held after loading"]
        for what, number in figures.items():
            target: dict[str, Any] = {}
            if what == "peak of a stage" and "without" in kind:
                target = {"ratio": number, "at_most": 32, "exact": True}
            if what == "peak of loading":
                target = {"ratio": loading, "at_most": 2, "exact": True}
            report.add(f"{kind}: {what}", f"{number:.3g}", **target)
    report.write(args.out)


if __name__ == "__main__":
    main()
