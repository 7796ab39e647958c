"""The published table, run again: KD, PKT, CRD, SSKD and their KC- versions, for 11 teacher -> student pairs.

    python benchmarks/paper_table.py --repdistiller DIR --sskd DIR [--gpus 0 1] [--jobs 2] [--seeds 3]

Needs CIFAR-100, RepDistiller's pretrained teachers, a GPU, and checkouts of HobbitLong/RepDistiller and
xuguodong03/SSKD, which are not written to; torchvision and, for SSKD, tensorboardX. All runs go through `kcd run`. A
run that is finished is not done again, one that failed or was interrupted starts over, so the command can be
repeated, or extended by seeds, pairs and methods. What is missing is said before anything starts.

To try an installation, on a CPU, too: `--smoke DIR` puts noise as CIFAR-100 and untrained teachers in DIR, and
does every run for a few epochs. Its figures mean nothing. `--pairs resnet56-resnet20 --methods kd kc-kd` is a minute on
two cores, all 88 runs are hours (SSKD's most of them).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from _common.report import RULE, Help, about, add_out, bounded, commit
from _paper.published import EPOCHS, METHODS, PAIRS, STAGES
from _paper.report import report
from _paper.runs import Run, Setting, sskd_teacher
from _paper.slots import Slots, carry_out
from _paper.smoke import checkpoint, make

from kcd_adapters.profiles import profiles

#: MD5 sums of CIFAR-100 "python version", as torchvision and SSKD have them.
CIFAR100 = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}


# -- what is needed ----------------------------------------------------------------------------------------


def missing_tools(setting: Setting, runs: Sequence[Run], slots: Slots) -> list[str]:
    """What is needed of checkouts, packages and devices and is not there, each with what to do."""
    of_sskd = any(run.of_sskd for run in runs)
    wanted = [("repdistiller", setting.repdistiller, "HobbitLong/RepDistiller")] * (
        setting.smoke or not all(run.of_sskd for run in runs)  # a trial takes its teachers' models from there
    )
    wanted += [("sskd", setting.sskd, "xuguodong03/SSKD")] * of_sskd
    known = {profile.name: profile for profile in profiles()}
    problems = [
        f"--{name}: {root} is no checkout of {known[name].title}; git clone https://github.com/{source} makes one"
        for name, root, source in wanted
        if not known[name].knows(root)
    ]
    for module in ["torchvision", *["tensorboardX"] * of_sskd]:
        if not installed(module):
            problems.append(f"{module} is not installed; pip install {module}")
    if slots[0] is None and not setting.smoke:
        problems.append("torch sees no CUDA device; without one, only --smoke makes sense")
    return problems


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def missing_data(setting: Setting) -> list[str]:
    folder = setting.data / "cifar-100-python"
    absent = [name for name in CIFAR100 if not (folder / name).is_file()]
    if absent:
        return [
            f"--data: {folder} lacks {', '.join(absent)}; unpack cifar-100-python.tar.gz "
            f"(https://www.cs.toronto.edu/~kriz/cifar.html) in {setting.data}"
        ]
    return [
        f"--data: {folder / name} is not CIFAR-100's: its MD5 sum is not {digest}"
        for name, digest in CIFAR100.items()
        if not setting.smoke and hashlib.md5((folder / name).read_bytes()).hexdigest() != digest
    ]


def missing_teachers(setting: Setting, runs: Sequence[Run]) -> list[str]:
    fetch = (
        "in RepDistiller, `sh scripts/fetch_pretrained_teachers.sh` fetches it into save/models, and train_teacher.py "
        "trains one (--teachers)"
    )
    readme = "SSKD's README says where its teachers are and how to name their folders (--sskd-teachers)"
    problems = []
    own = setting.own_teachers is not None
    for teacher, of_sskd in sorted({(PAIRS[run.pair].teacher, own and run.of_sskd) for run in runs}):
        if of_sskd:
            path, key, how = sskd_teacher(setting, teacher) / "ckpt" / "best.pth", "state_dict", readme
        else:
            path, key, how = checkpoint(setting.teachers, teacher), "model", fetch
        if not path.is_file():
            problems.append(f"the teacher {path} is not there; {how}")
            continue
        try:
            torch.load(path, map_location="cpu", weights_only=True)[key]
        except Exception as error:  # whatever is wrong with a file of somebody else's
            problems.append(f"the teacher {path} can't be read, as a file of tensors with {key!r}: {error!r}")
    return problems


def convert_teachers(setting: Setting, runs: Sequence[Run]) -> None:
    """RepDistiller's teachers, in the format SSKD reads. Both repositories have the same models."""
    if setting.own_teachers is not None:
        return
    for teacher in sorted({PAIRS[run.pair].teacher for run in runs if run.of_sskd}):
        path = sskd_teacher(setting, teacher) / "ckpt" / "best.pth"
        if not path.exists():
            state = torch.load(checkpoint(setting.teachers, teacher), map_location="cpu", weights_only=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".part")
            torch.save({"state_dict": state["model"]}, unfinished)
            os.replace(unfinished, path)


# -- the command -------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help, epilog=RULE)
    add = parser.add_argument
    add("--repdistiller", type=Path, default=Path("RepDistiller"), metavar="DIR", help="its checkout")
    add("--sskd", type=Path, default=Path("SSKD"), metavar="DIR", help="its checkout")
    add("--data", type=Path, metavar="DIR", help="holds cifar-100-python (default: RepDistiller's data/)")
    add("--teachers", type=Path, metavar="DIR", help="holds NAME_vanilla/ckpt_epoch_240.pth (default: RepDistiller's "
        "save/models, where its scripts/fetch_pretrained_teachers.sh puts them)")  # fmt: skip
    add("--sskd-teachers", type=Path, metavar="DIR", help="holds teacher_NAME_seed0/ckpt/best.pth, SSKD's own, which are "
        "others (default: RepDistiller's for all, as the table's one column of teachers suggests)")  # fmt: skip
    add(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=METHODS,
        metavar="M",
        help=f"{', '.join(METHODS)} (default: all)",
    )
    add("--pairs", nargs="+", choices=list(PAIRS), default=list(PAIRS), metavar="P",
        help=f"{', '.join(PAIRS)} (default: all)")  # fmt: skip
    add("--seeds", type=int, default=1, metavar="N", help="0 to N-1, each all of the table")
    add("--epochs", type=int, metavar="N", help=f"for a try; milestones and stages are scaled; a multiple of {STAGES} "
        f"(default: {EPOCHS}, with --smoke {STAGES})")  # fmt: skip
    add("--gpus", nargs="+", metavar="ID", help="numbers, as CUDA_VISIBLE_DEVICES has them (default: all)")
    add("--jobs", type=int, default=1, metavar="N", help="runs at once on each GPU")
    add("--workers", type=int, default=4, metavar="N", help="of a loader; SSKD has always 4")
    add_out(
        parser,
        "for the table; the runs are in one below, about 2 GB a seed, which may be deleted once they are done",
    )
    add("--smoke", type=Path, metavar="DIR", help="try it on noise and untrained teachers, made in DIR")
    add("--smoke-samples", type=int, default=100, metavar="N", help="training images of noise")
    add("--report-only", action="store_true", help="write the table of the runs that are done")
    args = parser.parse_args(arguments)
    if args.epochs is None:
        args.epochs = STAGES if args.smoke else EPOCHS
    bounded(parser, args, seeds=1, jobs=1, workers=0, smoke_samples=20)
    if args.epochs < STAGES or args.epochs % STAGES:
        parser.error(f"--epochs must be a multiple of {STAGES}, the stages, got {args.epochs}")
    return args


def setting_of(args: argparse.Namespace) -> Setting:
    name = "paper-table" + (f"-smoke-{args.smoke_samples}" if args.smoke else "")
    if args.epochs != EPOCHS:
        name += f"x{args.epochs}" if args.smoke else f"-{args.epochs}-epochs"
    root, smoke = args.repdistiller, args.smoke
    data = smoke / f"data-{args.smoke_samples}" if smoke else args.data or root / "data"
    teachers = smoke / "models" if smoke else args.teachers or root / "save" / "models"
    return Setting(
        repdistiller=root.absolute(),
        sskd=args.sskd.absolute(),
        data=data.absolute(),
        teachers=teachers.absolute(),
        folder=args.out.absolute() / name,
        own_teachers=args.sskd_teachers and args.sskd_teachers.absolute(),
        epochs=args.epochs,
        workers=args.workers,
        smoke=smoke is not None,
    )


def visible() -> list[str]:
    """The GPUs that torch sees, as CUDA_VISIBLE_DEVICES has them."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return listed.split(",") if listed else [f"{i}" for i in range(torch.cuda.device_count())]


def missing_gpus(gpus: Sequence[str] | None) -> list[str]:
    absent = [
        gpu for gpu in gpus or () if gpu.isdigit() and gpu not in visible()
    ]  # or a UUID, taken on trust
    seen = ", ".join(visible()) or "none"
    return [f"--gpus: torch does not see {', '.join(absent)}; it sees {seen}"] if absent else []


def slots_of(args: argparse.Namespace) -> Slots:
    """A place for every run at a time. Without CUDA there are ``--jobs`` of them, on the CPU."""
    if not torch.cuda.device_count():
        return [None] * args.jobs
    return [gpu for _ in range(args.jobs) for gpu in args.gpus or visible()]


def made_by(arguments: Sequence[str], setting: Setting, slots: Slots) -> dict[str, Any]:
    """The command, the machine and the versions."""
    facts = about()
    machine = facts.pop("machine")
    facts["command"] = " ".join(["python benchmarks/paper_table.py", *arguments])
    facts |= {k: machine.get(k) for k in ("cpu", "cores", "python", "numpy", "torch", "kcd_core", "commit")}
    if installed("torchvision"):
        facts["torchvision"] = importlib.metadata.version("torchvision")
    facts |= {"RepDistiller": commit(setting.repdistiller), "SSKD": commit(setting.sskd)}
    if slots[0] is not None:
        ask = "import torch; print(torch.cuda.get_device_name())"  # in this process, it would take memory on the GPU
        facts["GPU"] = subprocess.run(
            [sys.executable, "-c", ask], capture_output=True, text=True
        ).stdout.strip()
    return {key: value for key, value in facts.items() if value}


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parse(arguments)
    setting, header, status = setting_of(args), None, 0
    runs = [Run(m, p, seed) for seed in range(args.seeds) for p in args.pairs for m in args.methods]
    if not args.report_only:
        slots = slots_of(args)
        problems = missing_gpus(args.gpus) + missing_tools(setting, runs, slots)
        if args.smoke and not problems:
            teachers = sorted({PAIRS[pair].teacher for pair in args.pairs})
            make(setting.data, setting.teachers, setting.repdistiller, teachers, args.smoke_samples)
        if not (args.smoke and problems):
            problems += missing_data(setting) + missing_teachers(setting, runs)
        if problems:
            print("\n- ".join(["nothing was started:", *problems]), file=sys.stderr)
            return 2
        convert_teachers(setting, runs)
        header = made_by(arguments, setting, slots)
        try:
            status = 1 if carry_out(setting, runs, slots) else 0
        except KeyboardInterrupt:
            print("\ninterrupted; the same command resumes from here", flush=True)
            status = 130
        except BlockingIOError:
            print(f"runs of an earlier call are still running in {setting.folder}; end them", file=sys.stderr)
            return 2
    print(report(setting.folder, header, smoke=setting.smoke))
    return status


if __name__ == "__main__":
    sys.exit(main())
