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
from .datasets import LOADERS, Split
from .models import MODELS, accuracy, build, recipe, train
from .pictures import draw
from .results import Clock, Progress, Run, checked_folder, fetch_overhead, print_table, save_results

STAGES = 6
#: Epochs and seeds by default: digits take about a minute on two cores, the paper's recipe is cifar100's.
DEFAULTS = {"digits": (60, 5), "fashion-mnist": (12, 1), "cifar100": (240, 1)}


# Plain KD goes through the wrapped loader, too, at a ratio of 1: the loop is then the same for all arms,
# and so is every batch until the first stage ends. What that costs plain KD is in the table.
ARMS: dict[str, dict[str, Any]] = {
    "KD": {"ratio": 1.0, "mixing": None},
    "KC-KD, no mixing": {"mixing": None},
    "KC-KD": {"mixing": "cumulative"},  # wrap_loader's default
    "random dropping": {"select": "random"},
}
SHOWN = "KC-KD"  # the arm whose first run is drawn


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
    schedule = kcd.CondensationSchedule(ratio=ratio, stages=STAGES, period=max(1, epochs // STAGES))
    condensed = kcd.wrap_loader(loader, schedule=schedule, **options)  # 1
    optimizer, rates = recipe(student, epochs)
    student.train()
    teacher.eval()
    clock, sets = Clock(), []
    start = perf_counter()
    for _ in range(epochs):
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
        if isinstance(chosen, kcd.CondensedSet):
            sets.append(chosen)
        rates.step()
        on_epoch()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Run(condensed, sets, seconds=perf_counter() - start, kcd_seconds=clock.seconds)


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
    epochs, seeds = (
        ", ".join(f"{data} {numbers[place]}" for data, numbers in DEFAULTS.items()) for place in (0, 1)
    )
    add = parser.add_argument
    add(
        "--data",
        choices=sorted(LOADERS),
        default="digits",
        help="data set (default: digits, which needs no file)",
    )
    add("--data-dir", type=Path, metavar="DIR", help="folder with the files of fashion-mnist or cifar100")
    add(
        "--epochs", type=int, metavar="N", help=f"best a multiple of {STAGES}, the stages (default: {epochs})"
    )
    add("--seeds", type=int, metavar="N", help=f"number of runs per arm (default: {seeds})")
    add("--ratio", type=float, default=0.7, help="share of the data that is kept in the end (default: 0.7)")
    add("--batch-size", type=int, default=64, metavar="N", help="(default: 64)")
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


def run(args: argparse.Namespace) -> int:
    """Run ``kcd demo``; returns the exit status."""
    for name in ("epochs", "seeds", "batch_size"):
        number = getattr(args, name)
        if number is not None and number < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {number}")
    if args.workers < 0:
        raise ValueError(f"--workers must be at least 0, got {args.workers}")
    if not 0 < args.ratio <= 1:
        raise ValueError(f"--ratio must be in (0, 1], got {args.ratio}")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA device here; use --device cpu or auto")
    need("matplotlib.figure")
    console = need("rich.console").Console(markup=False, highlight=False, soft_wrap=True)
    split = LOADERS[args.data](args.data_dir)
    out = checked_folder(args.out)

    threads = torch.get_num_threads()
    if args.data == "digits":
        torch.set_num_threads(1)  # such small batches are slower on several
    try:
        compare(args, split, console, out)
    except KeyboardInterrupt:
        console.print("interrupted before the results were complete")
        return 130
    finally:
        torch.set_num_threads(threads)
    return 0


def compare(args: argparse.Namespace, split: Split, console: Any, out: Path) -> None:
    """Train a teacher, run every arm with every seed, report."""
    epochs, seeds = args.epochs or DEFAULTS[args.data][0], args.seeds or DEFAULTS[args.data][1]
    cuda = args.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda:0" if cuda else "cpu")
    new_teacher, new_student = MODELS[args.data]
    results: dict[str, list[Run]] = {name: [] for name in ARMS}

    def plain_loader(seed: int, workers: int = args.workers) -> DataLoader[Any]:
        split.train.generator.manual_seed(seed)
        return DataLoader(
            split.train,
            args.batch_size,
            shuffle=True,
            num_workers=workers,
            pin_memory=cuda,
            generator=torch.Generator().manual_seed(seed),  # else torch draws from the global one
        )

    console.print(
        f"{args.data}: {len(split.train):,} images, {epochs} epochs, {seeds} seed(s), on {device.type}"
    )
    with Progress(console, epochs * (1 + seeds * len(ARMS))) as progress:
        progress.begin("teacher")
        teacher = build(new_teacher, len(split.classes), seed=0).to(device)
        train(teacher, plain_loader(0), epochs=epochs, device=device, on_epoch=progress.advance)
        teacher_accuracy = accuracy(teacher, split.test, device)
        progress.done(f"teacher: {teacher_accuracy:.2%}")
        image = split.test.transform(torch.from_numpy(split.test.data[:1])).to(device)
        step = kcd.step_flops(build(new_student, len(split.classes), seed=0).to(device), teacher, image)
        for seed in range(seeds):  # arms within seeds: what slows the machine down slows all arms down
            for name, options in ARMS.items():
                progress.begin(f"{name}, seed {seed}")
                student = build(new_student, len(split.classes), seed).to(device)
                options = {"ratio": args.ratio, "seed": seed, **options}
                done = distil(
                    student,
                    teacher,
                    plain_loader(seed),
                    epochs=epochs,
                    device=device,
                    on_epoch=progress.advance,
                    **options,
                )
                done.accuracy = accuracy(student, split.test, device)
                done.kcd_seconds += fetch_overhead(done, plain_loader(seed, workers=0), epochs)
                results[name].append(done)
                progress.done(f"{name}, seed {seed}: {done.accuracy:.2%} in {done.seconds:.1f} s")

    title = f"{args.data}, {epochs} epochs, {seeds} seed(s); teacher {teacher_accuracy:.2%}"
    print_table(console, title, results, step)
    settings = {
        "data": args.data,
        "epochs": epochs,
        "seeds": list(range(seeds)),
        "ratio": args.ratio,
        "batch_size": args.batch_size,
        "device": device.type,
        "workers": args.workers,
    }
    save_results(out / "results.json", settings, teacher_accuracy, results, step)
    shown = results[SHOWN][0]
    for path in [out / "results.json", *draw(out, split, shown.loader, shown.sets)]:
        console.print(f"written: {path}")
