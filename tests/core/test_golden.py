"""The sets and images that the authors' algorithm was recorded to choose, to the point and to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
from helpers import GOLDEN

import kcd_core as kcd


class Images:
    """A data set like torchvision's: raw arrays in ``.data``."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return self.data[index]


def alpha_of(golden: dict[str, Any]) -> float:
    return 0.0 if golden["version"] == 1 else 0.03


def random_batches(rng: np.random.Generator, indices: Any) -> Any:
    indices = rng.permutation(indices)
    cuts = np.sort(rng.integers(0, len(indices) + 1, rng.integers(1, 9)))
    return np.split(indices, cuts)


def record_stage(tracker: Any, golden: dict[str, Any], stage: int, rng: np.random.Generator) -> None:
    record, period = golden["entropy_record"], golden["T"]
    for epoch in range(period * (stage - 1), period * stage):
        for batch in random_batches(rng, np.flatnonzero(record[:, epoch] >= 0)):
            tracker.record(batch, record[batch, epoch])


@pytest.mark.parametrize("device", [None, "cpu"], ids=["numpy", "torch"])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_stage_to_the_point(golden: dict[str, Any], device: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, version = golden["N"], golden["version"]
    tracker = kcd.KnowledgeValueTracker(n, device=device)
    sampler = kcd.CondensedSampler(n)
    schedule = kcd.CondensationSchedule(golden["tau"], 6, golden["T"])
    images = Images(golden["images0"].copy())
    for stage in range(1, golden["stages_run"] + 1):
        record_stage(tracker, golden, stage, rng)
        before = len(sampler.kept)
        chosen = kcd.condense_step(tracker, sampler, schedule, alpha=alpha_of(golden))
        np.testing.assert_array_equal(chosen.kept, np.sort(golden[f"kept_{stage}"]))
        np.testing.assert_array_equal(sampler.kept, chosen.kept)
        # What is drawn next is what is kept.
        np.testing.assert_array_equal(np.sort(list(sampler)), chosen.kept)
        assert chosen.stage == stage
        assert len(chosen.dropped) == before - len(chosen.kept)
        if version < 3:
            continue
        np.testing.assert_array_equal(chosen.dropped, golden[f"dropped_{stage}"])
        np.testing.assert_array_equal(chosen.tail, golden[f"tail_{stage}"])
        mixed = np.stack([kcd.mix_arrays(images, i, sampler.steps(i)) for i in range(n)])
        np.testing.assert_array_equal(mixed, golden[f"images_{stage}"])
    np.testing.assert_array_equal(images.data, golden["images0"])  # the user's data is untouched


def test_pure_function_to_the_point(golden: dict[str, Any]) -> None:
    """The same without tracker and sampler, on plain float64 means."""
    n = golden["N"]
    for stage in range(1, golden["stages_run"] + 1):
        value, count = reference.recorded(golden["entropy_record"][:, : golden["T"] * stage])
        previous = n if stage == 1 else len(golden[f"kept_{stage - 1}"])
        chosen = kcd.condense(
            np.array(value),
            np.array(count),
            previous=previous,
            target=len(golden[f"kept_{stage}"]),
            alpha=alpha_of(golden),
        )
        np.testing.assert_array_equal(chosen.kept, np.sort(golden[f"kept_{stage}"]))
        if golden["version"] == 3:
            np.testing.assert_array_equal(chosen.dropped, golden[f"dropped_{stage}"])
            np.testing.assert_array_equal(chosen.tail, golden[f"tail_{stage}"])


def test_the_reference_itself(golden: dict[str, Any]) -> None:
    """tests/reference.py is worth comparing with: it reproduces the recordings, ranking order included."""
    n, version, period = golden["N"], golden["version"], golden["T"]
    images = dict(enumerate(golden["images0"]))
    sizes = reference.sizes(n, str(golden["tau"]), 6, period, 0, period * golden["stages_run"] + 1)
    for stage in range(1, golden["stages_run"] + 1):
        value, count = reference.recorded(golden["entropy_record"][:, : period * stage])
        previous, target = sizes[period * stage - 1], sizes[period * stage]
        alpha = alpha_of(golden)
        chosen = reference.condense(value, count, previous=previous, target=target, alpha=alpha)
        assert chosen.kept == golden[f"kept_{stage}"].tolist()
        if version == 3:
            assert chosen.dropped == golden[f"dropped_{stage}"].tolist()
            assert chosen.tail == golden[f"tail_{stage}"].tolist()
            # float64 weights, rounded once, would differ in the last bit: take the float32 ones.
            weights = kcd.condense(
                np.array(value), np.array(count), previous=previous, target=target, alpha=alpha
            ).weights
            np.testing.assert_allclose(weights, chosen.weights, rtol=2e-7)
            images = reference.mix(images, chosen.tail, chosen.dropped, weights)
            np.testing.assert_array_equal(np.stack(list(images.values())), golden[f"images_{stage}"])


@pytest.mark.parametrize("golden", [path for path in GOLDEN if "v3" in path.stem], indirect=True)
@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_recordings_tell_one_alpha_from_another(golden: dict[str, Any], alpha: float) -> None:
    """The order of tail and dropped pins alpha (the sets alone do not: nothing comes back in them)."""
    same = True
    for stage in range(1, golden["stages_run"] + 1):
        value, count = reference.recorded(golden["entropy_record"][:, : golden["T"] * stage])
        chosen = kcd.condense(
            np.array(value),
            np.array(count),
            previous=golden["N"] if stage == 1 else len(golden[f"kept_{stage - 1}"]),
            target=len(golden[f"kept_{stage}"]),
            alpha=alpha,
        )
        same &= chosen.tail.tolist() == golden[f"tail_{stage}"].tolist()
        same &= chosen.dropped.tolist() == golden[f"dropped_{stage}"].tolist()
    assert not same
