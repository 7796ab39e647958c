"""The ``kcd`` command. Each subcommand is a module with ``HELP``, ``configure(parser)`` and ``run(args)``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

import kcd_core

COMMANDS = {"demo": ".demo", "run": ".run", "patch": ".patch", "unpatch": ".unpatch", "report": ".report"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 where the input is wrong."""
    parser = argparse.ArgumentParser(
        prog="kcd", description="Knowledge condensation for any distillation loop."
    )
    parser.add_argument("--version", action="version", version=f"kcd {kcd_core.__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, path in COMMANDS.items():
        module = import_module(path, __package__)
        subparser = subparsers.add_parser(name, help=module.HELP, description=module.HELP)
        module.configure(subparser)
        subparser.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    try:
        return int(args.run(args) or 0)
    except (ValueError, FileNotFoundError, ImportError) as error:
        print(f"kcd: {error}", file=sys.stderr)
        return 2
