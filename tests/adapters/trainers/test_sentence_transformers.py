"""sentence-transformers, as examples/ and docs/trainers.md have it: what is recorded is each sample's own distance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sentence_transformers", reason="run make test-trainers")

import torch
from common import summed

SCRIPT = Path(__file__).parents[3] / "examples" / "sentence_embeddings.py"


def test_the_recipe_records_the_distance_of_each_sample(tmp_path: Path, monkeypatch: Any) -> None:
    classes, training, run = SCRIPT.read_text(encoding="utf-8").partition("\nwith tempfile")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    with torch.random.fork_rng(devices=[]):
        exec(classes, names)
    read: list[tuple[int, float]] = []

    class Watched(names["DistilTrainer"]):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, **settings: Any) -> Any:
            loss = super().compute_loss(model, inputs, **settings)
            (features,), targets = self.collect_features(inputs)
            embeddings = model(features)["sentence_embedding"].detach().double()
            labels = torch.tensor(names["data"]["label"])
            for embedding, target in zip(embeddings, targets, strict=True):
                index = int((labels == target).all(1).nonzero()[0])
                read.append((index, float((embedding - target.double()).square().mean())))
            return loss

    names["DistilTrainer"] = Watched
    with torch.random.fork_rng(devices=[]):
        exec(training + run, names)
    tracker = names["trainer"].kcd_loader.tracker
    value, count = summed(read, 480)
    assert np.array_equal(np.array(tracker.count), count)
    np.testing.assert_allclose(np.array(tracker.value), value, rtol=1e-5)
