"""benchmarks/study.py, on a few digits."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import kcd_core as kcd

pytest.importorskip("rich")
pytest.importorskip("sklearn")
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
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
        assert all(arm.title in done.stdout for arm in importlib.import_module("_study_arms").ARMS.values())
    else:
        assert (done.returncode, done.stderr) == (
            1,
            f"{missing} is not installed: pip install 'kcd-core[demo]'\n",
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


@pytest.mark.parametrize("batch", [16, 75, 76, 128])
def test_kd_at_equal_samples_ends_in_no_stray_batch(study, material, monkeypatch, batch):
    """At 0.3, 1,275 samples of 300 are 4 epochs and 75 samples."""
    sizes = []
    monkeypatch.setattr(sys.modules["_study_arms"], "step", lambda *args: sizes.append(len(args[3])))
    done = study.run(study.Job("kd-equal", 0.3, "small", 0, epochs=6, batch=batch), material)
    assert sum(sizes) == done["drawn"] == 1275
    assert done["drawn_by_epoch"] == ([300] * 3 + [375] if batch > 75 else [300] * 4 + [75])
    assert min(sizes) > batch / 2


def test_infobatch_leaves_out_half_of_the_easy_and_counts_the_others_twice(study, material):
    job = study.Job("infobatch", 1.0, "small", 0, epochs=8, batch=128)
    arm = study.ARMS["infobatch"].chooser(job, material, kcd.CondensationSchedule())
    everything = arm.draw(1)
    assert sorted(everything) == list(range(N))
    arm.record(np.arange(N), torch.empty(0), torch.arange(N).float())
    drawn = arm.draw(2)
    low = drawn < N / 2
    assert 0.3 * N / 2 < low.sum() < 0.7 * N / 2
    assert (~low).sum() == N / 2
    assert arm.weights(drawn).tolist() == [2.0 if x else 1.0 for x in low]
    assert len(arm.draw(8)) == N


def test_the_interval_is_of_paired_differences(study):
    from _study_report import difference

    own = {seed: {"accuracy": 0.8 + 0.01 * seed} for seed in range(6)}
    other = {seed: {"accuracy": 0.79 + 0.01 * seed + 0.001 * (seed % 2)} for seed in range(1, 8)}
    mean, low, high = difference(own, other)
    apart = [1 - 0.1 * (seed % 2) for seed in range(1, 6)]
    assert mean == pytest.approx(np.mean(apart))
    assert min(apart) - 1e-9 <= low < mean < high <= max(apart) + 1e-9
    assert difference(own, {}) is None
