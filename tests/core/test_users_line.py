"""A warning points at the line of the user's script, through however many calls of ours or torch's it came."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import SCHEDULE, Plain, run_epoch, wrap

import kcd_core as kcd

N = 8
ROWS = torch.arange(N)
SOFT = torch.rand(N, 5, generator=torch.Generator().manual_seed(0)).softmax(1)


def by_loader() -> None:
    loader = wrap(Plain(N), batch_size=N)
    next(iter(loader))
    loader.record(SOFT)


def by_hand() -> None:
    kcd.Condensation(kcd.CondensedSampler(N), schedule=SCHEDULE).record(SOFT, indices=ROWS)


def by_tracker() -> None:
    kcd.KnowledgeValueTracker(N).update(ROWS, SOFT)


def by_loss() -> None:
    """Torch's Module calls forward()."""
    loss = kcd.CondensedLoss(torch.nn.CrossEntropyLoss(reduction="none"), kcd.KnowledgeValueTracker(N))
    loss(SOFT, ROWS % 5, indices=ROWS)


def by_stream() -> None:
    stream = kcd.CondensedStream([], key=0, slots=N, schedule=SCHEDULE)
    stream.record(SOFT, ids=ROWS)


@pytest.mark.parametrize(
    "record", [by_loader, by_hand, by_tracker, by_loss, by_stream], ids=lambda f: f.__name__
)
def test_of_probabilities(record: Callable[[], Any]) -> None:
    with pytest.warns(UserWarning, match="looks like probabilities") as caught:
        record()
    (said,) = [one for one in caught if "probabilities" in str(one.message)]
    lines, first = inspect.getsourcelines(record)
    assert said.filename == __file__
    assert first < said.lineno < first + len(lines)
    assert "SOFT" in lines[said.lineno - first] or "indices=ROWS" in lines[said.lineno - first]


def test_of_a_pass_that_begins_in_torchs_loader() -> None:
    """What is said when a batch is drawn points at the loop over the loader."""
    loader = wrap(Plain(N), batch_size=2)
    for _ in loader:
        loader.record(SOFT[:2] * 3)
        break
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_epoch(loader)
    assert [(one.filename, "recorded again" in str(one.message)) for one in caught] == [
        (run_epoch.__code__.co_filename, True)
    ]
