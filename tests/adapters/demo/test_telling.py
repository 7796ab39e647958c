"""What ``kcd demo`` says it has shown: only what the intervals of its runs do."""

import shlex
import subprocess
import sys
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace

import pytest

import kcd_adapters
from kcd_adapters.demo import telling
from kcd_adapters.demo.telling import Difference, difference, more, sentences


def runs(*percent, drawn=100, seconds=(2.0,)):
    cost = SimpleNamespace(drawn=drawn)
    return [
        SimpleNamespace(accuracy=x / 100, cost=cost, seconds=took)
        for x, took in zip(percent, cycle(seconds), strict=False)
    ]


def test_a_difference_is_paired_and_its_interval_students():
    """By hand: 1, 2 and 3 have a mean of 2 and a deviation of 1; t of two degrees of freedom is 4.303."""
    apart = difference(runs(61, 72, 83), runs(60, 70, 80))
    assert apart.mean == pytest.approx(2)
    assert apart.half == pytest.approx(4.303 / 3**0.5, abs=0.001)
    assert apart.sign == 0
    assert str(apart) == "+2.00 ± 2.48"
    assert difference(runs(61, 72, 83), runs(60, 70)).mean == pytest.approx(1.5)  # an interruption


@pytest.mark.parametrize(
    ("mean", "half", "sign"),
    [(0.5, 0.4, 1), (-0.5, 0.4, -1), (0.4, 0.4, 0), (-0.3, 0.4, 0), (5.0, None, 0)],
)
def test_what_differs_beyond_chance(mean, half, sign):
    assert Difference(mean, half).sign == sign


def test_equal_differences_tell_no_interval():
    """Of few images, two runs may well differ by the same number of them: that is no certainty."""
    assert difference(runs(60, 70), runs(60, 70)) == Difference(0.0, None)


def test_what_is_seen_and_what_is_not():
    told = sentences(
        {
            "KD": runs(90, 91, 92, drawn=1000, seconds=(4.0, 16.0, 3.9)),
            "KC-KD": runs(90.1, 91, 91.9, drawn=710, seconds=(3.0, 3.1, 2.9)),
            "random dropping": runs(88, 89.1, 90),
            "KD, shorter": runs(92.1, 93, 94),
        }
    )
    assert told == [
        "KC-KD drew 71.0% of KD's samples, and its median run took 3.0 s, where KD's took 4.0 s.",
        "Seen: KC-KD is better than random dropping (+1.97 ± 0.29 points), and worse than KD, shorter "
        "(-2.03 ± 0.14 points).",
        "Not seen: a difference, beyond chance, between KC-KD and KD (+0.00 ± 0.25 points).",
        "± are 95 % intervals over 3 runs, each of one comparison taken by itself.",
    ]


@pytest.mark.parametrize(
    ("kd", "random", "shorter", "closing"),
    [
        (
            (90, 91.1, 92), (88, 89.1, 90), (87, 88.1, 89),
            ["Seen: KC-KD is better than KD (+2.97 ± 0.14 points), random dropping (+4.97 ± 0.14 points) and "
             "KD, shorter (+5.97 ± 0.14 points).",
             "± are 95 % intervals over 3 runs, each of one comparison taken by itself."],
        ),
        (
            (98, 99.1, 99.9), (93, 94, 95), (93, 94.1),
            ["Seen: KC-KD is worse than KD (-5.00 ± 0.25 points).",
             "Not seen: a difference, beyond chance, between KC-KD and random dropping (+0.00 points) and KD, shorter "
             "(-0.05 ± 0.64 points).",
             "± are 95 % intervals over 2 or 3 runs, each of one comparison taken by itself."],
        ),
        (
            (92, 93, 94), (93, 94, 95), [],
            ["Not seen: a difference, beyond chance, between KC-KD and KD (+1.00 points) and random dropping "
             "(+0.00 points)."],
        ),
    ],
)  # fmt: skip
def test_better_worse_and_can_not_tell_read_as_english(kd, random, shorter, closing):
    """Of runs of KC-KD at 93, 94 and 95 %, the last of some arms interrupted; equal differences have no interval."""
    arms = {"KD": kd, "KC-KD": (93, 94, 95), "random dropping": random, "KD, shorter": shorter}
    assert sentences({name: runs(*percent) for name, percent in arms.items()})[1:] == closing


def test_one_run_shows_nothing_and_none_less():
    arms = {"KD": runs(90, 95), "KC-KD": runs(99), "random dropping": []}
    assert sentences(arms)[1:] == [
        "Not seen: whether KC-KD differs from KD (+9.00 points): one run can't tell chance."
    ]
    assert sentences({**arms, "KC-KD": []}) == ["Nothing can be compared: no run of KC-KD is complete."]


@pytest.mark.parametrize("there", [True, False])
def test_more_is_what_was_not_run(there, tmp_path, monkeypatch):
    monkeypatch.setattr(telling, "DEBIAN", tmp_path if there else tmp_path / "absent")
    monkeypatch.setattr(sys, "argv", [".venv/bin/kcd", "demo"])
    text = "\n".join(more("letter", Path("out/results.json")))
    assert "DATA=letter" not in text
    assert "  .venv/bin/kcd report out/results.json -o DIR  " in text
    assert ("found on this machine" in text) == there
    assert "DATA=letter" in "\n".join(more("digits", Path("x")))


@pytest.mark.parametrize("module", [True, False])
def test_the_command_that_is_told_can_be_given(module, tmp_path, monkeypatch):
    """Wherever kcd is, and however it was started."""
    program = Path(kcd_adapters.__file__).with_name("__main__.py")
    if not module:
        program = tmp_path / "my tools" / "kcd"
        program.parent.mkdir()
        program.write_text("print('usage: kcd report')")
        start = f"{shlex.quote(sys.executable)} "
    else:
        start = ""
    monkeypatch.setattr(sys, "argv", [str(program), "demo"])
    (line,) = (line for line in more("letter", Path("my results.json")) if " -o DIR" in line)
    assert " report 'my results.json' -o DIR " in line
    command = start + line.partition(" 'my results.json'")[0].strip() + " --help"
    done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: kcd report")
