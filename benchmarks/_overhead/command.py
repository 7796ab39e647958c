"""The command line of `benchmarks/overhead.py`."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from typing import Any

import torch
from _common.progress import Progress
from _common.report import about, bounded, heading, many, named, needed, parser

from .loop import Settings
from .measure import measure
from .pairs import PAIRS, Pair, Unusable, check, maker
from .recorders import RECORDERS, without_a_step
from .report import plot, table

AMP = {"cpu": "bfloat16", "cuda": "float16"}  # what --amp alone means


def parse(
    description: str | None, arguments: Sequence[str] | None
) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    options = parser(description)
    add = options.add_argument
    add("--device", default="cpu", help="cpu, cuda, cuda:1 ...")
    add("--amp", nargs="?", const=True, choices=("float16", "bfloat16"),
        help="autocast; alone, float16 on CUDA, bfloat16 on the CPU; with float16, gradients are scaled")  # fmt: skip
    add("--compile", action="store_true", help="torch.compile the students")
    add("--pairs", nargs="+", choices=list(PAIRS), default=list(PAIRS), metavar="P",
        help=f"teacher and student: {', '.join(PAIRS)} (default: all)")  # fmt: skip
    add("--teacher", metavar="MODULE:FUNCTION", help="your own, in place of --pairs: a function of a module that can be "
        "imported from here, called with num_classes=CLASSES if it takes that, which returns the model; or the name of "
        "a torchvision model")  # fmt: skip
    add("--student", metavar="MODULE:FUNCTION", help="as --teacher, and goes with it")
    add("--input", type=shape, default=(3, 224, 224), metavar="C,H,W",
        help="with --teacher and --student: the shape of one sample (default: 3,224,224)")  # fmt: skip
    add("--classes", type=int, default=100, metavar="N", help="with --teacher and --student: logits a sample")
    add("--batch-size", type=int, default=64, metavar="N", help="with --teacher and --student")
    add("--samples", type=int, default=2048, metavar="N", help="of the data set, all noise")
    add("--steps", type=int, default=32, metavar="N", help="rounds; ten times as many for the short pairs")
    add("--warmup", type=int, default=3, metavar="N", help="rounds that do not count")
    add("--threads", type=int, default=1, metavar="N", help="of torch")
    args = options.parse_args(arguments)
    bounded(options, args, batch_size=1, classes=2, steps=2, warmup=0, threads=1)
    if bool(args.teacher) != bool(args.student):
        options.error("--teacher and --student go together")
    given = {
        name
        for name in ("batch_size", "classes", "input", "pairs", "steps", "warmup")
        if getattr(args, name) != options.get_default(name)
    }
    for name in ("batch_size", "classes", "input"):
        if name in given and not args.teacher:
            options.error(f"--{name.replace('_', '-')} goes with --teacher and --student")
    if "pairs" in given and args.teacher:
        options.error("--pairs names what is built in: leave it out with --teacher and --student")
    if args.quick and {"pairs", "steps", "warmup"} & given:
        options.error("--quick chooses --pairs, --steps and --warmup by itself")
    largest = args.batch_size if args.teacher else max(PAIRS[pair].batch for pair in args.pairs)
    bounded(options, args, samples=largest)  # less is no whole batch
    if not re.fullmatch(r"cpu|cuda(:\d+)?", args.device):
        options.error(f"--device must be cpu, cuda or cuda:N, got {args.device}")
    device = torch.device(args.device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        options.error(f"--device {device}: this torch sees {many(torch.cuda.device_count(), 'CUDA device')}")
    if args.amp is True:
        args.amp = AMP[device.type]
    return options, args


def shape(text: str) -> tuple[int, ...]:
    """Of one sample: whole numbers, with commas between."""
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise argparse.ArgumentTypeError(f"must be whole numbers from 1 on, such as 3,224,224; got {text}")
    return tuple(int(part) for part in text.split(","))


def pairs_of(args: argparse.Namespace) -> list[Pair]:
    if not args.teacher:
        return [PAIRS[name] for name in args.pairs]
    teacher = maker("--teacher", args.teacher, args.classes)
    student = maker("--student", args.student, args.classes)
    name = f"{args.teacher}-{args.student}"
    return [Pair(name, teacher, student, args.batch_size, args.input, args.classes)]


def called(options: argparse.ArgumentParser, args: argparse.Namespace, device: torch.device) -> str:
    """What the results are called."""
    name = f"overhead-{device.type}"
    if args.amp:
        name += "-amp" if args.amp == AMP[device.type] else f"-amp-{args.amp}"
    name += "-compile" if args.compile else ""
    if args.teacher:
        name += re.sub(r"[^\w.]+", "-", f"-{args.teacher}-{args.student}")
        if any(getattr(args, size) != options.get_default(size) for size in ("input", "classes")):
            name += f"-{'x'.join(map(str, args.input))}-{args.classes}"
    return named(name, options, args, "quick", "pairs", "batch_size", "samples", "steps", "warmup", "threads")


def main(description: str | None, arguments: Sequence[str] | None = None) -> None:
    options, args = parse(description, arguments)
    device = torch.device(args.device)
    needed("plot", "matplotlib.figure")
    torch.set_num_threads(args.threads)
    name = called(options, args, device)
    if args.quick:
        args.pairs, args.steps, args.warmup = ["tiny"], 2, 1
    settings = Settings(
        device,
        samples=args.samples,
        amp=getattr(torch, args.amp) if args.amp else None,
        backend="inductor" if args.compile else None,
        rounds=args.steps,
        warmup=args.warmup,
        windows=2 if args.quick else 10,
    )
    progress = Progress()
    try:
        pairs = pairs_of(args)
        if args.teacher:
            progress.begin("a batch of --teacher and --student")
            check(pairs[0], device, settings.amp)
        measured = [measure(pair, settings, progress) for pair in pairs]
        progress.begin("recordings on fake CUDA tensors, and a stage's end")
        recording = {arm: without_a_step(arm) for arm in RECORDERS}
    except Unusable as error:
        progress.end()
        options.error(str(error))
    finally:
        progress.end()
    report: dict[str, Any] = {
        **about(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "amp": args.amp,
        "pairs": measured,
        "recording": recording,
    }
    text = heading(report) + "\n\n" + table(report)
    print(text)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    (args.out / f"{name}.txt").write_text(text + "\n")
    plot(report, args.out / f"{name}.png")
    print(f"written: {args.out / name}.json, .txt and .png")
