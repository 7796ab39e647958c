"""What ranks say to each other in an epoch: one reduction a stage, beside one gather a step.

    python benchmarks/communication.py [--quick] [--out DIR]

Real processes over gloo on one machine, one thread each. *kcd* is all that `condense_step` communicates at
the end of a stage (settings compared, problems told, V and F summed), divided by the 40 epochs of a stage in
the paper; in between it communicates nothing. The *reference* is what pruning by fresh scores needs: at every
step, one all_gather of the batch's indices and losses in float32, as InfoBatch does. The global batch is the
usual one, split over the ranks. Bytes are those that a rank sends when messages go round a ring: 2 (R - 1) / R
of what is reduced, R - 1 times what is gathered. Milliseconds are of the slowest rank, in the best of several
rounds; their ratio is the median of the rounds' own, with an interval of 95 % at least. Where ranks outnumber cores, waiting for the processor is most of it.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common.report import Report, duration, named, parser
from _common.timing import of_turns
from torch import distributed as dist

import kcd_core as kcd
from kcd_core.base import distributed

PERIOD, MOST = 40, 800
DATA = {"CIFAR-100": (50_000, 64), "ImageNet": (1_281_167, 256)}  # samples, global batch


class Counted:
    """kcd's one gate to torch.distributed, with a meter: bytes handed over, seconds."""

    def __init__(self) -> None:
        self.bytes, self.seconds = 0, 0.0
        self._communicate = distributed.communicate
        distributed.communicate = self

    def __call__(self, dist: Any, x: Any, *how: Any) -> Any:
        began = time.perf_counter()
        result = self._communicate(dist, x, *how)
        self.seconds += time.perf_counter() - began
        self.bytes += x.nbytes
        return result


def stage(samples: int, meter: Counted) -> tuple[float, int]:
    """Seconds and bytes that one EM step communicates."""
    tracker, sampler = kcd.KnowledgeValueTracker(samples), kcd.CondensedSampler(samples)
    mine = np.arange(sampler.rank, samples, sampler.num_replicas)
    tracker.record(mine, np.random.default_rng(0).random(samples)[mine])
    if meter.bytes or meter.seconds:
        raise RuntimeError("recording must communicate nothing")
    dist.barrier()
    kcd.condense_step(tracker, sampler, kcd.CondensationSchedule(period=PERIOD))
    seconds, sent = meter.seconds, meter.bytes
    meter.seconds, meter.bytes = 0.0, 0
    return seconds, sent


def steps(samples: int, batch: int) -> tuple[float, int]:
    """The same for one all_gather a step, over an epoch; timed over no more than MOST of its steps."""
    many, rows = -(-samples // batch), batch // dist.get_world_size()
    timed = min(many, MOST)
    indices, losses = torch.arange(rows), torch.rand(rows)
    dist.barrier()
    began = time.perf_counter()
    for _ in range(timed):
        both = torch.stack([indices.float(), losses])
        gathered = [torch.empty_like(both) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, both)
        torch.cat(gathered, 1)
    return (time.perf_counter() - began) * many / timed, many * both.nbytes


def slowest(seconds: float) -> float:
    longest = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    return longest.item()


def work(rank: int, world: int, folder: Path, quick: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store{world}", rank=rank, world_size=world,
        timeout=datetime.timedelta(minutes=5),
    )  # fmt: skip
    meter, result = Counted(), {}
    for name, (samples, batch) in DATA.items():
        samples = samples // 50 if quick else samples
        arms: dict[str, Callable[[], tuple[float, int]]] = {
            "kcd": lambda samples=samples: stage(samples, meter),
            "reference": lambda samples=samples, batch=batch: steps(samples, batch),
        }
        seconds: dict[str, list[float]] = {arm: [] for arm in arms}
        for _ in range(2 if quick else 7):
            for arm, call in arms.items():
                taken, handed = call()
                seconds[arm].append(slowest(taken))
                result[f"{name} {arm}"] = {"seconds": seconds[arm], "bytes": handed}
    if rank == 0:
        (folder / f"{world}.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


def add(report: Report, world: int, result: dict[str, Any], quick: bool) -> None:
    for name, (samples, batch) in DATA.items():
        samples = samples // 50 if quick else samples
        at_stage, per_step = result[f"{name} kcd"], result[f"{name} reference"]
        what = f"{name}, N = {samples:,}, batches of {batch}, {world} rank{'s' * (world > 1)}"
        mine, others = min(at_stage["seconds"]) / PERIOD, min(per_step["seconds"])
        report.add(
            f"{what}: an epoch", duration(mine), duration(others), at_most=1,
            **of_turns(np.array(at_stage["seconds"]) / PERIOD, per_step["seconds"]),
            seconds_a_stage=at_stage["seconds"], seconds_of_gathers=per_step["seconds"],
        )  # fmt: skip
        sent = 2 * (world - 1) / world * at_stage["bytes"] / PERIOD
        gathered = (world - 1) * per_step["bytes"]
        report.add(
            f"{what}: bytes sent by a rank in an epoch", f"{sent:,.0f}", f"{gathered:,.0f}",
            ratio=sent / gathered if gathered else None, at_most=1, exact=True, handed_over_a_stage=at_stage["bytes"],
        )  # fmt: skip
        whole = min(at_stage["seconds"])
        report.add(
            f"{what}: a stage's end, once in {PERIOD} epochs",
            duration(whole),
            f"a step: {duration(others / -(-samples // batch))}",
        )


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__)
    given = options.parse_args(arguments)
    report = Report(
        named("communication", options, given, "quick"), __doc__.split("\n\n")[2].replace("\n", " ").strip()
    )
    with tempfile.TemporaryDirectory() as folder:
        for world in (1, 2, 3, 4):
            report.progress.begin(f"{world} rank{'s' * (world > 1)}")
            torch.multiprocessing.spawn(work, (world, Path(folder), given.quick), nprocs=world)
            add(report, world, json.loads((Path(folder) / f"{world}.json").read_text()), given.quick)
    busy = os.getloadavg()[0]
    report.add(
        "processes that wanted the machine's cores in the last minute, other work included", f"{busy:.1f}"
    )
    report.write(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
