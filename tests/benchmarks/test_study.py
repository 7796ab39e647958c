"""benchmarks/study.py, on a few digits."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SECONDS

import kcd_core as kcd

pytest.importorskip("rich")
pytest.importorskip("sklearn")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAME, N = "study-digits-300x6-t2", 300
SMALL = ["--data", "digits", "--samples", str(N), "--epochs", "6", "--teacher-epochs", "2", "--seeds", "1"]


@pytest.fixture(scope="module")
def study():
    """The script as a module, which finds its neighbours."""
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("study")
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def finished(study, tmp_path_factory):
    """A study of two arms and one seed: its folder."""
    out = tmp_path_factory.mktemp("study")
    threads = torch.get_num_threads()
    command = [*SMALL, "--arms", "kd", "kc-kd-v3", "--workers", "1", "--out", str(out)]
    assert study.main(command) == 0
    torch.set_num_threads(threads)
    return out, command


def runs(out):
    return {path.stem: json.loads(path.read_text()) for path in (out / NAME).glob("*.json")}


def test_every_run_leaves_its_figures(finished):
    out, _ = finished
    assert set(runs(out)) == {"kd-1-small-0", "kc-kd-v3-0.7-small-0"}
    for run in runs(out).values():
        assert 0 < run["accuracy"] <= 1
        assert run["seconds"] > 0
    assert not list(out.rglob("*.part")), "left over"
    assert {path.suffix for path in out.glob(f"{NAME}.*")} == {".json", ".txt", ".png"}


def test_an_epoch_draws_what_the_schedule_says(finished):
    schedule = kcd.CondensationSchedule(0.7, stages=6, period=1)
    by_arm = {run["arm"]: run for run in runs(finished[0]).values()}
    sizes = [schedule.size(N, epoch) for epoch in range(1, 7)]
    assert by_arm["kc-kd-v3"]["drawn_by_epoch"] == sizes
    assert by_arm["kd"]["drawn_by_epoch"] == [N] * 6


def test_what_is_done_is_not_done_again(study, finished, capsys):
    out, command = finished
    before = {path: path.stat().st_mtime_ns for path in (out / NAME).iterdir()}
    assert study.main(command) == 0
    assert "2 runs, 2 of them done before" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (out / NAME).iterdir()} == before


def test_the_table_is_recomputed_from_the_runs_alone(study, finished, tmp_path):
    out, _ = finished
    table = json.loads((out / f"{NAME}.json").read_text())["table"]
    (tmp_path / NAME).mkdir()
    for path in (out / NAME).glob("*.json"):
        (tmp_path / NAME / path.name).write_bytes(path.read_bytes())
    assert study.main([*SMALL, "--report-only", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / f"{NAME}.json").read_text())["table"] == table
    # And without them, from what the report keeps of them.
    for path in (tmp_path / NAME).glob("*.json"):
        path.unlink()
    text = (tmp_path / f"{NAME}.txt").read_text()
    assert study.main([*SMALL, "--report-only", "--out", str(tmp_path)]) == 0
    assert (tmp_path / f"{NAME}.txt").read_text() == text


def test_a_report_is_not_replaced_by_one_with_fewer_runs(study, finished, tmp_path, capsys):
    out, _ = finished
    for end in ("json", "txt", "png"):
        (tmp_path / f"{NAME}.{end}").write_bytes((out / f"{NAME}.{end}").read_bytes())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / NAME).mkdir()
    own = f"{NAME}/kd-1-small-0.json"
    (tmp_path / own).write_bytes((out / own).read_bytes())
    assert study.main([*SMALL, "--report-only", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(f"{NAME}-trial: ")
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    trial = json.loads((tmp_path / f"{NAME}-trial.json").read_text())
    assert [run["arm"] for run in trial["runs"]] == ["kd"]
    assert {path.suffix for path in tmp_path.glob("*-trial.*")} == {".json", ".txt", ".png"}


def test_other_teachers_make_another_study(study):
    names = {study.parse([*SMALL, "--teacher-epochs", n])[1].name for n in ("2", "3", "60")}
    assert names == {"study-digits-300x6-t2", "study-digits-300x6-t3", "study-digits-300x6"}
    apart, usual = (study.parse([*SMALL, "--live", *label])[1] for label in (["--label", "gate"], []))
    assert (apart.name, usual.name) == (f"{NAME}-live-gate", f"{NAME}-live")
    assert apart.teacher.parent.name == "study-digits-teacher-gate"
    assert usual.teacher == study.parse(SMALL)[1].teacher


@pytest.mark.parametrize(("missing", "options"), [("rich", []), ("matplotlib", []), ("rich", ["--help"])])
def test_a_missing_package_is_named_with_its_extra_and_help_needs_none(missing, options, tmp_path):
    script = "import sys; sys.modules[sys.argv[1]] = None; import study; sys.exit(study.main(sys.argv[2:]))"
    done = subprocess.run(
        [sys.executable, "-c", script, missing, *SMALL, "--out", str(tmp_path), *options],
        cwd=BENCHMARKS,
        capture_output=True,
        text=True,
    )
    if options:
        assert (done.returncode, done.stderr) == (0, "")
        assert all(arm.title in done.stdout for arm in importlib.import_module("_study.arms").ARMS.values())
    else:
        assert (done.returncode, done.stderr) == (
            1,
            f"{missing} is not installed: pip install '.[demo]' in a checkout of kcd_core\n",
        )
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def material(study, finished):
    _, setting = study.parse(finished[1])
    return study.material_of(setting)[0]


@pytest.mark.parametrize(
    "arm",
    [
        "kd-equal",
        "kc-kd-v1",
        "kc-kd-v3-fresh",
        "random",
        "rs2",
        "kc-pkt",
        "kc-crd",
        "kc-kd-floors",
        "by-chance",
    ],
)
def test_arms_of_one_ratio_draw_alike(study, material, arm):
    schedule = kcd.CondensationSchedule(0.3, stages=6, period=1)
    done = study.run(study.Job(arm, 0.3, "small", 0, epochs=6, batch=128), material)
    assert done["drawn"] == sum(schedule.size(N, epoch) for epoch in range(1, 7))


@pytest.mark.parametrize(
    ("arm", "share", "ratio"),
    [
        ("gate-half", 1 / 2, 1.0),
        ("chance-eighth", 1 / 8, 1.0),
        ("mean-quarter", 1 / 4, 1.0),
        ("own-chance-half-ce1", 1 / 2, 1.0),
        ("kc-gate-quarter", 1 / 4, 0.3),
        ("labels", 0, 1.0),
    ],
)
def test_arms_with_a_gate_ask_for_their_share(study, material, arm, share, ratio):
    """All of the first epoch, then that share of all samples, as far as they are drawn."""
    schedule = kcd.CondensationSchedule(ratio, stages=6, period=1)
    done = study.run(study.Job(arm, ratio, "small", 0, epochs=6, batch=128), material)
    sizes = [schedule.size(N, epoch) for epoch in range(1, 7)]
    asks = kcd.CondensationSchedule(share, stages=1, period=1) if share else None
    most = sum(asks.size(N, epoch) for epoch in range(1, 7)) if asks else 0
    assert done["drawn"] == sum(sizes)
    assert study.ratio_of(arm, 0.3) == ratio
    if ratio == 1:
        assert done["asked"] == most
    else:
        assert N + 4 * 60 < done["asked"] <= most


def test_a_gate_by_chance_asks_for_others_in_every_epoch(study, material):
    job = study.Job("chance-half", 1.0, "small", 3, epochs=6, batch=128)
    arm = study.ARMS["chance-half"]
    chooser = arm.chooser(job, material, kcd.CondensationSchedule(1.0, stages=6, period=1), **arm.options)
    chooser.tracker.record(np.arange(N), np.arange(N) / N)
    sets = []
    for epoch in (1, 2):
        chooser.end_epoch(epoch)
        sets.append(set(chooser.asked(np.arange(N), torch.empty(0)).tolist()))
    assert [len(asked) for asked in sets] == [N // 2] * 2
    assert N / 8 < len(sets[0] & sets[1]) < 3 * N / 8
    assert len([i for i in sets[0] if i < N / 2]) > N / 8


def test_a_gates_loss_on_all_rows_is_the_papers(study, material):
    losses, view = sys.modules["_study.losses"], sys.modules["_study.material"].View
    logits, some = torch.randn(9, 10), np.arange(9)
    teacher, targets = material.taught(some, material.inputs[some]), material.targets[some]
    parts = losses.labels(logits, targets), losses.distilled(logits, teacher.logits)
    together = kcd.gated_loss(*parts, torch.arange(9)).item()
    assert together == pytest.approx(
        losses.kd(view(logits, logits), teacher, targets, some).mean().item(), rel=1e-6
    )


def test_a_gate_by_batch_rank_asks_for_the_least_certain_of_a_batch(study, material):
    """UNIX's choice: those of highest entropy under the student's own prediction, found here one by one."""
    arm = study.ARMS["gate-batch-quarter"]
    job = study.Job("gate-batch-quarter", 1.0, "small", 0, epochs=6, batch=128)
    chooser = arm.chooser(job, material, kcd.CondensationSchedule(1.0, stages=6, period=1), **arm.options)
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(42, 10)) * 3)
    assert chooser.asked(np.arange(42), logits) is None, "all in the first epoch, as with the other gates"
    chooser.end_epoch(1)
    entropies = []
    for row in logits.numpy():
        chances = np.exp(row) / np.exp(row).sum()
        entropies.append(-(chances * np.log(chances)).sum())
    least_certain = sorted(range(42), key=entropies.__getitem__)[-10:]  # a quarter of 42, rounded
    assert chooser.asked(np.arange(100, 142), logits).tolist() == sorted(least_certain)


def test_batch_rank_asks_for_as_many_as_by_value(study, material):
    done = [study.run(study.Job(arm, 1.0, "small", 0, epochs=6, batch=100), material)["asked"]
            for arm in ("gate-batch-quarter", "gate-quarter")]  # fmt: skip
    assert done == [N + 5 * N // 4] * 2


def test_stand_ins_for_the_teacher(study, material):
    """Read by index, in float64: own logits, the label at the teacher's mean height, the class's mean logits."""
    stand_ins = sys.modules["_study.standins"].STAND_INS
    mine = {name: made(10) for name, made in stand_ins.items()}
    for part in np.array_split(np.arange(N), 4):
        for standin in mine.values():
            standin.see(material.logits[part], material.targets[part])
    logits, targets = torch.randn(5, 10), torch.tensor([3, 0, 3, 9, 1])
    filled = {name: standin.fill(logits, targets).numpy() for name, standin in mine.items()}
    teacher, labels = material.logits.numpy().astype(float), material.targets.numpy()
    np.testing.assert_array_equal(filled["own"], logits.numpy())
    height = np.mean([z[y] - np.delete(z, y).mean() for z, y in zip(teacher, labels, strict=True)])
    for row, target in enumerate(targets.tolist()):
        mean = teacher[labels == target].mean(0)
        np.testing.assert_allclose(filled["mean"][row], mean, rtol=1e-4, atol=1e-5)
        assert filled["soft"][row, target] == pytest.approx(height, rel=1e-5)
        assert np.count_nonzero(filled["soft"][row]) == 1


def test_a_stand_in_gives_the_hosts_loss_the_gradient_of_the_labels(study):
    """0.1 CE + 0.9 KL at 4 on all rows, as plain cross-entropy at weight 1."""
    losses, view = sys.modules["_study.losses"], sys.modules["_study.material"].View
    logits = torch.from_numpy(np.random.default_rng(1).normal(size=(6, 10)) * 2).requires_grad_()
    targets = torch.arange(6)
    filled = sys.modules["_study.standins"].STAND_INS["ce"](10).fill(logits.detach(), targets)
    student, teacher = view(logits, logits), view(logits, filled)
    (of_host,) = torch.autograd.grad(losses.kd(student, teacher, targets, None).sum(), logits)
    (of_labels,) = torch.autograd.grad(losses.labels(logits, targets).sum(), logits)
    torch.testing.assert_close(of_host, of_labels)


@pytest.mark.parametrize("standin", ["own", "mean"])
def test_a_stand_in_has_no_say_on_rows_asked(study, material, standin):
    """From the second epoch on; in the first the teacher is asked for all."""
    name = f"{standin}-half"
    arm, view = study.ARMS[name], sys.modules["_study.material"].View
    job = study.Job(name, 1.0, "small", 0, epochs=6, batch=128)
    chooser = arm.chooser(job, material, kcd.CondensationSchedule(1.0, stages=6, period=1), **arm.options)
    own, targets = torch.randn(N, 10), material.targets
    everything = material.taught(np.arange(N), material.inputs)
    assert chooser.completed(everything, np.arange(N), own, targets) is everything
    chooser.tracker.record(np.arange(N), np.arange(N) / N)
    chooser.end_epoch(1)
    some = np.arange(N)[::-1].copy()
    rows = chooser.asked(some, own)
    assert sorted(some[rows]) == list(range(N // 2, N))
    given = view(material.features[some[rows]], material.logits[some[rows]])
    filled = chooser.completed(given, rows, own, targets[some]).logits
    for row, index in enumerate(some):
        expected = (
            material.logits[index] if index >= N // 2 else chooser.standin.fill(own, targets[some])[row]
        )
        assert torch.equal(filled[row], expected)


def test_a_live_teacher_says_what_a_kept_one_said(study, finished, material):
    _, setting = study.parse([*finished[1], "--live"])
    assert setting.name == f"{NAME}-live"
    live = study.material_of(setting)[0]
    some = np.array([5, 299, 17])
    kept, inputs = material.taught(some, material.inputs[some]), live.inputs[some]
    for said, before in zip(live.taught(some, inputs), kept, strict=True):
        torch.testing.assert_close(said, before)
    assert live.taught(np.empty(0, np.int64), inputs[:0]).logits.shape == (0, 10)
    job = study.Job("kc-kd-v3", 0.3, "small", 0, epochs=6, batch=128)
    assert study.run(job, live)["drawn"] == study.run(job, material)["drawn"]


@pytest.mark.parametrize(
    ("arm", "sizes"),
    [
        ("kc-kd-v2", [300] * 2 + [265] * 2 + [230] * 2 + [195] * 2 + [160] * 2 + [125] * 2),
        ("kc-kd-for-epochs", [300, 265, 230, 195, 160, 125] + [90] * 6),
        ("kc-kd-v3-for-epochs", [300, 265, 230, 195, 160, 125] + [90] * 6),
        ("kc-kd-1-stage", [300] * 2 + [90] * 10),
        ("kc-kd-3-stages", [300] * 4 + [230] * 4 + [160] * 4),
        ("kc-kd-12-stages", [300 - 17 * stage for stage in range(12)]),
    ],
)
def test_arms_of_other_schedules(study, material, monkeypatch, arm, sizes):
    """At 0.3, of 300 samples in 12 epochs."""
    monkeypatch.setattr(
        sys.modules["_study.arms"],
        "step",
        lambda *args: args[2].record(args[3], torch.zeros(len(args[3]), 10), 0, None) or 0,
    )
    done = study.run(study.Job(arm, 0.3, "small", 0, epochs=12, batch=128), material)
    assert done["drawn_by_epoch"] == sizes


def kept_first(study, material, arm, recorded):
    """The set of ``arm`` after its first stage, in which each epoch recorded these logits of all samples."""
    chosen = study.ARMS[arm]
    job = study.Job(arm, 0.3, "small", 0, epochs=6 * len(recorded), batch=128)
    schedule = chosen.schedule(job.ratio, job.epochs)
    chooser = chosen.chooser(job, material, schedule, **chosen.options)
    everything = np.arange(N)
    for epoch, logits in enumerate(recorded, 1):
        chooser.record(everything, torch.from_numpy(logits), None, material.logits)
        chooser.end_epoch(epoch)
    assert chooser.sampler.mixing is None
    kept = chooser.sampler.kept.tolist()
    assert len(kept) == schedule.size(N, len(recorded) + 1) < N
    return kept


def highest(value, kept):
    return sorted(np.argsort(-value, kind="stable")[: len(kept)].tolist())


def test_rho_keeps_what_the_student_has_yet_to_learn_of_the_teacher(study, material):
    """The student's cross-entropy minus the teacher's, read by index."""
    logits = np.random.default_rng(0).normal(size=(N, 10)) * 3
    kept = kept_first(study, material, "rho", [logits])
    targets = material.targets.numpy()

    def loss(of):
        of = of - of.max(1, keepdims=True)
        return np.log(np.exp(of).sum(1)) - of[np.arange(N), targets]

    assert kept == highest(loss(logits) - loss(material.logits.numpy().astype(float)), kept)


def entropies(logits):
    chances = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    return -(chances * np.log(chances)).sum(1)


@pytest.mark.parametrize(
    ("arm", "statistic"),
    [
        ("kc-kd-last", lambda first, second: second),
        ("kc-kd-variance", lambda first, second: (first - second) ** 2 / 4),
        ("kc-kd-stage", lambda first, second: (first + second) / 2),
    ],
)
def test_other_statistics_of_a_samples_values(study, material, arm, statistic):
    """Of two epochs, which are one stage."""
    first, second = (np.random.default_rng(seed).normal(size=(N, 10)) * 3 for seed in (0, 1))
    kept = kept_first(study, material, arm, [first, second])
    assert kept == highest(statistic(entropies(first), entropies(second)), kept)


@pytest.fixture
def augmented(study, finished):
    """The digits as no study takes them: mirrored and shifted."""
    return study.material_of(replace(study.parse(finished[1])[1], live=True, augmented=True))[0]


def moved(image, mirrored, down, right):
    """As NumPy moves it, a pixel that leaves coming in on the other side."""
    return np.roll(image[..., ::-1] if mirrored else image, (down, right), (-2, -1))


def test_a_view_is_mirrored_one_by_one_and_shifted_together(augmented):
    inputs = augmented.inputs[:50]
    views = augmented.views(3, 5)
    first, second = views(inputs).numpy(), views(inputs).numpy()
    shifts = [
        (down, right) for down in range(-2, 3) for right in range(-2, 3)
        if all(any((moved(old, mirrored, down, right) == new).all() for mirrored in (False, True))
               for old, new in zip(inputs.numpy(), first, strict=True))
    ]  # fmt: skip
    assert len(shifts) == 1
    mirrored = [
        (moved(old, True, *shifts[0]) == new).all() for old, new in zip(inputs.numpy(), first, strict=True)
    ]
    assert 10 < sum(mirrored) < 40
    assert (first != second).any(), "a batch later"
    assert torch.equal(augmented.views(3, 5)(inputs), torch.from_numpy(first))
    for other in ((3, 6), (4, 5)):
        assert not torch.equal(augmented.views(*other)(inputs), torch.from_numpy(first))


@pytest.mark.parametrize("arm", ["kd", "kc-kd-v3", "gate-quarter"])
def test_the_teacher_sees_what_the_student_sees(study, augmented, arm):
    """Of all rows, or of those asked for; and in plain studies the samples as they are."""
    job = study.Job(arm, 0.3, "small", 0, epochs=6, batch=100)
    seen = {"student": [], "teacher": []}
    arms = sys.modules["_study.arms"]
    build = arms.build

    def watched(*args):
        model = build(*args)
        model[0].register_forward_pre_hook(
            lambda layer, given: seen["student"].append(given[0]) if model.training else None
        )
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arms, "build", watched)
        hook = augmented.teacher[0].register_forward_pre_hook(
            lambda layer, given: seen["teacher"].append(given[0])
        )
        done = study.run(job, augmented)
        hook.remove()
    assert sum(map(len, seen["student"])) == done["drawn"]
    assert sum(map(len, seen["teacher"])) == done["asked"]
    for student, teacher in zip(seen["student"], seen["teacher"], strict=True):
        assert {row.numpy().tobytes() for row in teacher} <= {row.numpy().tobytes() for row in student}
    original = {row.numpy().tobytes() for row in augmented.inputs}
    assert (
        sum(row.numpy().tobytes() not in original for row in torch.cat(seen["student"])) > done["drawn"] / 2
    )


def test_an_augmented_study_is_another(study, capsys):
    setting = study.parse(["--data", "fashion-mnist", "--augment", "--label", "x"])[1]
    assert setting.name == "study-fashion-mnist-20000x24-augmented-x"
    assert setting.live
    with pytest.raises(SystemExit):
        study.parse([*SMALL, "--augment"])
    assert "--augment is of fashion-mnist, not of digits" in capsys.readouterr().err


@pytest.mark.parametrize("batch", [16, 75, 76, 128])
def test_kd_at_equal_samples_ends_in_no_stray_batch(study, material, monkeypatch, batch):
    """At 0.3, 1,275 samples of 300 are 4 epochs and 75 samples."""
    sizes = []
    monkeypatch.setattr(sys.modules["_study.arms"], "step", lambda *args: sizes.append(len(args[3])) or 0)
    done = study.run(study.Job("kd-equal", 0.3, "small", 0, epochs=6, batch=batch), material)
    assert sum(sizes) == done["drawn"] == 1275
    assert done["drawn_by_epoch"] == ([300] * 3 + [375] if batch > 75 else [300] * 4 + [75])
    assert min(sizes) > batch / 2


def test_infobatch_leaves_out_half_of_the_easy_and_counts_the_others_twice(study, material):
    job = study.Job("infobatch", 1.0, "small", 0, epochs=8, batch=128)
    arm = study.ARMS["infobatch"].chooser(job, material, kcd.CondensationSchedule())
    everything = arm.draw(1)
    assert sorted(everything) == list(range(N))
    arm.record(np.arange(N), torch.empty(0), torch.arange(N).float(), None)
    drawn = arm.draw(2)
    low = drawn < N / 2
    assert 0.3 * N / 2 < low.sum() < 0.7 * N / 2
    assert (~low).sum() == N / 2
    assert arm.weights(drawn).tolist() == [2.0 if x else 1.0 for x in low]
    assert len(arm.draw(8)) == N


# ------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        *[([f"--{name}", "0"], f"--{name} must be at least 1, got 0") for name in
          ("seeds", "samples", "batch", "teacher-epochs", "workers")],
        (["--out", __file__], "test_study.py is no folder"),
        (["--samples", "-3"], "--samples must be at least 1, got -3"),
        (["--epochs", "9"], "--epochs must be a multiple of 6, got 9"),
        *[(["--ratios", "0.5", ratio], "--ratios: ratio must be") for ratio in ("0", "nan", "1.5")],
        (["--ratios", "0.7", "0.7000001"], "--ratios must have at most six digits, got 0.7000001"),
    ],
)  # fmt: skip
def test_options_out_of_bounds(study, options, reason, capsys):
    with pytest.raises(SystemExit) as ended:
        study.parse([*SMALL, *options])
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err


def refusal(study, capsys, command, *options):
    """What the command says when it refuses, having started nothing."""
    assert study.main([*command, *options]) == 2
    said = capsys.readouterr()
    assert "done before" not in said.out or "100%" not in said.out
    assert "Traceback" not in said.err
    return said.err


def test_images_that_are_not_there(study, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    err = refusal(study, capsys, [*SMALL, *out], "--samples", "1199")
    assert err == "--samples must be at most 1198, all there are, got 1199\n"
    (tmp_path / "images").mkdir()
    err = refusal(study, capsys, ["--data", "fashion-mnist", "--data-dir", str(tmp_path / "images"), *out])
    assert "train-images-idx3-ubyte" in err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def copied(finished, tmp_path):
    """A finished study, to be spoilt: its folder and the command."""
    out, command = finished
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    return tmp_path, [*command, "--out", str(tmp_path)]


def other(**fields):
    return lambda content: json.dumps({**json.loads(content), **fields})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content[:40], "Unterminated string"),
        (lambda content: "", "Expecting value"),
        (lambda content: "[1]", "TypeError"),
        (lambda content: "{}", "KeyError"),
        (other(accuracy=None), "TypeError"),
        (other(samples=299), "of another study: {'samples': 299}"),
        (other(epochs=12), "of another study: {'epochs': 12}"),
        (other(batch=64), "of another study: {'batch': 64}"),
        (other(data="fashion-mnist"), "of another study"),
        (other(seed=1), "it is of kc-kd-v3-0.7-small-1"),
        (other(ratio=0.5), "it is of kc-kd-v3-0.5-small-0"),
        (other(arm="kc-kd-v9"), "there is no kc-kd-v9"),
        (other(student="huge"), "huge student"),
        (other(arm="kd"), "there is no kd at 0.7"),
    ],
)
@pytest.mark.parametrize("options", [[], ["--report-only"]])
def test_a_file_that_is_no_run_of_the_study_is_named(study, copied, options, change, reason, capsys):
    out, command = copied
    path = out / NAME / "kc-kd-v3-0.7-small-0.json"
    path.write_text(change(path.read_text()))
    err = refusal(study, capsys, command, *options)
    assert str(path) in err
    assert reason in err
    assert "delete it, and it is done again" in err


def test_runs_of_other_images_are_not_mixed(study, copied, capsys):
    out, command = copied
    first, second = out / NAME / "kc-kd-v3-0.7-small-0.json", out / NAME / "kd-1-small-0.json"
    assert len(json.loads(first.read_text())["digest"]) == 16
    for path in (first, second):
        path.write_text(other(digest="0123456789abcdef")(path.read_text()))
    assert "is of other images" in refusal(study, capsys, command)
    assert study.main([*command, "--report-only"]) == 0, "they are of the same images"
    second.write_text(other(digest="fedcba9876543210")(second.read_text()))
    assert "is of other images" in refusal(study, capsys, command, "--report-only")
    second.write_text(other(digest="0123456789abcdef", teacher_accuracy=0.5)(second.read_text()))
    assert "is of other teachers" in refusal(study, capsys, command, "--report-only")


def test_runs_of_before_there_were_digests_count(study, copied, capsys):
    out, command = copied
    for path in (out / NAME).glob("*.json"):
        run = json.loads(path.read_text())
        del run["digest"]
        path.write_text(json.dumps(run))
    assert study.main(command) == 0
    assert "2 runs, 2 of them done before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path, kept: path.write_bytes(path.read_bytes()[:5000]), "or is broken: delete it"),
        (lambda path, kept: path.write_bytes(b""), "or is broken: delete it"),
        (lambda path, kept: torch.save({**kept, "logits": kept["logits"][:9]}, path), "or is broken: delete it"),
        (lambda path, kept: torch.save({**kept, "digest": "0123"}, path), "was trained on other images"),
    ],
)  # fmt: skip
def test_a_teacher_that_is_broken_or_of_other_images(study, copied, spoil, reason, capsys):
    out, command = copied
    path = next((out / "study-digits-teacher").iterdir())
    spoil(path, torch.load(path, weights_only=True))
    err = refusal(study, capsys, command, "--seeds", "2")
    assert str(path) in err
    assert reason in err
    assert len(runs(out)) == 2


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_worker(pid):
    return b"multiprocessing-fork" in Path(f"/proc/{pid}/cmdline").read_bytes()


def goes_on(pid):
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(what):
    deadline = time.monotonic() + SECONDS
    while not (said := what()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return said


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks into /proc")
@pytest.mark.parametrize(
    ("killed", "with_what", "status", "said"),
    [
        ("study", signal.SIGTERM, 130, "interrupted; the same command resumes from here"),
        ("worker", signal.SIGKILL, 1, "a worker was killed, for want of memory perhaps; the same command resumes"),
        ("study", signal.SIGKILL, -signal.SIGKILL, ""),
    ],
)  # fmt: skip
def test_whatever_is_killed_nothing_runs_on(killed, with_what, status, said, finished, tmp_path):
    teacher = "study-digits-teacher"
    shutil.copytree(finished[0] / teacher, tmp_path / teacher)
    seeds = 2000  # more than are done before it is killed
    long = [
        "--data",
        "digits",
        "--samples",
        str(N),
        "--epochs",
        "6",
        "--teacher-epochs",
        "2",
        "--workers",
        "1",
    ]
    process = subprocess.Popen(
        [sys.executable, "study.py", *long, "--arms", "kd", "--seeds", f"{seeds}", "--out", str(tmp_path)],
        cwd=BENCHMARKS,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until(lambda: list(tmp_path.glob("study-*/kd-*.json")))
        family = children(process.pid)
        (worker,) = filter(is_worker, family)
        os.kill(process.pid if killed == "study" else worker, with_what)
        out, err = process.communicate(timeout=SECONDS)
        assert process.returncode == status
        assert said in out
        assert "Traceback" not in out + err
        assert bool(said) == bool(list(tmp_path.glob("*.txt"))), "the table"
        until(lambda: not any(map(goes_on, family)))
    finally:
        process.kill()
        process.wait()
    assert len(list(tmp_path.glob("study-*/kd-*.json"))) < seeds
