"""What hashing ids into a table costs and blurs, and what filtering before the decoder saves.

    python benchmarks/streams.py [--quick] [--out DIR]

Sharing: ids like those of tar shards fall into the slots of a table; beside it the formula
1 - exp(-n / slots). Other fate: every id has a value (of a gamma distribution, recorded ten times with noise), and
the set of the stream at ratio 0.7 is compared with the exact one, which an index would give; two sets
drawn by chance differ in 42 %. Time: one thread, arms in turns, the best turn of each; a ratio of times is the median of the
turns' own, with an interval of 95 % at least (order statistics). An epoch reads tar
shards of zlib-compressed 224 x 224 x 3 arrays and decodes them, without training: what filtering before
the decoder saves of the reader's time.
"""

from __future__ import annotations

import io
import math
import tarfile
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common.report import Report, duration, named, parser
from _common.timing import best, in_turns, of_turns

import kcd_core as kcd

SCHEDULE = kcd.CondensationSchedule(ratio=0.7, stages=1, period=1)


def names(n: int) -> list[str]:
    return [f"n{i // 1300:08d}/image_{i:08d}" for i in range(n)]


def stream_of(slots: int, schedule: kcd.CondensationSchedule = SCHEDULE) -> kcd.CondensedStream:
    return kcd.CondensedStream(key=0, slots=slots, schedule=schedule)


def sharing(report: Report, n: int) -> None:
    ids, rng = names(n), np.random.default_rng(0)
    rounds = [rng.gamma(2.0, 0.5, n) + rng.normal(0, 0.1, n) for _ in range(10)]
    exact = kcd.KnowledgeValueTracker(n)
    for values in rounds:
        exact.record(np.arange(n), values)
    kept = np.zeros(n, bool)
    kept[kcd.condense(exact.value, exact.count, previous=n, target=SCHEDULE.target(n, n)).kept] = True
    by_chance = 2 * 0.7 * 0.3
    for per_id in (1, 2, 4, 10, 30, 100):
        report.progress.begin(f"{n:,} ids, {per_id} slots an id")
        stream = stream_of(per_id * n)
        slots = stream.slots_of(ids)
        for values in rounds:
            stream.tracker.record(slots, values)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # crowded tables
            stream.end_epoch()
        _, place, many = np.unique(slots, return_inverse=True, return_counts=True)
        measured = float((many[place] > 1).mean())
        formula = 1 - math.exp(-1 / per_id)
        report.add(
            f"{per_id} slots an id: ids that share a slot, against the formula",
            f"{measured:.2%}",
            f"{formula:.2%}",
            ratio=measured / formula,
            bytes_per_id=12.125 * per_id,
        )
        other = float((stream.is_kept(ids) != kept).mean())
        report.add(
            f"{per_id} slots an id ({12.125 * per_id:.0f} bytes): ids with another fate than exact, against chance",
            f"{other:.2%}",
            f"{by_chance:.0%}",
            ratio=other / by_chance,
        )


def hashing(report: Report, rounds: int) -> None:
    report.progress.begin("hashing")
    stream, batch = stream_of(10**7), 256
    text = names(batch)
    numbers, listed = np.arange(batch), list(range(batch))
    logits = torch.randn(batch, 1000)
    tracker = kcd.KnowledgeValueTracker(10**7)
    slots = stream.slots_of(text)
    arms = {
        "text": lambda: stream.slots_of(text),
        "array": lambda: stream.slots_of(numbers),
        "list": lambda: stream.slots_of(listed),
        "keep": lambda: [stream.keep((t,)) for t in text],
        "record": lambda: stream.record(logits, ids=text),
        "update": lambda: tracker.update(slots, logits),
    }
    turns = in_turns(arms, rounds, report.progress)
    times = {name: best(t) for name, t in turns.items()}
    for name, what in (("text", "text ids"), ("list", "a list of integers"), ("array", "an integer array")):
        report.add(f"slots of {what}, each", duration(times[name] / batch))
    report.add("keep(sample), text, each", duration(times["keep"] / batch))
    report.add(
        "stream.record, 256 x 1000, text ids, vs tracker.update", duration(times["record"]),
        duration(times["update"]), **of_turns(turns["record"], turns["update"]),
    )  # fmt: skip


def read(paths: list[Path]) -> Iterator[dict[str, Any]]:
    for path in paths:
        with tarfile.open(path, "r|") as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                yield {"__key__": member.name, "data": file.read()}


def decode(sample: dict[str, Any]) -> Any:
    return np.frombuffer(zlib.decompress(sample["data"]), np.uint8).astype(np.float32) / 255


class Tars:
    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __iter__(self) -> Iterator[Any]:
        return read(self.paths)


def epochs(report: Report, samples: int, rounds: int) -> None:
    """Reading an epoch: everything; 70 % dropped after the decoder; 70 % dropped before it."""
    side, rng = 224, np.random.default_rng(0)
    base = np.kron(rng.integers(0, 256, (28, 28, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    report.progress.begin(f"tar shards of {samples} images")
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number in range(4):
            paths.append(Path(folder) / f"{number}.tar")
            with tarfile.open(paths[-1], "w") as tar:
                for i in range(samples // 4):
                    image = base + rng.integers(0, 8, (side, side, 3), dtype=np.uint8)
                    data, info = zlib.compress(image.tobytes(), 6), tarfile.TarInfo(f"{number}/{i:06d}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        for ratio in (0.7, 0.3):
            schedule = kcd.CondensationSchedule(ratio=ratio, stages=1, period=1)
            stream = kcd.CondensedStream(Tars(paths), key="__key__", slots=100 * samples, schedule=schedule)
            ids = [sample["__key__"] for sample in stream]
            stream.record(rng.normal(0, 2, (len(ids), 10)), ids=ids)
            stream.end_epoch()
            whole = Tars(paths)
            arms = {
                "everything": lambda whole=whole: [0 for s in whole if decode(s) is None],
                "after": lambda w=whole, s=stream: [0 for x in w if decode(x) is not None and s.keep(x)],
                "before": lambda s=stream: [0 for x in s if decode(x) is None],
                "reading": lambda whole=whole: [0 for s in whole],
            }
            report.progress.begin(f"an epoch of {samples} images at ratio {ratio}")
            times = in_turns(arms, rounds, report.progress)
            for name, what in (
                ("before", "filter before the decoder"),
                ("after", "filter after the decoder"),
                ("reading", "reading alone, no decoder"),
            ):
                report.add(
                    f"an epoch of {samples} images at ratio {ratio}, {what}, vs all of them",
                    duration(best(times[name])),
                    duration(best(times["everything"])),
                    **of_turns(times[name], times["everything"]),
                )


def main() -> None:
    options = parser(__doc__)
    args = options.parse_args()
    torch.set_num_threads(1)
    report = Report(
        named("streams", options, args, "quick"),
        "Best of several turns. A ratio is kcd / reference; of times, the median of the turns' own, with its 95 % interval.",
    )
    sharing(report, 20_000 if args.quick else 1_000_000)
    hashing(report, 20 if args.quick else 400)
    epochs(report, 40 if args.quick else 400, 2 if args.quick else 8)
    report.write(args.out)


if __name__ == "__main__":
    main()
