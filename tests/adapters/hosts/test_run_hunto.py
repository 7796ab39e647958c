"""``kcd run`` on a miniature of image_classification_sota: DIST's loss, prefetcher and learning rate by the step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_run import ONCE, SIZES, Host, check, on, phase

from kcd_adapters.profiles import find

MINI = Path(__file__).parents[1] / "miniatures" / "hunto"


@pytest.fixture
def host(tmp_path: Path, request: pytest.FixtureRequest) -> Host:
    return Host(request.param, tmp_path)


@on("hunto")
@pytest.mark.parametrize("script", ["--kd dist --smoothing 0", "--smoothing 0.2"])
def test_the_students_own_loss_is_observed_and_the_learning_rate_falls(host: Host, script: str) -> None:
    output, items = host.kcd(*ONCE, "tools/train.py", *script.split())
    if script.startswith("--smoothing"):
        assert output.startswith("kcd: image_classification_sota, without a teacher (profile hunto); ")
    else:
        assert output.startswith("kcd: image_classification_sota, dist (profile hunto); ")
    check(items, SIZES)
    # By the share of the epoch that is done, in steps of the first epoch's: 7 of them, 42 in all.
    expected = []
    for epoch, size in enumerate(SIZES):
        batches = -(-size // 16)
        done = [round((epoch * batches + batch) * 7 / batches) for batch in range(batches)]
        expected += [0.5 * (1 - n / 42) for n in done]
    rates = [item["lr"] for item in phase(items, "train")]
    np.testing.assert_allclose(rates, expected)
    assert (np.diff(rates) < 0).all()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--mixup", "0.2"], "leave out --mixup and --cutmix"),
        (["--cutmix=1"], "leave out --mixup and --cutmix"),
        (["--cutmix-minmax", "0.2", "0.8"], "leave out --mixup and --cutmix"),
        (["--dyrep"], "leave out --dyrep"),
        (["--mixup", "0", "--kd", "dist_t4"], None),
    ],
)
def test_what_is_refused(arguments: list[str], reason: str | None) -> None:
    refused = find(MINI / "tools" / "train.py").refuse(arguments)
    assert refused is None if reason is None else reason in str(refused)


def test_epochs_are_told() -> None:
    profile = find(MINI / "tools" / "train.py")
    assert profile.epochs(["--epochs", "12"]) == 12
    assert profile.epochs([]) == 200
