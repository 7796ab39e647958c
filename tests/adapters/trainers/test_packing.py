"""Packed sequences: V of each is a second reading, token by token; the set is the reference's; packs are made anew."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("trl", reason="trl is not installed: run make test-trainers")

import reference
import torch
from common import expected_sets, summed
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

import kcd_core as kcd
from kcd_adapters.trainers.packing import INDEX, IndexCollator, pack, sequence_values, with_index

N, VOCABULARY, LENGTH = 37, 19, 16
SCHEDULE = kcd.CondensationSchedule(ratio=0.4, stages=2, period=1)


def tokenized() -> Any:
    """Sequences of 3 to 22 tokens, some longer than a pack, with a prompt that is not trained on."""
    rng = np.random.default_rng(2)
    ids = [rng.integers(1, VOCABULARY, rng.integers(3, 23)).tolist() for _ in range(N)]
    labels = [[-100] * (1 + row % 3) + one[1 + row % 3 :] for row, one in enumerate(ids)]
    labels[5] = [-100] * len(ids[5])  # of a prompt alone
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


def student() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=VOCABULARY, n_positions=64, n_embd=16, n_layer=1, n_head=2, attn_pdrop=0, resid_pdrop=0, embd_pdrop=0
        )  # fmt: skip
        return GPT2LMHeadModel(config)


def run_of(device: Any = None, **given: Any) -> kcd.Condensation:
    sampler = kcd.CondensedSampler(N, **{"mixing": None, "num_replicas": 1, "rank": 0, **given})
    return kcd.Condensation(sampler, schedule=SCHEDULE, device=device)


def read(logits: Any, labels: Any, index: Any) -> list[tuple[int, float]]:
    """(sequence, mean entropy) of what lies in a batch, each token by itself, in float64."""
    tokens: dict[int, list[float]] = {}
    for row in range(len(labels)):
        for place in range(labels.shape[1] - 1):
            if labels[row, place + 1] != -100:
                value = reference.entropy(logits[row, place].double().tolist())
                tokens.setdefault(int(index[row, place + 1]), []).append(value)
    return [(one, sum(values) / len(values)) for one, values in tokens.items()]


def train(
    run: kcd.Condensation, data: Any, model: Any, strategy: str, epochs: int, reads: Any, **loading: Any
) -> list[int]:
    """Trains to the end of epoch ``epochs``; the number of packs of each epoch."""
    free = strategy != "wrapped"
    collate = IndexCollator(DataCollatorForLanguageModeling(pad_token_id=0, padding_free=free))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    packs = []
    while run.epoch <= epochs:
        packed = pack(data, run, seq_length=LENGTH, strategy=strategy)
        packs.append(len(packed))
        assert {one for row in packed[INDEX] for one in row} == set(run.sampler.kept)
        reads.append([])
        shuffled = torch.Generator().manual_seed(run.epoch)
        loader = DataLoader(packed, batch_size=3, shuffle=True, generator=shuffled, collate_fn=collate)
        for batch in loader:
            index, labels = batch.pop(INDEX), batch["labels"]
            output = model(
                input_ids=batch["input_ids"], position_ids=batch.get("position_ids"), labels=labels
            )
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
            logits = output.logits
            reads[-1] += read(logits.detach(), labels, index)
            run.record(**sequence_values(logits[:, :-1], targets=labels[:, 1:], index=index[:, 1:]))
        run.end_epoch()
    return packs


@pytest.mark.parametrize(("strategy", "device"), [("bfd", None), ("bfd_split", "cpu"), ("wrapped", None)])
def test_values_and_sets_of_packed_sequences(strategy: str, device: Any) -> None:
    """Also of one that is cut, and of one that goes on in another pack; packs are fewer as the set shrinks."""
    data, run, reads = with_index(tokenized()), run_of(device), []
    packs = train(run, data, student(), strategy, 3, reads)
    value, count = summed([one for epoch in reads for one in epoch], N)
    np.testing.assert_allclose(np.asarray(run.tracker.value), value, rtol=3e-6)
    np.testing.assert_array_equal(np.asarray(run.tracker.count), count)
    assert count[5] == 0
    assert sum(run.tracker.skipped.values()) == 0
    sets = expected_sets([[*epoch] for epoch in reads], N, SCHEDULE)
    assert [len(kept) for kept in sets] == [stage["kept"] for stage in run.history]
    np.testing.assert_array_equal(run.sampler.kept, sets[-1])
    assert packs[0] > packs[1] >= packs[2]
    if strategy != "bfd":
        assert count.max() > 3  # a sequence whose parts came in two batches of one epoch


def test_an_interrupted_run_goes_on_between_epochs() -> None:
    data = with_index(tokenized())
    whole, model = run_of(), student()
    train(whole, data, model, "bfd", 3, [])
    first, other = run_of(), student()
    train(first, data, other, "bfd", 1, [])
    again = run_of()
    again.load_state_dict(first.state_dict())
    train(again, data, other, "bfd", 3, [])
    np.testing.assert_array_equal(again.tracker.value, whole.tracker.value)
    for one, twin in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, twin)


def test_a_sequence_in_several_rows() -> None:
    labels = torch.tensor([[4, 4, -100, 2], [1, 3, 0, 0]])
    index = torch.tensor([[7, 7, 7, 2], [2, -1, 7, 7]])
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    got = sequence_values(logits, targets=labels, index=index)
    assert got["indices"].tolist() == [2, 7]
    entropy = kcd.entropy(logits.reshape(-1, 5)).double().reshape(2, 4)
    want = torch.stack(
        [(entropy[0, 3] + entropy[1, 0]) / 2, (entropy[0, :2].sum() + entropy[1, 2:].sum()) / 4]
    )
    torch.testing.assert_close(got["values"], want, rtol=1e-9, atol=0)
    nothing = sequence_values(logits, targets=labels, index=index * 0 - 1)
    assert [len(nothing[name]) for name in ("indices", "values")] == [0, 0]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_device_is_given_a_row_for_each_token() -> None:
    """-1 in those that are over: what is recorded is the same as from host memory, and nothing counts as skipped."""
    labels = torch.tensor([[4, 4, -100, 2], [1, 3, 0, 0]])
    index = torch.tensor([[7, 7, 7, 2], [2, -1, 7, 7]])
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    runs = run_of(), run_of("cuda")
    for run, device in zip(runs, ("cpu", "cuda"), strict=True):
        run.record(**sequence_values(logits.to(device), targets=labels.to(device), index=index.to(device)))
    np.testing.assert_allclose(runs[1].tracker.value.cpu(), runs[0].tracker.value, rtol=1e-6)
    np.testing.assert_array_equal(runs[1].tracker.count.cpu(), runs[0].tracker.count)
    assert runs[1].tracker.skipped == {"nonfinite": 0, "out_of_range": 0}


def test_the_index_of_each_token_whatever_the_collate_function_does() -> None:
    data = with_index(tokenized())
    examples = [data[i] for i in (2, 0, 3)]
    padded = IndexCollator(DataCollatorForLanguageModeling(pad_token_id=0))(examples)
    assert set(padded) == {"input_ids", "labels", "attention_mask", INDEX}
    for row, example in enumerate(examples):
        length = len(example["input_ids"])
        assert padded[INDEX][row].tolist() == [(2, 0, 3)[row]] * length + [-1] * (
            padded[INDEX].shape[1] - length
        )
    free = IndexCollator(DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True))(examples)
    assert free[INDEX].tolist() == [[one for example in examples for one in example[INDEX]]]

    def on_the_left(given: Any) -> Any:
        batch = DataCollatorForLanguageModeling(pad_token_id=0)(given)
        return {**batch, "input_ids": batch["input_ids"].flip(1)}

    for collate in (on_the_left, lambda given: {"input_ids": torch.zeros(2, 30, dtype=torch.int64)}):
        with pytest.raises(ValueError, match="its tokens first and padding after them"):
            IndexCollator(collate)(examples)
    with pytest.raises(ValueError, match="must have the column 'kcd_index': pack what with_index"):
        IndexCollator(on_the_left)([{"input_ids": [1, 2]}])


def test_refusals() -> None:
    data = with_index(tokenized())
    with pytest.raises(ValueError, match="no 'kcd_index' yet"):
        with_index(data)
    with pytest.raises(ValueError, match="must have the column 'input_ids'"):
        with_index(Dataset.from_dict({"text": ["a"]}))
    with pytest.raises(ValueError, match="use with_index"):
        pack(tokenized(), run_of(), seq_length=LENGTH)
    with pytest.raises(ValueError, match="37 sequences, got 5 rows: give it whole"):
        pack(data.select(range(5)), run_of(), seq_length=LENGTH)
    with pytest.raises(ValueError, match="mixing=None, since tokens can't be mixed, got 'fresh'"):
        pack(data, run_of(mixing="fresh"), seq_length=LENGTH)
    with pytest.raises(ValueError, match="packing is for one process"):
        pack(data, run_of(num_replicas=2), seq_length=LENGTH)
    logits, labels = torch.zeros(1, 3, 4), torch.zeros(1, 3, dtype=torch.int64)
    for wrong in (torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 3), [[0, 0, 0]]):
        with pytest.raises(ValueError, match=r"index must be an integer tensor .*\(1, 3\)"):
            sequence_values(logits, targets=labels, index=wrong)
