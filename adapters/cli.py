"""The ``kcd`` command. Each subcommand is a module with ``configure(parser)`` and ``run(args)``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import TextIO

import kcd_core

from .options import named_by

#: name: (module, what it does)
COMMANDS = {
    "demo": (
        ".demo.command",
        "compare plain KD, KC-KD and random dropping on real images; prints a table and draws pictures",
    ),
    "run": (
        ".hosts.run",
        "run a training script with KCD, without changing it; with --auto, any script",
    ),
    "profiles": (".hosts.known", "list the repositories that run and patch know without --auto"),
    "patch": (
        ".patching.patch",
        "change a repository's training script so that its own command line trains with KCD",
    ),
    "unpatch": (".patching.unpatch", "restore what kcd patch changed, to the byte"),
    "report": (
        ".report.command",
        "draw what each stage did, from the history that a run wrote: an HTML page and PNGs",
    ),
}


#: The exit status where nobody reads the output any more, as under ``head``: a shell's for SIGPIPE.
UNREAD = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 2 where the input is wrong, or `UNREAD`."""
    try:
        try:
            return _run(argv)
        finally:
            if (stdout := _stdout()) is not None:
                stdout.flush()  # here, where an error can be met still
    except BrokenPipeError:
        if (stdout := _stdout()) is not None:  # for what is flushed at the exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
        return UNREAD


def _stdout() -> TextIO | None:
    """Python's own, if it is open: a script that is run may have put anything in its place."""
    return None if sys.__stdout__ is None or sys.__stdout__.closed else sys.__stdout__


def _run(argv: Sequence[str] | None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="kcd",
        description="Knowledge condensation for any distillation loop.",
        epilog="kcd COMMAND --help describes a command and its options.",
    )
    parser.add_argument("--version", action="version", version=f"kcd {kcd_core.__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    command = next((argument for argument in argv if not argument.startswith("-")), None)
    for name, (module_name, text) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=text, description=text)
        if name == command:  # the others' modules need packages that this one may not
            module = import_module(module_name, __package__)
            module.configure(subparser)
            subparser.set_defaults(run=module.run)
    if not argv:
        parser.print_help()
        return 0
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        subparser = subparsers.choices[str(command)]
        other = "; the script's own options go after the script" * (command == "run")
        subparser.error(_unknown(unknown, subparser) + other)
    try:
        return int(args.run(args) or 0)
    except (ValueError, FileNotFoundError, ImportError) as error:
        print(f"kcd: {error}", file=sys.stderr)
        return 2


def _unknown(given: Sequence[str], parser: argparse.ArgumentParser) -> str:
    """What to say of arguments that a command does not take: which they are, and what may be meant."""
    options = [argument.partition("=")[0] for argument in given if argument.startswith("-")]
    if not options:
        return f"unknown argument {' '.join(given)}"
    near = (get_close_matches(name, named_by(parser), 1, cutoff=0.8) for name in options)
    shown = (
        f"{name} (did you mean {found[0]}?)" if found else name
        for name, found in zip(options, near, strict=True)
    )
    return f"unknown option {', '.join(shown)}"
