"""What mixing costs: whole runs of KC-KD with and without it, and an epoch's samples.

    python benchmarks/mixing.py [--quick] [--out DIR]

A run: the demo's teacher and its small student on grey images of 28 x 28 (Fashion-MNIST's, where Debian's package of
it is installed, else random ones), both in every step; KD, and KC-KD in six stages with and without mixing: raw images
through ``mixing_cache``, and samples after their transform, which is fresh. Fetching: an epoch of the set that six
stages left, as against as many unmixed samples drawn in the same way; with and without worker processes.

Seconds are CPU time of the process and its workers. The arms take turns; a ratio is the median of those of the turns, with
an interval of 95 % at least (order statistics: of six turns, from the lowest to the highest). A target is met or missed where
all of that is on one side of it.
"""

from __future__ import annotations

import resource
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from _common.progress import Progress
from _common.report import Report, duration, named, parser
from _common.timing import of_turns
from torch.nn import functional as F
from torch.utils.data import DataLoader

import kcd_core as kcd
from kcd_adapters.demo.datasets import DEBIAN, Images, fashion_mnist
from kcd_adapters.demo.models import ConvNet, build, recipe

STAGES, BATCH = 6, 128
CACHE = "1 GB"
RATIOS = (0.7, 0.3)

#: How a run mixes: what `wrap_loader` is given.
MIXING: dict[str, dict[str, Any]] = {
    "without mixing": {"mixing": None},
    "arrays": {"mixing_cache": CACHE},
    "after the transform": {"mixer": "samples"},
}


def images_of(samples: int) -> tuple[Images, str]:
    """The data, and what they are called."""
    if DEBIAN.is_dir():
        whole = fashion_mnist().train
        data = Images(whole.data[:samples], whole.targets[:samples], 0.0, 1.0)
        data.mean, data.std = whole.mean, whole.std
        return data, "Fashion-MNIST"
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (samples, 28, 28), dtype=np.uint8)
    return Images(pixels, rng.integers(0, 10, samples), 0.5, 0.3), "random images"


def cpu_seconds(call: Callable[[], Any]) -> float:
    """Of this process and of those that it has waited for: its workers."""

    def now() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + used.ru_utime + used.ru_stime

    start = now()
    call()
    return now() - start


def in_turns(arms: Mapping[str, Callable[[], Any]], rounds: int, progress: Progress) -> dict[str, Any]:
    """CPU seconds of each arm, [rounds]; arms take turns."""
    taken = {name: np.zeros(rounds) for name in arms}
    for number in range(rounds):
        for place, (name, call) in enumerate(arms.items(), 1):
            taken[name][number] = cpu_seconds(call)
            progress.at(number * len(arms) + place, rounds * len(arms))
    return taken


# -- whole runs --------------------------------------------------------------------------------------------


def train(data: Images, epochs: int, ratio: float | None, options: Mapping[str, Any]) -> None:
    """A run from its first line to its last epoch: KD, or KC-KD to ``ratio``."""
    teacher, student = (build(partial(ConvNet, width), 10, seed) for seed, width in enumerate((32, 8)))
    teacher.eval()
    optimizer, rates = recipe(student, epochs)
    order = torch.Generator().manual_seed(0)
    loader: Any = DataLoader(data, batch_size=BATCH, shuffle=True, generator=order)
    if ratio is not None:
        loader = kcd.wrap_loader(loader, schedule=schedule_of(ratio, epochs), **options)
    for _ in range(epochs):
        for images, targets in loader:
            with torch.no_grad():
                wanted = teacher(images)
            logits = student(images)
            soft = F.kl_div(
                F.log_softmax(logits / 4, -1),
                F.log_softmax(wanted / 4, -1),
                log_target=True,
                reduction="batchmean",
            )
            loss = 0.1 * F.cross_entropy(logits, targets) + 0.9 * 16 * soft
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if ratio is not None:
                loader.record(logits)
        rates.step()
        if ratio is not None:
            loader.end_epoch()


def schedule_of(ratio: float, epochs: int) -> kcd.CondensationSchedule:
    return kcd.CondensationSchedule(ratio=ratio, stages=STAGES, period=epochs // STAGES)


def runs(report: Report, data: Images, name: str, epochs: int, rounds: int) -> None:
    arms = {("KD", 1.0): partial(train, data, epochs, None, {})}
    for ratio in RATIOS:
        arms |= {(how, ratio): partial(train, data, epochs, ratio, given) for how, given in MIXING.items()}
    report.progress.begin(f"runs of {len(data)} images of {name}, {epochs} epochs, run")
    taken = in_turns(arms, rounds, report.progress)  # type: ignore[type-var]
    kd = taken["KD", 1.0]
    for ratio in RATIOS:
        sizes = list(schedule_of(ratio, epochs).sizes(len(data), epochs))[:epochs]
        share = sum(sizes) / (epochs * len(data))
        plain = taken["without mixing", ratio]
        report.add(
            f"a run at {ratio}, {100 * share:.1f} % of the samples, without mixing, vs KD",
            duration(float(np.median(plain))),
            duration(float(np.median(kd))),
            **of_turns(plain, kd),
            at_most=round(share + 0.03, 3),
        )
        for how in list(MIXING)[1:]:
            own = taken[how, ratio]
            report.add(
                f"a run at {ratio}, mixing {how}, vs without mixing",
                duration(float(np.median(own))),
                duration(float(np.median(plain))),
                **of_turns(own, plain),
                at_most=1.03,
            )


# -- an epoch's samples ------------------------------------------------------------------------------------


def condensed(data: Images, ratio: float, workers: int, **options: Any) -> Any:
    """A loader after six stages, of values like a student's: samples differ, and an epoch adds noise."""
    loader = kcd.wrap_loader(
        DataLoader(data, batch_size=BATCH, shuffle=True, num_workers=workers),
        schedule=kcd.CondensationSchedule(ratio=ratio, stages=STAGES, period=1),
        seed=0,
        **options,
    )
    rng = np.random.default_rng(0)
    usual = rng.gamma(2.0, 0.5, len(data))
    for _ in range(STAGES):
        loader.tracker.record(np.arange(len(data)), usual * rng.lognormal(0, 0.5, len(data)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nothing is drawn
            loader.end_epoch()
    return loader


def epoch(loader: Any) -> None:
    for _ in loader:
        pass


def fetching(report: Report, data: Images, rounds: int) -> None:
    for ratio in RATIOS:
        for workers in (0, 2):
            arms = {
                "unmixed": condensed(data, ratio, workers, mixing=None),
                "cache": condensed(data, ratio, workers, mixing_cache=CACHE),
                "no cache": condensed(data, ratio, workers),
                "after": condensed(data, ratio, workers, mixer="samples"),
            }
            sampler = arms["cache"].sampler
            kept = sampler.kept
            mixed = kept[sampler.recipes.contains(kept)]
            into = float(np.mean([len(sampler.steps(i)) + 1 for i in mixed]))
            making = cpu_seconds(lambda loader=arms["cache"]: next(iter(loader.batch_sampler)))
            report.progress.begin(f"epochs of {len(kept)} samples at {ratio}, {workers} workers, epoch")
            calls = {name: partial(epoch, loader) for name, loader in arms.items()}
            taken = in_turns(calls, rounds, report.progress)
            what = f"an epoch of {len(kept)} samples at {ratio}, {100 * len(mixed) / len(kept):.0f} % mixed of {into:.1f}, "
            for name, how, limit in (
                ("cache", "arrays, mixing_cache", 1.1),
                ("no cache", "arrays, without it", None),
                ("after", "after the transform", None),
            ):
                report.add(
                    f"{what}{workers} workers, {how}, vs unmixed",
                    duration(float(np.median(taken[name]))),
                    duration(float(np.median(taken["unmixed"]))),
                    **of_turns(taken[name], taken["unmixed"]),
                    at_most=limit,
                )
            if not workers:
                report.add(f"{len(mixed)} images made, once a stage, at {ratio}", duration(making))


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=6, help="turns of each arm")
    args = options.parse_args()
    torch.set_num_threads(1)
    report = Report(named("mixing", options, args, "quick", "rounds"), __doc__.split("\n\n", 2)[2].strip())
    some, name = images_of(600 if args.quick else 1_200)
    many, _ = images_of(1_000 if args.quick else 10_000)
    rounds = min(args.rounds, 2) if args.quick else args.rounds
    fetching(report, many, rounds)
    runs(report, some, name, STAGES, rounds)
    report.write(args.out)


if __name__ == "__main__":
    main()
