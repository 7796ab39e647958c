"""What the end of a stage costs: selection, memory, the order of the next epoch, mixing, loading.

    python benchmarks/selection.py [--quick] [--out DIR]

The authors' algorithm is written from its published description: a record of N x epochs float64 with -1
where a point was not drawn; clip, sum, count of what is above 0; mean times (n / 40) ** 0.03; a full
argsort, reversed; and, with mixing, a loader of one worker that mixes batches of 64 and writes them into
the images. NumPy and torch on one thread. Arms take turns. A time is that of the best turn: other load on the machine only
ever adds. A ratio is the median of the turns' own, with an interval of 95 % at least (order statistics). The run at
10^8 points needs 6 GB.
"""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import numpy as np
import torch
from _common.report import Report, duration, named, parser
from _common.timing import best, in_turns, of_turns
from torch.utils.data import DataLoader, Dataset, RandomSampler

import kcd_core as kcd
from kcd_core.recipes import carry_out

RATIO, STAGES = 0.7, 6


def authors_selection(record: Any, previous: int, target: int) -> tuple[Any, Any, Any]:
    """kept, tail and dropped, in their ranking order."""
    total = np.clip(record, 0.0, record.max()).sum(1)
    count = np.where(record > 0.0, 1.0, 0.0).sum(1)
    score = total / count * (count / 40.0) ** 0.03
    order = score.argsort()[::-1]
    dropped = order[target:previous]
    return order[:target], order[target - len(dropped) : target], dropped


def recorded(samples: int, epochs: int, drawn: float = 0.95) -> Any:
    rng = np.random.default_rng(samples)
    record = rng.random((samples, epochs)) * 4.6
    record[rng.random((samples, epochs)) > drawn] = -1.0
    return record


def against_authors(report: Report, samples: int, epochs: int, rounds: int, at_least: float | None) -> None:
    report.progress.begin(f"condense, N = {samples:,}, {epochs} epochs")
    record = recorded(samples, epochs)
    tracker = kcd.KnowledgeValueTracker(samples)
    for epoch in range(epochs):
        drawn = np.flatnonzero(record[:, epoch] >= 0)
        tracker.record(drawn, record[drawn, epoch])
    value, count = tracker.value, tracker.count
    previous, target = int(0.95 * samples), int(0.9 * samples)
    times = in_turns(
        {
            "kcd": lambda: kcd.condense(value, count, previous=previous, target=target),
            "authors": lambda: authors_selection(record, previous, target),
        },
        rounds,
        report.progress,
    )
    report.add(
        f"condense, N = {samples:,}, {epochs} epochs: times faster than the authors' selection",
        duration(best(times["kcd"])),
        duration(best(times["authors"])),
        **of_turns(times["authors"], times["kcd"]),
        at_least=at_least,
    )


def at_scale(report: Report, samples: int, rounds: int) -> None:
    report.progress.begin(f"condense, N = {samples:,}")
    rng = np.random.default_rng(0)
    value = rng.random(samples)
    value *= 4.6
    count = rng.integers(30, 41, samples, dtype=np.int32)
    sizes = {"previous": int(0.95 * samples), "target": int(0.9 * samples)}
    times = in_turns(
        {
            "kcd": lambda: kcd.condense(value, count, **sizes),
            "partition": lambda: np.partition(value, samples - sizes["target"]),
        },
        rounds,
        report.progress,
    )
    report.add(
        f"condense, N = {samples:,}, vs one np.partition",
        duration(best(times["kcd"])),
        duration(best(times["partition"])),
        **of_turns(times["kcd"], times["partition"]),
        at_most=4,
    )
    gc.collect()
    tracemalloc.start()
    chosen = kcd.condense(value, count, **sizes)
    left, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    extra = (peak - left) / samples
    result = sum(x.nbytes for x in (chosen.kept, chosen.dropped, chosen.tail, chosen.weights)) / samples
    report.add(
        f"condense, N = {samples:,}: peak bytes a point beyond arguments and result (tracemalloc)",
        f"{extra:.3g}",
        ratio=extra,
        at_most=16,
        exact=True,
        result_bytes_a_point=result,
    )


def first_index(report: Report, samples: int, rounds: int) -> None:
    report.progress.begin(f"the order of an epoch of {samples:,} kept points")
    kept = kcd.CondensedSampler(samples + 1)
    kept.install(kcd.CondensedSet(np.arange(samples), samples + 1))  # held as a list, as after a stage
    plain = RandomSampler(range(samples))
    times = in_turns(
        {"kcd": lambda: next(iter(kept)), "torch": lambda: next(iter(plain))}, rounds, report.progress
    )
    report.add(
        f"first index of an epoch, {samples:,} kept points, vs RandomSampler",
        duration(best(times["kcd"])),
        duration(best(times["torch"])),
        **of_turns(times["kcd"], times["torch"]),
        at_most=1,
    )


def every_index(report: Report, samples: int, rounds: int) -> None:
    gc.collect()
    report.progress.begin(f"the order of an epoch of {samples:,}")
    small, random = kcd.CondensedSampler(samples), RandomSampler(range(samples))
    times = in_turns({"kcd": lambda: sum(small), "torch": lambda: sum(random)}, rounds, report.progress)
    report.add(
        f"an index, over an epoch of {samples:,}, vs RandomSampler",
        duration(best(times["kcd"]) / samples),
        duration(best(times["torch"]) / samples),
        **of_turns(times["kcd"], times["torch"]),
    )


class Images(Dataset[Any]):
    """Raw images in ``.data``, as torchvision keeps them. Counts reads."""

    def __init__(self, samples: int) -> None:
        self.data: Any = np.random.default_rng(0).integers(0, 256, (samples, 32, 32, 3), dtype=np.uint8)

    def __getitem__(self, index: int) -> Any:
        return self.data[index]

    def __len__(self) -> int:
        return len(self.data)


class Pairs(Dataset[Any]):
    """The authors' data set of (tail image, dropped image, tail index, weight)."""

    def __init__(self, data: Any, tail: Any, dropped: Any) -> None:
        self.a, self.b, self.tail = data[tail], data[dropped], tail
        span = len(tail)
        self.weight = (0.7 + 0.3 * (span - np.arange(span)) / span).astype(np.float32)

    def __getitem__(self, i: int) -> Any:
        return self.a[i], self.b[i], int(self.tail[i]), self.weight[i]

    def __len__(self) -> int:
        return len(self.tail)


def authors_stage(record: Any, data: Any, previous: int, target: int) -> None:
    _, tail, dropped = authors_selection(record, previous, target)
    pairs: Dataset[Any] = Pairs(data, tail.copy(), dropped.copy())
    for a, b, index, weight in DataLoader(pairs, batch_size=64, num_workers=1):
        weight = weight.view(-1, 1, 1, 1)
        data[index] = (weight * a + (1 - weight) * b).to(torch.uint8)


def whole_stage(report: Report, samples: int, rounds: int) -> None:
    report.progress.begin(f"a stage, N = {samples:,}")
    record = recorded(samples, 40, drawn=1.0)
    tracker = kcd.KnowledgeValueTracker(samples)
    for epoch in range(40):
        tracker.record(np.arange(samples), record[:, epoch])
    images = Images(samples)
    writable = torch.from_numpy(images.data.copy())
    schedule = kcd.CondensationSchedule(RATIO, STAGES, 40)
    target = schedule.target(samples, samples)

    def stage() -> None:
        sampler = kcd.CondensedSampler(samples)
        chosen = kcd.condense_step(tracker, sampler, schedule)
        for index in chosen.tail.tolist():
            kcd.mix_arrays(images, index, sampler.steps(index))

    times = in_turns(
        {"kcd": stage, "authors": lambda: authors_stage(record, writable, samples, target)},
        rounds,
        report.progress,
    )
    report.add(
        f"a stage, N = {samples:,}: EM step, recipes, every mixed image, vs the authors' v3",
        duration(best(times["kcd"])),
        duration(best(times["authors"])),
        **of_turns(times["kcd"], times["authors"]),
    )


class CountingArray:
    """Counts the reads of an array."""

    def __init__(self, data: Any) -> None:
        self.data, self.reads = data, 0

    def __getitem__(self, key: Any) -> Any:
        self.reads += 1
        return self.data[key]


def fetching(report: Report, samples: int, rounds: int) -> None:
    """Cumulative recipes: a set that goes on changing after the last shrinking stage mixes no more, so
    60 stages shrink in 60 steps."""
    images = Images(samples)
    for stages in (6, 60):
        report.progress.begin(f"mixed images after {stages} stages")
        rng = np.random.default_rng(stages)
        sampler = kcd.CondensedSampler(samples)
        schedule = kcd.CondensationSchedule(RATIO, stages, 1)
        tracker = kcd.KnowledgeValueTracker(samples)
        base = rng.random(samples) * 4.6
        for _ in range(stages):
            # A point keeps its value to half, so the cut meets old and new neighbours.
            tracker.record(np.arange(samples), base + rng.random(samples))
            kcd.condense_step(tracker, sampler, schedule)
        mixed = np.unique(sampler.recipes.target)
        mixed = mixed[np.isin(mixed, sampler.kept)]
        chosen = rng.permutation(mixed)[:2000].tolist()
        recipes = [sampler.steps(index) for index in chosen]
        plan = in_turns(
            {
                "plain": lambda c=chosen: [images[i] for i in c],
                "steps": lambda c=chosen, s=sampler: [s.steps(i) for i in c],
                "mixed": lambda c=chosen, s=sampler: [kcd.mix_arrays(images, i, s.steps(i)) for i in c],
            },
            rounds,
            report.progress,
        )
        length = np.array([len(steps) for steps in recipes])
        extra = 0
        for index, steps in zip(chosen, recipes, strict=True):
            array = CountingArray(images.data)
            carry_out(index, steps, array.__getitem__)
            extra += array.reads - len({i for target, source, _ in steps for i in (target, source)})
        report.add(
            f"a mixed image after {stages} stages (mean {length.mean():.3g}, most {length.max()} steps), vs unmixed",
            duration(best(plan["mixed"]) / len(chosen)),
            duration(best(plan["plain"]) / len(chosen)),
            **of_turns(plan["mixed"], plan["plain"]),
            recipe_seconds=best(plan["steps"]) / len(chosen),
            mixed_share_of_kept=len(mixed) / sampler.num_kept,
        )
        report.add(
            f"raw reads beyond one for each image, after {stages} stages", str(extra), ratio=extra, at_most=0, exact=True
        )  # fmt: skip


def tracker_memory(report: Report, samples: int) -> None:
    gc.collect()
    tracemalloc.start()
    tracker = kcd.KnowledgeValueTracker(samples)
    rng = np.random.default_rng(0)
    for _ in range(50):
        tracker.record(rng.integers(0, samples, 128), rng.random(128))
    tracker.count  # noqa: B018  (adds what waits)
    gc.collect()
    held = tracemalloc.get_traced_memory()[0] / samples
    tracemalloc.stop()
    report.add(
        f"tracker: bytes a sample held, N = {samples:,} (tracemalloc)",
        f"{held:.4g}",
        ratio=round(held, 1),
        at_most=12,
        exact=True,
    )


class Floats(Dataset[Any]):
    """Ready tensors, so that the loader itself is what is timed."""

    def __init__(self, samples: int) -> None:
        self.images = torch.zeros(64, 3, 32, 32)
        self.samples = samples

    def __getitem__(self, index: int) -> Any:
        return self.images[index % 64], index % 10

    def __len__(self) -> int:
        return self.samples


def loading(report: Report, batches: int, rounds: int) -> None:
    for workers in (0, 2):
        report.progress.begin(f"loading with {workers} workers")
        plain = DataLoader(
            Floats(128 * batches),
            batch_size=128,
            shuffle=True,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        wrapped = kcd.wrap_loader(plain, schedule=kcd.CondensationSchedule(ratio=1.0, period=10**6))
        times = in_turns(
            {"kcd": lambda w=wrapped: sum(1 for _ in w), "plain": lambda p=plain: sum(1 for _ in p)},
            rounds,
            report.progress,
        )
        report.add(
            f"a batch of 128 x 3 x 32 x 32, {workers} workers, wrapped vs plain DataLoader",
            duration(best(times["kcd"]) / batches),
            duration(best(times["plain"]) / batches),
            **of_turns(times["kcd"], times["plain"]),
        )


def main() -> None:
    options = parser(__doc__)
    args = options.parse_args()
    torch.set_num_threads(1)
    report = Report(
        named("selection", options, args, "quick"),
        "Best of several turns. A ratio is kcd / reference unless it says how many times faster: the median of the turns' own, "
        "with its 95 % interval.",
    )
    quick = args.quick
    against_authors(report, 50_000, 40, 3 if quick else 15, None)
    against_authors(report, 50_000, 240, 3 if quick else 7, None)
    if not quick:
        against_authors(report, 1_281_167, 40, 7, 20)
    at_scale(report, 10**6 if quick else 10**8, 3 if quick else 7)
    first_index(report, 10**6 if quick else 10**8, 3 if quick else 7)
    every_index(report, 10**5 if quick else 10**6, 3 if quick else 7)
    whole_stage(report, 5_000 if quick else 50_000, 3 if quick else 7)
    fetching(report, 3_000 if quick else 50_000, 3 if quick else 7)
    tracker_memory(report, 10**5 if quick else 10**7)
    loading(report, 20 if quick else 100, 3 if quick else 7)
    report.write(args.out)


if __name__ == "__main__":
    main()
