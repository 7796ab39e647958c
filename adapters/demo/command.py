"""``kcd demo``: plain distillation, condensed distillation and a control, side by side.

`distil` is the example to read: three lines of kcd around ordinary PyTorch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import kcd_core as kcd

from ..extras import need
from .datasets import Split
from .models import accuracy, build, recipe, train
from .pictures import draw
from .results import Clock, Results, Run, checked_folder, save_results
from .tasks import STAGES, TASKS, Task
from .telling import Progress, more, print_table, sentences

# Plain KD goes through the wrapped loader, too, at a ratio of 1: the loop is then the same for all arms,
# and so is every batch until the first stage ends. What that costs plain KD is in the table.
ARMS: dict[str, dict[str, Any]] = {
    "KD": {"ratio": 1.0, "mixing": None},
    "KC-KD": {"mixing": None},  # as docs/settings.md recommends
    "random dropping": {"select": "random"},
    "KD, shorter": {"ratio": 1.0, "mixing": None},  # that draw as many samples as the two before
    "KC-KD, mixed": {"mixing": "cumulative"},
}
SHOWN, MIXED = "KC-KD", "KC-KD, mixed"  # the arms whose first run is drawn
SHORTER = "KD, shorter"


def distil(
    student: nn.Module,
    teacher: nn.Module,
    loader: DataLoader[Any],
    *,
    epochs: int,
    device: torch.device,
    on_epoch: Callable[[], None],
    ratio: float,
    **options: Any,
) -> Run:
    """Distil ``teacher`` into ``student`` on a condensed set; ``options`` are `kcd.wrap_loader`'s."""
    condensed = kcd.wrap_loader(loader, schedule=schedule_for(ratio, epochs), **options)  # 1
    optimizer, rates = recipe(student, epochs)
    student.train()
    teacher.eval()
    clock, sets = Clock(), []
    start = perf_counter()
    for epoch in range(1, epochs + 1):
        for images, targets in condensed:
            images, targets = images.to(device), targets.to(device)
            with torch.no_grad():
                teacher_logits = teacher(images)
            student_logits = student(images)
            hard, soft = F.cross_entropy(student_logits, targets), kd_loss(student_logits, teacher_logits)
            loss = 0.1 * hard + 0.9 * soft
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with clock:
                condensed.record(student_logits)  # 2
        with clock:
            chosen = condensed.end_epoch()  # 3
        if isinstance(chosen, kcd.CondensedSet) and epoch < epochs:  # else nothing trains on it
            sets.append(chosen)
        rates.step()
        on_epoch()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Run(condensed, sets, seconds=perf_counter() - start, kcd_seconds=clock.seconds)


def schedule_for(ratio: float, epochs: int) -> kcd.CondensationSchedule:
    """What docs/settings.md recommends, with fewer stages where there are few epochs."""
    return kcd.CondensationSchedule.for_epochs(epochs, ratio, stages=min(STAGES, epochs - 1))


def kd_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 4.0
) -> torch.Tensor:
    """KL divergence of the softened predictions, times temperature squared (Hinton et al., 2015)."""
    log_student, log_teacher = (
        F.log_softmax(logits / temperature, -1) for logits in (student_logits, teacher_logits)
    )
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``kcd demo``."""
    parser.epilog = "Ctrl-C ends it early: the runs that are complete are shown and kept."
    add = parser.add_argument
    add(
        "--data",
        choices=sorted(TASKS),
        default="digits",
        help="data set (default: digits, which needs no file)",
    )
    add(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="folder with the files of letter, fashion-mnist or cifar100 (fashion-mnist's default: Debian's)",
    )
    add(
        "--epochs",
        type=int,
        metavar="N",
        help=f"at least 2, best more than {STAGES}, the stages ({_told('epochs')})",
    )
    add("--seeds", type=int, metavar="N", help=f"number of runs per arm ({_told('seeds')})")
    add("--ratio", type=float, help=f"share of the data that is kept in the end ({_told('ratio')})")
    add("--batch-size", type=int, metavar="N", help=f"({_told('batch_size')})")
    add("--workers", type=int, default=0, metavar="N", help="processes that load data (default: 0, this one)")
    add(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="(default: auto, CUDA where there is one)",
    )
    add(
        "--out",
        type=Path,
        default=Path("kcd-demo"),
        metavar="DIR",
        help="folder for the pictures and results.json, made if need be (default: ./kcd-demo)",
    )


def _told(field: str) -> str:
    """The data sets' defaults."""
    return "default: " + ", ".join(f"{data} {getattr(task, field)}" for data, task in TASKS.items())


def run(args: argparse.Namespace) -> int:
    """Run ``kcd demo``; returns the exit status."""
    for name, least in (("epochs", 2), ("seeds", 1), ("batch_size", 1)):
        number = getattr(args, name)
        if number is not None and number < least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {number}")
    if args.workers < 0:
        raise ValueError(f"--workers must be at least 0, got {args.workers}")
    if args.ratio is not None and not 0 < args.ratio <= 1:
        raise ValueError(f"--ratio must be in (0, 1], got {args.ratio}")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA device here; use --device cpu or auto")
    need("matplotlib.figure")
    console = need("rich.console").Console(markup=False, highlight=False, soft_wrap=True)
    task = TASKS[args.data]
    for name in ("epochs", "seeds", "ratio", "batch_size"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(task, name))
    split = task.read(args.data_dir).first(task.samples)
    out = checked_folder(args.out)

    cuda = args.device != "cpu" and torch.cuda.is_available()
    names = ("data", "epochs", "ratio", "batch_size", "workers")
    settings = {name: getattr(args, name) for name in names} | {
        "seeds": list(range(args.seeds)),
        "device": "cuda" if cuda else "cpu",
    }
    results = Results(settings, args.seeds, {name: [] for name in ARMS})
    threads = torch.get_num_threads()
    if args.data in ("digits", "letter"):
        torch.set_num_threads(1)  # such small batches are slower on several
    try:
        compare(args, task, split, console, results)
    except KeyboardInterrupt:
        if not results.done:
            console.print("interrupted before a run was complete: nothing is kept")
            return 130
        console.print(f"interrupted: {results.done} of {results.wanted} runs are complete, and are kept")
    finally:
        torch.set_num_threads(threads)
    report(console, split, results, out)
    return 0 if results.complete else 130


def compare(args: argparse.Namespace, task: Task, split: Split, console: Any, results: Results) -> None:
    """Train a teacher, and every arm with every seed; ``results`` gets each run when it is complete."""
    device = torch.device("cuda:0" if results.settings["device"] == "cuda" else "cpu")
    schedule = schedule_for(args.ratio, args.epochs)
    as_many = round(sum(schedule.sizes(len(split.train), args.epochs)) / len(split.train))
    lengths = {name: max(1, as_many) if name == SHORTER else args.epochs for name in ARMS}

    def plain_loader(seed: int) -> DataLoader[Any]:
        split.train.generator.manual_seed(seed)
        return DataLoader(
            split.train,
            args.batch_size,
            shuffle=True,
            num_workers=args.workers,
            pin_memory=device.type == "cuda",
            generator=torch.Generator().manual_seed(seed),  # else torch draws from the global one
        )

    console.print(
        f"{args.data}: {len(split.train):,} samples, {args.epochs} epochs, {args.seeds} seed(s), on {device.type}"
    )
    with Progress(console, args.epochs + args.seeds * sum(lengths.values())) as progress:
        progress.begin("teacher")
        teacher = build(task.teacher, len(split.classes), seed=0).to(device)
        train(teacher, plain_loader(0), epochs=args.epochs, device=device, on_epoch=progress.advance)
        results.teacher_accuracy = accuracy(teacher, split.test, device)
        progress.done(f"teacher: {results.teacher_accuracy:.2%}")
        sample = split.test.transform(torch.from_numpy(split.test.data[:1])).to(device)
        results.step = kcd.step_flops(
            build(task.student, len(split.classes), seed=0).to(device), teacher, sample
        )
        for seed in range(args.seeds):  # arms within seeds: what slows the machine down slows all arms down
            for name, options in ARMS.items():
                progress.begin(f"{name}, seed {seed}")
                student = build(task.student, len(split.classes), seed).to(device)
                done = distil(
                    student,
                    teacher,
                    plain_loader(seed),
                    epochs=lengths[name],
                    device=device,
                    on_epoch=progress.advance,
                    **{"ratio": args.ratio, "seed": seed, **options},
                )
                done.accuracy = accuracy(student, split.test, device)
                results.arms[name].append(done)
                progress.done(f"{name}, seed {seed}: {done.accuracy:.2%} in {done.seconds:.1f} s")


def report(console: Any, split: Split, results: Results, out: Path) -> None:
    """Print the table, write what was measured, draw it, and say what it shows."""
    print_table(console, results)
    save_results(out / "results.json", results)
    shown, mixed = (results.arms[name][0] if results.arms[name] else None for name in (SHOWN, MIXED))
    for path in [out / "results.json", *draw(out, split, results.arms, shown, mixed)]:
        console.print(f"written: {path}")
    console.print()
    for line in sentences(results.arms):
        console.print(line)
    for line in more(results.settings["data"], out / "results.json"):
        console.print(line, markup=False, soft_wrap=True)  # a command is copied whole
