"""Packed sequences, as TRL's `pack_dataset` makes them: each token knows its sequence, each sequence has its value.

A pack is no sample, since its sequences change with the set. Use a loop of your own that makes packs anew in each
epoch, and a `Condensation` of the sequences:

    data = with_index(tokenized)                              # once: a column beside input_ids
    run = kcd.Condensation(kcd.CondensedSampler(len(data), mixing=None), schedule=schedule)
    for epoch in range(1, epochs + 1):
        packs = pack(data, run, seq_length=1024, strategy="bfd")
        for batch in DataLoader(packs, batch_size=4, collate_fn=IndexCollator(collator)):
            index = batch.pop("kcd_index")
            logits = model(**batch).logits
            ...
            run.record(**sequence_values(logits[:, :-1], targets=batch["labels"][:, 1:], index=index[:, 1:]))
        run.end_epoch()
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from kcd_core import Condensation, CondensedSampler
from kcd_core.base.arguments import check_callable, check_kind
from kcd_core.base.arrays import is_integer
from kcd_core.base.padding import PADDING
from kcd_core.base.rows import group_means
from kcd_core.logits import check_logits
from kcd_core.sequences import IGNORED, checked_labels, token_entropy

__all__ = ["INDEX", "IndexCollator", "pack", "sequence_values", "with_index"]

INDEX = "kcd_index"  # the column


def with_index(dataset: Any, *, column: str = "input_ids", **map_kwargs: Any) -> Any:
    """``dataset`` with a column ``kcd_index`` that gives the sequence, that is the row, of each token.

    Parameters
    ----------
    dataset : datasets.Dataset
        Tokenized. Every column must hold lists with a number for each token, as `pack_dataset` takes them.
    column : str
        The column that has a number for each token.
    **map_kwargs
        Those of ``dataset.map``.

    Raises
    ------
    ValueError
        If there is no such column, or already a ``kcd_index``.
    """
    names = dataset.column_names
    if column not in names or INDEX in names:
        raise ValueError(
            f"dataset must have the column {column!r} and no {INDEX!r} yet, got {names}: tokenize it first, and index it once"
        )

    def add(tokens: Sequence[Any], row: int) -> dict[str, list[int]]:
        return {INDEX: [row] * len(tokens)}

    return dataset.map(add, input_columns=[column], with_indices=True, **map_kwargs)


def pack(
    dataset: Any, run: Condensation, *, seq_length: int, strategy: str = "bfd", **map_kwargs: Any
) -> Any:
    """The packs of an epoch: those of the sequences in the set, in the order of the run's sampler.

    They are the same in every process, and after a resume.

    Parameters
    ----------
    dataset : datasets.Dataset
        Of `with_index`.
    run : Condensation
        The run of the same sequences. Its epoch is used.
    seq_length, strategy, **map_kwargs
        Those of TRL's ``pack_dataset``. ``"bfd"`` cuts a longer sequence; ``"bfd_split"`` and ``"wrapped"`` continue
        it in another pack.

    Raises
    ------
    ValueError
        If ``dataset`` has no column ``kcd_index`` or is of another length than the run; if the run's sampler mixes, since
        tokens can't be mixed, or draws a share of several ranks.
    """
    from trl import pack_dataset  # what else is here needs torch alone

    check_kind(run, "run", Condensation)
    check_kind(run.sampler, "run's sampler", CondensedSampler)
    if INDEX not in dataset.column_names:
        raise ValueError(
            f"dataset must have the column {INDEX!r}, got {dataset.column_names}: use with_index()"
        )
    if len(dataset) != run.sampler.num_samples:
        raise ValueError(
            f"dataset must have the run's {run.sampler.num_samples} sequences, got {len(dataset)} rows: give it whole, as "
            "with_index() made it, and not what is kept or packed of it"
        )
    if run.sampler.mixing is not None:
        raise ValueError(
            f"the run's sampler must have mixing=None, since tokens can't be mixed, got {run.sampler.mixing!r}"
        )
    if run.sampler.num_replicas > 1:
        raise ValueError(
            f"the run's sampler shares out the sequences to {run.sampler.num_replicas} ranks, whose packs would differ in "
            "number: packing is for one process"
        )
    return pack_dataset(dataset.select(run.sampler.order(run.epoch)), seq_length, strategy, map_kwargs)


class IndexCollator:
    """A collate function around another that adds ``kcd_index`` [B, T] to its batch, beside ``input_ids``; -1 is
    padding.

    Parameters
    ----------
    collate : callable
        Your collate function, for dicts; it is called without the column. It may join all rows into one, as TRL's
        does with ``padding_free=True``.

    Raises
    ------
    ValueError
        When called, if the examples have no such column; or if ``collate`` pads on the left, cuts, or moves rows.
    """

    def __init__(self, collate: Callable[[list[Any]], Mapping[str, Any]]) -> None:
        check_callable(collate, "collate", "a callable collate(examples) -> batch", places=1)
        self.collate = collate

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        if any(INDEX not in example for example in examples):
            raise ValueError(f"each example must have the column {INDEX!r}: pack what with_index() made")
        batch = dict(self.collate([{k: v for k, v in example.items() if k != INDEX} for example in examples]))
        ids = batch["input_ids"]
        index, tokens = (
            [torch.as_tensor(example[name], dtype=torch.int64) for example in examples]
            for name in (INDEX, "input_ids")
        )
        if len(ids) == 1 < len(index):
            index, tokens = [torch.cat(index)], [torch.cat(tokens)]
        if len(ids) != len(index) or not all(
            torch.equal(row[: len(own)], own) for row, own in zip(ids, tokens, strict=True)
        ):
            raise ValueError(
                "the collate function must give a row for each example, or one for all, with its tokens first and padding "
                f"after them: got input_ids {tuple(ids.shape)} for examples of {[len(one) for one in tokens]} tokens"
            )
        batch[INDEX] = torch.full(ids.shape, PADDING)
        for row, own in zip(batch[INDEX], index, strict=True):
            row[: len(own)] = own
        return batch


def sequence_values(student_logits: Any, *, targets: Any, index: Any) -> dict[str, torch.Tensor]:
    """The ``indices`` and ``values`` of packed sequences for ``record``; a value is the mean entropy of a sequence's
    tokens.

    Parameters
    ----------
    student_logits : floating tensor [B, T, C]
    targets : integer tensor [B, T]
        Their labels, shifted by the caller: see `kcd_core.sequence_entropy`. -100 is left out.
    index : integer tensor [B, T]
        Of `IndexCollator`, shifted like the labels. -1 is left out.

    Returns
    -------
    dict
        ``indices`` int64 [S] and ``values`` float64 [S], with a row for each sequence that has a token that counts.
        On a device, where counting sequences would stall the step, there is a row for each token, and surplus rows
        have index -1.

    Raises
    ------
    ValueError, TypeError, IndexError
        As `kcd_core.sequence_entropy` does, and for an ``index`` that is not integers of the labels' shape.

    Notes
    -----
    The value of a sequence that packing has cut is that of the remaining tokens. The parts of a sequence in one batch
    have one value together; parts in several batches are each recorded, and each counts.
    """
    logits = check_logits(student_logits, "student_logits", sequences=True)
    labels = checked_labels(targets, logits)
    if not isinstance(index, torch.Tensor) or not is_integer(index) or index.shape != labels.shape:
        raise ValueError(
            f"index must be an integer tensor of the targets' shape {tuple(labels.shape)}, got "
            f"{getattr(index, 'dtype', type(index).__name__)} {tuple(getattr(index, 'shape', ()))}; shift it like the labels"
        )
    labels, entropy = (torch.as_tensor(x).reshape(-1) for x in (labels, token_entropy(logits, labels)))
    index = (
        index.to(labels.device, torch.int64, non_blocking=True).reshape(-1).where(labels != IGNORED, PADDING)
    )
    ordered, order = index.sort()
    group = torch.zeros_like(ordered)  # a number for each index that is there, -1 included
    group[1:] = (ordered[1:] != ordered[:-1]).cumsum(0)
    indices = torch.full_like(ordered, PADDING).scatter_(0, group, ordered)
    values = group_means(entropy[order], group, len(ordered))
    if index.device.type == "cpu":
        values, indices = values[indices >= 0], indices[indices >= 0]
    return {"indices": indices, "values": values}
