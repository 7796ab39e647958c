"""examples/tour.ipynb runs, and its outputs are those that are committed; `python tests/test_notebook.py` refreshes them."""

from __future__ import annotations

import base64
import io
import math
import os
import re
import socket
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib.image
import nbformat
import pytest
from nbclient import NotebookClient
from traitlets.config import Config

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "tour.ipynb"
REFRESH = "run: python tests/test_notebook.py"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT)


def executed(folder: Path) -> Any:
    """The notebook, run by this Python in a folder that also takes what Jupyter writes."""
    book = read()
    kinds = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    there = {kind: str(folder / kind.lower()) for kind in kinds}
    settings: dict[str, Any] = {
        "timeout": 600,
        "startup_timeout": 600,
        "iopub_timeout": 600,
        "record_timing": False,
        "coalesce_streams": True,
    }
    with mock.patch.dict(os.environ, there), tempfile.TemporaryDirectory() as short:
        if hasattr(
            socket, "AF_UNIX"
        ):  # else it listens at ports that are free when they are looked for, not when it begins
            settings["config"] = Config({"KernelManager": {"transport": "ipc", "ip": f"{short}/kernel"}})
        NotebookClient(book, resources={"metadata": {"path": str(folder)}}, **settings).execute()
    book.metadata = nbformat.from_dict(METADATA)
    return book


def pieces(output: Any) -> dict[str, str]:
    """What an output holds: its text, or its data by kind."""
    if output.output_type == "stream":
        return {output.name: output.text}
    return dict(output.data)


def same_text(one: str, other: str) -> bool:
    """Equal up to spaces, seconds, and 3 %, or 3 of the last digit, of numbers with a point."""
    one, other = (re.sub(r"[\d.]+ s\b", "some s", text) for text in (one, other))
    if NUMBER.sub("#", one).split() != NUMBER.sub("#", other).split():
        return False
    for number, like in zip(NUMBER.findall(one), NUMBER.findall(other), strict=True):
        decimals = len(like.partition(".")[2])
        a, b = (float(each.replace(",", "")) for each in (number, like))
        if not (math.isclose(a, b, rel_tol=0.03, abs_tol=3.1 * 10**-decimals) if decimals else a == b):
            return False
    return True


def is_drawn(png: str) -> bool:
    """Whether a picture has pixels that differ."""
    return matplotlib.image.imread(io.BytesIO(base64.b64decode(png)), format="png")[..., :3].std() > 0.01


def test_the_outputs_are_those_that_are_committed(tmp_path: Path) -> None:
    committed, told = read().cells, executed(tmp_path).cells
    for old, new in zip(committed, told, strict=True):
        before, now = ([pieces(output) for output in cell.get("outputs", [])] for cell in (old, new))
        assert [set(each) for each in before] == [set(each) for each in now], f"{old.id}: {REFRESH}"
        for output, like in zip(now, before, strict=True):
            for kind in output:
                if kind == "image/png":
                    assert is_drawn(output[kind]), old.id
                    assert is_drawn(like[kind]), f"{old.id}: {REFRESH}"
                else:
                    assert same_text(output[kind], like[kind]), f"{old.id}: {REFRESH}"


def test_it_has_pictures_and_a_table_and_no_warning() -> None:
    kinds = [kind for cell in read().cells for output in cell.get("outputs", []) for kind in pieces(output)]
    assert kinds.count("image/png") >= 3
    assert kinds.count("text/html") >= 1
    assert "stderr" not in kinds


def test_what_is_committed_tells_nothing_of_a_machine() -> None:
    text, book = NOTEBOOK.read_text(encoding="utf-8"), read()
    nbformat.validate(book)
    assert len(text.encode()) <= 300_000
    assert book.metadata == METADATA
    assert [cell.metadata for cell in book.cells] == [{}] * len(book.cells)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), REFRESH
    prose = re.sub(r'"image/png": ".*?"', "", text)
    assert not re.search(r"(?<![\w.])/(?:home|tmp|work|usr|root|opt|var)\b|[A-Z]:\\", prose)
    assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", prose)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("kept 360, 0.9 s", "kept 360, 11.2 s", True),
        ("93.1 ± 0.4", "92.9 ± 0.6", True),
        ("cut  1.2345", "cut 1.2401", True),
        ("kept 360", "kept 361", False),
        ("cut 1.23", "cut 1.38", False),
        ("17,280 drawn", "17,281 drawn", False),
        ("kept 360", "left 360", False),
    ],
)
def test_texts_differ_in_more_than_seconds_and_last_digits(one: str, other: str, same: bool) -> None:
    assert same_text(one, other) is same


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        book = executed(Path(folder))
    NOTEBOOK.write_text(nbformat.writes(book) + "\n", encoding="utf-8")
