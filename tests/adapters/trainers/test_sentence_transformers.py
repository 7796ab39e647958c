"""sentence-transformers, as docs/trainers.md has it: what is recorded is each sample's own distance."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sentence_transformers", reason="run make test-trainers")

import torch
from common import summed

PAGE = Path(__file__).parents[3] / "docs" / "trainers.md"


def test_the_recipe_records_the_distance_of_each_sample(tmp_path: Path, monkeypatch: Any) -> None:
    _, _, section = PAGE.read_text(encoding="utf-8").partition("\n## sentence-transformers\n")
    recipe, example = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)[:2]
    assert len([line for line in recipe.splitlines() if line]) <= 20
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(recipe, names)
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
        exec(example, names)
    tracker = names["trainer"].kcd_loader.tracker
    value, count = summed(read, 240)
    assert np.array_equal(np.array(tracker.count), count)
    np.testing.assert_allclose(np.array(tracker.value), value, rtol=1e-5)
