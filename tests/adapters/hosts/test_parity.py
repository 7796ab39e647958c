"""The adapters beside the authors' own code, live: their KCD fork runs, and both must decide the same.

As ``test_thirdparty.py``, behind ``KCD_THIRDPARTY=FOLDER``, with checkouts of KCD (dzy3/KCD) and RepDistiller.
The fork maps its positions through a list in ranking order, so that its batches differ from ours once a set is
condensed. Up to the first stage, all is the same; from there on, its own records are replayed.
"""

from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_thirdparty import HERE, REP, N, Prepare, command, drawn, prepare

pytest.importorskip("torch")

import torch
from torch.utils.data import DataLoader

from kcd_adapters.hosts.alignment import Pass
from kcd_adapters.hosts.engine import Engine
from kcd_adapters.hosts.loader import HostedLoader
from kcd_adapters.profiles.repdistiller import PROFILE
from kcd_adapters.settings import Settings
from kcd_core.recipes import carry_out

__all__ = ["prepare"]  # a fixture

PERIOD, STAGES = 2, 6
SIZES = [285, 270, 255, 240, 225, 210]
DISTILL = "--distill kd -a 0.1 -b 0 -r 1 --learning_rate 0.1 --batch_size 16"


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def learnable(prepare: Prepare, name: str) -> tuple[Path, Any]:
    """A checkout whose images show the colour of their class, some more than others; and those images, raw.

    From noise alone a student learns too little for a dropped point to come back.
    """
    folder, labels = prepare(name)
    rng = np.random.default_rng(2)
    colours, share = rng.integers(0, 256, (100, 3, 1)), rng.random((N, 1, 1))
    noise = rng.integers(0, 256, (N, 3, 1024))
    images = (share * colours[labels] + (1 - share) * noise).astype(np.uint8)
    content = {"data": images.reshape(N, 3072), "fine_labels": labels}
    (folder / "data" / "cifar-100-python" / "train").write_bytes(pickle.dumps(content))
    return folder, images.reshape(N, 3, 32, 32).transpose(0, 2, 3, 1)


def fork(prepare: Prepare, trace: Path, version: str, epochs: int) -> list[dict[str, Any]]:
    """What the fork recorded and decided, stage by stage."""
    folder, _ = learnable(prepare, "KCD")
    arguments = (
        f"super_train_student.py {REP} --epochs {epochs} {DISTILL} --threshold 0.7 --purification {PERIOD}"
    )
    done = subprocess.run(
        [
            sys.executable,
            str(HERE / "forked.py"),
            str(trace),
            version,
            *arguments.split(),
            "--version",
            version,
        ],
        cwd=folder,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return list(np.load(trace, allow_pickle=True))


def test_the_same_set_at_the_first_stage(prepare: Prepare, tmp_path: Path) -> None:
    """One seed, the same data: the fork's script, and ``kcd run`` on RepDistiller's."""
    (theirs,) = fork(prepare, tmp_path / "fork", "v3", epochs=PERIOD + 1)
    folder, raw = learnable(prepare, "RepDistiller")
    options = ("--ratio", "0.7", "--stages", str(STAGES), "--period", str(PERIOD))
    command(
        "RepDistiller",
        folder,
        tmp_path / "trace",
        ("kcd", "run", *options),
        f"train_student.py {REP} --epochs {PERIOD + 1} {DISTILL}",
    )
    passes = list(np.load(tmp_path / "trace", allow_pickle=True))
    assert len(passes) == PERIOD + 1
    # What each recorded in the same epoch for the same sample, up to the rounding of float32.
    for epoch, one in enumerate(passes[:PERIOD]):
        for indices, logits, _ in one["observed"]:
            p = np.exp(logits - logits.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            entropy = -(p * np.log(p)).sum(1)
            np.testing.assert_allclose(entropy, theirs["record"][indices, epoch], atol=1e-5)
    kept = sorted(drawn(passes[PERIOD]))
    assert kept == sorted(theirs["ranked"])
    assert len(kept) == SIZES[0]
    # And the same pairs, mixed to the same pixels.
    recipes = {
        key[0]: key[1] for batch in passes[PERIOD]["keys"] for key in batch if not isinstance(key, int)
    }
    assert {i: steps[0][1] for i, steps in recipes.items()} == dict(
        zip(theirs["tail"].tolist(), theirs["dropped"].tolist(), strict=True)
    )
    for i in kept:
        image = carry_out(i, recipes.get(i, ()), lambda j: raw[j])
        np.testing.assert_array_equal(image, theirs["images"][i])


@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
def test_what_the_fork_recorded_gives_its_sets_at_every_stage(
    prepare: Prepare, version: str, tmp_path: Path
) -> None:
    """Its values, replayed epoch by epoch through the adapter's own loader, tracker and stages."""
    stages = fork(prepare, tmp_path / "fork", version, epochs=PERIOD * STAGES)
    assert [len(stage["ranked"]) for stage in stages] == SIZES
    sets_of_theirs = [set(stage["ranked"].tolist()) for stage in stages]
    assert any(later - earlier for earlier, later in itertools.pairwise(sets_of_theirs))  # points come back
    _, raw = learnable(prepare, "KCD")

    class Images(torch.utils.data.Dataset[Any]):
        data = raw

        def __getitem__(self, index: int) -> Any:
            return torch.from_numpy(self.data[index]), 0, index

        def __len__(self) -> int:
            return N

    settings = Settings(
        ratio=0.7,
        stages=STAGES,
        period=PERIOD,
        alpha=0.0 if version == "v1" else 0.03,
        mixing="cumulative" if version == "v3" else "none",
    )
    engine = Engine(settings, PROFILE, [])
    loader = DataLoader(Images(), batch_size=64, shuffle=True)
    train = HostedLoader(loader, PROFILE, settings)
    engine.choose(train)
    sets, install = [], train.sampler.install
    train.sampler.install = lambda chosen: (sets.append(chosen), install(chosen))  # type: ignore[method-assign,func-returns-value,assignment]
    record = stages[-1]["record"]
    assert record.shape == (N, PERIOD * STAGES)
    for epoch, values in enumerate(record.T, 1):
        seen = np.flatnonzero(values >= 0)
        kept = range(N) if train.sampler.kept is None else train.sampler.kept
        np.testing.assert_array_equal(seen, kept)  # the fork drew our set
        train.tracker.record(seen, values[seen])
        train.passes.append(Pass(len(seen), observed=len(seen)))
        engine._end_passes()
        if epoch % PERIOD:
            continue
        theirs, mine = stages[epoch // PERIOD - 1], sets[-1]
        np.testing.assert_array_equal(mine.kept, sorted(theirs["ranked"]))
        if version == "v3":
            np.testing.assert_array_equal(mine.dropped, theirs["dropped"])
            np.testing.assert_array_equal(mine.tail, theirs["tail"])
        for images, _, indices in train.start():
            np.testing.assert_array_equal(images.numpy(), theirs["images"][indices.numpy()])
    assert len(sets) == STAGES
    assert version != "v3" or (stages[-1]["images"] != raw).any()
