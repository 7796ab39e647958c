"""``kcd report`` of several runs: what differs, counted by hand."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from helpers import cut_off

import kcd_core as kcd
from kcd_adapters.cli import main
from kcd_adapters.report.compare import as_text, differing, draw, facts, figure_of, kept, names_of
from kcd_adapters.report.history_file import parse


def stage(number: int, epoch: int, kept: int, dropped: int) -> dict[str, Any]:
    return {
        "stage": number, "epoch": epoch, "kept": kept, "dropped": dropped, "mixed": 0, "cut": None, "unseen": 0,
        "quantiles": [], "edges": [0, 1], "counts": [0],
    }  # fmt: skip


def written(n: int, sizes: dict[int, int], settings: dict[str, Any], **summary: Any) -> str:
    before, records = n, []
    for number, (epoch, size) in enumerate(sizes.items(), 1):
        records.append(stage(number, epoch, size, before - size))
        before = size
    history = {"num_samples": n, "records": records}
    return json.dumps({"history": history, "settings": settings, "summary": summary})


A = written(
    100, {2: 80, 4: 60}, {"ratio": 0.6, "alpha": 0.03}, epochs=6, accuracy=76.5,
    drawn=480, full=600, saved=120, processes=1, asked=240, seconds=12.34,
)  # fmt: skip
B = written(100, {2: 50}, {"ratio": 0.5, "alpha": 0.03, "ask": 0.25}, epochs=6)
RUNS = {"a": parse(A), "b": parse(B)}


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    for name, text in (("a", A), ("b", B)):
        (tmp_path / f"{name}.json").write_text(text)
    return [str(tmp_path / "a.json"), str(tmp_path / "b.json")]


def test_what_runs_took_is_counted_by_hand() -> None:
    assert facts(RUNS["a"]) == {
        "samples": 100,
        "epochs": 6,
        "stages": 2,
        "kept in the end": 60,
        "samples drawn, of one process": 480,
        "drawn, % of plain distillation's": 80.0,
        "teacher queries, of one process": 240,
        "seconds of training": 12.3,
        "accuracy": "76.5",
    }
    own = facts(RUNS["b"])
    assert own["drawn, % of plain distillation's"] == round(100 * (2 * 100 + 4 * 50) / 600, 2)
    unknown = (
        "samples drawn, of one process",
        "teacher queries, of one process",
        "seconds of training",
        "accuracy",
    )
    assert [own[name] for name in unknown] == [None] * 4  # nothing is made up


def counted(first: int) -> kcd.CondensationHistory:
    """Of two epochs without a stage, of which one batch was left out, each on one of two processes."""
    history = kcd.CondensationHistory(100)
    history.account = kcd.Account(first)
    for _ in range(2):
        history.account.add(kcd.Cost(drawn=48, asked=12, seconds=3.0))
        history.account.end_epoch(plain=48)
    return history


def test_what_was_drawn_and_asked_are_both_of_one_process() -> None:
    own = facts(parse(counted(1).to_json()))
    assert (own["samples drawn, of one process"], own["teacher queries, of one process"]) == (96, 24)
    # Where only some of the epochs were counted, a sum would look like all of them.
    own = facts(parse(counted(2).to_json()))
    assert (own["samples drawn, of one process"], own["teacher queries, of one process"]) == (None, None)


def test_a_run_without_a_stage_is_compared_and_not_shown_alone(
    files: list[str], tmp_path: Path, capsys: Any
) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "kd.json").write_text(counted(1).to_json())
    out = tmp_path / "out"
    assert main(["report", *files, str(tmp_path / "kd.json"), "-o", str(out)]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["epoch", "2", "80", "50", "-"] in table
    assert ["stages", "2", "1", "0"] in table
    assert ["kept", "in", "the", "end", "60", "50", "100"] in table
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    for options in ([], ["-o", str(tmp_path / "alone")]):
        assert main(["report", str(tmp_path / "kd.json"), *options]) == 2
        said = capsys.readouterr().err
        assert "holds no stage" in said
        assert "Give it together with another run's history" in said
    assert not (tmp_path / "alone").exists()


def test_without_a_folder_text_is_all_there_is(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert main(["report", *files]) == 0
    assert capsys.readouterr().out == as_text(RUNS) + "\n"
    assert main(["report", files[0]]) == 0
    *stages, cost = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in stages[1:]] == [["1", "2", "80"], ["2", "4", "60"]]
    assert cost.startswith("480 samples drawn (80.0% of plain distillation's), 240 teacher queries")
    assert main(["report", files[0], "--force"]) == 2
    assert "give -o DIR, too" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_settings_of_a_history_are_compared(tmp_path: Path) -> None:
    """Those that the file gives beside the history come first."""
    pytest.importorskip("torch")
    runs = {}
    for name, options in {"kc": {}, "random": {"select": "random"}}.items():
        sampler = kcd.CondensedSampler(100, mixing=None)
        run = kcd.Condensation(sampler, schedule=kcd.CondensationSchedule(), **options)
        run.history.account = counted(1).account
        runs[name] = run.history.to_json()
    assert differing({name: parse(text) for name, text in runs.items()}) == {
        "select": {"kc": None, "random": "random"}
    }
    runs["not said"] = written(100, {2: 50}, {"ratio": 0.7}, epochs=6)
    lines = as_text({name: parse(text) for name, text in runs.items()}).splitlines()
    assert ["select", "by value", "random", "-"] in [re.split(r" {2,}", line.strip()) for line in lines]
    wrapped = {"history": json.loads(runs["random"]), "settings": {"select": "mine", "lr": 1}}
    settings = parse(json.dumps(wrapped)).tables["settings"]
    assert (settings["select"], settings["lr"], settings["ratio"]) == ("mine", 1, 0.7)


@pytest.mark.parametrize(
    ("settings", "said"), [({}, "not recorded in these files"), ({"ratio": 0.5}, "none")]
)
def test_settings_nobody_recorded_are_not_called_the_same(settings: dict[str, Any], said: str) -> None:
    same = parse(written(100, {2: 50}, settings, epochs=6))
    lines = as_text({"a": same, "b": same}).splitlines()
    (title,) = (number for number, line in enumerate(lines) if "Settings that differ" in line)
    assert said in " ".join(" ".join(lines[title : title + 4]).split())


def test_only_settings_that_differ_are_shown() -> None:
    assert differing(RUNS) == {"ratio": {"a": 0.6, "b": 0.5}, "ask": {"a": None, "b": 0.25}}
    assert differing({"a": RUNS["a"], "same": RUNS["a"]}) == {}


def test_stages_are_set_side_by_side_by_epoch() -> None:
    assert kept(RUNS) == {"epoch 2": {"a": 80, "b": 50}, "epoch 4": {"a": 60, "b": None}}


def test_text_page_picture_and_json(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    assert main(["report", *files, "-o", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [Path(line).name for line in lines[:3]] == ["report.html", "comparison.json", "comparison.png"]
    assert "\n".join(lines[3:]) == as_text(RUNS)
    table = [line.split() for line in lines[3:]]
    assert ["ratio", "0.6", "0.5"] in table
    assert ["ask", "-", "0.25"] in table
    assert ["epoch", "4", "60", "-"] in table
    assert len({len(line) for line in lines[4:] if line.startswith("  ")}) == 1  # columns are flush
    content = json.loads((out / "comparison.json").read_text())
    assert content["runs"] == {name: facts(run) for name, run in RUNS.items()}
    assert content["settings_that_differ"] == differing(RUNS)
    assert content["kept"] == kept(RUNS)
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG\r\n")
    page = (out / "report.html").read_text("utf-8")
    assert "data:image/png;base64," in page
    assert "<td>teacher queries, of one process</td><td>240</td><td>-</td>" in page
    # Its own files, it may replace; one run's report would not be mixed up with somebody's.
    assert main(["report", *files, "-o", str(out)]) == 0
    (out / "comparison.json").write_text("{}")
    assert main(["report", *files, "-o", str(out)]) == 2
    assert "comparison.json exists and was not made by kcd report" in capsys.readouterr().err


def test_a_file_given_twice_and_one_that_is_none(files: list[str], tmp_path: Path, capsys: Any) -> None:
    for given, reason in (([files[0]] * 2, "given twice"), ([files[0], str(tmp_path)], "not a file")):
        assert main(["report", *given, "-o", str(tmp_path / "out")]) == 2
        assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_names_are_as_short_as_they_can_be() -> None:
    assert names_of([Path("x/a.json"), Path("y/b.json")]) == ["a", "b"]
    assert names_of([Path("x/h.json"), Path("y/h.json")]) == ["x/h", "y/h"]
    assert names_of([Path("1/x/h.json"), Path("2/x/h.json")]) == ["1/x/h.json", "2/x/h.json"]


EVIL = "$x^{<script>alert(1)</script>\u202e\x00"


def test_markup_and_formulas_in_files_stay_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    evil = written(7, {1: 3}, {EVIL: EVIL, "far": 1})[:-1] + ', "run": {"method": 1e999}}'
    paths = [tmp_path / "$x^{<b>.json", tmp_path / "_b.json"]
    paths[0].write_text(evil)
    paths[1].write_text(B)
    assert main(["report", *map(str, paths), "-o", str(tmp_path / "out")]) == 0
    assert "\x00" not in capsys.readouterr().out
    json.loads((tmp_path / "out" / "comparison.json").read_text(), parse_constant=pytest.fail)
    tags: set[str] = set()
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.add(tag)  # type: ignore[method-assign]
    parser.feed((tmp_path / "out" / "report.html").read_text("utf-8"))
    assert not {"script", "b"} & tags


def test_runs_that_draw_alike_are_all_seen_and_no_label_is_cut() -> None:
    pytest.importorskip("matplotlib")
    figure = figure_of({"a": RUNS["a"], "the same": RUNS["a"], "b": RUNS["b"]})
    widths = [line.get_linewidth() for line in figure.axes[0].lines]
    assert widths == sorted(widths, reverse=True)
    assert len(set(widths)) == 3
    assert cut_off(figure) == []


def test_many_runs_are_drawn() -> None:
    pytest.importorskip("matplotlib")
    assert draw({str(number): RUNS["a"] for number in range(9)}).startswith(b"\x89PNG")
