"""How long does it take until kcd is there? Imports and the command line, each in a process of its own.

    python benchmarks/startup.py [--quick] [--rounds N] [--out DIR]

In every round each command is run once, in turn. What counts is its CPU time, user's and system's: about what a user waits on an
idle machine with the files in memory, and what other load changes least. A figure is the median of all rounds; a ratio is
the median of the rounds' own ratios, with an interval of 95 % at least (order statistics).
"""

from __future__ import annotations

import resource
import subprocess
import sys

import numpy as np
from _common.report import Report, bounded, duration, named, parser
from _common.timing import of_turns

PYTHON = [sys.executable]
COMMANDS = {
    "python -c pass": [*PYTHON, "-c", "pass"],
    "import numpy": [*PYTHON, "-c", "import numpy"],
    "import kcd_core": [*PYTHON, "-c", "import kcd_core"],
    "kcd --help": [*PYTHON, "-m", "kcd_adapters", "--help"],
    "import torch": [*PYTHON, "-c", "import torch"],
    "from kcd_core import wrap_loader": [*PYTHON, "-c", "from kcd_core import wrap_loader"],
}
#: What is compared with what, and the target of the ratio.
COMPARED = (
    ("import numpy", "python -c pass", None),
    ("import kcd_core", "import numpy", None),
    ("import kcd_core", "import torch", 0.5),
    ("kcd --help", "import torch", 0.5),
    ("from kcd_core import wrap_loader", "import torch", 1.2),
)


def cpu_seconds(command: list[str]) -> float:
    """What one run of ``command``, and what it starts, takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=7, metavar="N", help="how often each command is run")
    args = options.parse_args()
    bounded(options, args, rounds=2)
    rounds = 3 if args.quick else args.rounds
    report = Report(
        named("startup", options, args, "quick", "rounds"),
        f"CPU time of a process of its own, with its files in memory. Medians of {rounds} rounds, in each of which every command "
        "was run once; a ratio is the median of the rounds' own, with its 95 % interval.",
    )
    times = {name: np.zeros(rounds) for name in COMMANDS}
    report.progress.begin("command")
    for number in range(-1, rounds):  # one before all others reads the files
        for place, (name, command) in enumerate(COMMANDS.items(), 1):
            seconds = cpu_seconds(command)
            if number >= 0:
                times[name][number] = seconds
            report.progress.at((number + 1) * len(COMMANDS) + place, (rounds + 1) * len(COMMANDS))
    for name, reference, at_most in COMPARED:
        report.add(
            f"{name}, vs {reference}",
            duration(float(np.median(times[name]))),
            duration(float(np.median(times[reference]))),
            at_most=at_most,
            **of_turns(times[name], times[reference]),
        )
    report.write(args.out)


if __name__ == "__main__":
    main()
