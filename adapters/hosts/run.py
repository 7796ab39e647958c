"""``kcd run``: a training script of a known repository, with KCD, and the checkout untouched."""

from __future__ import annotations

import argparse
import multiprocessing.spawn
import os
import runpy
import sys
from pathlib import Path
from typing import Any

from ..options import RECOMMENDED, add_arguments, named_by, settings_of
from ..patching.marked_block import MARK
from ..settings import Settings
from .misplaced import why_misplaced
from .unobserved import STATUS

__all__ = ["configure", "run"]

SCRIPT = "KCD_SCRIPT"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        f"{parser.description}. Recommended: kcd run {RECOMMENDED} SCRIPT ... (docs/settings.md says why). Without options, the settings are the "
        "paper's, for runs of 240 epochs."
    )
    parser.epilog = (
        "Put kcd's own options before SCRIPT; everything after it belongs to the script. Exit status: the script's "
        "own; 2 refused, and nothing was started; 3 nothing was observed: plain training, stopped after an epoch or ended."
    )
    add_arguments(parser)
    parser.set_defaults(own=named_by(parser))
    # As one: between two, argparse would swallow a `--` that is the script's.
    parser.add_argument(
        "command", metavar="SCRIPT", nargs=argparse.PARSER, help="the script and its arguments, as for python"
    )


def run(args: argparse.Namespace) -> int:
    """``kcd run``: the script's own exit status; 2 where it can't run with KCD, `STATUS` where it ran without."""
    given, *arguments = args.command
    script = Path(given)
    if script.is_dir():
        raise FileNotFoundError(
            f"{given} is a folder: name the script (kcd patch --check {given} lists those that train a student)"
        )
    if not script.is_file():
        also = ""
        if arguments and script.name.startswith("python"):
            also = f"; leave out {given}: kcd run [options] {arguments[0]} ..."
        raise FileNotFoundError(f"there is no script {given}{also}")
    if MARK in script.read_bytes():
        raise ValueError(
            f"{given} was changed by kcd patch: run it with python, or take the change back: kcd unpatch {given}"
        )
    settings = settings_of(args)
    from ..profiles import find
    from .install import install

    profile = find(script, settings.profile)
    # As `python SCRIPT ARGS` sets them. The absolute path is for processes that the script spawns.
    sys.argv = args.command
    sys.path[0] = str(script.resolve().parent)
    engine = install(settings, profile, arguments)
    if misplaced := why_misplaced(script, arguments, args.own):
        engine.journal.warn(misplaced)
    _prepare_children(engine.settings, script.resolve())
    try:
        runpy.run_path(str(script.absolute()), run_name="__main__")
    except SystemExit as end:
        if engine.close(failed=end.code not in (None, 0)):
            raise
        return STATUS
    except Exception as error:  # the script's own: shown as python shows it, not as one of kcd's
        sys.excepthook(*sys.exc_info())
        engine.close(failed=True)
        # As torch says that a process it spawned has ended: with this status, it was stopped, and said why.
        return STATUS if getattr(error, "exit_code", None) == STATUS else 1
    return 0 if engine.close() else STATUS


def _prepare_children(settings: Settings, script: Path) -> None:
    """Let processes that are spawned install KCD before they import the script again.

    They import what they take for the main script first of all; it is made to be `kcd_adapters.hosts.child`.
    """
    settings.export()
    os.environ[SCRIPT] = str(script)
    original = multiprocessing.spawn.get_preparation_data

    def get_preparation_data(name: str) -> dict[str, Any]:
        data = original(name)
        data.pop("init_main_from_name", None)
        data["init_main_from_path"] = str(Path(__file__).with_name("child.py"))
        return data

    multiprocessing.spawn.get_preparation_data = get_preparation_data


def run_in_child() -> dict[str, Any]:
    """What the script defines, run as its own children run it, after KCD was installed."""
    from .install import install

    script = os.environ[SCRIPT]
    settings = Settings.from_environment()
    from ..profiles import find

    install(settings, find(Path(script), settings.profile), spawned=True)
    return runpy.run_path(script, run_name="__mp_main__")
