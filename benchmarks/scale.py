"""What a stage costs when N floats no longer belong on every rank.

    python benchmarks/scale.py [--quick] [--out DIR] [--memory GB] [--sizes N ...] [--add]

Three ways to the same set, on real processes over gloo: *counts* (`condense_sharded`: every rank keeps a slice,
only counts travel), *counts + pairs* (the same with mixing, which exchanges the points around the cut), and
*gather* (`condense_step`: every rank sums and ranks all N). A full argsort on one process stands beside them.
Beyond --memory the ranks are simulated in one process: none holds its values, which are made anew from the
indices, block by block, whenever they are counted. Values are a function of the index, so every way must
choose the same points: a checksum of the kept indices is compared.

Bytes a sample are the peak resident memory of a rank beyond what it had before its tracker was made, over the
samples it owns. Bytes sent are those a rank hands to all_reduce; a ring of R ranks sends 2 (R - 1) / R times as
many. One thread a process.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common.memory import resident, restart_peak
from _common.report import Report, duration, named, parser
from _scale.picture import figure_of

import kcd_core as kcd
from kcd_core.algorithms import radix_select as counting
from kcd_core.algorithms.permutation import hashed
from kcd_core.algorithms.ranks import blocks, rank_scores
from kcd_core.base import distributed, style
from kcd_core.base.files import write_whole
from kcd_core.sharded import condense as sharded
from kcd_core.sharded.slices import bounds
from kcd_core.sums import SCALE

SCHEDULE = kcd.CondensationSchedule(ratio=0.7, stages=6, period=40)
ALPHA = 0.03
SIZES = [1e6, 1e7, 1e8, 3e8, 1e9]
COUNTS = 14  # bytes a sample that real processes take at least, all together
COPIES = 40  # bytes a sample that gathering takes on every rank, about: what fits is decided by it
GB = 2**30


def recorded(first: int, stop: int) -> tuple[Any, Any]:
    """Sums and counts of samples ``first .. stop - 1``, as after 30 to 37 epochs: a function of the index."""
    bits = hashed(np.arange(first, stop, dtype=np.uint64), 1)
    count = (30 + (bits & np.uint64(7))).astype(np.int32)
    value = (bits >> np.uint64(11)).astype(np.float64) * (4.6 / 2**53)
    return np.rint(value * count * SCALE).astype(np.int64), count


def tracker_of(start: int, stop: int) -> kcd.KnowledgeValueTracker:
    tracker = kcd.KnowledgeValueTracker(stop - start)
    sums = tracker.recordings.sums  # filled in place: a copy would count as the tracker's memory
    for block in blocks(stop - start):
        sums.total[block], sums.count[block] = recorded(start + block.start, start + block.stop)
    return tracker


class Remade:
    """The scores of a simulated rank: made from the indices whenever they are read, and never held."""

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, block: slice) -> Any:
        total, count = recorded(self.start + block.start, self.start + block.stop)
        return rank_scores(kcd.KnowledgeValueTracker.mean(total, count), count, ALPHA)


def checksum(kept: Any) -> int:
    """The sum of the indices, which wraps."""
    return int(np.sum(kept, dtype=np.int64))


# -- real processes ---------------------------------------------------------------------------------------


def one_rank(rank: int, world: int, folder: Path, n: int, how: str, rounds: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    sent, communicate = 0, distributed.communicate

    def counted(dist: Any, x: Any, *how: Any) -> Any:
        nonlocal sent
        sent += x.nbytes
        return communicate(dist, x, *how)

    distributed.communicate = counted
    everyone = how == "gather"
    start, stop = (0, n) if everyone else bounds(n, rank, world)
    torch.distributed.barrier()
    before = resident("VmRSS")
    tracker = tracker_of(start, stop)
    restart_peak()
    seconds = []
    for _ in range(rounds):
        sampler: Any = None
        mixing = None if how == "counts" else "fresh"
        sampler = kcd.CondensedSampler(n, mixing=mixing) if everyone else kcd.ShardedSampler(n, mixing=mixing)
        torch.distributed.barrier()
        begin, sent = time.perf_counter(), 0
        if everyone:
            kcd.condense_step(tracker, sampler, SCHEDULE, alpha=ALPHA)
        else:
            kcd.condense_sharded(tracker, sampler, SCHEDULE, alpha=ALPHA)
        torch.distributed.barrier()
        seconds.append(time.perf_counter() - begin)
    peak = resident("VmHWM") - before
    begin = time.perf_counter()
    first = next(iter(sampler))
    first_index = time.perf_counter() - begin
    epoch = iter(sampler)
    many = min(len(sampler), 1 << 20)
    begin = time.perf_counter()
    drawn = sum(1 for _ in zip(range(many), epoch, strict=False))
    an_index = (time.perf_counter() - begin) / drawn
    kept = np.array([0 if everyone and rank else checksum(sampler.kept)])
    (kept,) = distributed.sum_over_ranks(kept)
    if rank == 0:
        result = {
            "seconds": min(seconds),
            "bytes_a_sample": peak / (stop - start),
            "peak_bytes": peak,
            "sent_bytes": sent,
            "first_index_seconds": first_index,
            "an_index_seconds": an_index,
            "first": int(first),
            "checksum": int(kept[0]),
        }
        (folder / "result.json").write_text(json.dumps(result))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def real(n: int, world: int, how: str, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.multiprocessing.spawn(one_rank, (world, folder, n, how, rounds), nprocs=world)
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


# -- and simulated ones -----------------------------------------------------------------------------------


def simulated(n: int, world: int) -> dict[str, Any]:
    """Without mixing. Seconds are those of all ranks, one after the other; those of making values apart."""
    sent = 0
    made = [bounds(n, rank, world) for rank in range(world)]

    def counted(shard: Any) -> Iterator[Any]:
        nonlocal sent
        answer = None
        while True:
            try:
                counts = shard.send(answer)
            except StopIteration as end:
                return end.value
            sent += counts.nbytes
            answer = yield counts

    begin = time.perf_counter()
    shards: list[Any] = [
        counted(
            sharded.condense_shard(
                Remade(*ends),
                num_samples=n,
                rank=rank,
                ranks=world,
                previous=n,
                target=SCHEDULE.target(n, n),
                mixing=False,
            )
        )
        for rank, ends in enumerate(made)
    ]
    chosen = counting.in_one_process(shards)
    seconds = time.perf_counter() - begin
    some = 16 << 20
    begin = time.perf_counter()
    for block in blocks(some):
        recorded(block.start, block.stop)
    making = (time.perf_counter() - begin) / some
    kept = 0
    for part in chosen:
        (start, _), bits = bounds(n, part.rank, world), part.members.bits
        for first in range(0, len(bits), 1 << 20):  # a part at a time
            members = np.flatnonzero(np.unpackbits(bits[first : first + (1 << 20)]))
            kept += checksum(members) + len(members) * (start + 8 * first)
    return {
        "seconds": seconds,
        "making_seconds_a_sample_and_pass": making,
        "sent_bytes": sent // world,
        "bytes_a_sample": 12 + sum(part.members.nbytes for part in chosen) / n,
        "checksum": (kept + 2**63) % 2**64 - 2**63,
        "kept": int(chosen[0].sizes.sum()),
    }


def sort(n: int) -> float:
    """Seconds of a stable argsort of all scores, the plain way to a ranking."""
    score = np.empty(n)
    remade = Remade(0, n)
    for block in blocks(n):
        score[block] = remade[block]
    begin = time.perf_counter()
    np.argsort(-score, kind="stable")
    return time.perf_counter() - begin


# -- the table --------------------------------------------------------------------------------------------


def allowed(memory: float) -> float:
    """Bytes that may be taken now: others may work on this machine."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
    return min(memory, 0.6 * available)


def megabytes(number: float) -> str:
    return f"{number / 1e6:,.4g} MB"


def measure(report: Report, n: int, worlds: list[int], memory: float, many: int) -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = []
    rounds = 3 if n <= 10**7 else 2 if n <= 10**8 else 1
    report.progress.begin(f"N = {n:,}: argsort")
    sums: list[int] = []
    sorting = sort(n) if 40 * n <= allowed(memory) else None
    if sorting is not None:
        points.append({"n": n, "how": "sort", "world": 1, "seconds": sorting})
    for world in worlds:
        gathered = None
        report.progress.begin(f"N = {n:,}, {world} rank(s)")
        if COPIES * n * world <= allowed(memory):
            gathered = real(n, world, "gather", rounds)
            points.append({"n": n, "how": "gather", "world": world, **gathered})
            sums.append(gathered["checksum"])
        # With mixing, all ranks hold the pairs around the cut for a while.
        for how, needs in (("counts", COUNTS * n), ("counts + pairs", COUNTS * n + 7 * n * world)):
            if needs > allowed(memory):
                continue
            found = real(n, world, how, rounds)
            points.append({"n": n, "how": how, "world": world, **found})
            sums.append(found["checksum"])
            text = [] if gathered is None else [f"gather {duration(gathered['seconds'])}"]
            text += [] if sorting is None else [f"argsort {duration(sorting)}"]
            name = f"N = {n:,}, {world} rank(s), {how}"
            ratio = None if gathered is None else found["seconds"] / gathered["seconds"]
            report.add(f"{name}: a stage", duration(found["seconds"]), ", ".join(text), ratio=ratio)
            for what, key, show in (
                ("peak bytes a sample of a rank", "bytes_a_sample", "{:.3g}".format),
                ("bytes a rank sends", "sent_bytes", megabytes),
            ):
                if world == 1 and key == "sent_bytes":
                    continue
                other = None if gathered is None else gathered[key]
                if key == "bytes_a_sample" and other is not None:
                    other *= world  # gathering holds all samples for the sake of its share
                report.add(
                    f"{name}: {what}",
                    show(found[key]),
                    "" if other is None else f"gather {show(other)}",
                    ratio=None if other is None else found[key] / other,
                )
    report.progress.begin(f"N = {n:,}, {many} simulated ranks")
    found = simulated(n, many)
    points.append({"n": n, "how": "simulated", "world": many, **found})
    sums.append(found["checksum"])
    report.add(
        f"N = {n:,}, {many} simulated ranks, counts: a stage of all ranks, one after the other",
        duration(found["seconds"]),
        f"sends {megabytes(found['sent_bytes'])}",
    )
    if found["kept"] != SCHEDULE.target(n, n):
        raise RuntimeError("the simulated ranks kept another number of points")
    if len(sums) > 1:  # one way alone agrees with itself
        sets = len(set(sums))
        report.add(f"N = {n:,}: different sets chosen", str(sets), ratio=sets, at_most=1, exact=True)
    return points


def outlook(points: list[dict[str, Any]], ranks: int, n: int) -> str:
    """What the largest runs, real and simulated, mean for more samples; without mixing, and what that adds."""
    real = [p for p in points if p["how"] == "counts"]
    if not real:
        return ""
    alone = max((p for p in real if p["world"] == 1), key=lambda p: p["n"])
    many = max((p for p in points if p["how"] == "simulated"), key=lambda p: p["n"])
    each = n / ranks
    seconds = [p["seconds"] / p["n"] * each for p in (alone, many)]
    gigabytes = [p["bytes_a_sample"] * each / 1e9 for p in (alone, many)]
    making = many["making_seconds_a_sample_and_pass"] * each
    text = (
        f"Without mixing, {ranks} ranks and {n:.0e} samples, {each:.2g} on each: a stage takes a rank {seconds[0]:.2g} s "
        f"by the largest real run (one rank, N = {alone['n']:.0e}) and {seconds[1]:.2g} s by the largest simulated one "
        f"({many['world']} ranks, N = {many['n']:.0e}: {many['seconds'] / many['world']:.2g} s a rank), which includes "
        f"making the values anew at each pass, {making:.2g} s for each of five passes at most. Neither has a network "
        f"in it. It takes {gigabytes[1]:.3g} GB on each rank by what is held ({many['bytes_a_sample']:.3g} bytes "
        f"a sample, simulated) and {gigabytes[0]:.3g} GB by the peak of the real run "
        f"({alone['bytes_a_sample']:.3g}); 12 bytes of all samples would be {12 * n / 1e9:.0f} GB. A rank hands "
        f"{megabytes(many['sent_bytes'])} to all_reduce, whatever N."
    )
    pairs = n - SCHEDULE.target(n, n)
    text += (
        "\n\nMixing adds, for a stage of L pairs over all ranks: while it lasts, 16 L bytes for dropped and 16 L for "
        "tail on every rank, which are also handed to all_reduce; and recipes of 28 bytes a pair, all of them kept by "
        'every rank with "cumulative", only those of its own samples with "fresh". '
        f"For the first stage here, of L = {pairs:.0e}, that is {32 * pairs / 1e9:.2g} GB while it lasts, and recipes "
        f"of {28 * pairs / 1e9:.2g} GB or about {28 * pairs / ranks / 1e9:.2g} GB on a rank."
    )
    mixing = [p for p in points if p["how"] == "counts + pairs"]
    if mixing:
        mixed = max(mixing, key=lambda p: (p["n"], p["world"]))
        without = next(p for p in real if (p["n"], p["world"]) == (mixed["n"], mixed["world"]))
        rise = (mixed["peak_bytes"] - without["peak_bytes"]) / (
            mixed["n"] - SCHEDULE.target(mixed["n"], mixed["n"])
        )
        text += (
            f" The copies made on the way count too: on {mixed['world']} real rank(s) at N = {mixed['n']:.0e} the peak "
            f"of a rank rose by {rise:.2g} bytes a pair."
        )
    return text


def not_run(points: list[dict[str, Any]]) -> str:
    """Which of the default sizes are missing."""
    missing = []
    for n in map(int, SIZES):
        ran = {p["how"] for p in points if p["n"] == n}
        if "counts" not in ran:
            where = " on real processes" if ran else ""
            missing.append(f"N = {n:.0e}{where} ({COUNTS * n / 1e9:.2g} GB)")
    if not missing:
        return ""
    return (
        f" Of the default sizes not run here, for want of free memory (real processes take {COUNTS} bytes a sample "
        f"or more, and are given 0.6 of what is free at most): {'; '.join(missing)}."
    )


def draw(points: list[dict[str, Any]], path: Path) -> None:
    try:
        write_whole(path, style.png(figure_of(points)))
    except ImportError as error:
        print(f"no picture: {error}")


def main() -> None:
    made: argparse.ArgumentParser = parser(__doc__)
    made.add_argument(
        "--memory",
        type=float,
        default=6.0,
        metavar="GB",
        help="that real processes may take together, if 0.6 of what is free allows it",
    )
    made.add_argument("--sizes", type=float, nargs="+", default=SIZES, metavar="N", help="samples")
    made.add_argument("--add", action="store_true", help="add these sizes to the results")
    options = made.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    sizes = [int(n) for n in options.sizes]
    worlds = [1, 2, 4]
    if options.quick:
        sizes, worlds = [10**5], [1, 2]
    report = Report(
        named("scale", made, options, "quick", *["sizes"] * (not options.add)),
        "Best of one to three turns. More processes than cores take turns: on such a machine more ranks save memory, "
        "not time. Where there is no reference, it did not fit into the memory allowed. Bytes sent are those handed to "
        "all_reduce; a ring of R ranks sends 2 (R - 1) / R times as many.",
    )
    points: list[dict[str, Any]] = []
    if options.add:
        before = json.loads((options.out / "scale.json").read_text())
        report.note += f" The upper rows are of `{before['command']}`, {before['date']}."
        report.data = before["rows"]
        points = report.data.pop("points")
        report.rows = [{key: row[key] for key in Report.HEAD} for row in report.data.values()]
    load = os.getloadavg()[0]
    note = f"{report.note} Load average before it began: {load:.1f} on {os.cpu_count()} cores."
    for n in sizes:  # written after each: the largest take long
        points += measure(report, n, worlds, options.memory * GB, 64)
        missing = not_run(points) if report.name == "scale" and n == sizes[-1] else ""
        report.note = f"{note}{missing}\n\n{outlook(points, 64, 10**10)}\n\n![growth]({report.name}.png)"
        report.data["points"] = points
        report.write(options.out)
        draw(points, options.out / f"{report.name}.png")


if __name__ == "__main__":
    main()
