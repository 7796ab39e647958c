"""Settings as the options of ``kcd run`` and ``kcd patch``."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from kcd_core.rules import SelectName

from .settings import CHOICES, SHIMS, Settings

__all__ = ["RECOMMENDED", "add_arguments", "named_by", "settings_of"]

#: What docs/settings.md recommends.
RECOMMENDED = "--ratio 0.3 --mixing none --period auto"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare an option for every setting."""
    default = Settings()
    numbers: Sequence[tuple[str, Callable[[str], Any], str]] = (
        ("ratio", float, "share of the samples that is kept in the end"),
        (
            "stages",
            int,
            "stages in which the set shrinks: at a stage's end samples are ranked and dropped",
        ),
        (
            "period",
            _period,
            "epochs a stage lasts, or auto: by the script's number of epochs, so that the last ones train on the final set",
        ),
        ("warmup", int, "no stage ends before this epoch"),
        ("alpha", float, "weight of the recording count in the ranking"),
        ("min-weight", float, "least share of a kept sample in a mixture"),
        ("ask", float, "share of the samples that the teacher is asked for, from the second epoch on"),
        (
            "ask-multiple",
            int,
            "the rows of a batch that it is asked for are rounded up to a multiple of this",
        ),
    )
    for name, kind, text in numbers:
        value = getattr(default, name.replace("-", "_"))
        parser.add_argument(
            f"--{name}",
            type=kind,
            default=value,
            help=f"{text} (default: {'all' if value is None else value})",
        )
    texts = {
        "mixing": "mix dropped samples into barely kept ones: mixtures of mixtures, from the originals, or not; auto is "
        "cumulative where raw images are mixed, and fresh elsewhere",
        "value": "what a sample is worth",
        "negatives": "where CRD draws negatives from",
        "if-unobserved": "what to do after an epoch of training in which no prediction was observed",
    }
    for name, text in texts.items():
        value = getattr(default, name.replace("-", "_"))
        parser.add_argument(
            f"--{name}",
            metavar=f"{{{','.join(CHOICES[name.replace('-', '_')])}}}",
            default=value,
            help=f"{text} (default: {value})",
        )
    parser.add_argument(
        "--select",
        metavar=f"{{{','.join(get_args(SelectName))}}}",
        help="choose by chance: from the set in force, or anew from all samples at each stage's end (default: by value)",
    )
    parser.add_argument(
        "--mixing-cache",
        metavar="SIZE",
        default=default.mixing_cache,
        help="memory for mixed raw images, such as '1 GB': made once a stage, then read like any other (default: none)",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--profile",
        metavar="NAME",
        help="use this profile, or that of a file NAME.py, instead of recognising the repository",
    )
    how.add_argument(
        "--auto",
        dest="profile",
        action="store_const",
        const="auto",
        help="any training script: find the student while it trains (short for --profile auto)",
    )
    parser.add_argument(
        "--student",
        metavar="CLASS|N",
        help="with --auto, where several models are trained: the student's class, or its place among them, the first 1",
    )
    parser.add_argument(
        "--no-shim",
        dest="no_shims",
        metavar="NAME",
        action="append",
        default=[],
        help=f"leave out a shim, or all; may be repeated; there are {', '.join(SHIMS)}",
    )
    parser.add_argument("--history", metavar="FILE", help="write what each stage did as JSON (kcd report)")
    parser.add_argument("--log", metavar="FILE", help="append what a stage did when it ends, a line of JSON")
    parser.add_argument(
        "--tensorboard",
        metavar="DIR",
        help="write what each stage did for TensorBoard (needs that package)",
    )


def named_by(parser: argparse.ArgumentParser) -> list[str]:
    """The names of all options of a parser that begin with two dashes."""
    return re.findall(r"--[a-z-]+", parser.format_usage())


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings that a parser with `add_arguments` read."""
    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(Settings)}
    if given["profile"] is not None and given["profile"].endswith(".py"):
        given["profile"] = str(Path(given["profile"]).resolve())  # a patched script runs from anywhere
    return Settings(**given)


def _period(text: str) -> int | str:
    """``--period`` as it is given."""
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number of epochs, or auto, got {text!r}") from None
