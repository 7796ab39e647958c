"""What goes into the rebuilt DataLoader: the index rides with the sample.

Keys (the index, and the mix recipe if there is one) go through the worker queue, a batch at a time, and
the indices with them; the data set returns (indices, weights, samples), the collate function `Fetched`, with the user's
batch in it, and `CondensedLoader` takes that apart. Right for any number of workers, in any order, after
worker errors, with `fork` and `spawn`, since nothing is remembered on the side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch.utils.data import MapDataPipe

from ..base.padding import PADDING
from ..epoch_sampler import Blocks, EpochSampler
from ..mixing import Mixer, is_built_in
from ..recipes import MixRecipes, Steps
from ..rehearsal import check_fetching, rehearse
from ..sample_weights import SampleWeights, Weights
from .array_file import ArrayPlace
from .mixed_images import MixedImages, MixedSamples, MixingCache
from .row_order import fields_of, reordered

__all__ = ["Fetched", "IndexedCollate", "Key", "KeyBatches", "KeyedDataset", "Keys"]

#: An index; or index, how it is mixed, and whether it only pads. The second is a recipe, or the image's place among
#: those that are mixed already.
Key = int | tuple[int, Steps | int, bool]
Indices = npt.NDArray[np.int64]


class Keys(list[Key]):
    """The keys of a batch, and what is recorded for it: ``indices``, int64 [B], `PADDING` for what only pads.

    The indices stay an array on their way through the workers and back: neither a list nor a tensor, which
    would be made anew for each batch, and would travel in shared memory of its own. ``rehearse`` is whether
    mixing is tried on the samples, once they are fetched; ``images``, where those lie that are mixed already;
    ``weights``, float32 [B], what the samples' losses are multiplied by, if the set says so.
    """

    def __init__(
        self,
        keys: Iterable[Key],
        indices: Indices,
        rehearse: bool = False,
        images: ArrayPlace | None = None,
        weights: Weights | None = None,
    ) -> None:
        super().__init__(keys)
        self.indices, self.rehearse, self.images, self.weights = indices, rehearse, images, weights

    def __reduce__(self) -> Any:
        return Keys, (list(self), self.indices, self.rehearse, self.images, self.weights)

    def slots(self) -> list[int]:
        """Which of ``images`` are asked for, in order."""
        return [key[1] for key in self if type(key) is tuple and type(key[1]) is int]

    def without_padding(self, samples: Iterable[Any]) -> dict[int, Any]:
        """Index to sample."""
        pairs = zip(self.indices.tolist(), samples, strict=True)
        return {index: sample for index, sample in pairs if index != PADDING}


class KeyBatches:
    """The batch sampler: keys, which carry the mix recipe to whichever process fetches the sample."""

    def __init__(self, sampler: EpochSampler, batch_size: int, drop_last: bool) -> None:
        self.sampler, self.batch_size, self.drop_last = sampler, batch_size, drop_last
        self.start = 0
        self.epoch: int | None = None  # default: the sampler's
        # Whether samples will be mixed one day. If so, mixing is rehearsed on the first batch of an epoch: what
        # can't be mixed is found now, and not in epoch 41. Not in the middle of an epoch: a run that is resumed
        # there fetches what the first one did, and a data set's own random numbers are the same.
        self.rehearse = False
        self.cache: MixingCache | None = None

    def __iter__(self) -> Iterator[Keys]:
        # torch calls this more than once per epoch: it changes nothing, and reads everything now.
        recipes = self.sampler.recipes
        images = self.cache.of(recipes, self.sampler.kept) if self.cache and len(recipes) else None
        blocks = self.sampler.blocks(self.epoch, self.start)
        rehearse = self.rehearse and not self.start and not len(recipes)
        batches = self._batches(recipes, images, blocks, rehearse, self.sampler.sample_weights)
        return _Holding(self._lending(batches) if self.lends else batches, images)

    def _batches(
        self,
        recipes: MixRecipes,
        images: MixedImages | None,
        blocks: Blocks,
        rehearse: bool,
        sample_weights: SampleWeights | None,
    ) -> Iterator[Keys]:
        size, place_of = self.batch_size, images.place if images else None
        keys: list[Key] = []
        left: Indices = np.empty(0, np.int64)  # what does not fill a batch yet
        weights = None if sample_weights is None else np.empty(0, np.float32)
        for indices, padding in blocks:
            new: list[Key] = indices.tolist()
            slots = images.slots(indices) if images else np.full(len(indices), -1)
            marked = np.flatnonzero(recipes.contains(indices) | padding)
            about = (marked, indices[marked], slots[marked], padding[marked])
            for place, index, slot, pads in zip(*(one.tolist() for one in about), strict=True):
                new[place] = (index, recipes.steps(index) if slot < 0 else slot, pads)
            keys += new
            left = np.concatenate([left, np.where(padding, PADDING, indices)])
            if sample_weights is not None and weights is not None:
                weights = np.concatenate([weights, sample_weights.of(indices)])
            full = len(keys) - len(keys) % size
            for at in range(0, full, size):
                rows = slice(at, at + size)
                yield Keys(keys[rows], left[rows], rehearse, place_of, _rows(weights, rows))
                rehearse = False
            keys, left, weights = keys[full:], left[full:], _rows(weights, slice(full, None))
        if keys and not self.drop_last:
            yield Keys(keys, left, rehearse, place_of, weights)

    @staticmethod
    def _lending(batches: Iterator[Keys]) -> Iterator[Keys]:
        """The same batches, but that the last full one lends a sample to one of a single sample."""
        before = next(batches, None)
        for batch in batches:
            assert before is not None
            if len(batch) == 1:
                joined, indices = [*before, *batch], np.concatenate([before.indices, batch.indices])
                weights = (
                    None
                    if before.weights is None or batch.weights is None
                    else np.concatenate([before.weights, batch.weights])
                )
                before, batch = (
                    Keys(joined[part], indices[part], images=batch.images, weights=_rows(weights, part))
                    for part in (slice(-2), slice(-2, None))
                )
            yield before
            before = batch
        if before is not None:
            yield before

    @property
    def lends(self) -> bool:
        """Whether condensing left one sample over for the last batch, which BatchNorm and relational losses
        refuse. What the user's own data leaves over stays as it is."""
        left = self._left(self.start)
        return self._may_lend and left > self.batch_size and left % self.batch_size == 1

    @property
    def _may_lend(self) -> bool:
        return self.sampler.num_kept < self.sampler.num_samples and not self.drop_last and self.batch_size > 2

    def _left(self, position: int) -> int:
        """Samples of one rank from a position of the epoch on."""
        return self.sampler.length(max(0, self.sampler.num_kept - position))

    def size_at(self, position: int) -> int:
        """Samples of the batch that begins there, on one rank."""
        left = self._left(position)
        return (
            self.batch_size - 1
            if self._may_lend and left == self.batch_size + 1
            else min(self.batch_size, left)
        )

    def __len__(self) -> int:
        return self.steps(self.sampler.num_kept)

    def steps(self, size: int) -> int:
        """Batches of one rank in an epoch on ``size`` samples."""
        length = self.sampler.length(size)
        return length // self.batch_size if self.drop_last else -(-length // self.batch_size)

    def most(self, size: int) -> int:
        """The most samples that a rank draws in an epoch on ``size``: what fills no batch is left out, where that is dropped."""
        return min(self.sampler.length(size), self.steps(size) * self.batch_size)

    def plain(self) -> int:
        """How many samples this rank draws in an epoch on all of them, without what only pads."""
        return min(self.most(self.sampler.num_samples), self.sampler.share)

    def why_none(self, size: int) -> str:
        """Why an epoch on ``size`` samples has no batch; empty if it has one."""
        if self.steps(size):
            return ""
        ranks = self.sampler.num_replicas
        among = f" on {ranks} ranks" if ranks > 1 else ""
        return f"drop_last leaves nothing of {size} samples{among} in batches of {self.batch_size}"

    def tell(self, epoch: int, decision: object) -> dict[str, str]:
        """What the end of an epoch warns of: that it had no batch."""
        why = self.why_none(self.sampler.num_kept)
        return {"no batch": f"epoch {epoch} had no batch, so nothing was learned in it: {why}"} if why else {}


def _rows(weights: Weights | None, rows: slice) -> Weights | None:
    return None if weights is None else weights[rows]


class _Holding(Iterator[Keys]):
    """The batches of a pass, which keep the images that its workers read: a DataLoader's iterator holds it to its end."""

    def __init__(self, batches: Iterator[Keys], images: MixedImages | None) -> None:
        self._batches, self._images = batches, images

    def __next__(self) -> Keys:
        return next(self._batches)


class KeyedDataset:
    """Fetches by keys and returns (indices, weights, samples). Looks like the user's data set in every other way."""

    __slots__ = ("_kcd_dataset", "_kcd_mixed", "_kcd_mixer")

    def __init__(self, dataset: Any, mixer: Mixer) -> None:
        object.__setattr__(self, "_kcd_dataset", dataset)
        object.__setattr__(self, "_kcd_mixer", mixer)
        object.__setattr__(self, "_kcd_mixed", MixedSamples(dataset))

    def __getitem__(self, index: Any) -> Any:
        return self._kcd_dataset[index]

    def __getitems__(self, keys: Keys) -> tuple[Indices, Weights | None, list[Any]]:
        if keys.rehearse:
            check_fetching(self._kcd_dataset)
        samples = self._kcd_fetch_all(keys)
        if keys.rehearse:
            rehearse(self._kcd_mixer, self._kcd_dataset, keys.without_padding(samples))
        return keys.indices, keys.weights, samples

    def _kcd_fetch_all(self, keys: Keys) -> list[Any]:
        dataset = self._kcd_dataset
        mixed = self._kcd_mixed.of(keys.images, keys.slots())
        together = getattr(dataset, "__getitems__", None)
        if not together:
            return [dataset[key] if type(key) is int else self._kcd_fetch(key, mixed) for key in keys]
        # The data set's own batched fetch for what is not mixed; order restored afterwards.
        plain = {place: key for place, key in enumerate(keys) if type(key) is int}
        fetched = together(list(plain.values())) if plain else []
        if len(fetched) != len(plain):
            raise TypeError(
                f"{type(dataset).__name__}.__getitems__ must return one sample per index, got "
                f"{type(fetched).__name__} of length {len(fetched)} for {len(plain)} indices"
            )
        samples = dict(zip(plain, fetched, strict=True))
        return [
            samples[place] if place in plain else self._kcd_fetch(key, mixed)
            for place, key in enumerate(keys)
        ]

    def _kcd_fetch(self, key: Any, mixed: Callable[[int], Any]) -> Any:
        """A sample by a key that says more than the index."""
        index, steps, _ = key
        if type(steps) is int:
            return mixed(index)
        if not steps:
            return self._kcd_dataset[index]
        try:
            return self._kcd_mixer(self._kcd_dataset, index, steps)
        except Exception as error:
            if is_built_in(self._kcd_mixer):
                raise
            sources = ", ".join(str(source) for _, source, _ in steps)
            raise RuntimeError(
                f"the mixer failed for sample {index}, into which {sources} (dropped, but still read) was to be mixed: "
                f"{type(error).__name__}: {error}. Catch it in the mixer, and return dataset[{index}], if that will do"
            ) from error

    def __len__(self) -> int:
        return len(self._kcd_dataset)

    # worker_init_fn reaches the user's data set through get_worker_info().dataset, and may ask for its type.
    # (A DataLoader puts a wrapper of its own around a MapDataPipe; the user's has done so already.)
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        users = type(self._kcd_dataset)
        return KeyedDataset if issubclass(users, MapDataPipe) else users

    def __getattr__(self, name: str) -> Any:
        # copy.deepcopy asks the instance, and is to make another KeyedDataset
        if name.startswith("_kcd_") or name == "__deepcopy__":
            raise AttributeError(name)
        return getattr(self._kcd_dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._kcd_dataset, name, value)

    def __reduce__(self) -> Any:
        return KeyedDataset, (self._kcd_dataset, self._kcd_mixer)


class Fetched(NamedTuple):
    """A batch on its way from a worker.

    Attributes
    ----------
    indices : int64 array [B]
        Of the samples that were there.
    drawn : int
        How many were drawn: those that the data set gave None for, too.
    reordered : bool
        Whether the batch's rows were seen to be in another order.
    batch
        The user's.
    weights : float32 array [B] or None
        What the samples' losses are multiplied by.
    """

    indices: Indices
    drawn: int
    reordered: bool
    batch: Any
    weights: Weights | None = None


class IndexedCollate:
    """Collates (indices, weights, samples) to `Fetched`. In each process, the first batches are looked at for their order."""

    def __init__(self, collate: Any) -> None:
        self.collate = collate
        self._looks = 8  # batches to look at: one alone may be in order by chance

    def __call__(self, fetched: tuple[Indices, Weights | None, list[Any]]) -> Fetched:
        indices, weights, samples = fetched
        present = [sample is not None for sample in samples]
        there, drawn = samples, len(samples)
        if not all(present):  # they are left out, if the user's function takes them at all
            indices, there = indices[present], [sample for sample in samples if sample is not None]
            weights = None if weights is None else weights[present]
        fields = fields_of(there) if self._looks > 0 and len(there) > 1 else {}
        batch = self.collate(samples)
        self._looks -= self._looks > 0
        return Fetched(indices, drawn, bool(fields) and bool(reordered(fields, batch)), batch, weights)
