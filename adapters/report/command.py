"""``kcd report``: a history, or several side by side, as a page and pictures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kcd_core.base import style
from kcd_core.base.files import write_whole

from .compare import as_json, as_page, as_text, draw, names_of
from .history_file import Recorded, read
from .html import GENERATOR, MARK
from .page import page
from .pictures import PICTURES

__all__ = ["configure", "run", "write_comparison", "write_report"]

PAGE = "report.html"
#: What our own files have near their beginning.
MARKS = {".html": MARK, ".png": f"Software\0{GENERATOR}", ".json": f'"made_by": "{GENERATOR}"'}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = "exit status: 0 written or shown; 2 refused, and nothing was written."
    parser.add_argument(
        "histories",
        metavar="HISTORY.json",
        type=Path,
        nargs="+",
        help="what --history, history.to_json() or kcd demo wrote; two or more are compared",
    )
    parser.add_argument(
        "-o",
        "--out",
        metavar="DIR",
        type=Path,
        help="folder for the page and the pictures, made if need be (default: text in the terminal alone)",
    )
    parser.add_argument(
        "--title", help="heading of the page (default: repository, method and ratio, or the files' names)"
    )
    parser.add_argument("--force", action="store_true", help="overwrite files that kcd report did not make")


def run(args: argparse.Namespace) -> int:
    """``kcd report``."""
    histories, out = args.histories, args.out
    if out is None and (args.title is not None or args.force):
        raise ValueError("--title and --force are of the page: give -o DIR, too")
    if len(histories) > 1:
        write: Any = partial(write_comparison, histories)
        told = as_text(_named(histories))
    else:
        write = partial(write_report, histories[0])
        told = _told(_condensed(histories[0]), table=out is None)
    for path in () if out is None else write(out, title=args.title, force=args.force):
        print(path)
    if told:
        print(told)
    if out is not None and (without := style.lacking()):
        print(f"kcd: no pictures, the page has text and tables alone: {without}", file=sys.stderr)
    return 0


def _told(run: Recorded, *, table: bool) -> str:
    """Its stages, if they are not on a page, and what it cost."""
    run.history.account = None  # which the cost has, and more files have that
    lines = [str(run.history)] * table + ([] if run.cost is None else [str(run.cost)])
    return "\n".join(lines)


def _condensed(history: Path) -> Recorded:
    """A run of one stage at least."""
    run = read(history)
    if not run.stages:
        raise ValueError(
            f"{history} holds no stage: the run ended before the first one did, and drew all samples. Give it together "
            "with another run's history to compare them; CondensationSchedule.for_epochs(epochs) fits stages to a "
            "run's length"
        )
    return run


def write_report(history: Path, out: Path, *, title: str | None = None, force: bool = False) -> list[Path]:
    """Read a history, write its report: without pictures where matplotlib is not installed, and the page says so.

    Parameters
    ----------
    history : Path
        JSON, as `CondensationHistory.to_json`, ``kcd run --history`` or ``kcd demo`` wrote it.
    out : Path
        Folder to write ``report.html`` and the PNGs to.
    title : str, optional
        Heading of the page. Default: repository, method and ratio, or else the file's name.
    force : bool
        Whether files that this function did not write may be replaced.

    Returns
    -------
    list of Path
        What was written, the page first.

    Raises
    ------
    ValueError
        If the file is no history, or that of a run without a stage, the folder can't be written to, or a file in it is somebody else's.
    """
    recorded = _condensed(history)
    if title is None:
        title = recorded.title or f"Knowledge condensation: {history.stem}"
    makers = {} if style.lacking() else PICTURES
    drawn = {name: make(recorded) for name, (_, make, _) in makers.items()}
    pictures = {name: png for name, png in drawn.items() if png is not None}
    contents = {PAGE: page(recorded, pictures, title)}
    contents |= {f"{name}.png": png for name, png in pictures.items()}
    return _write(out, contents, force)


def write_comparison(
    histories: Sequence[Path], out: Path, *, title: str | None = None, force: bool = False
) -> list[Path]:
    """Read several histories, write what differs as a page, JSON and, where matplotlib is installed, a picture.

    Parameters
    ----------
    histories : sequence of Path
        See `write_report`.
    out, title, force
        See `write_report`; the files are ``report.html``, ``comparison.json`` and ``comparison.png``.

    Returns
    -------
    list of Path
        What was written, the page first.

    Raises
    ------
    ValueError
        See `write_report`.
    """
    runs = _named(histories)
    png = None if style.lacking() else draw(runs)
    contents = {
        PAGE: as_page(runs, png, " and ".join(runs) if title is None else title),
        "comparison.json": as_json(runs),
    }
    if png is not None:
        contents["comparison.png"] = png
    return _write(out, contents, force)


def _named(histories: Sequence[Path]) -> dict[str, Recorded]:
    if len(set(histories)) < len(histories):
        raise ValueError("a file is given twice: give each run's own")
    return {name: read(path) for name, path in zip(names_of(histories), histories, strict=True)}


def _write(out: Path, contents: Mapping[str, bytes], force: bool) -> list[Path]:
    """All of them or, where one may not be written, none."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not force:
            for name in contents:
                _refuse_strangers(out / name)
        for name, content in contents.items():
            write_whole(out / name, content)
    except OSError as error:
        raise ValueError(f"the report can't be written to {out}: {error.strerror or error}") from None
    return [out / name for name in contents]


def _refuse_strangers(path: Path) -> None:
    """Overwrite only what carries our mark, near its beginning."""
    if not (path.exists() or path.is_symlink()):
        return
    mine = False
    if path.is_file() and not path.is_symlink():
        with path.open("rb") as file:
            start = file.read(4096)
        mine = MARKS[path.suffix].encode() in start
    if not mine:
        raise ValueError(
            f"{path} exists and was not made by kcd report: choose another folder with -o, or add --force to replace it"
        )
