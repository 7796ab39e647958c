"""What ``kcd report`` tells of a run: from ``kcd run --history``, ``history.to_json()`` and ``kcd demo``."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_report import EVIL, STATE, Page, history

import kcd_core as kcd
from kcd_adapters.cli import main
from kcd_adapters.report.history_file import parse
from kcd_adapters.report.page import page
from kcd_adapters.report.pictures import classes

RUN = {
    "repository": "RepDistiller",
    "method": "crd",
    "started": "2026-11-28T08:00:00+00:00",
    "seed": "3",
    "command": "train_student.py --distill crd",
}


def shown(**content: Any) -> str:
    recorded = parse(json.dumps({"history": STATE, **content}))
    return " ".join(Page(page(recorded, {}, recorded.title).decode()).texts)


def report(content: str, folder: Path, *options: str) -> str:
    """The text of a report that the command made."""
    pytest.importorskip("matplotlib")
    (folder / "given.json").write_text(content)
    assert main(["report", str(folder / "given.json"), "-o", str(folder / "out"), *options]) == 0
    return " ".join(Page((folder / "out" / "report.html").read_text("utf-8")).texts)


def test_the_title_is_repository_method_and_ratio(tmp_path: Path) -> None:
    content = {"history": STATE, "run": RUN, "settings": {"ratio": 0.7}}
    text = report(json.dumps(content), tmp_path)
    assert text.count("RepDistiller, crd, ratio 0.7") == 2  # of the page, and of the window
    assert "started 2026-11-28T08:00:00+00:00, seed 3" in text
    assert "train_student.py --distill crd" in text
    assert "Mine" in report(json.dumps(content), tmp_path, "--title", "Mine")
    bare = report(history().to_json(), tmp_path)
    assert bare.count("Knowledge condensation: given") == 2
    assert "started" not in bare


def test_what_is_not_there_is_left_out() -> None:
    settings = {"ratio": 0.7, "profile": None, "no_shims": [], "alpha": 0.05}
    text = shown(settings=settings, run={"repository": "A", "method": None})
    assert "null" not in text
    assert "profile" not in text
    assert "no_shims" not in text
    assert parse(json.dumps({"history": STATE, "run": {"repository": "A"}})).title == "A"


def test_the_cut_is_explained() -> None:
    text = shown(settings={"alpha": 0.05})
    assert "The cut is the lowest score among those that it keeps" in text
    assert "to the power of alpha (0.05)" in text


@pytest.mark.parametrize(
    ("summary", "saved", "full"),
    [
        ({"saved": 10_000, "full": 38_000}, 10_000, 38_000),
        ({}, 6000, 40_000),
        ({"saved": 10_000}, 6000, 40_000),
        ({"saved": -1, "full": 38_000}, 6000, 40_000),
        ({"saved": 1, "full": 40_001}, 6000, 40_000),
        ({"saved": True, "full": 38_000}, 6000, 40_000),
    ],
)
def test_samples_are_those_that_the_run_counted(summary: Any, saved: int, full: int) -> None:
    recorded = parse(json.dumps({"history": STATE, "summary": {"epochs": 40, **summary}}))
    assert (recorded.saved, recorded.full, recorded.drawn) == (saved, full, full - saved)
    text = " ".join(Page(page(recorded, {}, "x").decode()).texts)
    assert f"{saved / full:.1%}" in text
    assert f"{saved:,}" in text


def test_accuracy_is_shown_where_it_is_known() -> None:
    assert "76.25 accuracy" in shown(summary={"accuracy": 76.25})
    assert "accuracy" not in shown()


def test_shares_of_classes_are_drawn_where_they_are_known(tmp_path: Path) -> None:
    stages = [{"stage": 1, "shares": [0.9, None, 0.8]}, {"stage": 2, "shares": [0.5, 1, 0]}]
    text = report(json.dumps({"history": STATE, "classes": stages}), tmp_path)
    assert "What was kept of each class" in text
    assert (tmp_path / "out" / "classes.png").read_bytes().startswith(b"\x89PNG")
    recorded = parse(json.dumps({"history": STATE, "classes": stages}))
    assert [one.shares for one in recorded.classes] == [(0.9, None, 0.8), (0.5, 1, 0)]
    assert classes(parse(json.dumps({"history": STATE}))) is None
    many = [{"stage": s, "shares": [0.5] * 1000} for s in range(1, 31)]
    assert classes(parse(json.dumps({"history": STATE, "classes": many}))) is not None


def test_shares_are_of_the_samples_whose_labels_were_seen() -> None:
    torch = pytest.importorskip("torch")
    from kcd_adapters.hosts.classes import Classes

    known = Classes(8)
    known.see(np.array([0, 1, 2, 3]), torch.tensor([0, 0, 3, 3]))
    known.see(np.array([4, -1]), torch.tensor([3, 0]))  # the last is padding
    assert known.shares(np.array([0, 4, 7])) == [0.5, None, None, round(1 / 3, 6)]
    assert Classes(8).shares(np.array([0])) == []
    for labels in (torch.tensor([0.5, 1.0]), torch.tensor([0, 1000]), torch.tensor([0, -100])):
        unusable = Classes(8)
        unusable.see(np.array([0, 1]), torch.tensor([0, 1]))
        unusable.see(np.array([2, 3]), labels)
        assert unusable.shares(np.array([0])) == []


@pytest.mark.parametrize(
    "given",
    [[3], [{"stage": 1}], [{"stage": "1", "shares": [1]}], [{"stage": 1, "shares": []}],
     [{"stage": 1, "shares": [1.5]}], [{"stage": 1, "shares": [True]}], [{"stage": 1, "shares": [0] * 1001}]],
)  # fmt: skip
def test_what_are_no_shares_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match=r"classes\[0\]"):
        parse(json.dumps({"history": STATE, "classes": given}))


def test_markup_in_what_a_run_says_of_itself_stays_text() -> None:
    recorded = parse(
        json.dumps({"history": STATE, "run": dict.fromkeys(RUN, EVIL), "summary": {"accuracy": EVIL}})
    )
    made = Page(page(recorded, {}, recorded.title).decode("utf-8"))
    assert not [tag for tag, _ in made.tags if tag in ("script", "img")]


def demo(path: Path) -> dict[str, Any]:
    """What the demo writes of runs like these."""
    pytest.importorskip("torch")
    pytest.importorskip("rich")
    from kcd_adapters.demo.results import Results, Run, save_results

    def runs(name: str, accuracies: list[float]) -> list[Any]:
        account = kcd.Account()
        for _ in range(40):
            account.add(kcd.Cost(1000, 1000) if name == "KD" else kcd.Cost(900, 900))
            account.end_epoch(1000)
        loader: Any = SimpleNamespace(history=history(1 if name == "KD" else 3), account=account)
        loader.history.account = account
        return [Run(loader, [], 2.0, 0.1, accuracy) for accuracy in accuracies]

    results = Results(
        {"data": "digits", "epochs": 40, "ratio": 0.7},
        2,
        {"KD": runs("KD", [0.9, 0.92]), "KC-KD": runs("KC-KD", [0.9361, 0.9381])},
        0.99,
        kcd.StepFlops(student=10.0, teacher=70.0),
    )
    save_results(path, results)
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_the_demos_results_are_read(tmp_path: Path) -> None:
    text = report(json.dumps(demo(tmp_path / "results.json")), tmp_path)
    assert "kcd demo, digits, KC-KD (its first run), ratio 0.7" in text
    mean, sd = 100 * np.mean([0.9361, 0.9381]), 100 * np.std([0.9361, 0.9381], ddof=1)
    assert f"{mean:.2f} % ± {sd:.2f} (2 runs) accuracy" in text
    assert "accuracy 91.00 % ± 1.41 (2 runs), 40,000 samples drawn in a run" in text
    assert "99.00 %" in text
    assert "GFLOP 0.0036 0.004 90.0%" in " ".join(text.split())
    assert "40,000" in text  # 40 epochs, as its settings say


def test_other_arms_than_the_demos_are_read_or_refused(tmp_path: Path) -> None:
    content = demo(tmp_path / "results.json")
    del content["arms"]["KC-KD"]
    assert len(parse(json.dumps(content)).stages) == 1
    content["arms"]["KD"] |= {"accuracy": "high", "samples_drawn": [None]}
    assert parse(json.dumps(content)).tables["arms"] == {"KD": "nothing is known"}
    for arms in ({}, [], {"KD": 3}, {"KD": {"history_of_first_run": {"records": []}}}):
        with pytest.raises(ValueError, match="history_of_first_run"):
            parse(json.dumps({"arms": arms}))
