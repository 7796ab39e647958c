"""All that needs a GPU, proved and measured by one command in five minutes.

    python benchmarks/gpu.py [--device cuda] [--quick] [--only PART ...] [--data-dir DIR] [--out DIR]

Parts, each in a process of its own and ended at its limit, all together within 300 s (on a CPU, four times that):

    tests      45 s   the tests marked cuda
    step       90 s   what KCD adds to a training step
    recording  30 s   time and memory of recording, up to large vocabularies; a value depends on its row alone
    stage      20 s   the end of a stage from values on the device, up to 10^8 samples
    distil     90 s   a real distillation on Fashion-MNIST, whose files --data-dir gives: accuracy and wall clock
    host       25 s   `kcd run` on miniatures of two codebases under AMP

A part writes its rows as they come, to DEVICE-PART-trial.json, which is named DEVICE-PART.json when the part has
ended; so being cut off loses only the rest. It keeps its trial's name where that file has a row more, or is whole and
this one is not; with --only, unless it is whole. A part that fails says why, and the next one runs. The end is one
table, DEVICE.md, of all parts' files, whichever command wrote them. The exit status is 1 if a part failed, 2 if nothing could be run, 130 after an interruption. Neither an
installation of this package nor a network is needed. `--device cpu --quick` shows without a GPU that it all runs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from _gpu.checkout import importable
from _gpu.process import run_part

importable()  # _report needs both packages

import torch  # noqa: E402
from _common.report import about, folder, heading, parser  # noqa: E402
from _common.signals import terminated  # noqa: E402


class Kind(NamedTuple):
    """A part's module, and after how many seconds it is ended."""

    module: str
    limit: float


PARTS = {
    name: Kind(f"_gpu.{name}", limit)
    for name, limit in {
        "tests": 45, "step": 90, "recording": 30, "stage": 20, "distil": 90, "host": 25
    }.items()
}  # fmt: skip
SLACK = 4  # times as long on a CPU, where it only matters that they run
ALL = 296.0  # seconds for all of them; ending the last takes up to four more
NO_DEVICE = """\
no CUDA device: this torch ({version}, built for {built}) sees none. Where there is a GPU, `nvidia-smi` lists it, and a
torch built for CUDA no newer than its driver sees it, unless CUDA_VISIBLE_DEVICES hides it. Without one,
`--device cpu --quick` shows that all parts run"""


class Outcome(NamedTuple):
    """How a part ended: what it wrote, and why it failed, if it did."""

    name: str
    path: Path
    told: Mapping[str, Any]
    seconds: float
    why: str


# -- what a part wrote ----------------------------------------------------------------------------------------


def read(path: Path) -> dict[str, Any]:
    """What a part wrote; nothing if it is not to be read."""
    try:
        told = dict(json.loads(path.read_text()))
        assert all("what" in row and "figure" in row for row in told["rows"])
        return {"failures": [], **told}
    except (OSError, ValueError, LookupError, TypeError, AssertionError):
        return {"rows": [], "failures": []}


def finish(name: str, path: Path, facts: Mapping[str, Any], seconds: float, why: str, last: str) -> Outcome:
    """Add to what a part wrote why it was ended, if it did not itself say that it failed."""
    told = read(path)
    why = why or ("" if told.get("ended") else "its process ended before it did")
    if why and not (why.startswith("exit status") and told["failures"]):
        told["failures"] = [*told["failures"], why]
    failures = list(told["failures"])
    if failures:
        told = {"part": name, **facts, "seconds": round(seconds, 1), **told, "stderr": last.splitlines()}
        path.write_text(json.dumps(told, indent=1) + "\n")
        print("\n".join([f"{name} FAILED: {why}" for why in failures] + [last]), flush=True)
    path.with_name(f".{path.name}.part").unlink(missing_ok=True)
    return Outcome(name, path, told, seconds, in_short(failures))


def in_short(failures: Sequence[str]) -> str:
    return "" if not failures else failures[0] + (f", and {len(failures) - 1} more" * (len(failures) > 1))


def whole(told: Mapping[str, Any]) -> bool:
    return bool(told.get("ended")) and not told["failures"]


def measured(told: Mapping[str, Any]) -> list[str]:
    """The names of a part's rows, but for those that say why there is nothing."""
    return [row["what"] for row in told["rows"] if not (row.get("failed") or row.get("left_out"))]


def less(told: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """Why results are less than those before, if they are."""
    if whole(before) and not whole(told):
        return "it is of a part that ended well"
    own = measured(told)
    lost = [name for name in measured(before) if name not in own]
    return f"this run has no {'; '.join(lost)}" if lost else ""


def settled(outcome: Outcome, *, if_whole: bool = False) -> Outcome:
    """Give a part's results their name, unless better ones have it; with ``if_whole``, only if they are whole."""
    final = outcome.path.with_name(outcome.path.name.replace("-trial", ""))
    why = less(outcome.told, read(final))
    if if_whole and not whole(outcome.told):
        return outcome
    if why:
        print(f"{final.name} is not replaced: {why}", flush=True)
        return outcome
    outcome.path.replace(final)
    return outcome._replace(path=final)


def on_disk(out: Path, device: str) -> list[Outcome]:
    """How each part ended whose file is there, whichever command wrote it."""
    paths = {name: out / f"{device}-{name}.json" for name in PARTS}
    found = {name: (path, read(path)) for name, path in paths.items() if path.exists()}
    return [
        Outcome(name, path, told, told.get("seconds", 0.0), in_short(told["failures"]))
        for name, (path, told) in found.items()
    ]


# -- the table -----------------------------------------------------------------------------------------------


def table(title: str, outcomes: Sequence[Outcome]) -> str:
    """Markdown: by which commands, how each part ended, and its rows."""

    def line(*cells: str) -> str:
        return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"

    made: dict[str, list[str]] = {}
    for name, _, told, _, _ in outcomes:
        if "command" in told:
            made.setdefault(heading(told), []).append(name)
    heads = made if len(made) == 1 else [f"{', '.join(names)}: {head}" for head, names in made.items()]
    lines = [f"# {title}", *(x for head in heads for x in ("", head)), ""]
    lines += [line("part", "what", "figure"), "|---|---|---|"]
    for name, _, told, seconds, why in outcomes:
        lines.append(line(f"**{name}**", f"{seconds:.1f} s", f"FAILED: {why}" if why else "done"))
        lines += [line(name, row["what"], row["figure"]) for row in told["rows"]]
    return "\n".join(lines) + "\n"


def accelerator(device: str) -> dict[str, Any]:
    """The GPU, its driver, and the CUDA that torch was built for."""
    if device == "cpu":
        return {"device": "cpu"}
    known = torch.cuda.get_device_properties(0)
    found: dict[str, Any] = {"gpu": known.name, "gpu memory": f"{known.total_memory / 2**30:.0f} GiB"}
    if shutil.which("nvidia-smi"):
        ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        answer = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.split()
        found["driver"] = answer[0] if answer else "unknown"
    return {**found, "cuda": torch.version.cuda}


# -- all of them -----------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    started = time.monotonic()
    options = parser(__doc__)
    add = options.add_argument
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cuda, or cpu: do the parts run?")
    add(
        "--only", nargs="+", choices=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)} (default: all)"
    )
    add("--data-dir", type=folder, metavar="DIR", help="where the files of Fashion-MNIST lie, for distil")
    args = options.parse_args(arguments)
    if args.data_dir is not None and not args.data_dir.is_dir():
        options.error(f"--data-dir: there is no folder {args.data_dir}")
    if args.device == "cuda" and not torch.cuda.is_available():
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        options.error(NO_DEVICE.format(version=torch.__version__, built=built))
    args.out.mkdir(parents=True, exist_ok=True)
    slack = SLACK if args.device == "cpu" else 1
    if args.device == "cpu":  # tensors are small there, and threads that wait for each other cost more
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"
    facts = about()
    facts["machine"].update(accelerator(args.device))
    orders = {
        "device": "cuda:0" if args.device == "cuda" else "cpu",
        "quick": args.quick,
        "data_dir": None if args.data_dir is None else str(args.data_dir.resolve()),
        "about": facts,
    }
    outcomes: list[Outcome] = []
    trial, final = (args.out / f"{args.device}{end}.md" for end in ("-trial", ""))
    interrupted = False
    with terminated():
        for name in [name for name in PARTS if args.only is None or name in args.only]:
            seconds = min(slack * PARTS[name].limit, started + slack * ALL - time.monotonic())
            path = args.out.resolve() / f"{args.device}-{name}-trial.json"
            path.unlink(missing_ok=True)
            begun, why, last = time.monotonic(), "no time is left for it", ""
            try:
                if seconds > 1:
                    print(f"== {name}, at most {seconds:.0f} s", flush=True)
                    own = {"name": name, "module": PARTS[name].module, "out": str(path)}
                    why, last = run_part({**orders, **own}, seconds)
            except KeyboardInterrupt:
                why, interrupted = "interrupted", True
            outcome = finish(name, path, facts, time.monotonic() - begun, why, last)
            outcomes.append(outcome if args.quick else settled(outcome, if_whole=args.only is not None))
            trial.write_text(table(args.device, outcomes))
            if outcomes[-1].path != path:
                final.write_text(table(args.device, on_disk(args.out, args.device)))
            if interrupted:
                break
    written = trial
    if not any("-trial" in outcome.path.name for outcome in outcomes):
        trial.unlink()
        written = final
    print(f"\n{written.read_text()}\nwritten: {written}, and a JSON file for each part beside it", flush=True)
    if interrupted:
        return 130
    return int(any(outcome.why for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
