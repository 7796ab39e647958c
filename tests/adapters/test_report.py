"""``kcd report``: true to the history, safe on whatever else it is given."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kcd_core as kcd
from kcd_adapters.cli import main
from kcd_adapters.report.history_file import parse
from kcd_adapters.report.page import page

N = 1000


def history(stages: int = 3, period: int = 10) -> kcd.CondensationHistory:
    """What a run of random values leaves."""
    rng = np.random.default_rng(7)
    value, count = rng.gamma(2.0, 0.5, N), rng.integers(1, 30, N)
    record, schedule, size = kcd.CondensationHistory(N), kcd.CondensationSchedule(0.7, stages, period), N
    for stage in range(1, stages + 1):
        made = kcd.condense(value, count, previous=size, target=schedule.target(N, size), stage=stage)
        record.append(made, value, count, epoch=stage * period)
        size = len(made.kept)
    return record


STATE = history().state_dict()


class Page(HTMLParser):
    """Every tag, and every text outside <style>."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] != "style":
            self.texts.append(data)


@pytest.fixture
def wrapped(tmp_path: Path) -> Path:
    """A history with what a run adds to it."""
    path = tmp_path / "history.json"
    path.write_text(
        json.dumps(
            {"history": STATE, "settings": {"ratio": 0.7}, "summary": {"epochs": 40, "script": "a.py"}}
        )
    )
    return path


def test_page_and_pictures(wrapped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "deep" / "report"
    assert main(["report", str(wrapped), "-o", str(out)]) == 0
    written = capsys.readouterr().out.split()
    assert [Path(p).name for p in written] == ["report.html", "distribution.png", "sizes.png", "drawn.png"]
    assert sorted(p.name for p in out.iterdir()) == sorted(Path(p).name for p in written)
    for name in ("distribution", "sizes", "drawn"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n")
    html = (out / "report.html").read_text("utf-8")
    made = Page(html)
    sources = [attrs["src"] or "" for tag, attrs in made.tags if tag == "img"]
    assert len(sources) == 3
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in made.tags}
    assert "http" not in html.replace("http-equiv", "")
    text = " ".join(made.texts)
    for expected in ("900", "700", "15.0%", "6,000", "40,000", "0.7", "a.py", "Settings", "Summary"):
        assert expected in text


def test_what_a_run_cost_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the account in a history's own JSON: the page's table, the tiles and what is printed."""
    pytest.importorskip("matplotlib")
    record = history()
    record.account = kcd.Account()
    for _ in range(40):
        record.account.add(kcd.Cost(drawn=700, asked=250, seconds=0.5))
        record.account.end_epoch(plain=1000)
    path = tmp_path / "h.json"
    path.write_text(record.to_json())
    assert main(["report", str(path), "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out.splitlines()[-1]
    assert printed.startswith(
        "28,000 samples drawn (70.0% of plain distillation's), 10,000 teacher queries (25.0%), 20."
    )
    texts = Page((tmp_path / "out" / "report.html").read_text("utf-8")).texts
    texts = [text.strip() for text in texts if text.strip()]
    at = texts.index("What it cost")
    assert texts[at + 1 : at + 12] == [
        *("this run", "plain distillation", "share"),
        *("samples drawn, each a pass of the student", "28,000", "40,000", "70.0%"),
        *("teacher queries", "10,000", "40,000", "25.0%"),
    ]
    assert "30.0%" in texts  # saved
    assert "40 epochs" in " ".join(texts)


@pytest.mark.parametrize(
    ("summary", "settings", "cost"),
    [
        ({}, {}, (900, 900, 1000, 2.5)),
        ({"asked": 200}, {"ask": 0.25}, (900, 200, 1000, 2.5)),
        ({"processes": 4, "full": 4000}, {}, (900, 900, 1000, 2.5)),
        ({"seconds": "long"}, {}, (900, 900, 1000, 0.0)),
        ({"asked": -1}, {}, None),
        ({"drawn": True}, {}, None),
        ({}, {"ask": 0.25}, None),
    ],
)
def test_costs_that_kcd_run_counted(summary: Any, settings: Any, cost: Any) -> None:
    counted = {"drawn": 900, "full": 1000, "processes": 1, "seconds": 2.5, **summary}
    assert parse(json.dumps({"history": STATE, "summary": counted, "settings": settings})).cost == cost


def test_operations_are_shown_where_they_were_counted() -> None:
    told = {"drawn": 900, "full": 1000, "processes": 1, "flops": 3e9, "flops of plain distillation": 4e9}
    text = page(parse(json.dumps({"history": STATE, "summary": told})), {}, "x").decode()
    assert "<td>GFLOP</td><td>3</td><td>4</td><td>75.0%</td>" in text
    for wrong in (-1, "many", 1e301, None):
        assert parse(json.dumps({"history": STATE, "summary": {**told, "flops": wrong}})).flops is None


def test_samples_are_counted_by_hand() -> None:
    recorded = parse(json.dumps({"history": STATE, "epochs": 40}))
    assert [s["kept"] for s in recorded.stages] == [900, 800, 700]
    assert [(s.first, s.last, s.size) for s in recorded.segments()] == [
        (1, 10, 1000),
        (11, 20, 900),
        (21, 30, 800),
        (31, 40, 700),
    ]
    assert recorded.drawn == 10 * (1000 + 900 + 800 + 700)
    assert recorded.full == 40_000
    bare = parse(json.dumps(STATE))
    assert bare.epochs == 30  # nothing is said about what came after the last stage
    assert bare.drawn == 27_000


def test_nothing_is_shown_as_mixed_where_nothing_was() -> None:
    assert [s["mixed"] for s in parse(json.dumps(STATE)).stages] == [100, 100, 100]
    for none in ("none", None):
        told = parse(json.dumps({"history": STATE, "settings": {"mixing": none}}))
        assert [s["mixed"] for s in told.stages] == [0, 0, 0]


def test_same_history_gives_the_same_page(wrapped: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pages = []
    for name in ("a", "b"):
        assert main(["report", str(wrapped), "-o", str(tmp_path / name)]) == 0
        pages.append((tmp_path / name / "report.html").read_bytes())
    assert pages[0] == pages[1]


@pytest.mark.parametrize("runs", [1, 2])
def test_without_matplotlib_there_are_tables_and_what_to_install_is_said(
    runs: int,
    wrapped: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = [wrapped, tmp_path / "other.json"][:runs]
    files[-1].write_bytes(wrapped.read_bytes())
    for name in [m for m in sys.modules if m.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)

    class Hide:
        def find_spec(self, name: str, *_: Any) -> None:
            if name.partition(".")[0] == "matplotlib":
                raise ModuleNotFoundError(f"No module named {name!r}", name="matplotlib")

    monkeypatch.setattr(sys, "meta_path", [Hide(), *sys.meta_path])
    out = tmp_path / "out"
    assert main(["report", *map(str, files), "-o", str(out)]) == 0
    said = capsys.readouterr()
    assert "no pictures" in said.err
    assert "pip install '.[plot]' in a checkout of kcd_core" in said.err
    names = ["report.html", "comparison.json"][:runs]
    assert [Path(line).name for line in said.out.splitlines()[:runs]] == names
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    made = Page((out / "report.html").read_text("utf-8"))
    assert not [tag for tag, _ in made.tags if tag == "img"]
    assert "The pictures are left out" in " ".join(made.texts)
    kept = [str(record["kept"]) for record in STATE["records"]]
    assert set(kept) <= {text.strip() for text in made.texts}  # a table has them


# ------------------------------------------------------------------------------------------- other people's files


@pytest.mark.parametrize("name", ["report.html", "sizes.png"])
def test_other_files_are_not_overwritten(
    name: str, wrapped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_bytes(b"mine")
    assert main(["report", str(wrapped), "-o", str(out)]) == 2
    assert f"{name} exists and was not made by kcd report" in capsys.readouterr().err
    assert [p.name for p in out.iterdir()] == [name]
    assert (out / name).read_bytes() == b"mine"
    assert main(["report", str(wrapped), "-o", str(out), "--force"]) == 0
    assert main(["report", str(wrapped), "-o", str(out)]) == 0  # its own, it may


def test_links_in_the_folder_are_not_written_through(wrapped: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out, target = tmp_path / "out", tmp_path / "target"
    out.mkdir()
    target.write_bytes(b"mine")
    (out / "report.html").symlink_to(target)
    assert main(["report", str(wrapped), "-o", str(out)]) == 2
    assert main(["report", str(wrapped), "-o", str(out), "--force"]) == 0
    assert target.read_bytes() == b"mine"


def test_folder_that_is_none(wrapped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert main(["report", str(wrapped), "-o", str(wrapped)]) == 2
    assert "can't be written" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ hostile input


def changed(change: Callable[[dict[str, Any]], Any]) -> str:
    state = copy.deepcopy(STATE)
    change(state)
    return json.dumps(state)


def first(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state["records"][0].update(fields)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "",
            r"it is not JSON \(Expecting value.*\). Give the file of --history, the output of history.to_json",
        ),
        ("[]", '"num_samples" and "records"'),
        ("{}", '"num_samples" and "records"'),
        ('{"history": 3}', '"num_samples" and "records"'),
        ("[" * 100_000, "nested"),
        ("9" * 10_000, "digits"),
        (changed(lambda s: s.update(num_samples=0)), "num_samples must be"),
        (changed(lambda s: s.update(num_samples=True)), "num_samples must be"),
        (changed(lambda s: s.update(num_samples="1000")), "num_samples must be"),
        (changed(lambda s: s.update(records={})), "records must be a list"),
        (changed(lambda s: s.update(records=[])), "neither a stage nor what an epoch took"),
        (changed(lambda s: s.update(records=[7])), r"records\[0\] must be an object"),
        (changed(lambda s: s.update(records=[0] * 10**6)), "at most 100000 stages"),
        (changed(lambda s: s["records"].reverse()), r"records\[1\]: epochs must rise"),
        (changed(first(kept=N + 1)), r"records\[0\].kept must be"),
        (changed(first(kept=-1)), r"records\[0\].kept must be"),
        (changed(first(dropped=101)), r"records\[0\].dropped must be .* 0 to 100, got 101"),
        (changed(first(kept=900.0)), r"records\[0\].kept must be"),
        (changed(first(mixed=None)), r"records\[0\].mixed must be"),
        (changed(first(mixed=901)), r"records\[0\].mixed must be .* 0 to 900, got 901"),
        (changed(first(cut="<b>")), r"records\[0\].cut must be"),
        (changed(lambda s: s["records"][1].pop("cut")), r"records\[1\].cut must be"),
        (changed(lambda s: s["records"][1].update(stage=0)), r"records\[1\].stage must be"),
        (changed(lambda s: s["records"][0].update(stage=3)), r"records\[1\]: .* stages must not fall"),
        (changed(first(cut=10**400)), r"records\[0\].cut must be"),
        (changed(first(cut=float("nan"))), "NaN is not JSON"),
        (changed(first(quantiles=[float("inf")])), "Infinity is not JSON"),
        (changed(first(quantiles=[0.5])), "quantiles must be a list of 0 or 7 numbers"),
        (changed(first(edges=[0, 1])), "counts must be a list of 1 numbers"),
        (changed(first(edges=[0], counts=[])), "edges must be a list of 2 to 1001 numbers"),
        (changed(first(edges=[1, 1], counts=[3])), "edges must rise"),
        (changed(first(edges=[0, 1], counts=[-3])), r"counts\[0\] must be a whole number"),
        (changed(first(edges=[0, 1], counts=[0.5])), r"counts\[0\] must be a whole number"),
        (changed(first(edges=[0.0] * 10**5)), "edges must be a list of 2 to 1001"),
        (changed(first(epoch=0)), "epoch must be"),
        ('{"num_samples": 9, "records": [{"epoch": 1e999}]}', r"records\[0\]"),
    ],
)
def test_what_is_no_history_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as error:
        parse(text)
    assert len(str(error.value)) < 300


def test_refusals_name_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.json"
    for content, reason in (
        (b"\xff\xfe", "x.json can't be shown"),
        (b"{}", "num_samples"),
        (
            b'{"stage": 1}\n{"stage": 2}\n',
            "several JSON texts, as --log writes them: give the file of --history",
        ),
        (None, "not a file"),
    ):
        if content is None:
            path = tmp_path
        else:
            path.write_bytes(content)
        assert main(["report", str(path), "-o", str(tmp_path / "out")]) == 2
        assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


EVIL = "</code></style><script>alert(1)</script><img src=x onerror=alert(1)>\"'&\u202e\x00\ud800"


def test_markup_in_the_file_stays_text() -> None:
    recorded = parse(json.dumps({"history": STATE, EVIL: {EVIL: EVIL, "x": [EVIL]}, "loose": EVIL}))
    made = Page(page(recorded, {"sizes": b"png"}, EVIL).decode("utf-8"))
    assert [tag for tag, _ in made.tags if tag in ("script", "img")] == ["img"]
    assert not any(name.startswith("on") for _, attrs in made.tags for name in attrs)
    assert "<script>alert(1)" in "".join(made.texts)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@given(st.sampled_from(sorted(STATE["records"][0])), json_values)
def test_any_value_of_a_field_is_shown_or_refused(name: str, value: Any) -> None:
    try:
        recorded = parse(changed(first(**{name: value})))
    except ValueError:
        return
    assert b"</html>" in page(recorded, {}, "x")


TAGS = {
    tag for tag, _ in Page(page(parse(json.dumps({"history": STATE, "x": {"y": 1}})), {}, "x").decode()).tags
}


@given(st.dictionaries(st.text(max_size=8), json_values, max_size=4))
def test_any_table_is_shown(table: dict[str, Any]) -> None:
    try:
        recorded = parse(json.dumps({"history": STATE, "settings": table}))
    except ValueError:  # NaN and the like
        return
    made = Page(page(recorded, {}, "x").decode("utf-8"))
    assert {tag for tag, _ in made.tags} <= TAGS


@pytest.mark.parametrize(
    "change",
    [
        first(cut=None),
        first(edges=[0, 1], counts=[0], quantiles=[]),
        first(edges=[-1e300, 1e300], counts=[5], cut=1e300, quantiles=[1e300] * 7),
        first(edges=[-1e12, 1e12], counts=[5], cut=-1e12),
        first(edges=[0, 5e-324], counts=[1], cut=1e12),
        first(edges=[1.0, 1.0000000001], counts=[1]),
        lambda s: s.update(num_samples=1 << 53),
        lambda s: s.update(records=[dict(s["records"][0], stage=e, epoch=e) for e in range(1, 3001)]),
    ],
)
def test_extremes_are_drawn(change: Callable[[dict[str, Any]], Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "x.json").write_text(changed(change))
    assert main(["report", str(tmp_path / "x.json"), "-o", str(tmp_path / "out")]) == 0
