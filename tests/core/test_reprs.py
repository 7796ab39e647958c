"""What objects say of themselves at a prompt and in a notebook."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset, default_collate

import kcd_core as kcd


def own_collate(samples):
    return default_collate(samples)


def own_init(worker):
    pass


def wrapped(**settings):
    data = TensorDataset(torch.arange(20.0).reshape(10, 2))
    schedule = kcd.CondensationSchedule(0.6, stages=1, period=1)
    return kcd.wrap_loader(DataLoader(data, 4, **settings), schedule=schedule, mixing=None, seed=3)


def test_a_loader_says_which_settings_it_carries_over():
    assert repr(wrapped()) == (
        "CondensedLoader(TensorDataset, kept=10 of 10, epoch=1, stage=0, next stage due after epoch 1, batch_size=4)"
    )
    own = wrapped(
        drop_last=True,
        num_workers=2,
        collate_fn=own_collate,
        timeout=30,
        worker_init_fn=own_init,
        generator=torch.Generator().manual_seed(5),
        persistent_workers=True,
        prefetch_factor=3,
    )
    told = repr(own).partition("batch_size=4, ")[2].removesuffix(")").split(", ")
    assert sorted(told) == [
        "collate_fn=own_collate",
        "drop_last=True",
        "generator=Generator(seed 5)",
        "num_workers=2",
        "persistent_workers=True",
        "prefetch_factor=3",
        "timeout=30",
        "worker_init_fn=own_init",
    ]
    assert "prefetch_factor" not in repr(wrapped(num_workers=1))  # torch's default, then


def test_a_sampler_says_where_it_is():
    settings = "epoch=1, stage=0, shuffle=True, seed=7"
    sampler = kcd.CondensedSampler(10, seed=7)
    assert repr(sampler) == f"CondensedSampler(kept=10 of 10, {settings}, mixing='cumulative')"
    unmixed = kcd.CondensedSampler(10, seed=7, mixing=None)
    assert repr(unmixed) == f"CondensedSampler(kept=10 of 10, {settings}, mixing=None)"
    part = kcd.CondensedSampler(10, seed=7, num_replicas=2, rank=1)
    part.install(kcd.CondensedSet(np.arange(6), 10))
    assert "kept=6 of 10" in repr(part)
    assert "rank=1 of 2" in repr(part)


class Cells(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.rows, self.rest = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])

    def handle_data(self, data):
        if self.lasttag in ("td", "th"):
            self.rows[-1].append(data)
        else:
            self.rest += data


def test_a_history_is_a_table_in_a_notebook():
    loader = wrapped()
    assert "no stage ended yet" in loader.history._repr_html_()
    for (x,) in loader:
        loader.record(x)
    loader.end_epoch()
    assert repr(loader.history) == "CondensationHistory(num_samples=10, stages=1)"
    cells = Cells(loader.history._repr_html_())
    text = str(loader.history).splitlines()
    assert cells.rows == [line.split() for line in text[:2]]
    assert cells.rows[1][:3] == ["1", "1", "6"]
    assert cells.rest == text[2]
