"""``kcd run --ask`` on miniature hosts, end to end: what the teacher was called with, and what the hosts had of it.

The hosts write down the teacher's logits as their loss saw them, those of the whole batch, and how many rows the teacher
was called with. Whom it should have been asked for is worked out from the student's predictions, by index.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import reference
from test_run import HOSTS, ONCE, SIZES, Host, Items, check, host, indices, on, phase

from kcd_adapters.profiles import find
from kcd_adapters.settings import Settings

__all__ = ["host"]  # a fixture

N, EPOCHS = 98, 4
ASK = ("--ask", "0.25")
ALONE = ("--ratio", "1", *ASK)
COMMANDS = {
    "repdistiller": ("train_student.py", "--num_workers", "1"),
    "mdistiller": ("tools/train.py", "DISTILLER.TYPE", "KD"),
    "timm": ("train.py", "--kd-model-name", "teacher"),
}
EACH = pytest.mark.parametrize("host", COMMANDS, indirect=True)


def told(
    items: Items, labels: list[int], *, share: float = 0.25, sizes: Sequence[int] = (), whole: int = 0
) -> int:
    """How many rows the teacher was called with, after each batch was compared.

    ``share``: (1 - labels' weight) / (teacher's weight * 4). ``sizes``: of the set that is drawn from, in each epoch. ``whole``: an epoch whose first batch is asked for as such.
    """
    train = phase(items, "train")
    record = -np.ones((N, 99))
    rows, asked, mixed = 0, set(range(N)), set()
    for epoch, size in enumerate(reference.sizes(N, "0.25", 1, 1, 0, train[-1]["epoch"] + 1)[1:], 1):
        for number, item in enumerate(item for item in train if item["epoch"] == epoch):
            index = np.array(item["index"])
            due = np.array([i in asked or i in mixed for i in index])
            due[np.flatnonzero(~due)[: max(0, 2 - due.sum())]] = True
            if number == 0 and epoch == whole:
                due[:] = True
            assert item["rows"] == due.sum()
            np.testing.assert_allclose(item["taught"][due], item["whole"][due], rtol=1e-4, atol=1e-5)
            others = [
                stand_in(item["logits"][row], labels[index[row]], share) for row in np.flatnonzero(~due)
            ]
            for given, expected in zip(item["taught"][~due], others, strict=True):
                np.testing.assert_allclose(softened(given), expected, rtol=1e-4, atol=1e-6)
            rows += item["rows"]
            for i, logits in zip(index, item["logits"], strict=True):
                record[i, epoch - 1] = reference.entropy(logits)
        value, count = reference.recorded(record)
        if sizes:
            target = [*sizes, sizes[-1]][epoch]
            mixed |= set(reference.condense(value, count, previous=sizes[epoch - 1], target=target).tail)
        asked = set(reference.condense(value, count, previous=N, target=size).kept)
    return rows


def softened(logits: Any) -> Any:
    return np.array(reference.softmax(logits / 4))


def stand_in(student: Any, label: int, share: float) -> Any:
    """The probabilities at temperature 4 that a teacher's row should have for a sample that is not asked."""
    wanted = softened(student) - share * (np.array(reference.softmax(student)) - np.eye(5)[label])
    wanted = wanted.clip(1e-9)
    return wanted / wanted.sum()


@pytest.fixture(scope="module")
def labels() -> list[int]:
    return list(np.random.default_rng(1).integers(0, 5, N).tolist())


@EACH
def test_the_teacher_is_called_with_the_highest_values(host: Host, labels: list[int]) -> None:
    # mdistiller is installed, not beside its script.
    kcd = f"import sys; sys.path.append({str(host.folder)!r}); from kcd_adapters.cli import main; sys.exit(main())"
    output, items = host.run("-c", kcd, "run", *ALONE, *COMMANDS[host.folder.name], "--epochs", f"{EPOCHS}")
    rows = told(items, labels, share=0 if host.folder.name == "timm" else 0.25)
    assert len({item["epoch"] for item in phase(items, "train")}) == EPOCHS
    assert rows < N + (EPOCHS - 1) * (25 + 7)
    assert f"teacher was asked for {rows} samples; plain distillation asks for {N * EPOCHS} (" in output
    assert "teacher asked for 0.25 from the second epoch on" in output


@on("repdistiller")
def test_beside_condensing_mixed_samples_are_asked(host: Host, labels: list[int]) -> None:
    output, items = host.kcd(*ONCE, *ASK, *COMMANDS["repdistiller"], "--epochs", "6")
    check(items, SIZES)
    rows = told(items, labels, sizes=SIZES)
    assert f"asked for {rows} samples; plain distillation asks for {6 * N}" in output


@on("timm")
def test_a_resumed_run_goes_on_asking(host: Host, labels: list[int]) -> None:
    _, items = host.kcd(*ALONE, *COMMANDS["timm"], "--epochs", "3")
    output, again = host.kcd(
        *ALONE, *COMMANDS["timm"], "--epochs", "5", "--resume", "out/checkpoint-2.pth.tar"
    )
    assert "resumed after epoch 3" in output
    rows = told(items + again, labels, share=0, whole=4)
    assert f"asked for {rows} samples; plain distillation asks for {5 * N}" in output


@on("timm")
def test_two_ranks_ask_for_their_own_samples(host: Host, labels: list[int]) -> None:
    torchrun = (
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--local-addr=localhost",
        "--nproc-per-node",
        "2",
        "-m",
        "kcd_adapters",
    )
    output, first = host.run(*torchrun, "run", *ALONE, *COMMANDS["timm"], "--epochs", "3")
    (record,) = host.folder.glob("record1.1")
    second: Items = list(np.load(record, allow_pickle=True))
    told(first + second, labels, share=0)  # the set follows from the predictions of both
    trained = [phase(items, "train") for items in (first, second)]
    for epoch in (1, 2, 3):
        drawn = [indices([item for item in items if item["epoch"] == epoch]) for items in trained]
        assert sorted(drawn[0] + drawn[1]) == list(range(N))
    rows = sum(item["rows"] for item in trained[0])
    assert (
        f"asked for {rows} samples by the first of 2 processes; plain distillation asks for {3 * N // 2}"
        in output
    )
    assert rows < 3 * N / 2
    (one,), (other,) = phase(first, "weights"), phase(second, "weights")
    for name, weights in one["state"].items():
        np.testing.assert_array_equal(weights, other["state"][name])


@on("repdistiller")
def test_a_run_that_asks_for_all_is_that_of_the_script_alone(host: Host) -> None:
    _, plain = host.run(*COMMANDS["repdistiller"], "--epochs", "2", old=True)
    _, items = host.kcd("--ratio", "1", "--ask", "1", *COMMANDS["repdistiller"], "--epochs", "2")
    (expected,), (state,) = phase(plain, "weights"), phase(items, "weights")
    for name, weights in expected["state"].items():
        np.testing.assert_array_equal(weights, state["state"][name])


@on("repdistiller")
def test_a_patched_script_asks(host: Host, labels: list[int]) -> None:
    host.run("-m", "kcd_adapters", "patch", ".", *ALONE)
    _, items = host.run(*COMMANDS["repdistiller"], "--epochs", "2")
    told(items, labels)
    assert min(item["rows"] for item in phase(items, "train")) < 16


@on("repdistiller")
def test_a_method_that_uses_features_is_refused(host: Host) -> None:
    output, items = host.kcd(*ALONE, *COMMANDS["repdistiller"], "--distill", "hint", status=2)
    assert (
        "can't run like this with --ask: --distill hint uses the teacher's features; only kd uses nothing but its "
        "logits"
    ) in output
    assert not items


@pytest.mark.parametrize(
    ("script", "arguments", "why"),
    [
        ("repdistiller/train_student.py", "--distill kd", None),
        ("repdistiller/train_student.py", "", None),
        ("repdistiller/train_student.py", "--distill crd", r"--distill crd \(exact\) uses the teacher's features"),
        ("norm/train_cifar_student.py", "--distill kd", "helper/loops.py:train_distill lacks the line `def train_distill"),
        ("norm/train_cifar_student.py", "", "helper/loops.py:train_distill lacks the line"),
        ("mdistiller/tools/train.py", "DISTILLER.TYPE KD", None),
        ("mdistiller/tools/train.py", "DISTILLER.TYPE DKD", None),
        ("mdistiller/tools/train.py", "DISTILLER.TYPE REVIEWKD", "KD and DKD use nothing but its logits; this is REVIEWKD"),
        ("mdistiller/tools/train.py", "", "this is not known"),
        ("timm/train.py", "--kd-model-name resnet50", None),
        ("timm/train.py", "--kd-model-name resnet50 --kd-distill-type token", "this is token distillation"),
        ("timm/train.py", "--kd-model-name t --task-loss-weight 0.3", "the labels must not be smoothed"),
        ("timm/train.py", "--kd-model-name t --task-loss-weight 0.3 --smoothing 0", None),
        ("timm/train.py", "", "no teacher without --kd-model-name"),
        ("simkd/train_student.py", "--distill kd", "helper/loops.py:train_distill lacks the line `def train_distill"),
        ("reviewkd/CIFAR-100/train.py", "", "profile reviewkd does not say where the teacher is"),
    ],
)  # fmt: skip
def test_what_is_refused(script: str, arguments: str, why: str | None) -> None:
    found = find(HOSTS / script).why_not_ask(arguments.split())
    assert found is None if why is None else re.search(why, found or "")


@pytest.mark.parametrize(
    ("line", "other", "why"),
    [
        (
            "loss = opt.gamma * loss_cls + opt.alpha * loss_div + opt.beta * loss_kd",
            "loss = loss_cls + opt.alpha * loss_div",
            "helper/loops.py:train_distill lacks the line `loss = opt.gamma * loss_cls + opt.alpha * loss_div + opt.beta * "
            "loss_kd`, which RepDistiller's has, so it is not known where its teacher is",
        ),
        (
            "model_t.eval()",
            "model_t(None)",
            "helper/loops.py:train_distill calls model_t in 2 places, and RepDistiller's in one",
        ),
        (
            "accuracy(logit_s,",
            "hits(logit_s,",
            "the script uses no function of helper/loops.py that trains a student",
        ),
        # Written in another way, it is the same line.
        ("loss_div = criterion_div(logit_s, logit_t)", "loss_div=criterion_div(logit_s,logit_t)", None),
    ],
    ids=["loss", "calls", "unknown", "spaces"],
)
def test_a_loop_of_another_kind_is_refused_by_what_it_lacks(
    line: str, other: str, why: str | None, tmp_path: Path
) -> None:
    root = shutil.copytree(HOSTS / "repdistiller", tmp_path / "repo")
    loops = root / "helper" / "loops.py"
    text = loops.read_text()
    assert text.count(line) == 1
    loops.write_text(text.replace(line, other))
    found = find(root / "train_student.py", "repdistiller").why_not_ask(["--distill", "kd"])
    assert found == why if why is None else found is not None and found.startswith(why)


def test_settings() -> None:
    assert Settings.from_json(Settings(ask=0.25, ask_multiple=8).to_json()) == Settings(
        ask=0.25, ask_multiple=8
    )
    for ask in (0, 1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"ask must be in \(0, 1\]"):
            Settings(ask=ask)
    with pytest.raises(TypeError, match=r"ask must be a number in \(0, 1\], got '0.25'"):
        Settings(ask="0.25")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ask_multiple must be"):
        Settings(ask=0.5, ask_multiple=0)
    with pytest.raises(ValueError, match="ask_multiple=8 would not be used: without ask"):
        Settings(ask_multiple=8)


def test_auto_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    why = find(tmp_path / "train.py", "auto").why_not_ask([])
    assert why is not None
    assert "profile auto does not say where the teacher is" in why
