"""The study's InfoBatch, written before and by another reading, leaves out what `kcd.InfoBatch` does, given the same chances."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import kcd_core as kcd

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from _study.choosers import InfoBatch, Job

sys.path.pop(0)

N = 300


@pytest.mark.parametrize("epochs", [8, 10, 13])
def test_the_sets_and_weights_are_those_of_the_study(epochs: int) -> None:
    material: Any = SimpleNamespace(targets=np.zeros(N))
    job = Job(arm="infobatch", ratio=0.7, student="small", seed=5, epochs=epochs, batch=32)
    study = InfoBatch(job, material, kcd.CondensationSchedule())
    rule, rng, left_out = kcd.InfoBatch(epochs), np.random.default_rng(0), 0
    for epoch in range(1, epochs + 1):
        drawn = study.draw(epoch)
        if epoch > 1:
            # What the study draws for an epoch, a run draws at the end of the one before.
            target = rule.schedule.target_of(epoch - 1, N, N)
            scores = study.scores.double().numpy()
            one = rule(scores, np.ones(N, int), np.arange(N), target, np.random.default_rng([5, epoch]))
            assert one.kept.tolist() == sorted(drawn)
            weights = study.weights(one.kept)
            assert weights is not None
            expected = np.ones(len(one.kept)) if one.sample_weights is None else one.sample_weights
            np.testing.assert_array_equal(weights.numpy(), expected)
            left_out += N - len(drawn)
        losses = torch.from_numpy(rng.gamma(1.0, size=len(drawn))).float()
        study.record(drawn, torch.empty(0), losses, torch.empty(0))
    assert left_out > 0
    assert len(drawn) == N
