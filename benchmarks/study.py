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
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from _report import RULE, Help, about, add_out, many, needed
from _study_arms import ARMS, STAGES, Job, ratio_of, run
from _study_losses import STUDENTS, Material, look, teacher_of
from _study_report import report

from kcd_adapters.datasets import LOADERS, Images
from kcd_adapters.demo_models import accuracy, build
from kcd_adapters.files import write_whole

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

#: Where Debian's package dataset-fashion-mnist puts the files.
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
TEACHER_EPOCHS = {"digits": 60, "fashion-mnist": 10}
#: What fits an hour on two cores.
DEFAULT_ARMS = ("kd", "kd-equal", "kc-kd-v3", "random", "rs2")


@dataclass(frozen=True)
class Setting:
    """What all runs of a study share."""

    data: str
    folder: Path | None
    samples: int
    epochs: int
    batch: int
    teacher_epochs: int
    out: Path

    @property
    def name(self) -> str:
        batch = "" if self.batch == 128 else f"-b{self.batch}"
        teacher = "" if self.teacher_epochs == TEACHER_EPOCHS[self.data] else f"-t{self.teacher_epochs}"
        return f"study-{self.data}-{self.samples}x{self.epochs}{batch}{teacher}"

    @property
    def runs(self) -> Path:
        return self.out / self.name

    @property
    def teacher(self) -> Path:
        return self.out / f"study-{self.data}-teacher" / f"{self.teacher_epochs}-epochs.pt"


# -- the teacher -----------------------------------------------------------------------------------------


def train_teacher(setting: Setting, progress: Progress) -> None:
    """Train the teacher on all images, once, and keep it and what it says about them."""
    path = setting.teacher
    if path.exists():
        return
    split = LOADERS[setting.data](setting.folder)
    images, targets = tensors(split.train)
    teacher: Any = build(teacher_of(split.train.data.shape[1]), len(split.classes), seed=0)
    steps = -(-len(images) // 128)
    optimizer = torch.optim.SGD(teacher.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    rates = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.1, epochs=setting.teacher_epochs, steps_per_epoch=steps
    )
    generator = torch.Generator().manual_seed(0)
    task = progress.add_task("teacher", total=setting.teacher_epochs * steps)
    for _ in range(setting.teacher_epochs):
        for indices in torch.randperm(len(images), generator=generator).tensor_split(steps):
            batch = images[indices]
            if setting.data != "digits":  # 2 and 5, mirrored, are other digits
                batch = flipped_and_shifted(batch, generator)
            loss = F.cross_entropy(teacher(batch), targets[indices])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            rates.step()
            progress.advance(task)
    features, logits = look(teacher, images)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    torch.save(
        {
            "model": teacher.state_dict(),
            "features": features,
            "logits": logits,
            "accuracy": accuracy(teacher, split.test, torch.device("cpu")),
        },
        unfinished,
    )
    os.replace(unfinished, path)


def flipped_and_shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image mirrored or not, the batch shifted by up to two pixels."""
    mirror = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    shift = torch.randint(-2, 3, (2,), generator=generator).tolist()
    return torch.where(mirror, images.flip(-1), images).roll(shift, dims=(-2, -1))


def tensors(images: Images) -> tuple[torch.Tensor, torch.Tensor]:
    """All of them, normalised, and their targets."""
    return images.transform(torch.from_numpy(images.data)), torch.from_numpy(images.targets)


@cache
def material_of(setting: Setting) -> tuple[Material, float]:
    """The first ``samples`` training images with what the teacher says; and its test accuracy."""
    split = LOADERS[setting.data](setting.folder)
    n, whole = setting.samples, split.train
    train = Images(whole.data[:n], whole.targets[:n], whole.mean, whole.std)
    known = torch.load(setting.teacher, weights_only=True)
    teacher: Any = build(teacher_of(split.train.data.shape[1]), len(split.classes), seed=0)
    teacher.load_state_dict(known["model"])
    views = (*tensors(train), known["logits"][:n].clone(), known["features"][:n].clone())
    return Material(train, split.test, len(split.classes), teacher, *views), known["accuracy"]


# -- the runs --------------------------------------------------------------------------------------------


def work(setting: Setting, job: Job) -> dict[str, Any]:
    """Do one run and keep its result; in a process of its own."""
    torch.set_num_threads(1)
    material, teacher_accuracy = material_of(setting)
    result = {"data": setting.data, "samples": setting.samples, "teacher_accuracy": teacher_accuracy}
    result |= run(job, material)
    write_whole(setting.runs / f"{job.name}.json", (json.dumps(result, indent=1) + "\n").encode())
    return result


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
    with ProcessPoolExecutor(number, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def carry_out(setting: Setting, jobs: Sequence[Job], workers: int, console: Console) -> None:
    """Do the runs that are not done yet."""
    setting.runs.mkdir(parents=True, exist_ok=True)
    missing = [job for job in jobs if not (setting.runs / f"{job.name}.json").exists()]
    console.print(f"{setting.name}: {many(len(jobs), 'run')}, {len(jobs) - len(missing)} of them done before")
    if not missing:
        return
    from rich.progress import Progress

    torch.set_num_threads(workers)
    with Progress(console=console) as progress:
        train_teacher(setting, progress)
        task = progress.add_task("runs", total=len(missing))
        with processes(workers) as pool:
            for future in as_completed([pool.submit(work, setting, job) for job in missing]):
                result = future.result()
                progress.advance(task)
                name = Job(**{key: result[key] for key in Job.__dataclass_fields__}).name
                progress.print(f"{name}: {result['accuracy']:.2%} in {result['seconds']:.0f} s")


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, Setting]:
    titles = "\n".join(f"  {name:17} {arm.title}" for name, arm in ARMS.items())
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=Help, epilog=f"arms:\n{titles}\n\n{RULE}"
    )
    add, found = parser.add_argument, DEBIAN.is_dir()
    add("--data", choices=["digits", "fashion-mnist"], default="fashion-mnist" if found else "digits",
        help="images (default: fashion-mnist if Debian's package of it is installed, else digits)")  # fmt: skip
    add("--data-dir", type=Path, metavar="DIR", help="of the IDX files (default: the Debian package's)")
    add("--arms", nargs="+", choices=list(ARMS), default=DEFAULT_ARMS, metavar="ARM", help="listed below")
    add("--ratios", nargs="+", type=float, default=[0.7], metavar="R", help="of the samples kept in the end")
    add("--students", nargs="+", choices=list(STUDENTS), default=["small"], metavar="S",
        help=", ".join(f"{name} (first width {width})" for name, width in STUDENTS.items()))  # fmt: skip
    add("--seeds", type=int, default=10, metavar="N", help="0 to N-1, each all arms")
    add("--epochs", type=int, default=24, metavar="N", help=f"a multiple of {STAGES}, the stages")
    add("--samples", type=int, metavar="N", help="the first N images (default: 20000, or all 1198 digits)")
    add("--batch", type=int, default=128, metavar="N", help="samples in a batch")
    add("--teacher-epochs", type=int, metavar="N", help="of its training (default: 10, for digits 60)")
    add("--workers", type=int, default=os.cpu_count() or 1, metavar="N",
        help="processes (default: as many as cores)")  # fmt: skip
    add_out(parser, "for tables, plot and, in a folder below, the runs")
    add("--report-only", action="store_true", help="recompute the tables from the runs that are done")
    args = parser.parse_args(arguments)
    if args.epochs < STAGES or args.epochs % STAGES:
        parser.error(f"--epochs must be a multiple of {STAGES}, got {args.epochs}")
    fashion = args.data == "fashion-mnist"
    setting = Setting(
        data=args.data,
        folder=args.data_dir or (DEBIAN if fashion and found else None),
        samples=args.samples or (20_000 if fashion else 1_198),
        epochs=args.epochs,
        batch=args.batch,
        teacher_epochs=args.teacher_epochs or TEACHER_EPOCHS[args.data],
        out=args.out,
    )
    return args, setting


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    args, setting = parse(arguments)
    needed("demo", "rich.console", "matplotlib.figure", *["sklearn.datasets"] * (args.data == "digits"))
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    facts, status = about(), 0
    made_by = {"command": " ".join(["python benchmarks/study.py", *arguments]), "date": facts["date"]}
    made_by |= {**facts["machine"], "threads": 1}  # of a run
    try:
        if not args.report_only:
            carry_out(setting, jobs_of(args, setting), args.workers, console)
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on from here")
        status = 130
    text = report(setting.out, setting.name, None if args.report_only else made_by)
    console.print(text, soft_wrap=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
