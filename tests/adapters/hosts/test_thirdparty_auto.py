"""``kcd run --auto`` on real repositories that have no profile, each beside a reading of its own variables.

As ``test_thirdparty.py``, behind ``KCD_THIRDPARTY=FOLDER``, with checkouts named OWNER+REPOSITORY in it. The checkouts
are copied. A teacher keeps random weights. What the next set ought to be is worked out by the reference from the
script's own logits and from the keys its loader drew (``started.py``), and not from what kcd observed.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference

CHECKOUTS = os.environ.get("KCD_THIRDPARTY")
if not CHECKOUTS:
    pytest.skip(
        "KCD_THIRDPARTY=FOLDER, with checkouts named OWNER+REPOSITORY, runs these", allow_module_level=True
    )
pytest.importorskip("torchvision")

HERE = Path(__file__).parent
STEP = r"loss\.backward\(\)"
EPOCHS = 3


@dataclass(frozen=True)
class Case:
    repository: str
    command: str
    at: tuple[str, str, str]  # a file, a function of it, and the line at which is read
    read: tuple[str, str]  # the logits and the labels, as the script names them there
    prepare: str = ""  # shell, in the checkout
    repair: str = ""  # Python, before the script
    size: int = 160
    options: tuple[str, ...] = ()
    told: str = ""  # what kcd says where it refuses
    status: int = 0


def nasty(teacher: str) -> str:
    """A file of parameters, as VITA-Group/Nasty-Teacher and its descendant have them."""
    values = {
        "model_name": "preresnet20", "teacher_model": "preresnet20", "adversarial_model": "preresnet20",
        "teacher_resume": teacher, "adversarial_resume": teacher, "dataset": "cifar10", "batch_size": 64, "num_epochs": 3,
        "num_workers": 1, "learning_rate": 0.01, "schedule": [10], "gamma": 0.2, "alpha": 0.9, "weight": 0.04,
        "temperature": 4, "subset_percent": 1.0, "augmentation": "yes", "num_class": 10,
    }  # fmt: skip
    return f"mkdir -p experiments/x && echo '{json.dumps(values)}' > experiments/x/params.json"


ZOO = (
    "train_kd.py --save_root out --s_init s.pth --t_model t.pth --epochs 3 --batch_size 64 --num_class 100 "
    "--data_name cifar100 --t_name resnet20 --s_name resnet20 --kd_mode "
)
ZOO_REPAIR = """
missing = types.ModuleType("kd_losses.kdsvd")
missing.KDSVD = object
sys.modules["kd_losses.kdsvd"] = missing
importlib.import_module("torch.autograd.gradcheck").zero_gradients = None
"""
NNI = """
nni = types.ModuleType("nni")
nni.get_next_parameter = lambda: {"T_student": 4, "lambda_student": 0.5, "seed": 1}
nni.report_intermediate_result = nni.report_final_result = lambda value: None
sys.modules["nni"] = nni
"""
DML = "main.py --epochs 3 --batch_size 64 --model_num 2 --use_tensorboard False --num_workers 0"
ZOO_CASE = Case("AberHu+Knowledge-Distillation-Zoo", ZOO, ("train_kd.py", "train", STEP), ("out_s", "target"))
FRSKD = "classification/main.py --data_dir data --data CIFAR100 --epoch 3 --batch_size 16"
OKDDIP = "--model resnet32 --dataset CIFAR100 --num_epochs 3 --batch_size 64 --num_workers 1"
CASES = {
    "knowledge_distillation": Case(
        "tyui592+knowledge_distillation",
        "main.py --train_flag --data CIFAR10 --num_class 10 --epoch 3 --batch_size 64 --num_workers 1 --teacher_load ./t.pth "
        "--model 1 --lr 0.001 --scheduler StepLR",
        ("trainval.py", "train_step", STEP),
        ("outputs", "labels"),
        prepare="python3 -c \"import argparse, pickle; pickle.dump(argparse.Namespace(model='1', num_class=10), "
        "open('arguments.pickle', 'wb'))\"",
    ),
    "takd": Case(  # the teacher's output, called last, has a gradient, too
        "imirzadeh+Teacher-Assistant-Knowledge-Distillation",
        "train.py --epochs 3 --batch-size 64 --teacher resnet14 --student resnet8 --teacher-checkpoint t.pth",
        ("train.py", "train", STEP),
        ("output", "target"),
        repair=NNI,
    ),
    "distiller": Case(
        "karanchahal+distiller",
        "evaluate_kd.py --epochs 4 --batch-size 64 --teacher resnet8 --student resnet8 --mode KD "
        "--teacher-checkpoint pretrained/resnet8_cifar100.pth",
        ("trainer.py", "train_single_epoch", "pred = y_hat"),
        ("y_hat", "y"),
    ),
    "kd-pytorch": Case(
        "JoonyoungYi+KD-pytorch",
        "trainer.py --n_epoch 3",
        ("trainer.py", "__train_epoch", STEP),
        ("outputs", "targets"),
        prepare="mkdir checkpoint",
        size=96,
    ),
    "nasty-teacher-kd": Case(
        "VITA-Group+Nasty-Teacher",
        "train_kd.py --save_path experiments/x",
        ("train_kd.py", "train_epoch_kd", STEP),
        ("output_batch", "labels_batch"),
        prepare=nasty("t.pth"),
    ),
    "nasty-teacher-nasty": Case(
        "VITA-Group+Nasty-Teacher",
        "train_nasty.py --save_path experiments/x",
        ("train_nasty.py", "train_epoch_kd_adv", STEP),
        ("output_tch", "labels_batch"),
        prepare=nasty("t.pth"),
    ),
    "generous-teacher": Case(
        "EifelTing+Generous-Teacher",
        "train_kd.py --save_path experiments/x",
        ("train_kd.py", "train_epoch_kd", STEP),
        ("output_batch", "labels_batch"),
        prepare=nasty("t.pth"),
    ),
    **{
        f"kd-zoo-{mode}": Case(ZOO_CASE.repository, ZOO + mode, ZOO_CASE.at, ZOO_CASE.read, repair=ZOO_REPAIR)
        for mode in ("st", "at", "sobolev", "lwm")
    },
    "overhaul": Case(
        "clovaai+overhaul-distillation/CIFAR-100",
        "train_with_distillation.py --epochs 3 --batch_size 64 --paper_setting c",
        ("train_with_distillation.py", "train_with_distill", STEP),
        ("outputs", "targets"),
        size=96,
    ),
    "okddip-kd": Case(
        "DefangChen+OKDDip-AAAI2020",
        f"train_kd.py {OKDDIP} --T_model resnet32 --T_model_path t",
        ("train_kd.py", "train", STEP),
        ("output_batch", "labels_batch"),
        size=96,
    ),
    "okddip-one": Case(
        "DefangChen+OKDDip-AAAI2020",
        f"train_one.py {OKDDIP}",
        ("train_one.py", "train", STEP),
        ("x_m", "labels_batch"),
        size=96,
    ),
    "dml-first": Case(
        "chxy95+Deep-Mutual-Learning",
        DML,
        ("trainer.py", "train_one_epoch", STEP),
        ("outputs[0]", "labels"),
        options=("--student", "1"),
    ),
    "okddip-dml-first": Case(  # a branch is a slice of [B, C, branches]
        "DefangChen+OKDDip-AAAI2020",
        f"train_DML.py {OKDDIP} --num_branches 2",
        ("train_DML.py", "train", STEP),
        ("output_batch[:, :, 0]", "labels_batch"),
        size=96,
        options=("--student", "1"),
    ),
    "frskd-student": Case(  # a second head behind the student learns the labels, too
        "MingiJi+FRSKD",
        FRSKD,
        ("utils.py", "train", STEP),
        ("outputs", "targets"),
        size=32,
        options=("--student", "CIFAR_ResNet"),
    ),
    "frskd": Case(
        "MingiJi+FRSKD",
        FRSKD,
        ("utils.py", "train", STEP),
        ("outputs", "targets"),
        size=32,
        told="two models are trained at once",
        status=1,
    ),
    "dml": Case(
        "chxy95+Deep-Mutual-Learning",
        DML,
        ("trainer.py", "train_one_epoch", STEP),
        ("outputs[0]", "labels"),
        told="two models are trained at once",
        status=1,
    ),
    "okddip-dml": Case(
        "DefangChen+OKDDip-AAAI2020",
        f"train_DML.py {OKDDIP} --num_branches 2",
        ("train_DML.py", "train", STEP),
        ("output_batch[:, :, 0]", "labels_batch"),
        size=96,
        told="two models are trained at once",
        status=1,
    ),
}


def data(root: Path) -> None:
    """A CIFAR-10 and a CIFAR-100 of noise, in the original formats."""
    rng = np.random.default_rng(0)
    hundred, ten = (
        {"train": 160, "test": 64},
        {"test_batch": 64} | {f"data_batch_{k}": 32 for k in range(1, 6)},
    )
    for folder, key, files, classes, names in (
        ("cifar-100-python", "fine_labels", hundred, 100, ("meta", "fine_label_names")),
        ("cifar-10-batches-py", "labels", ten, 10, ("batches.meta", "label_names")),
    ):
        (root / folder).mkdir()
        for file, size in files.items():
            labels = rng.permutation(np.arange(size) % classes).tolist()
            content = {"data": rng.integers(0, 256, (size, 3072), dtype=np.uint8), key: labels}
            (root / folder / file).write_bytes(pickle.dumps(content))
        content = {names[1]: [f"class {k}" for k in range(classes)]}
        (root / folder / names[0]).write_bytes(pickle.dumps(content))


def run(case: Case, tmp_path: Path) -> tuple[str, list[Any]]:
    owner, _, inner = case.repository.partition("/")
    checkout = Path(CHECKOUTS or "", owner)
    if not checkout.is_dir():
        pytest.skip(f"{CHECKOUTS} holds no {owner}")
    folder = tmp_path / "checkout"
    shutil.copytree(checkout, folder, ignore=shutil.ignore_patterns(".git"))
    cwd = folder / inner
    if case.prepare:
        subprocess.run(["bash", "-ec", case.prepare], cwd=cwd, check=True)
    data(tmp_path)
    told = {
        "at": case.at, "read": case.read, "epochs": EPOCHS, "size": case.size, "data": str(tmp_path), "repair": case.repair,
    }  # fmt: skip
    (tmp_path / "case.json").write_text(json.dumps(told))
    before = {path: path.read_bytes() for path in folder.rglob("*.py")}
    options = ("--auto", "--ratio", "0.7", "--stages", "2", "--period", "1", *case.options)
    command = [str(HERE / "started.py"), str(tmp_path / "case.json"), str(tmp_path / "trace"), "kcd", "run"]
    done = subprocess.run(
        [sys.executable, *command, *options, *case.command.split()],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(cwd), "PYTHONWARNINGS": "ignore"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == case.status, output[-4000:]
    assert {path: path.read_bytes() for path in folder.rglob("*.py")} == before
    with open(tmp_path / "trace", "rb") as file:
        return output, pickle.load(file)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.told])
def test_the_sets_follow_from_the_scripts_own_logits(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    _, passes = run(case, tmp_path)
    trained = [one for one in passes if one["read"]]
    sizes = reference.sizes(case.size, "0.7", 2, 1, 0, EPOCHS + 1)
    assert [sum(map(len, one["keys"])) for one in trained] == sizes[:EPOCHS]
    labels: dict[int, int] = {}
    record = -np.ones((case.size, EPOCHS))
    kept = list(range(case.size))
    for epoch, one in enumerate(trained):
        assert sorted(key for batch in one["keys"] for key in batch) == sorted(kept)
        assert len(one["read"]) == len(one["keys"])
        for keys, (logits, targets) in zip(one["keys"], one["read"], strict=True):
            for key, row, label in zip(keys, logits, targets.tolist(), strict=True):
                assert labels.setdefault(key, label) == label  # the reading is of this batch
                assert np.isfinite(row).all()
                record[key, epoch] = reference.entropy(row)
        value, count = reference.recorded(record)
        kept = reference.condense(value, count, previous=len(kept), target=sizes[epoch + 1]).kept


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.told])
def test_what_no_rule_can_tell_is_refused(name: str, tmp_path: Path) -> None:
    output, passes = run(CASES[name], tmp_path)
    assert CASES[name].told in output
    assert sum(bool(one["read"]) for one in passes) <= 2
