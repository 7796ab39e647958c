"""Reads an epoch: passes over the rebuilt DataLoader, and the place in the epoch that they are at."""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from ..account import Cost
from ..base.arrays import is_tensor, to_numpy
from ..base.padding import PADDING
from ..run import Run
from .alignment import Drawn, Pass, Place
from .asking import Asking
from .keys import Fetched, KeyBatches
from .prefetch import Prefetch, Prefetched
from .row_order import REORDERED

__all__ = ["PassIterator", "Reader"]


class Reader:
    """What `CondensedLoader` reads by.

    Parameters
    ----------
    run : Run
    batches : KeyBatches
        Of the run's sampler.
    inner : DataLoader
        The user's, rebuilt around ``batches``: it yields `Fetched`.
    dataset
        The user's.
    with_indices : bool
        Whether to yield (indices, batch).
    prefetch : callable, optional
        What looks ahead between ``inner`` and the loop.
    asking : Asking, optional
        Which rows the teacher is asked for.

    Attributes
    ----------
    lock : RLock
        Held while a batch is noted, recorded or saved: one thread may fetch, another record, a third save.
    under_way : ((Pass, Drawn) or None, by indices?, batches of the tracker before) or None
        The record that is being made.
    """

    def __init__(
        self,
        run: Run,
        batches: KeyBatches,
        inner: DataLoader[Any],
        dataset: Any,
        with_indices: bool,
        prefetch: Prefetch | None = None,
        asking: Asking | None = None,
    ) -> None:
        self.asking = asking
        self.batches, self.inner, self.dataset = batches, inner, dataset
        self.run, self._with_indices, self._prefetch = run, with_indices, prefetch
        self._main = copy.copy(
            inner
        )  # with persistent workers, it has one iterator, which each pass begins anew
        self._place = Place(run.epoch)
        self._iterators: list[weakref.ref[PassIterator]] = []
        self._reordered = self._recorded_before = self._in_step = False
        self.lock = threading.RLock()
        self.under_way: tuple[tuple[Pass, Drawn] | None, bool, int] | None = None

    @property
    def place(self) -> Place:
        """Of an epoch that was ended since, nothing is left: so an end is whole as soon as the run's is."""
        with self.lock:
            self.settle()
        if self._place.epoch != self.run.epoch:
            self.go_to(Place(self.run.epoch))
        return self._place

    def go_to(self, place: Place) -> None:
        """Be at another place; what earlier passes still owe is nobody's business there."""
        self._place, self.under_way = place, None
        for one in self._held():
            one.owed.clear()

    def _held(self) -> list[Pass]:
        """The passes that have begun and that somebody still holds."""
        return [
            one.current for ref in self._iterators if (one := ref()) is not None and one.current is not None
        ]

    def begin(self) -> tuple[Pass, Iterator[Fetched]]:
        """A pass, at its first batch."""
        samples = self.run.sampler.num_samples
        if len(self.dataset) != samples:
            raise RuntimeError(
                f"the data set has {len(self.dataset)} samples now, and had {samples} when its loader was wrapped: a run "
                "is of one data set. Wrap a DataLoader over the one of now with wrap_loader()"
            )
        self.run.begin_pass()
        self.run.account.begin()
        now = Pass(self.place, self._in_step)
        self.batches.start, self.batches.epoch = now.end, self.run.epoch
        under_way = any(not one.exhausted for one in self._held())
        fetched: Iterator[Fetched] = iter(copy.copy(self.inner) if under_way else self._main)
        return now, Prefetched(self._prefetch, fetched) if self._prefetch else fetched

    def note(self, now: Pass, fetched: Fetched) -> Any:
        """What is yielded for a batch that was fetched."""
        with self.lock:
            self._reordered |= fetched.reordered
            now.note_batch(fetched.indices, fetched.drawn * self.run.sampler.num_replicas, fetched.batch)
            self._count(now.place, fetched.indices)
            now.place.weights = fetched.weights
        if not self._with_indices:
            return fetched.batch
        self._check_order()
        return torch.from_numpy(fetched.indices.copy()), fetched.batch  # the caller's own

    def _count(self, place: Place, indices: Any) -> None:
        """What a batch costs, and which of its rows the teacher is asked for."""
        samples = indices != PADDING
        asking, recipes = self.asking, self.run.sampler.recipes
        place.asked = samples if asking is None else asking.asked(indices, recipes)
        self.run.account.touch()
        self.run.account.add(Cost(int(np.count_nonzero(samples)), int(np.count_nonzero(place.asked))))

    def end_pass(self, now: Pass) -> None:
        """A pass has yielded all of its batches."""
        now.exhausted = True
        self.run.account.touch()

    @property
    def asked(self) -> Any:
        """For which rows of the batch yielded last in this epoch the teacher is asked: bool [B]."""
        self._check_last("asked", "loader.gate.asked(indices)" if self.asking else "indices != -1")
        return self.place.asked

    @property
    def weights(self) -> Any:
        """What the losses of the batch yielded last in this epoch are multiplied by: float32 [B], or None."""
        self.run.sampler.note_weights_read()
        if self.place.weights is not None:
            self._check_last("sample_weights", "loader.sampler.weights_of(indices)")
        return self.place.weights

    @property
    def indices(self) -> torch.Tensor | None:
        """Of the batch yielded last in this epoch. A copy."""
        self._check_order()
        last = self.place.last
        return None if last is None else torch.from_numpy(last.copy())

    def left(self, position: int) -> int:
        """Batches of the epoch from a position on."""
        return self.batches.steps(max(0, self.run.sampler.num_kept - position))

    @property
    def drawn(self) -> int:
        """Up to which the pass under way has yielded; between passes, where the next would begin."""
        place = self.place
        passes = [one for one in self._held() if one.place is place]
        if not passes:
            return place.position
        return (place.current if place.current in passes else passes[0]).end

    # -- which batch a record is of ----------------------------------------------------------------

    def drawn_last(self, given: Any) -> tuple[Pass, Drawn]:
        """The batch yielded last; RuntimeError unless it is certain that what is ``given`` is recorded of it."""
        self._check_order()
        place = self.place
        current = place.current
        if current is None and any(one.place is not place and not one.exhausted for one in self._held()):
            raise RuntimeError(
                "record() was called while a pass is under way that began before end_epoch() or load_state_dict() was "
                "called: call these after the loop over the loader, not in it. If they are, this batch is not of the "
                "loader that wrap_loader returned"
            )
        if current is None:
            raise RuntimeError(
                "record() was called before this pass yielded a batch: iterate the loader that wrap_loader "
                "returned, and not the one that it was given"
            )

        def on_device() -> bool:
            in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
            return in_use or (is_tensor(given) and not given.is_cpu)

        return current, current.check(self._held(), self.left, on_device)

    def settle(self) -> None:
        """Note the record under way as soon as the tracker has it, whatever interrupts: the two are saved together."""
        under_way = self.under_way
        if under_way is None or under_way[2] == self.run.tracker.batches:
            return
        owed, by_indices, _ = under_way
        if owed is not None:
            owed[0].note_record(owed[1], by_indices=by_indices)
            self._in_step |= not by_indices
            for other in () if by_indices else self._held():
                if other is not owed[0]:
                    other.owed.clear()
        self.under_way = None

    def skip(self, indices: Any) -> None:
        """The batch yielded last, or the one with these indices, owes no record."""
        with self.lock:
            current = self.place.current
            found = None
            if indices is not None:
                found = self.drawn_of(indices)
            elif current is not None and current.owed:
                found = current, current.owed[-1]
            if found is not None:
                found[0].note_done(found[1], by_indices=indices is not None)

    def drawn_of(self, indices: Any) -> tuple[Pass, Drawn] | None:
        """The batch that a record with explicit indices is of, if it owes one; the newest, if it is of several.

        Raises
        ------
        ValueError
            If no batch held one of the samples. Not looked at on a device.
        """
        place = self.place
        passes = [one for one in (place.current, place.recording) if one is not None and one.owed]
        if is_tensor(indices) and not indices.is_cpu:
            return (passes[0], passes[0].owed[0]) if passes else None
        host = to_numpy(indices)
        samples = self.run.sampler.num_samples
        if passes and np.array_equal(host, passes[0].owed[-1].indices):
            return passes[0], passes[0].owed[-1]
        if host.ndim != 1 or host.dtype.kind not in "iu" or not len(host):
            return None  # the tracker says what is wrong
        host = host[host != PADDING]
        if not len(host) or host.min() < 0 or host.max() >= samples:
            return None
        found = next(
            ((one, drawn) for one in passes if (drawn := one.holding(int(host[-1]))) is not None), None
        )
        # As a rule one batch, or a few that are recorded together: then nothing has to be looked up.
        if (
            found is None
            or not np.isin(host, np.concatenate([drawn.indices for drawn in found[0].owed])).all()
        ):
            self._check_drawn(host)
        return found

    def _check_drawn(self, indices: Any) -> None:
        """ValueError if samples are recorded that no batch can have held."""
        place = self.place
        if not place.reached:
            return  # a loop that draws in another way
        if place.epoch > 1:
            self._recorded_before = self._recorded_before or bool((self.run.tracker.count > 0).any())
            if self._recorded_before:
                return  # all of the data was drawn, and may be recorded again, as from a replay buffer
        strangers = indices[self.run.sampler.places(indices, place.epoch) >= place.reached]
        if len(strangers):
            raise ValueError(
                f"indices has samples that no batch has held yet, {strangers[:5].tolist()} for instance: it must be "
                "positions in the wrapped data set (of a Subset: in the Subset, not in what it is of; see return_index). "
                "What was not drawn from this loader is recorded by loader.tracker.update(indices, logits)"
            )

    def _check_last(self, name: str, by_index: str) -> None:
        """RuntimeError unless what is known of the batch yielded last is of the one that the loop is at."""
        self._check_order()
        current = self.place.current
        if current is not None and current.ahead:
            raise RuntimeError(
                f"{name} belongs to the batch fetched last, and this loop fetches ahead of the one that it trains on (a "
                f"prefetcher? another thread?): take it by index, {by_index}, or pass the prefetcher to "
                "wrap_loader(prefetch=...)"
            )

    def _check_order(self) -> None:
        if self._reordered:
            raise RuntimeError(REORDERED)

    def __iter__(self) -> PassIterator:
        iterator = PassIterator(self)
        self._iterators = [*(ref for ref in self._iterators if ref() is not None), weakref.ref(iterator)]
        return iterator

    def __getstate__(self) -> dict[str, Any]:
        # A copy in another process has no part in a pass that is under way here: it goes on as a resumed run does.
        place = self.place
        copied = Place(place.epoch, place.position, place.recorded)
        state = {**self.__dict__, "_place": copied, "_iterators": [], "_main": copy.copy(self.inner)}
        del state["lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, lock=threading.RLock(), under_way=None)


class PassIterator:
    """Yields the user's batches and keeps the pass up to date. The pass begins at the first batch.

    No generator, which would end at a worker's exception: a DataLoader's iterator goes on after it.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._batches: Iterator[Fetched] = iter(())
        self.current: Pass | None = None

    def __iter__(self) -> PassIterator:
        return self

    def __next__(self) -> Any:
        reader = self._reader
        if self.current is None:
            self.current, self._batches = reader.begin()
        current = self.current
        try:
            fetched = next(self._batches)
        except StopIteration:
            reader.end_pass(current)
            raise
        except Exception as error:
            if not str(error).startswith("DataLoader timed out"):  # then, the batch comes with the next call
                batches = reader.batches
                current.note_loss(batches.size_at(current.next) * batches.sampler.num_replicas)
            raise
        return reader.note(current, fetched)
