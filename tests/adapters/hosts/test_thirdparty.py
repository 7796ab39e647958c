"""``kcd run`` on the real repositories, with a fake CIFAR-100 in the original format.

Where ``KCD_THIRDPARTY`` names a folder with checkouts (any of RepDistiller, SSKD, SimKD, ReviewKD,
mdistiller), in an environment with torchvision, tensorboardX, yacs and tqdm:

    KCD_THIRDPARTY=~/checkouts python -m pytest tests/adapters/hosts/test_thirdparty.py

The checkouts are copied, not written to. With ``KCD_MATRIX=FILE``, a line of JSON is added to FILE for every case.
"""

from __future__ import annotations

import functools
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference

from kcd_adapters.cli import main

CHECKOUTS = os.environ.get("KCD_THIRDPARTY")
if not CHECKOUTS:
    pytest.skip(
        "KCD_THIRDPARTY=FOLDER, with checkouts of RepDistiller, SSKD, SimKD, ReviewKD or mdistiller, runs these",
        allow_module_level=True,
    )
pytest.importorskip("torchvision")

HERE = Path(__file__).parent
N, SIZES = 300, [300, 255, 210]
OPTIONS = ("--ratio", "0.7", "--stages", "2", "--period", "1")


def fake_cifar100(root: Path) -> list[int]:
    """A CIFAR-100 of noise; returns the labels of its training images."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    every = {}
    for name, size in (("train", N), ("test", 64)):
        labels = rng.permutation(np.arange(size) % 100).tolist()
        data = rng.integers(0, 256, (size, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": data, "fine_labels": labels}))
        every[name] = labels
    names = [f"class {i}" for i in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}))
    return every["train"]


# repository: (where its data lies, code that saves a teacher to PATH, hard-codes CUDA?)
HOSTS = {
    "RepDistiller": (
        "data",
        "from models import model_dict as d; save({'model': d['resnet8'](num_classes=100)})",
        False,
    ),
    "KCD": (
        "data",
        "from models import model_dict as d; save({'model': d['resnet8'](num_classes=100)})",
        False,
    ),
    "SSKD": (
        "data",
        "from models import model_dict as d; save({'state_dict': d['resnet8'](num_classes=100)})",
        True,
    ),
    "SimKD": (
        "../data",
        "from models import model_dict as d; save({'model': d['resnet8x4'](num_classes=100)})",
        True,
    ),
    "ReviewKD": (
        "CIFAR-100/data",
        "sys.path[0] = 'CIFAR-100'; from model.resnet_cifar import build_resnet_backbone as b; save(b(depth=20, num_classes=100))",
        True,
    ),
    "mdistiller": (
        "data",
        "from mdistiller.models import cifar_model_dict as d; save({'model': d['resnet32x4'][0](num_classes=100)})",
        True,
    ),
}
TEACHERS = {
    "RepDistiller": "teachers/resnet8_vanilla/t.pth",
    "KCD": "teachers/resnet8_vanilla/t.pth",
    "SSKD": "teachers/t_resnet8_seed0/ckpt/best.pth",
    "SimKD": "teachers/resnet8x4_vanilla/t.pth",
    "ReviewKD": "teachers/resnet20.pt",
    "mdistiller": "download_ckpts/cifar_teachers/resnet32x4_vanilla/ckpt_epoch_240.pth",
}
# A teacher's running statistics are made from noise: without, its logits overflow all bounds.
SAVE = """
import os, sys, torch
sys.path.insert(0, '.')
torch.manual_seed(1)
if not torch.cuda.is_available():
    torch.nn.Module.to = lambda self, *args: self
def save(x, path={path!r}):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    model = list(x.values())[0] if isinstance(x, dict) else x
    model.train()
    for _ in range(20):
        model(torch.randn(32, 3, 32, 32))
    torch.save({{k: model.state_dict() for k in x}} if isinstance(x, dict) else model.state_dict(), path)
"""

REP = "--path_t teachers/resnet8_vanilla/t.pth --epochs 3 --init_epochs 1 --num_workers 1"
SIM = "--path_t teachers/resnet8x4_vanilla/t.pth --model_s resnet8x4 --epochs 3 --num_workers 1 --nce_k 64"
REVIEW = "--model resnet20 --teacher resnet20 --teacher-weight ../teachers/resnet20.pt --epochs 3 --lr 0.01"
MDI = "SOLVER.EPOCHS 3 DATASET.NUM_WORKERS 1 LOG.PREFIX out"
WEIGHTS = {
    "kd": "-a 0.9 -b 0 -r 0.1", "hint": "-a 0 -b 100", "attention": "-a 0 -b 1000", "similarity": "-a 0 -b 3000",
    "correlation": "-a 0 -b 0.02", "vid": "-a 0 -b 1", "crd": "-a 1 -b 0.8 --nce_k 64", "kdsvd": "-a 0 -b 1",
    "fsp": "-a 0 -b 50", "rkd": "-a 0 -b 1", "pkt": "-a 0 -b 30000", "abound": "-a 0 -b 1", "factor": "-a 0 -b 200",
    "nst": "-a 0 -b 50",
}  # fmt: skip
CASES: list[tuple[str, str, str]] = [
    *(("RepDistiller", m, f"train_student.py {REP} --distill {m} {w}") for m, w in WEIGHTS.items()),
    ("RepDistiller", "crd relax", f"train_student.py {REP} --distill crd --mode relax {WEIGHTS['crd']}"),
    ("SSKD", "sskd", "student.py --t-path teachers/t_resnet8_seed0 --s-arch resnet8 --t-epoch 1 --epoch 3"),
    *(
        ("SimKD", m, f"train_student.py {SIM} --distill {m}")
        for m in ["kd", "hint", "attention", "similarity", "vid", "crd", "semckd", "srrl", "simkd"]
    ),
    ("ReviewKD", "reviewkd", f"train.py {REVIEW}"),
    ("ReviewKD", "reviewkd + kl", f"train.py {REVIEW} --use-kl"),
    *(
        ("mdistiller", m, f"tools/train.py --cfg configs/cifar100/{m}.yaml {MDI}")
        for m in [
            "kd",
            "at",
            "crd",
            "fitnet",
            "kdsvd",
            "nst",
            "ofd",
            "pkt",
            "reviewkd",
            "rkd",
            "sp",
            "vid",
            "dkd/res32x4_res8x4",
            "dot/res32x4_res8x4",
        ]
    ),
]


Prepare = Callable[[str], tuple[Path, list[int]]]


@pytest.fixture(scope="session")
def prepare(tmp_path_factory: pytest.TempPathFactory) -> Prepare:
    """Makes a copy of a checkout, with data and a teacher, once: its folder, and the labels."""
    skipped = shutil.ignore_patterns(
        ".git", "Detection", "Paddle", "detection", "data", "save", "experiments", "*.pth"
    )

    @functools.cache
    def prepared(name: str) -> tuple[Path, list[int]]:
        folder = tmp_path_factory.mktemp(name) / name
        shutil.copytree(Path(CHECKOUTS or "") / name, folder, ignore=skipped)
        data, teacher, _ = HOSTS[name]
        labels = fake_cifar100((folder / data).resolve())
        code = SAVE.format(path=TEACHERS[name]) + teacher
        subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
        return folder, labels

    def prepare(name: str) -> tuple[Path, list[int]]:
        if not (Path(CHECKOUTS or "") / name).is_dir():
            pytest.skip(f"{CHECKOUTS} holds no {name}")
        return prepared(name)

    return prepare


def command(
    name: str,
    folder: Path,
    trace: Path,
    mode: tuple[str, ...],
    arguments: str,
    *,
    status: int = 0,
    **variables: str,
) -> str:
    cwd = folder / "CIFAR-100" if name == "ReviewKD" else folder
    env = {**os.environ, "PYTHONPATH": str(folder), "PYTHONWARNINGS": "ignore", **variables}
    if HOSTS[name][2]:
        env["FAKE_CUDA"] = "1"
    done = subprocess.run(
        [sys.executable, str(HERE / "traced.py"), str(trace), *mode, *arguments.split()],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == status, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def check(passes: list[Any], labels: list[int]) -> tuple[int, int]:
    """Batches observed and drawn, after every one was compared with the labels, and every set with the values."""
    trained = [one for one in passes if one["observed"]]
    assert [len(drawn(one)) for one in trained] == SIZES
    for one in passes:  # a regressor's or a head's training: everything
        if not one["observed"]:
            assert sorted(drawn(one)) == list(range(N))
    record = -np.ones((N, len(trained)))
    kept = list(range(N))
    for epoch, one in enumerate(trained):
        assert sorted(drawn(one)) == sorted(kept)
        for indices, logits, targets in one["observed"]:
            assert [labels[i] for i in indices] == targets.tolist()
            for i, row in zip(indices, logits, strict=True):
                record[i, epoch] = reference.entropy(row)
        value, count = reference.recorded(record)
        target = (SIZES + SIZES[-1:])[epoch + 1]
        kept = reference.condense(value, count, previous=len(kept), target=target).kept
    return sum(len(one["observed"]) for one in trained), sum(len(one["keys"]) for one in trained)


def drawn(one: Any) -> list[int]:
    return [key if isinstance(key, int) else key[0] for batch in one["keys"] for key in batch]


@pytest.mark.parametrize(("name", "method", "arguments"), CASES, ids=[f"{r}-{m}" for r, m, _ in CASES])
def test_every_method(prepare: Prepare, name: str, method: str, arguments: str, tmp_path: Path) -> None:
    folder, labels = prepare(name)
    output = command(name, folder, tmp_path / "trace", ("kcd", "run", *OPTIONS), arguments)
    observed, batches = check(list(np.load(tmp_path / "trace", allow_pickle=True)), labels)
    assert observed == batches or method == "semckd"  # which leaves out batches that are not full
    if path := os.environ.get("KCD_MATRIX"):
        shims = re.findall(r"kcd: shim (\w+)", output)
        line = {"repository": name, "method": method, "aligned": observed, "batches": batches, "shims": shims}
        with open(path, "a") as file:
            file.write(json.dumps(line) + "\n")


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("RepDistiller", "kd"),
        ("RepDistiller", "crd"),
        ("SSKD", "sskd"),
        ("SimKD", "kd"),
        ("ReviewKD", "reviewkd"),
        ("mdistiller", "kd"),
    ],
)
def test_patched(prepare: Prepare, name: str, method: str, tmp_path: Path) -> None:
    folder, labels = prepare(name)
    arguments = next(case[2] for case in CASES if case[:2] == (name, method))
    before = {path: path.read_bytes() for path in folder.rglob("*.py")}
    assert main(["patch", str(folder), *OPTIONS]) == 0
    try:
        command(name, folder, tmp_path / "trace", ("patched",), arguments)
    finally:
        assert main(["unpatch", str(folder)]) == 0
    observed, batches = check(list(np.load(tmp_path / "trace", allow_pickle=True)), labels)
    assert observed == batches
    assert {path: path.read_bytes() for path in folder.rglob("*.py")} == before


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("method", ["kd", "crd"])
def test_with_everything_kept_repdistillers_weights_are_those_of_the_plain_run(
    prepare: Prepare, method: str, workers: int, tmp_path: Path
) -> None:
    import torch

    name = "RepDistiller"
    folder, _ = prepare(name)
    states = []
    for mode in (("plain",), ("kcd", "run", "--ratio", "1", "--stages", "1", "--period", "1")):
        trial = f"{mode[0]}{workers}"
        arguments = f"train_student.py {REP} --distill {method} {WEIGHTS[method]} --trial {trial}"
        command(name, folder, tmp_path / "trace", mode, f"{arguments} --num_workers {workers}")
        (path,) = folder.glob(f"save/student_model/*{method}*_{trial}/resnet8_last.pth")
        states.append(torch.load(path, weights_only=False)["model"])
    for weight, mine in zip(states[0].values(), states[1].values(), strict=True):
        assert torch.equal(weight, mine)


def test_mdistiller_that_was_killed_goes_on_as_if_it_had_not_been(prepare: Prepare, tmp_path: Path) -> None:
    """Killed in its third epoch, and resumed by its own option from the checkpoint of the second."""
    import torch

    name, options = "mdistiller", ("kcd", "run", "--ratio", "0.7", "--stages", "3", "--period", "1")
    folder, _ = prepare(name)
    script = (
        "tools/train.py --cfg configs/cifar100/kd.yaml {} SOLVER.EPOCHS 4 DATASET.NUM_WORKERS 1 LOG.PREFIX {}"
    )

    def run(trace: str, resume: str, out: str, **more: Any) -> tuple[str, list[Any]]:
        path = tmp_path / trace
        output = command(name, folder, path, options, script.format(resume, out), SEED_PASSES="1", **more)
        return output, list(np.load(path, allow_pickle=True)) if path.exists() else []

    def weights(out: str) -> dict[str, torch.Tensor]:
        (path,) = (folder / out).rglob("latest")
        state: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=False)["model"]
        return state

    _, whole = run("whole", "", "uninterrupted")
    _, nothing = run("killed", "", "interrupted", KILL_IN="3", status=-signal.SIGKILL)
    assert not nothing
    output, rest = run("rest", "--resume", "interrupted")
    assert "kcd: resumed after epoch 2" in output
    assert [len(drawn(one)) for one in whole] == [300, 270, 240, 210]
    assert [one["keys"] for one in rest] == [one["keys"] for one in whole[2:]]  # and the mix recipes
    assert any(not isinstance(key, int) for batch in rest[0]["keys"] for key in batch)
    for weight, mine in zip(weights("uninterrupted").values(), weights("interrupted").values(), strict=True):
        assert torch.equal(weight, mine)
