"""``kcd report``: a history as a page and pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

from kcd_core.base.files import write_whole

from .history_file import read
from .page import MARK, page
from .pictures import GENERATOR, PICTURES

__all__ = ["configure", "run", "write_report"]

PAGE = "report.html"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = "exit status: 0 written; 2 refused, and nothing was written."
    parser.add_argument(
        "history",
        metavar="HISTORY.json",
        type=Path,
        help="what --history, history.to_json() or kcd demo wrote",
    )
    parser.add_argument(
        "-o", "--out", metavar="DIR", type=Path, required=True, help="folder for the report, made if need be"
    )
    parser.add_argument("--title", help="heading of the page (default: repository, method and ratio)")
    parser.add_argument("--force", action="store_true", help="overwrite files that kcd report did not make")


def run(args: argparse.Namespace) -> int:
    """``kcd report``."""
    for path in write_report(args.history, args.out, title=args.title, force=args.force):
        print(path)
    if (cost := read(args.history).cost) is not None:
        print(cost)
    return 0


def write_report(history: Path, out: Path, *, title: str | None = None, force: bool = False) -> list[Path]:
    """Read a history, write its report.

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
        If the file is no history, the folder can't be written to, or a file in it is somebody else's.
    ImportError
        If matplotlib is not installed.
    """
    recorded = read(history)
    if title is None:
        title = recorded.title or f"Knowledge condensation: {history.stem}"
    drawn = {name: draw(recorded) for name, (_, draw, _) in PICTURES.items()}
    pictures = {name: png for name, png in drawn.items() if png is not None}
    contents = {PAGE: page(recorded, pictures, title)}
    contents |= {f"{name}.png": png for name, png in pictures.items()}
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
        mine = (MARK if path.suffix == ".html" else f"Software\0{GENERATOR}").encode() in start
    if not mine:
        raise ValueError(
            f"{path} exists and was not made by kcd report: choose another folder with -o, or add --force to replace it"
        )
