"""What recording one step costs on the CPU, and how many operations it is on CUDA.

    python benchmarks/recording.py [--quick] [--out DIR]

Arms take turns in blocks of steps, one thread. A time is that of the best block: other load on the machine only
ever adds. A ratio is the median of the turns' own, with an interval of 95 % at least (order statistics). The authors' recording is written from its published
description: softmax, p log p summed, `.cpu()`, fancy assignment into a NumPy vector by index. The floor
is what no recording of an entropy can do without (in torch): log-softmax, exp and a dot product. What is
deferred is part of every figure: each block flushes as often as training would. ATen operations that
launch or copy are counted on fake CUDA tensors, where a synchronisation raises and every copy is seen.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from _common.counting import WINDOW, Counter, fake_cuda
from _common.report import Report, duration, named, parser
from _common.timing import best, in_turns, of_turns
from torch.utils.data import DataLoader, TensorDataset

import kcd_core as kcd

SAMPLES = 50_000
BATCHES = 16  # different logits, taken in turn
BLOCK = WINDOW  # steps timed together: what waits is added once in as many


class Authors:
    """Their recording, from its description."""

    def __init__(self) -> None:
        self.record = np.full(SAMPLES, -1.0)

    def __call__(self, indices: torch.Tensor, logits: torch.Tensor) -> None:
        with torch.no_grad():
            p = torch.softmax(logits, 1)
            value = -(p * torch.log(p)).sum(1)
            self.record[indices] = value.cpu()


def floor(indices: torch.Tensor, logits: torch.Tensor) -> None:
    with torch.no_grad():
        log_p = torch.log_softmax(logits, 1)
        torch.linalg.vecdot(log_p.exp(), log_p)


def time_shape(report: Report, batch: int, classes: int, rounds: int) -> None:
    torch.manual_seed(0)
    logits = [torch.randn(batch, classes, requires_grad=True) for _ in range(BATCHES)]
    indices = [torch.randperm(SAMPLES)[:batch] for _ in range(BATCHES)]

    def block(step: Any) -> Any:
        def run() -> None:
            for number in range(BLOCK):
                step(indices[number % BATCHES], logits[number % BATCHES])

        return run

    shape = f"{batch} x {classes}"
    report.progress.begin(f"recording, {shape}")
    tracker = kcd.KnowledgeValueTracker(SAMPLES)
    times = in_turns(
        {"kcd": block(tracker.update), "authors": block(Authors()), "floor": block(floor)},
        rounds,
        report.progress,
    )
    typical = {name: best(t) / BLOCK for name, t in times.items()}
    report.add(
        f"tracker.update, {shape}, vs the authors' recording",
        duration(typical["kcd"]),
        duration(typical["authors"]),
        **of_turns(times["kcd"], times["authors"]),
        at_most=0.7 if (batch, classes) == (64, 100) else None,
    )
    report.add(
        f"tracker.update, {shape}, vs log-softmax, exp, dot",
        duration(typical["kcd"]),
        duration(typical["floor"]),
        **of_turns(times["kcd"], times["floor"]),
    )
    report.add(
        f"log-softmax, exp, dot, {shape}, vs the authors' recording",
        duration(typical["floor"]),
        duration(typical["authors"]),
        **of_turns(times["floor"], times["authors"]),
    )


def time_loader(report: Report, rounds: int) -> None:
    """`CondensedLoader.record`: what it adds to `tracker.update`. Batches are drawn outside the timing."""
    batch, classes = 64, 100
    report.progress.begin("loader.record within a pass")
    data = TensorDataset(torch.zeros(batch * BLOCK * 4, 1))
    loader = kcd.wrap_loader(
        DataLoader(data, batch_size=batch, shuffle=True),
        schedule=kcd.CondensationSchedule(ratio=1.0, period=10**6),
        return_index=True,
    )
    tracker = kcd.KnowledgeValueTracker(len(data))
    logits = [torch.randn(batch, classes, requires_grad=True) for _ in range(BATCHES)]
    authors = Authors()
    names = ("record", "update", "authors")
    times = {name: np.zeros(rounds) for name in names}
    for number in range(rounds):
        steps = dict.fromkeys(names, 0.0)
        for step, (indices, _) in enumerate(loader):
            x = logits[step % BATCHES]
            calls = {
                "record": lambda x=x: loader.record(x),
                "update": lambda i=indices, x=x: tracker.update(i, x),
                "authors": lambda i=indices, x=x: authors(i, x),
            }
            for turn in range(len(names)):  # the first call after a batch finds cold caches: take turns
                name = names[(step + turn) % len(names)]
                start = time.perf_counter()
                calls[name]()
                steps[name] += time.perf_counter() - start
        loader.end_epoch()
        for name in names:
            times[name][number] = steps[name] / len(loader)
        report.progress.at(number + 1, rounds)
    typical = {name: best(t) for name, t in times.items()}
    for name, what in (("update", "tracker.update"), ("authors", "the authors' recording")):
        report.add(
            f"loader.record within a pass, 64 x 100, vs {what}",
            duration(typical["record"]),
            duration(typical[name]),
            **of_turns(times["record"], times[name]),
        )


def count_operations(report: Report) -> None:
    report.progress.begin("operations on fake CUDA tensors")
    steps = 10 * WINDOW  # whole ones, so that all that waits is counted, too
    for where in ("host", "CUDA"):
        with fake_cuda() as device:
            tracker = kcd.KnowledgeValueTracker(SAMPLES, device=device)
            logits = torch.empty(64, 100, device=device)
            if where == "host":  # as the loader gives them
                indices: Any = np.arange(64)
            else:
                indices = torch.empty(64, device=device, dtype=torch.int64)
            with Counter() as counter:
                for _ in range(steps):
                    tracker.update(indices, logits)
        report.add(
            f"operations that launch or copy, a step on (fake) CUDA, {where} indices, all included",
            f"{counter.operations / steps:.3g}",
            ratio=counter.operations / steps,
            at_most=3 if where == "host" else None,
            exact=True,
            operations={name: n / steps for name, n in counter.seen.most_common()},
        )


def main() -> None:
    options = parser(__doc__)
    args = options.parse_args()
    torch.set_num_threads(1)
    report = Report(
        named("recording", options, args, "quick"),
        "Best of several turns. A ratio is kcd / reference: the median of the turns' own, with its 95 % interval.",
    )
    rounds = 10 if args.quick else 400
    for batch, classes in ((64, 100), (64, 1000), (256, 100)):
        time_shape(report, batch, classes, rounds)
    time_loader(report, rounds // 5)
    count_operations(report)
    report.write(args.out)


if __name__ == "__main__":
    main()
