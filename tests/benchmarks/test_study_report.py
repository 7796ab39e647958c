"""The statistics of benchmarks/study.py's tables, against formulas and simulation."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import study
from _study import flops, report
from _study.data import DATA

sys.path.pop(0)


def of(*accuracies, first=0):
    return {seed: {"accuracy": accuracy} for seed, accuracy in enumerate(accuracies, first)}


def test_the_interval_is_students_of_paired_differences():
    own = of(*(0.8 + 0.01 * seed for seed in range(6)))
    other = of(*(0.79 + 0.01 * seed + 0.001 * (seed % 2) for seed in range(1, 8)), first=1)
    apart = np.array([1 - 0.1 * (seed % 2) for seed in range(1, 6)])
    found = report.difference(own, other)
    half = 2.776445 * np.std(apart, ddof=1) / 5**0.5  # the quantile for four degrees of freedom, from a table
    assert found.seeds == 5
    assert found.mean == pytest.approx(apart.mean())
    assert found.interval == pytest.approx((apart.mean() - half, apart.mean() + half))
    low, high = found.bootstrap
    assert apart.min() - 1e-9 <= low < found.mean < high <= apart.max() + 1e-9
    assert high - low < 2 * half


def test_few_seeds_and_no_spread():
    assert report.difference(of(0.5), {}) is None
    assert report.difference(of(0.5), of(0.25)) == report.Difference(1, 25.0)
    assert report.difference(of(0.5, 0.5), of(0.5, 0.5)) == report.Difference(2, 0.0)
    two = report.difference(of(0.5, 0.6), of(0.5, 0.5))
    assert two.bootstrap is None
    assert two.interval[0] < 0 < two.mean < two.interval[1]


def test_students_interval_covers_what_the_bootstraps_does_not():
    """Of ten normal differences, as the notes say."""
    samples = np.random.default_rng(0).normal(size=(4000, 10))
    options = {"axis": 1, "n_resamples": 1000, "batch": 50, "random_state": np.random.default_rng(1)}
    bca = scipy.stats.bootstrap((samples,), np.mean, **options).confidence_interval
    t = scipy.stats.ttest_1samp(samples, 0, axis=1).confidence_interval()
    coverage = {name: np.mean((x.low <= 0) & (x.high >= 0)) for name, x in (("bca", bca), ("t", t))}
    print(f"coverage of 95 % intervals: BCa {coverage['bca']:.3f}, t {coverage['t']:.3f}")
    assert coverage["bca"] == pytest.approx(0.90, abs=0.015)
    assert coverage["t"] == pytest.approx(0.95, abs=0.01)


def test_holm():
    assert report.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert report.holm([0.9, 0.8]) == pytest.approx([1, 1])
    assert len(report.holm([])) == 0


def runs_of(arm, ratio, accuracies, drawn=100, student="small"):
    return [
        {"arm": arm, "ratio": ratio, "student": student, "seed": seed, "accuracy": accuracy, "drawn": drawn}
        | {"seconds": 1.0, "cpu_seconds": 1.0}
        for seed, accuracy in enumerate(accuracies)
    ]


NOISE = np.array([0.001, -0.001, 0.002, -0.002, 0.0])


def test_verdicts_are_of_corrected_tests():
    kd = 0.8 + 0.01 * np.arange(5)
    runs = runs_of("kd", 1.0, kd) + runs_of("random", 0.7, kd - 0.02 - NOISE, 87)
    runs += runs_of("kc-kd-v3", 0.1, kd + 0.02 + NOISE, 60) + runs_of("rs2", 0.1, kd + NOISE, 60)
    rows = report.rows_of(runs)
    assert report.verdicts(rows)[:4] == [
        "better than KD: kc-kd-v3 0.1",
        "worse than KD: random 0.7",
        "better than KD, on at least 30 % fewer samples: kc-kd-v3 0.1",
        "neither better nor worse, on at least 30 % fewer samples: rs2 0.1",
    ]
    # A p of 0.03 counts alone, but not as one of three.
    by_arm = {row.arm: row for row in rows}
    weak = replace(by_arm["kc-kd-v3"], to_base=replace(by_arm["kc-kd-v3"].to_base, p=0.03))
    assert report.verdicts([weak])[0] == "better than KD: kc-kd-v3 0.1"
    others = [replace(by_arm[arm], to_base=replace(by_arm[arm].to_base, p=0.5)) for arm in ("random", "rs2")]
    assert report.verdicts([weak, *others])[0] == "better than KD: none"


def test_arms_with_one_accuracy_in_every_run_are_told():
    same = [0.8, 0.9]
    runs = [
        *runs_of("kc-kd-v1", 0.7, same),
        *runs_of("kc-kd-v2", 0.7, same),
        *runs_of("kc-kd-v1", 0.5, same),
        *runs_of("kc-kd-v2", 0.5, same),
        *runs_of("kc-kd-v1", 0.3, same),
        *runs_of("kc-kd-v2", 0.3, [0.8, 0.91]),
        *runs_of("kc-kd-v3", 0.3, same[:1]),
    ]
    assert report.twins(runs) == [
        "The same accuracy in every run: kc-kd-v1 and kc-kd-v2 at 0.7, 0.5, small student."
        + report.WHY["kc-kd-v1", "kc-kd-v2"]
    ]
    text = report.text_of("x", [{"samples": 1, "data": "x", "epochs": 6, "batch": 1, "teacher_accuracy": 1} | run
                                for run in runs], report.rows_of(runs), [], "one note\nof two lines")  # fmt: skip
    assert report.twins(runs)[0] in text
    assert "\none note\nof two lines\n" in text


def test_what_mixing_adds():
    alone = np.array([0.8, 0.81, 0.82])
    runs = [*runs_of("kc-kd-v2", 0.7, alone), *runs_of("kc-kd-v3", 0.7, alone + np.array([0.01, 0.02, 0.03]))]
    runs += [*runs_of("kc-kd-v2", 0.3, alone), *runs_of("kc-kd-v3", 0.3, alone), *runs_of("rs2", 0.3, alone)]
    half = 4.302653 / 3**0.5  # the quantile for two degrees of freedom, from a table
    assert report.of_choice([*runs, *runs_of("kc-kd-v3", 0.7, alone, student="large")]) == [
        f"kc-kd-v3 minus kc-kd-v2, small student: +2.00 [{2 - half:+.2f}, {2 + half:+.2f}] at 0.7; +0.00 at 0.3"
    ]


def test_what_choosing_by_value_does_beside_chance():
    """Gates and stand-ins, each with its own arm by chance; no other pairs."""
    value, chance = np.array([0.82, 0.84, 0.83]), np.array([0.8, 0.8, 0.8])
    half = 4.302653 * 3**-0.5
    for arm, other in (("gate-quarter", "chance-quarter"), ("own-half-ce1", "own-chance-half-ce1")):
        runs = [*runs_of(arm, 1.0, value), *runs_of(other, 1.0, chance), *runs_of("kd", 1.0, chance)]
        assert report.of_choice([*runs, *runs_of("gate-batch-quarter", 1.0, value)]) == [
            f"{arm} minus {other}, small student: +3.00 [{3 - half:+.2f}, {3 + half:+.2f}]"
        ]


def test_what_a_schedule_does_beside_the_papers():
    base = np.array([0.8, 0.81, 0.82])
    runs = [*runs_of("kc-kd-v2", 0.3, base), *runs_of("kc-kd-for-epochs", 0.3, base + 0.01)]
    runs += [*runs_of("kc-kd-1-stage", 0.3, base - 0.02), *runs_of("kc-kd-v3-for-epochs", 0.3, base + 0.03)]
    assert report.of_choice(runs) == [
        "kc-kd-for-epochs minus kc-kd-v2, small student: +1.00 at 0.3",
        "kc-kd-1-stage minus kc-kd-v2, small student: -2.00 at 0.3",
        "kc-kd-v3-for-epochs minus kc-kd-for-epochs, small student: +2.00 at 0.3",
    ]


def test_teacher_queries_and_operations_beside_samples():
    """Runs of before queries were counted asked for all; the operations, by the layers' formulas."""
    kd = np.array([0.8, 0.81])
    runs = [
        *runs_of("kd", 1.0, kd),
        *runs_of("kd-equal", 0.3, kd, drawn=70),
        *runs_of("kc-gate-quarter", 0.3, kd, drawn=70),
    ]
    for seed, run in enumerate(runs[-2:]):
        run["asked"] = 20 + 10 * seed
    by_arm = {row.arm: row for row in report.rows_of([{"data": "letter"} | run for run in runs])}
    assert {arm: (row.drawn, row.asked) for arm, row in by_arm.items()} == {
        "kd": (100, 100), "kd-equal": (70, 70), "kc-gate-quarter": (70, 25)
    }  # fmt: skip
    student, teacher = 2 * (16 * 64 + 64 * 26), 2 * (16 * 256 + 256 * 256 + 256 * 26)
    gated = by_arm["kc-gate-quarter"]
    assert gated.flops == 3 * student * 70 + teacher * 25
    assert by_arm["kd"].flops == 100 * (3 * student + teacher)
    assert gated.flops_share == pytest.approx(gated.flops / by_arm["kd"].flops)
    assert (gated.share, gated.asked_share) == (0.7, 0.25)
    assert report.line_of(gated).split()[-7:-4] == ["70.0%", "25.0%", f"{gated.flops_share:.1%}"]
    (unknown,) = report.rows_of(runs_of("rs2", 0.5, kd))
    assert (unknown.flops, unknown.asked_share, unknown.flops_share) == (None, None, None)
    assert set(flops.SAMPLES) == set(DATA)


def test_what_is_said_of_seconds_is_of_the_study():
    """Whether the teacher's passes are in them."""
    said = {}
    for option in ((), ("--live",), ("--augment",)):
        _, setting = study.parse(["--data", "fashion-mnist", *option])
        said[option] = report.note_of(setting)
        assert "one teacher, one training set and one test set" in said[option]
        assert "seconds are those of one run" in said[option]
    assert "of runs with --live alone" in said[()]
    for option, augmented in (
        (("--live",), "not augmented"),
        (("--augment",), "mirrored and shifted as well"),
    ):
        assert augmented in said[option]
        assert "are in the seconds" in " ".join(said[option].split())
