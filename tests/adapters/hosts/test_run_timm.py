"""``kcd run`` on a miniature of timm's own ``train.py``, and what its profile refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("torch")

from test_run import ONCE, SIZES, Host, check, host, on, phase

from kcd_adapters.profiles.timm import PROFILE

__all__ = ["host"]  # a fixture

KD = ("train.py", "--kd-model-name", "teacher")
BATCHES = [7, 5, 4, 4, 4, 4]


def learning_rates(output: str) -> list[float]:
    return [float(found) for found in re.findall(r"^lr (.*)$", output, re.MULTILINE)]


@on("timm")
@pytest.mark.parametrize(
    "options", [("--sched-on-updates",), ("--kd-distill-type", "token", "--no-prefetcher")]
)
def test_what_is_drawn_and_mixed_follows_from_the_predictions(host: Host, options: tuple[str, ...]) -> None:
    output, items = host.kcd(*ONCE, *KD, *options)
    check(items, SIZES)
    assert f"timm, {'token' if 'token' in options else 'logit'} distillation" in output
    assert "observed at timm.task.task:TrainingTask.__call__" in output
    assert f"{sum(SIZES)} samples drawn, {sum(SIZES)} of them observed" in output
    told = re.findall(r"^epoch \d had (\d+) batches of (\d+)$", output, re.MULTILINE)
    assert told == [(str(one), str(one)) for one in BATCHES]
    assert "asked for len(loader)" not in output
    rates = learning_rates(output)
    assert len(rates) == sum(BATCHES)
    if "--sched-on-updates" in options:
        assert rates == sorted(set(rates), reverse=True)
        assert rates[-1] == 0
        assert rates[BATCHES[0] - 1] == pytest.approx(0.5 * 5 / 6)
    else:
        assert sorted(set(rates), reverse=True) == pytest.approx([0.5 * left / 6 for left in range(6, 0, -1)])


@on("timm")
def test_accumulated_gradients_are_stepped_at_each_epochs_end(host: Host) -> None:
    output, items = host.kcd(*ONCE, *KD, "--sched-on-updates", "--grad-accum-steps", "3")
    check(items, SIZES)
    rates = learning_rates(output)
    assert len(rates) == sum(-(-one // 3) for one in BATCHES)
    assert rates == sorted(set(rates), reverse=True)
    assert rates[-1] == 0


@on("timm")
def test_a_run_is_resumed_with_its_set(host: Host) -> None:
    command = (*ONCE, *KD, "--sched-on-updates")
    _, items = host.kcd(*command)
    names = {path.name for path in host.folder.glob("out/*")}
    assert {f"{name}.pth.tar.kcd" for name in ("last", "model_best", "checkpoint-2")} <= names
    assert len(names) == 2 * len([name for name in names if name.endswith(".kcd")])
    output, again = host.kcd(*command, "--resume", "out/checkpoint-2.pth.tar")
    assert "resumed after epoch 3" in output
    check([item for item in phase(items, "train") if item["epoch"] <= 3] + again, SIZES)
    rates = learning_rates(output)
    assert rates == sorted(set(rates), reverse=True)
    assert rates[0] < 0.25
    assert rates[-1] == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--mixup", "0.2"], "leave out --mixup and --cutmix"),
        (["--mixup=0.2"], "leave out --mixup and --cutmix"),
        (["--cutmix", "1"], "leave out --mixup and --cutmix"),
        (["--cutmix-minmax", "0.2", "0.8"], "leave out --mixup and --cutmix"),
        (["--aug-repeats", "3"], "leave out --aug-repeats"),
        (["--aug-splits", "3"], "leave out --aug-splits"),
        (["--use-multi-epochs-loader"], "leave out --use-multi-epochs-loader"),
        (["--naflex-loader"], "leave out --naflex-loader"),
        (["--model-ema-warmup"], "leave out --model-ema-warmup"),
        (["--train-img-sizes", "128", "160"], "leave out --train-img-sizes"),
        (["--dataset", "wds/imagenet"], "is a stream"),
    ],
)
def test_what_is_refused(arguments: list[str], told: str) -> None:
    refusal = PROFILE.refuse(["--data-dir", "images", *arguments])
    assert refusal is not None
    assert refusal.endswith(told) or told in refusal


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--mixup", "0"],
        ["--mixup", "0.", "--smoothing", "0.1"],
        ["--dataset", "torch/cifar10"],
        ["--mixup", "x"],
    ],
)
def test_what_is_not_refused(arguments: list[str]) -> None:
    assert PROFILE.refuse(arguments) is None


def test_settings_in_a_file_are_refused_too(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    file = tmp_path / "args.yaml"
    file.write_text("mixup: 0.2\nkd_model_name: resnet50\nkd_distill_type: feature\n")
    for arguments in (["-c", str(file)], [f"--config={file}"]):
        assert "leave out --mixup" in str(PROFILE.refuse(arguments))
        assert PROFILE.refuse([*arguments, "--mixup", "0"]) is None
        assert PROFILE.method(arguments) == "feature distillation"


@on("timm")
def test_mixup_is_refused_before_anything_starts(host: Host) -> None:
    output, items = host.kcd(*ONCE, *KD, "--mixup", "0.2", status=2)
    assert "timm can't run like this with KCD: images are mixed" in output
    assert not items
