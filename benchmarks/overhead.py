"""What does KCD add to a training step, on this device?

    python benchmarks/overhead.py [--quick] [--out DIR] [--device cuda] [--amp] [--compile]

One real distillation step (teacher forward, student forward and backward, SGD), taken in turn by each
arm in every round, so that the machine's noise hits all of them: plain KD, KCD, the authors' recording,
and InfoBatch's. The last two are written from their published descriptions. Reported are medians per
step; the ratio to plain KD of the same round, with a bootstrap confidence interval; what an arm adds by
itself, timed inside its steps; ATen operations, synchronisations and bytes to the host of that, counted on
(fake) CUDA tensors; memory per sample; and what the end of a stage costs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch
import torch.nn.functional as F
from _report import about, bounded, heading, many, named, needed, parser
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

import kcd_core as kcd
from kcd_adapters.demo_models import ResNet, build

# name: (teacher, student, batch, image side); the published pair, and two whose steps are short
PAIRS: dict[str, tuple[Callable[[], Any], Callable[[], Any], int, int]] = {
    "resnet32x4-resnet8x4": (lambda: ResNet(5, 64, 100), lambda: ResNet(1, 64, 100), 64, 32),
    "small": (lambda: ResNet(2, 16, 100), lambda: ResNet(1, 8, 100), 64, 12),
    "tiny": (lambda: ResNet(2, 8, 100), lambda: ResNet(1, 4, 100), 64, 8),
}
WINDOW = 32  # steps after which a tracker adds what has waited
ARMS = ("kd", "kcd", "authors", "infobatch")
EPOCHS = 240
MOST = 1.005  # the target for a step's time, to plain KD's
MOST_OF_AUTHORS = 0.7  # and for the recording's, to the authors'
NOTE = """\
added us is the recording alone; on CUDA, host time in rounds of their own, in which the device is idle when it begins:
what the recording launches and the copies that it waits for, not the step before. The ratio is of whole steps: it has,
too, what giving the index along with each sample costs (the wrapped loader's work for kcd, a column of the data set for
authors and infobatch), and noise, as wide as its interval. infobatch is one process: the all_gather of every step under
DDP is measured by benchmarks/communication.py"""


# -- the recordings --------------------------------------------------------------------------------------


class Kcd:
    """The tracker, as the wrapped loader drives it."""

    def __init__(self, samples: int, device: torch.device) -> None:
        self.tracker = kcd.KnowledgeValueTracker(samples, device=device if device.type == "cuda" else None)

    def record(self, indices: torch.Tensor, logits: torch.Tensor, losses: torch.Tensor) -> None:
        self.tracker.update(indices, logits)

    def bytes_per_sample(self) -> float:
        total, count = self.tracker.sums()
        return (total.nbytes + count.nbytes) / len(total)

    def stage(self) -> None:
        kcd.condense_step(
            self.tracker, kcd.CondensedSampler(self.tracker.num_samples), kcd.CondensationSchedule()
        )


class Authors:
    """Softmax, p log p, a copy to the host every step, and a matrix with a column for every epoch."""

    def __init__(self, samples: int, device: torch.device) -> None:
        self.column = np.full(samples, -1.0)
        self.matrix = np.zeros((samples, 0))

    def record(self, indices: torch.Tensor, logits: torch.Tensor, losses: torch.Tensor) -> None:
        with torch.no_grad():
            p = logits.softmax(1)
            entropy = -(p * p.log()).sum(1)
            host = entropy.cpu()
        if type(host) is torch.Tensor:  # a fake tensor has nothing to store
            self.column[indices.numpy()] = host.float().numpy()

    def bytes_per_sample(self) -> float:
        return 8.0 * EPOCHS

    def stage(self) -> None:
        record = np.repeat(self.column[:, None], 40, axis=1)  # the first stage's matrix
        record = np.clip(record, 0.0, record.max())
        count = (record > 0).sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            score = (count / 40.0) ** 0.03 * (record.sum(1) / count)
        score.argsort()[::-1]


class InfoBatch:
    """Scores are the losses of the batch, stored in host memory each step; the loss is rescaled."""

    def __init__(self, samples: int, device: torch.device) -> None:
        self.scores = torch.full((samples,), 3.0)
        self.weights = torch.ones(samples)

    def record(self, indices: torch.Tensor, logits: torch.Tensor, losses: torch.Tensor) -> None:
        weights = self.weights[indices].to(losses.device, non_blocking=True)
        host = losses.detach().cpu()
        if type(host) is torch.Tensor:
            self.scores[indices] = host.float()
        losses.detach() * weights  # their mean is taken in place of plain KD's

    def bytes_per_sample(self) -> float:
        return float(self.scores.element_size() + self.weights.element_size())

    def stage(self) -> None:
        below = self.scores < self.scores.mean()
        kept = torch.rand(len(below), generator=torch.Generator().manual_seed(0)) < 0.5
        self.weights = torch.where(below & kept, 2.0, 1.0)


RECORDERS: dict[str, type[Any]] = {"kcd": Kcd, "authors": Authors, "infobatch": InfoBatch}


# -- one step --------------------------------------------------------------------------------------------


class Loop:
    """One arm's student, loader and recording, and its training step."""

    def __init__(self, arm: str, teacher: Any, student: Any, loader: Any, args: Any, device: Any) -> None:
        self.arm, self.teacher, self.student, self.args, self.device = arm, teacher, student, args, device
        self.optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        self.scaler = torch.amp.GradScaler(device.type, enabled=args.amp and device.type == "cuda")
        self.loader = loader
        self.recorder = RECORDERS[arm](args.samples, device) if arm in ("authors", "infobatch") else None
        self.batches = self._forever()

    def _forever(self) -> Iterator[Any]:
        while True:
            yield from self.loader
            if self.arm == "kcd":
                self.loader.end_epoch()

    def step(self, *, apart: bool = False) -> tuple[float, float]:
        """Seconds from asking for the batch to the end of the update, the device waited for; and the recording's.

        ``apart``: it begins when the device has finished the update, which else it may have to wait for.
        """
        sync(self.device)
        start = time.perf_counter()
        *indices, images, targets = next(self.batches)
        images = images.to(self.device, non_blocking=True)
        targets = targets.to(self.device, non_blocking=True)
        half = torch.autocast(self.device.type, enabled=True) if self.args.amp else nullcontext()
        with half:
            with torch.no_grad():
                teacher_logits = self.teacher(images)
            logits = self.student(images)
            ce = F.cross_entropy(logits, targets, reduction="none")
            kl = F.kl_div((logits / 4).log_softmax(1), (teacher_logits / 4).softmax(1), reduction="none").sum(
                1
            )
            losses = 0.1 * ce + 0.9 * 16 * kl
        self.optimizer.zero_grad()
        self.scaler.scale(losses.mean()).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if apart:
            sync(self.device)
        before = time.perf_counter()
        if self.arm == "kcd":
            self.loader.record(logits)
        elif self.recorder is not None:
            self.recorder.record(indices[0], logits, losses)
        added = time.perf_counter() - before
        sync(self.device)
        return time.perf_counter() - start, added


def sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(pair: str, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Interleaved steps of all arms on one pair."""
    teacher_of, student_of, batch, side = PAIRS.get(pair) or torchvision_pair(args)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(args.samples, 3, side, side, generator=generator)
    targets = torch.randint(0, 100, (args.samples,), generator=generator)
    plain = TensorDataset(images, targets)
    with_index = TensorDataset(torch.arange(args.samples), images, targets)
    teacher = build(lambda _: teacher_of(), 100, 0).to(device).eval()
    loops = {}
    for arm in ARMS:
        loader: Any = DataLoader(
            plain if arm in ("kd", "kcd") else with_index,
            batch_size=batch,
            shuffle=True,
            drop_last=True,
            generator=torch.Generator().manual_seed(0),
            pin_memory=device.type == "cuda",
        )
        if arm == "kcd":
            loader = kcd.wrap_loader(loader, schedule=kcd.CondensationSchedule(period=40))
        student = build(lambda _: student_of(), 100, 0).to(device)
        if args.compile:
            student = torch.compile(student)
        loops[arm] = Loop(arm, teacher, student, loader, args, device)
    turns = np.random.default_rng(0)
    steps = args.steps * (10 if pair in ("small", "tiny") else 1)
    seconds, added = in_turns(loops, steps, args.warmup, turns)
    if device.type == "cuda":  # to wait within a step would make it longer
        _, added = in_turns(loops, steps, args.warmup, turns, apart=True)
    base = seconds["kd"]
    result: dict[str, Any] = {"pair": pair, "batch": batch, "rounds": steps, "arms": {}}
    for arm in ARMS:
        own = seconds[arm]
        row: dict[str, Any] = {"median_ms": 1e3 * float(np.median(own))}
        if arm != "kd":
            interval = scipy.stats.bootstrap(
                (own, base), ratio_of_medians, paired=True, n_resamples=2000, method="percentile",
                random_state=np.random.default_rng(0),
            ).confidence_interval  # fmt: skip
            row["ratio"] = ratio_of_medians(own, base)
            row["ratio_95"] = [float(interval.low), float(interval.high)]
            row["added_us"] = 1e6 * typical(added[arm])
            row["added_share"] = row["added_us"] / (1e3 * result["arms"]["kd"]["median_ms"])
        result["arms"][arm] = row
    return result


def in_turns(
    loops: dict[str, Loop], rounds: int, warmup: int, turns: np.random.Generator, *, apart: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Seconds of whole steps and of the recording in them, [rounds] for each arm, the first ``warmup`` left out."""
    taken: dict[str, list[tuple[float, float]]] = {arm: [] for arm in loops}
    for _ in range(warmup + rounds):
        for arm in turns.permutation(list(loops)):
            taken[arm].append(loops[arm].step(apart=apart))
    kept = {arm: np.array(own[warmup:]) for arm, own in taken.items()}
    return {arm: own[:, 0] for arm, own in kept.items()}, {arm: own[:, 1] for arm, own in kept.items()}


def typical(seconds: Any) -> float:
    """Seconds a step, with its share of what is done only once in `WINDOW` steps; the machine's hiccups left out."""
    windows = [seconds[start : start + WINDOW] for start in range(0, len(seconds), WINDOW)]
    whole = [np.mean(window) for window in windows if len(window) == WINDOW]
    return float(np.median(whole or seconds))


def ratio_of_medians(a: Any, b: Any, axis: int = -1) -> Any:
    return np.median(a, axis=axis) / np.median(b, axis=axis)


def torchvision_pair(args: argparse.Namespace) -> tuple[Callable[[], Any], Callable[[], Any], int, int]:
    from torchvision import models

    make = {n: (lambda n=n: models.get_model(n, num_classes=100)) for n in (args.teacher, args.student)}
    return make[args.teacher], make[args.student], args.batch_size, 224


# -- counting on fake CUDA tensors -----------------------------------------------------------------------


class Counter(TorchDispatchMode):
    """ATen operations that do something, and copies from the device to the host."""

    VIEWS = ("detach", "alias", "view", "select", "slice", "expand", "unsqueeze", "lift_fresh", "t")

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.synchronisations = self.bytes_to_host = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in args if isinstance(x, torch.Tensor)]
        on_device = any(x.device.type == "cuda" for x in tensors)
        if isinstance(out, torch.Tensor):
            if on_device and out.device.type == "cpu":
                self.synchronisations += 1
                self.bytes_to_host += out.numel() * out.element_size()
            if (on_device or out.device.type == "cuda") and func._opname not in self.VIEWS:
                self.operations += 1
        return out


def count(arm: str, steps: int = 320) -> dict[str, float]:
    """What one step of an arm's recording does on CUDA: 64 x 100 logits, averaged over many steps."""
    counter = Counter()
    # In host memory, as a loader yields them; NumPy's, since inside the mode every tensor is fake.
    indices: Any = np.arange(64) if arm == "kcd" else torch.arange(64)
    with FakeTensorMode(allow_non_fake_inputs=True):
        device = torch.device("cuda:0")
        recorder = RECORDERS[arm](1000, device)
        logits, losses = torch.empty(64, 100, device=device), torch.empty(64, device=device)
        with counter:
            for _ in range(steps):
                recorder.record(indices, logits, losses)
    return {
        "operations": counter.operations / steps,
        "synchronisations": counter.synchronisations / steps,
        "bytes_to_host": counter.bytes_to_host / steps,
    }


def stage_end(arm: str, samples: int = 50_000) -> float:
    """Seconds that the end of the first stage of 40 epochs takes, without mixing: the best of five."""
    recorder = RECORDERS[arm](samples, torch.device("cpu"))
    rng = np.random.default_rng(0)
    order, logits = (
        torch.from_numpy(rng.permutation(samples)),
        torch.from_numpy(rng.normal(size=(samples, 10))),
    )
    losses = torch.rand(samples, generator=torch.Generator().manual_seed(0))
    recorder.record(order, logits, losses)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        recorder.stage()
        best = min(best, time.perf_counter() - start)
    return best


# -- the report ------------------------------------------------------------------------------------------


def table(report: dict[str, Any]) -> str:
    lines = []
    for result in report["pairs"]:
        lines += [
            f"{result['pair']}, batch {result['batch']}, {result['rounds']} rounds",
            "arm         ms a step   ratio   95 % interval      added us   share of a step",
        ]
        for arm, row in result["arms"].items():
            line = f"{arm:10} {row['median_ms']:10.2f}"
            if "ratio" in row:
                low, high = row["ratio_95"]
                line += f"  {row['ratio']:6.4f}  {low:6.4f} .. {high:6.4f}  {row['added_us']:9.1f}   {row['added_share']:.3%}"
            lines.append(line)
        arms = result["arms"]
        ratio, share = arms["kcd"]["ratio"], arms["kcd"]["added_us"] / arms["authors"]["added_us"]
        for text, figure, most in (
            ("ratio", ratio, MOST),
            ("added us to the authors'", share, MOST_OF_AUTHORS),
        ):
            lines.append(
                f"target of kcd: {text} at most {most}: {figure:.3f}, {'met' if figure <= most else 'MISSED'}"
            )
        lines.append("")
    lines += [NOTE, ""]
    lines.append("recording    operations   syncs   bytes to host   bytes a sample   stage end at 50,000, ms")
    for arm, row in report["recording"].items():
        lines.append(
            f"{arm:10} {row['operations']:12.1f}  {row['synchronisations']:6.2f}  {row['bytes_to_host']:14.0f}"
            f"  {row['bytes_per_sample']:15.0f}  {1e3 * row['stage_end_s']:24.1f}"
        )
    lines.append(
        "\noperations, synchronisations and bytes are a step's, on fake CUDA tensors; the authors' memory is "
        f"their matrix after {EPOCHS} epochs"
    )
    return "\n".join(lines)


def plot(report: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    pairs = report["pairs"]
    figure = Figure(figsize=(4.2 * len(pairs), 3), layout="constrained")
    for axes, result in zip(np.atleast_1d(figure.subplots(1, len(pairs))), pairs, strict=True):
        arms = [arm for arm in ARMS if arm != "kd"]
        for place, arm in enumerate(arms):
            low, high = result["arms"][arm]["ratio_95"]
            axes.plot([low, high], [place, place], linewidth=3)
            axes.plot(result["arms"][arm]["ratio"], place, "o", color="black")
        axes.axvline(1, color="grey", linewidth=0.8)
        axes.set_yticks(range(len(arms)), arms)
        axes.set_title(f"{result['pair']}, {result['arms']['kd']['median_ms']:.1f} ms a step", fontsize=10)
        axes.set_xlabel("time of a step relative to plain KD, 95 % interval")
    figure.savefig(path, dpi=130)


def parse(arguments: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    options = parser(__doc__)
    add = options.add_argument
    add("--device", default="cpu", help="cpu, cuda, cuda:1 ...")
    add("--amp", action="store_true", help="autocast (and a GradScaler on CUDA)")
    add("--compile", action="store_true", help="torch.compile the students")
    add("--pairs", nargs="+", choices=list(PAIRS), default=list(PAIRS), metavar="P",
        help=f"teacher and student: {', '.join(PAIRS)} (default: all)")  # fmt: skip
    add("--teacher", metavar="NAME", help="a torchvision model, on 224 x 224 images, in place of --pairs")
    add("--student", metavar="NAME", help="a torchvision model; goes with --teacher")
    add("--batch-size", type=int, default=64, metavar="N", help="with --teacher and --student")
    add("--samples", type=int, default=2048, metavar="N", help="of the data set, all noise")
    add("--steps", type=int, default=32, metavar="N", help="rounds; ten times as many for the short pairs")
    add("--warmup", type=int, default=3, metavar="N", help="rounds that do not count")
    add("--threads", type=int, default=1, metavar="N", help="of torch")
    args = options.parse_args(arguments)
    bounded(options, args, batch_size=1, steps=2, warmup=0, threads=1)
    if bool(args.teacher) != bool(args.student):
        options.error("--teacher and --student go together")
    given = [
        name
        for name in ("batch_size", "pairs", "steps", "warmup")
        if getattr(args, name) != options.get_default(name)
    ]
    if "batch_size" in given and not args.teacher:
        options.error("--batch-size goes with --teacher and --student")
    if args.quick and {"pairs", "steps", "warmup"} & {*given}:
        options.error("--quick chooses --pairs, --steps and --warmup by itself")
    largest = args.batch_size if args.teacher else max(PAIRS[pair][2] for pair in args.pairs)
    bounded(options, args, samples=largest)  # less is no whole batch
    if args.teacher:
        try:
            models = importlib.import_module("torchvision.models")
        except ImportError:
            options.error("--teacher and --student name torchvision models: install torchvision")
        for name in {args.teacher, args.student} - set(models.list_models(module=models)):
            options.error(f"{name} is no classifier of torchvision")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", args.device):
        options.error(f"--device must be cpu, cuda or cuda:N, got {args.device}")
    device = torch.device(args.device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        options.error(f"--device {device}: this torch sees {many(torch.cuda.device_count(), 'CUDA device')}")
    return options, args


def main(arguments: Sequence[str] | None = None) -> None:
    options, args = parse(arguments)
    device = torch.device(args.device)
    needed("plot", "matplotlib.figure")
    torch.set_num_threads(args.threads)
    name = f"overhead-{device.type}{'-amp' if args.amp else ''}{'-compile' if args.compile else ''}"
    name += f"-{args.teacher}-{args.student}" if args.teacher else ""
    name = named(name, options, args, "quick", "pairs", "batch_size", "samples", "steps", "warmup", "threads")
    if args.quick:
        args.pairs, args.steps, args.warmup = ["tiny"], 2, 1

    pairs = [f"{args.teacher}-{args.student}"] if args.teacher else args.pairs
    report: dict[str, Any] = {
        **about(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "pairs": [measure(pair, args, device) for pair in pairs],
        "recording": {},
    }
    for arm, recorder in RECORDERS.items():
        report["recording"][arm] = {
            **count(arm),
            "bytes_per_sample": recorder(1000, torch.device("cpu")).bytes_per_sample(),
            "stage_end_s": stage_end(arm),
        }
    text = heading(report) + "\n\n" + table(report)
    print(text)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    (args.out / f"{name}.txt").write_text(text + "\n")
    plot(report, args.out / f"{name}.png")
    print(f"written: {args.out / name}.json, .txt and .png")


if __name__ == "__main__":
    main()
