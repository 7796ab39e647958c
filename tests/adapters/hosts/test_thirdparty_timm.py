"""``kcd run`` on timm's real ``train.py``, with small images and models that are not pretrained.

As ``test_thirdparty.py``, behind ``KCD_THIRDPARTY=FOLDER``, with a checkout of pytorch-image-models in it, whose
requirements are installed.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference

REPOSITORY = Path(os.environ.get("KCD_THIRDPARTY", "."), "pytorch-image-models")
if not (REPOSITORY / "train.py").is_file():
    pytest.skip(
        "KCD_THIRDPARTY=FOLDER, with a checkout of pytorch-image-models, runs these", allow_module_level=True
    )
Image = pytest.importorskip("PIL.Image")

N, CLASSES, BATCH = 203, 5, 16
SIZES = [203, 163, 123, 83, 81]
OPTIONS = ("--ratio", "0.4", "--stages", "3", "--period", "1", "--mixing", "none")
SCRIPT = (
    f"train.py --val-split val --num-classes {CLASSES} -b {BATCH} --epochs {len(SIZES)} --device cpu -j 1 --no-aug "
    "--opt sgd --lr 0.05 --sched cosine --warmup-epochs 0 --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5"
)

#: Runs kcd without downloads, and notes the red value of each image, its logits, and the learning rate of each step.
DRIVER = """
import atexit, json, sys
from kcd_adapters.cli import main
from kcd_adapters.hosts import import_hooks
from torch.optim.optimizer import register_optimizer_step_post_hook

trace, path = {"batches": [], "rates": []}, sys.argv[1]
atexit.register(lambda: json.dump(trace, open(path, "w")))

def unpretrained(module):
    module.load_pretrained = lambda *args, **kwargs: None

def called(result, task, images, target):
    red = (images[:, 0].flatten(1).median(1).values * 0.5 + 0.5) * 255
    trace["batches"].append([red.round().long().tolist(), result["output"].detach().double().tolist()])

def made(result, *args, **kwargs):
    update = result[0].update_groups
    def noted(values):
        update(values)
        trace["rates"].append(result[0].optimizer.param_groups[0]["lr"])
    result[0].update_groups = noted

import_hooks.when_imported("timm.models._builder", unpretrained)
import_hooks.after_call("timm.task.task:TrainingTask.__call__", called)
import_hooks.after_call("timm.scheduler.create_scheduler_v2", made)
sys.exit(main(["run", *sys.argv[2:]]))
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, n in (("train", N), ("val", 20)):
        for index in range(n):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            pixels[..., 0] = index
            folder = root / split / f"class{index * CLASSES // n}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{index:04d}.png")
    return root


def run(images: Path, tmp_path: Path, *arguments: str) -> tuple[str, dict[str, Any]]:
    trace = tmp_path / "trace.json"
    command = [*SCRIPT.split(), "--data-dir", str(images), "--output", str(tmp_path), *arguments]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(trace), *OPTIONS, *command],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-4000:]
    return output, json.loads(trace.read_text())


SMALL = ("--model", "test_resnet", "--img-size", "32", "--kd-model-name", "test_resnet")
TOKEN = (
    *("--model", "deit_tiny_distilled_patch16_224", "--model-kwargs", "depth=1", "img_size=32", "--img-size", "32"),
    *("--kd-model-name", "test_resnet", "--kd-distill-type", "token"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "accumulate"),
    [
        ((*SMALL, "--sched-on-updates"), 1),
        ((*SMALL, "--sched-on-updates", "--grad-accum-steps", "2", "--no-prefetcher"), 2),
        ((*SMALL, "--kd-distill-type", "feature", "--smoothing", "0.2"), 1),
        (TOKEN, 1),
    ],
    ids=["logit", "accumulation", "feature", "token"],
)
def test_the_sets_follow_from_the_predictions(
    images: Path, tmp_path: Path, arguments: tuple[str, ...], accumulate: int
) -> None:
    output, trace = run(images, tmp_path, *arguments)
    batches = [size // BATCH for size in SIZES]
    assert len(trace["batches"]) == sum(batches)
    read: dict[int, list[float]] = {}
    kept, done = set(range(N)), 0
    for number, size in enumerate(SIZES):
        drawn = []
        for indices, logits in trace["batches"][done : done + batches[number]]:
            drawn += indices
            for index, row in zip(indices, logits, strict=True):
                read.setdefault(index, []).append(reference.entropy(row))
        done += batches[number]
        assert len(drawn) == len(set(drawn)) == batches[number] * BATCH
        assert set(drawn) <= kept
        value = [math.fsum(read[i]) / len(read[i]) if i in read else math.nan for i in range(N)]
        count = [len(read.get(i, ())) for i in range(N)]
        target = (SIZES + SIZES[-1:])[number + 1]
        kept = set(reference.condense(value, count, previous=size, target=target).kept)
    told = re.findall(r"Train: (\d+) \[ *\d+/(\d+) ", output)
    assert dict(told) == {str(k): str(-(-one // accumulate)) for k, one in enumerate(batches)}
    rates = trace["rates"]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == 0


def test_a_run_is_resumed(images: Path, tmp_path: Path) -> None:
    run(images, tmp_path, *SMALL, "--experiment", "one", "--epochs", "3")
    output, trace = run(
        images, tmp_path, *SMALL, "--experiment", "two", "--resume", str(tmp_path / "one" / "checkpoint-1.pth.tar")
    )  # fmt: skip
    assert "resumed after epoch 2" in output
    assert len(trace["batches"]) == sum(size // BATCH for size in SIZES[2:])
