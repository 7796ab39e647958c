"""The examples of the README and of docs/ run as they stand there, and their figures are those that were measured."""

import configparser
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SECONDS

import kcd_core as kcd

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def python_blocks(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def own_blocks(path: Path) -> list[str]:
    """Those that are not quoted from examples/, whose tests run them."""
    text = path.read_text(encoding="utf-8")
    return re.findall(r"(?<! -->\n)^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_readme_is_read_in_five_minutes():
    assert len(README.split()) <= 900


def test_the_readmes_example_runs_from_an_empty_file(tmp_path):
    (example,) = python_blocks(ROOT / "README.md")
    (tmp_path / "example.py").write_text(example, encoding="utf-8")
    command = [sys.executable, "-W", "error", "example.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    # The README's table is what it prints; the cut's last digits are the platform's.
    shown = re.search(r"^```\n(stage  epoch.*?)^```", README, re.MULTILINE | re.DOTALL).group(1)
    *table, cost = done.stdout.splitlines()
    *shown_table, shown_cost = shown.splitlines()
    assert [line[:-2] for line in table] == [line[:-2] for line in shown_table]
    assert len(shown_table) == 1 + 28 // 4
    assert cost.rpartition(",")[0] == shown_cost.rpartition(",")[0]  # the seconds are the machine's


def test_the_readmes_commands_are_there():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    commands = re.findall(r"^make (\S+)", README, re.MULTILINE)
    assert commands == ["demo", "test"]
    assert set(commands) <= set(targets)


def test_the_readmes_requirements_are_those_of_the_package():
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    needs = dict(line.split(">=") for line in setup["options"]["install_requires"].split())
    needs["Python"] = setup["options"]["python_requires"].removeprefix(">=")
    assert dict(re.findall(r"(\w+) ≥ ([\d.]+)", README)) == needs


def chosen_tail(sampler):
    return sampler.recipes.target[sampler.recipes.weight.argmin()]


def printed_study(name):
    """What benchmarks/study.py printed of each student: the lines of its table, and its verdicts by their beginning."""
    text = (ROOT / f"benchmarks/results/study-{name}.txt").read_text(encoding="utf-8")
    text, note = text.split("\nMean ± s.d.")
    students = {}
    for part in re.split(r"\n\n(?=\w+ student\n)", text)[1:]:
        lines = [" ".join(line.split()) for line in part.splitlines()]
        verdicts = dict(line.split(": ", 1) for line in lines if re.match("(better|worse) than KD", line))
        students[lines[0].removesuffix(" student")] = lines, verdicts
    return students, note


def rows_and_text(text):
    """The rows of the tables of the study, by columns, and all else."""
    rows = re.findall(
        r"^\|(?: (small|large) \|)? [^|]*? \| ([\d.]*) ?\| ([\d.]+) % \| (\d[^|]*?) \| ([^|]*?) ?\|$",
        text,
        re.MULTILINE,
    )
    return rows, " ".join(line for line in text.splitlines() if not line.startswith("|"))


@pytest.mark.parametrize(
    ("name", "study", "tabled", "told"),
    [
        ("README.md", "fashion-mnist-20000x24-gate", 4, 4),
        ("docs/results.md", "fashion-mnist-20000x24", 15, 27),
    ],
)
def test_results_are_those_of_the_study(name, study, tabled, told):
    """Every row of the table, and every difference in the text, is one that benchmarks/study.py printed."""
    students, note = printed_study(study)
    rows, text = rows_and_text((ROOT / name).read_text(encoding="utf-8"))
    assert len(rows) == tabled
    for student, ratio, share, accuracy, difference in rows:
        row = rf" {ratio or 1} 10 {accuracy} [\d,]+ {float(share):.1f}% (?:[\d.]+% )*[\d.]+ [\d.]+ ?{re.escape(difference)}"
        assert any(re.search(row, line) for line in students[student or "small"][0]), row
    differences = re.findall(r"[-+]\d\.\d\d \[.*?\]", text)
    assert len(differences) == told
    tables, notes = [*students.values()], note
    others = ("20000x24-gate", "60000x24")
    for other in (
        *(f"fashion-mnist-{size}" for size in others),
        "letter-16041x24",
        "satimage-5167x24",
        "penbased-8758x24",
    ):
        more, note = printed_study(other)
        tables += more.values()
        notes += note
    printed = " ".join(" ".join(lines) for lines, _ in tables) + notes
    assert [difference for difference in differences if difference not in printed] == []


def test_the_readmes_headline_is_in_its_table_and_its_figure():
    """The recommended arm and its control, by the same study everywhere."""
    rows, text = rows_and_text(README)
    told = dict(zip(("kc-kd-for-epochs", "random-for-epochs"), rows[1:3], strict=True))
    for (_, ratio, share, _, difference), headline in zip(
        told.values(), re.findall(r"([-+]0\.\d\d \[\S+ \S+\])", text)[:2], strict=True
    ):
        assert (ratio, share, difference) == ("0.3", "60.6", headline)
    assert "on 61 % of the samples" in text
    table = json.loads(
        (ROOT / "benchmarks/results/study-fashion-mnist-20000x24-gate.json").read_text(encoding="utf-8")
    )["table"]
    for arm, row in told.items():
        (found,) = [each for each in table if (each["arm"], each["student"]) == (arm, "small")]
        own = found["to_base"]
        low, high = own["interval"]
        assert row[-1] == f"{own['mean']:+.2f} [{low:+.2f}, {high:+.2f}]"


def test_verdicts_are_those_of_the_study():
    students, note = printed_study("fashion-mnist-20000x24")
    _, text = rows_and_text((ROOT / "docs" / "results.md").read_text(encoding="utf-8"))

    def ratios(student, verdict):
        return set(re.findall(r"kc-kd-v3 ([\d.]+)", students[student][1][verdict]))

    small, large = re.search(
        r"KC-KD is better than KD at ([\d., and]+), for the larger student at ([\d., and]+)\.", text
    ).groups()
    assert ratios("small", "better than KD") == set(re.findall(r"[\d.]+\d", small))
    assert ratios("large", "better than KD") == set(re.findall(r"[\d.]+\d", large))
    for student, (lines, _) in students.items():
        tried = {line.split()[4] for line in lines if line.startswith("KC-KD v3: and mixing ")}
        assert ratios(student, "better than KD at equal samples") == tried, "at every ratio"
        assert "0.7" in tried - ratios(student, "better than KD")
        assert not re.search("kc-(pkt|crd)", students[student][1]["better than KD"])
    assert "The same accuracy in every run: kc-kd-v1 and kc-kd-v2 at 0.7, 0.5, 0.3, small student." in note
    # On digits, nothing beyond chance.
    ((_, verdicts),) = printed_study("digits-1198x24")[0].values()
    assert set(verdicts.values()) == {"none"}


def test_what_to_set_is_by_the_evidence():
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    periods = re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \| (.*?) \|$", text, re.MULTILINE)
    assert len(periods) == 8
    for *numbers, shares in periods:
        epochs, period, left = map(int, numbers)
        for ratio, share in zip((0.7, 0.5, 0.3), shares.split(" | "), strict=True):
            schedule = kcd.CondensationSchedule.for_epochs(epochs, ratio)
            assert (schedule.period, epochs - 6 * schedule.period) == (period, left)
            drawn = sum(schedule.size(60_000, epoch) for epoch in range(1, epochs + 1))
            assert share == f"{100 * drawn / (60_000 * epochs):.1f} %"
    students, note = printed_study("fashion-mnist-20000x24")

    def printed(student, arm, ratio, difference, share=""):
        """Whether the study's line of an arm says this difference to KD."""
        (line,) = (line for line in students[student][0] if line.startswith(f"{arm} {ratio} 10 "))
        return f" {difference} " in f"{line} " and f" {share}" in line

    both, mixed = "KC-KD v3: and mixing", "KC-KD v3, mixing fresh"
    ratios = re.findall(r"^\| (0\.\d+) \| ([-+].*?) \| (.*?) ?\| ([\d.]+) % \|$", text, re.MULTILINE)
    assert len(ratios) == 5
    for ratio, small, large, share in ratios:
        assert printed("small", both, ratio, small, f"{share}%")
        assert not large or printed("large", both, ratio, large, f"{share}%")
    for mixing, arm in (("None", "KC-KD v2: by V·F^0.03"), ('"fresh"', mixed), ('"cumulative"', both)):
        told = re.search(rf"^\| `{mixing}` \| (.*) \|$", text, re.MULTILINE)[1].split(" | ")
        for ratio, difference in zip((0.7, 0.5, 0.3), told, strict=True):
            assert printed("small", arm, ratio, difference), (mixing, ratio)
    prose = " ".join(text.split())
    for sentence, arm, ratio in (
        (r"without mixing it differs from KD by (\S+ \S+ \S+), and", "KC-KD by KD divergence", 0.25),
        (r"and entropy by (\S+ \S+ \S+): no gain", "KC-KD v2: by V·F^0.03", 0.25),
        (r"did not pay: it differs from KD by (\S+ \S+ \S+) at 0\.1", "KC-KD, all data at the end", 0.1),
    ):
        assert printed("small", arm, ratio, re.search(sentence, prose)[1]), arm
    assert f"{re.search('Cumulative mixing adds (.*?) to the choice', prose)[1]} at 0.3" in note


def test_by_hand_examples_run(capsys):
    names = {
        "torch": torch,
        "stream": [
            ([1, 2, 3, 4], torch.rand(4, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4))
        ],
        "student": lambda images: (images @ torch.eye(8, 10)).requires_grad_(),
        "my_weights": torch.rand(1000, generator=torch.Generator().manual_seed(0)),
    }
    blocks = own_blocks(ROOT / "docs" / "by-hand.md")
    assert len(blocks) == 9
    for block in blocks:
        exec(compile(block, "by-hand.md", "exec"), names)
    assert names["schedule"].size(1000, 13) == len(names["sampler"].kept) == len(names["parts"].kept) == 700
    assert "stage  epoch     kept" in capsys.readouterr().out
    assert len(names["weights"].nonzero()) == 700
    assert len(names["mine"].kept) == 700
    assert names["criterion"].stage == 6
    assert len(names["criterion"].kept) == 700
    mixed = names["Mixed"](torch.rand(1000, 3, generator=torch.Generator().manual_seed(0)), names["sampler"])
    tail = int(chosen_tail(names["sampler"]))
    assert not torch.equal(mixed[tail][1], mixed.dataset[tail])
    tracker = kcd.KnowledgeValueTracker(10)
    tracker.record(range(10), np.arange(10.0))
    chosen = kcd.condense_step(
        tracker,
        kcd.CondensedSampler(10),
        kcd.CondensationSchedule(0.5, 1, 1),
        select=names["at_random"],
    )
    assert len(chosen.kept) == 5


def test_gate_runs():
    names = {"kcd": kcd, "np": np}
    (by_hand,) = own_blocks(ROOT / "docs" / "gate.md")
    exec(compile(by_hand, "gate.md", "exec"), names)
    assert names["gate"].num_kept == 250


def test_the_gates_losses_are_the_divergence():
    _, losses, _ = python_blocks(ROOT / "docs" / "gate.md")
    names = {"F": torch.nn.functional}
    exec(compile(losses, "gate.md", "exec"), names)
    student_logits, teacher_logits = torch.randn(3, 5), torch.randn(3, 5)
    p, q = ((z.double() / 4).softmax(1) for z in (teacher_logits, student_logits))
    assert names["kd_losses"](student_logits, teacher_logits).tolist() == pytest.approx(
        (16 * (p * (p / q).log()).sum(1)).tolist(), rel=1e-4
    )


def test_the_rules_run():
    images = torch.randn(240, 8)
    plain = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(images, torch.arange(240) % 5), batch_size=64, shuffle=True
    )
    student = torch.nn.Linear(8, 5)
    names = {
        "kcd": kcd,
        "torch": torch,
        "np": np,
        "plain": plain,
        "student": student,
        "teacher": torch.nn.Linear(8, 5),
        "kd_losses": lambda z, teacher_logits: (z - teacher_logits).square().sum(1),
        "optimizer": torch.optim.SGD(student.parameters(), lr=0.05),
    }
    *blocks, own = python_blocks(ROOT / "docs" / "rules.md")
    loaders = []
    for block in blocks:
        exec(compile(block, "rules.md", "exec"), names)
        loaders.append(names["loader"])
    infobatch = loaders[2]
    assert [kept["kept"] < 240 for kept in infobatch.history] == 6 * [True] + [False]
    assert [loader.total_steps(24) for loader in loaders[:2]] == [75, 50]
    exec(compile(own, "rules.md", "exec"), names)
    for _ in range(2):
        for _, targets in names["loader"]:
            names["loader"].record(values=targets.double())
        chosen = names["loader"].end_epoch()
    assert len(chosen.kept) == 3 * 48


def test_account_runs(capsys):
    images, targets = torch.randn(1000, 8), torch.arange(1000) % 5
    dataset = torch.utils.data.TensorDataset(images, targets)
    names = {
        "loader": torch.utils.data.DataLoader(dataset, batch_size=100, shuffle=True),
        "student": torch.nn.Linear(8, 5),
        "teacher": torch.nn.Linear(8, 50),
    }
    for block in python_blocks(ROOT / "docs" / "account.md"):
        exec(compile(block, "account.md", "exec"), names)
    cost, step = names["cost"], names["step"]
    said = (ROOT / "docs" / "account.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out.splitlines()[-1].partition(" teacher")[0].rpartition(",")[0] in said
    assert step.of(cost) == 3 * 80 * cost.drawn + 800 * cost.asked
    assert step.of_plain(cost) == 12 * 1000 * (3 * 80 + 800)


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "CONTRIBUTING.md",
        *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")),
    ],
)
def test_links_point_at_files(name):
    path = ROOT / name
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        page = path.parent / file if file else path
        assert page.exists(), target
        if anchor:
            assert anchor in anchors(page), target


def anchors(page):
    """Those of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
