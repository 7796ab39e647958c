"""A host's DataLoader, iterated through a rebuilt one whose keys carry index and mix recipe.

The host's loader itself is not changed.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from time import monotonic
from typing import Any

import torch
from torch.utils.data import DataLoader, RandomSampler

from kcd_core import CondensationHistory, CondensedSet, KnowledgeValueTracker
from kcd_core.base.dataset_identity import dataset_identity
from kcd_core.base.same_samples import SameSamples
from kcd_core.layout import WholeLayout
from kcd_core.loading.keys import Fetched, KeyBatches
from kcd_core.loading.mixed_images import mixing_cache_of
from kcd_core.loading.rebuild import rebuild, understand
from kcd_core.loading.row_order import REORDERED
from kcd_core.mixing import Mixer, default_mixer, mix_samples
from kcd_core.run import Run, end_together

from ..profiles import Profile
from ..settings import Settings
from .alignment import Pass
from .classes import Classes
from .gate import HostGate
from .order import HostOrder

__all__ = ["HostedLoader", "OrderedError", "UnfollowedError", "shuffles"]


class UnfollowedError(TypeError):
    """A loader that can't be the student's, and why."""


class OrderedError(UnfollowedError):
    """A loader that does not shuffle, so not the student's."""


class HostedLoader:
    """A shuffled loader of the host's, which may turn out to be the one the student trains on.

    Attributes
    ----------
    sampler : HostOrder
    run : Run
    about : dict
        What tells its samples from others: see `dataset_identity`.
    passes : list of Pass
        Those that are no epoch yet, in the order in which they began. As a rule, one.
    unmixable : Exception or None
        Why its samples can't be mixed, or not as was asked for: an error if it turns out to be the student's loader.
    unlabelled : str
        Why the labels of its batches were not found; empty if they were.
    classes : Classes or None
        Those labels, where a history is written.
    gate : HostGate or None
        Which rows the teacher is asked for, with ``--ask``.

    Raises
    ------
    UnfollowedError
        If the loader can't be the student's: ordered, iterable-style, empty, or one that is rebuilt.
    """

    def __init__(self, loader: DataLoader[Any], profile: Profile, settings: Settings) -> None:
        batching = _shuffled(loader)
        self._profile, self._settings = profile, settings
        self.passes: list[Pass] = []
        self.unmixable: Exception | None = None
        self.unlabelled = ""
        self._begin(loader, batching)

    def _begin(self, loader: DataLoader[Any], batching: tuple[int, bool]) -> None:
        settings = self._settings
        mixing = settings.recipes(self._mixer_of(loader.dataset))
        self.sampler = HostOrder(_order(loader), len(loader.dataset), mixing=mixing)  # type: ignore[arg-type]
        self.sampler.adopts_mixing = settings.mixing == "auto"
        self.about = dataset_identity(loader.dataset)
        layout = WholeLayout(
            self.sampler, KnowledgeValueTracker(self.sampler.num_samples, value=settings.value)
        )
        layout.call = ""  # the engine ends passes that something was observed in, and no others
        self.run = Run(
            layout,
            settings.schedule(),
            alpha=settings.alpha,
            min_weight=settings.min_weight,
            select=settings.select,
            own={"dataset": self.about},
            samples=SameSamples(loader.dataset),
        )
        self.gate = None if settings.ask is None else HostGate(layout, settings)
        self.classes = None if settings.history is None else Classes(self.sampler.num_samples)
        self._attach(loader, batching)

    def restart(self) -> bool:
        """Begin anew, with no values and no epochs, in the pass under way: it draws all of the data, as a first one does.

        Returns
        -------
        bool
            False, and nothing done, if a set was chosen already.
        """
        loader = self.loader
        if loader is None or len(self.history):
            return False
        self.passes = [one for one in self.passes if not one.observed]
        self._begin(loader, _shuffled(loader))
        return True

    def _attach(self, loader: DataLoader[Any], batching: tuple[int, bool]) -> None:
        # Weakly: whether the host still has it tells whether it made another one instead.
        self._loader = weakref.ref(loader)
        self.dataset = loader.dataset
        self.mixer = self._mixer_of(loader.dataset)
        self.batches = KeyBatches(self.sampler, *batching)
        self.batches.rehearse = self.run.mixing is not None
        try:
            self.batches.cache = mixing_cache_of(self._settings.cache_bytes, self.mixer, loader.dataset)
        except ValueError as error:  # this may not be the student's loader
            self.unmixable = ValueError(f"{error}. With kcd run and kcd patch: leave out --mixing-cache")
        self._inner: DataLoader[Any] | None = None

    def _mixer_of(self, dataset: Any) -> Mixer:
        mixer = default_mixer(dataset)
        if mixer is mix_samples and self._profile.fields is not None:
            return partial(mix_samples, fields=self._profile.fields)
        return mixer

    @property
    def loader(self) -> DataLoader[Any] | None:
        """The host's own; None once the host has let go of it."""
        return self._loader()

    @property
    def tracker(self) -> KnowledgeValueTracker:
        """V and F."""
        return self.run.tracker

    @property
    def history(self) -> CondensationHistory:
        """What each stage did."""
        return self.run.history

    def waits(self, rows: int) -> bool:
        """Whether a batch of this size waits for its prediction."""
        return any(len(indices) == rows for one in self.passes for indices, _ in one.pending)

    @property
    def drawn(self) -> int:
        """Samples, in passes that something was observed in."""
        return sum(one.drawn for one in self.passes if one.observed)

    @property
    def observed(self) -> int:
        """Samples."""
        return sum(one.observed for one in self.passes)

    def record(self, one: Pass, indices: Any, logits: torch.Tensor, targets: torch.Tensor) -> None:
        """Record the prediction for a batch of the pass ``one``."""
        one.observed += self.run.record(logits, indices=indices, targets=targets)

    def end_epoch(self, more: Callable[[], str] = str) -> CondensedSet | None:
        """End the epoch: see `end_together`."""
        gates = () if self.gate is None else (self.gate.run,)
        chosen: CondensedSet | None = end_together(self.run, *gates, more=more)[0]
        return chosen

    def follow(self, loader: DataLoader[Any]) -> bool:
        """Go on with a loader that the host made to replace the one it let go of, if it is over the same data.

        Returns
        -------
        bool
            Whether it is: over the same data set, or over one of the same type whose samples are known to be the same.

        Raises
        ------
        UnfollowedError
            As the constructor does.
        RuntimeError
            If the data set is another one of the same type and length, and has other samples, or nothing that shows which
            it has.
        """
        batching, dataset = _shuffled(loader), loader.dataset
        if dataset is not self.dataset:
            if type(dataset) is not type(self.dataset) or len(dataset) != self.sampler.num_samples:  # type: ignore[arg-type]
                return False
            about = dataset_identity(dataset)
            if len(about) == 1 or about != self.about:
                raise RuntimeError(
                    f"the host made a new loader over a new {type(dataset).__name__}, and its `targets` do not show "
                    "that its samples are those of the one before, in the same order: let the script make "
                    "its data set once, before the first epoch, or run without KCD"
                )
            self.run.samples.dataset = dataset
        self.sampler.follow(_order(loader))
        self._attach(loader, batching)
        return True

    def __len__(self) -> int:
        return len(self.batches)

    def drawn_of(self, size: int) -> int:
        """Samples that all ranks together draw in an epoch on a set of ``size``.

        What only pads is none of them, and neither is what does not fill a batch, or is left over by the ranks, where that
        is dropped.
        """
        sampler, most = self.sampler, self.batches.most(size)
        return sum(
            min(most, len(range(rank, size, sampler.num_replicas))) for rank in range(sampler.num_replicas)
        )

    def take_over(self, *, last: bool = False) -> list[Pass]:
        """Take out the passes that are over; all of them at the ``last``."""
        over = [one for one in self.passes if last or one.over]
        self.passes = [one for one in self.passes if one not in over]
        return over

    def start(self, end_passes: Callable[[], bool] | None = None) -> Iterator[Any]:
        """A pass over the set in force: the host's batches.

        While the host has another iterator that is not used up, it is not known whether it looks at
        the data in the middle of an epoch, or begins the next. It is as soon as the first batch is asked
        for: ``end_passes()`` ends those that are over by then, and tells whether there is another set now.
        """
        self.passes = [one for one in self.passes if one.observed or not one.over]
        now = Pass(self.sampler.num_kept)
        doubtful = end_passes is not None and any(not one.over for one in self.passes)
        self.passes.append(now)
        batches = self._run(now, self._draw(), end_passes if doubtful else None)
        now.iterator = weakref.ref(batches)
        return batches

    def _draw(self) -> Iterator[Any]:
        # Rebuilt for every pass, so that what the host sets on its loader counts; persistent workers
        # are the exception, and are renewed when the set changes.
        loader = self.loader
        assert loader is not None
        if self._inner is None or not loader.persistent_workers:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of too many workers, say: the host's loader did
                self._inner = rebuild(loader, self.batches, self.mixer, dataset=self._dataset())
        return iter(self._inner)  # called by start(): a DataLoader draws its base seed at iter()

    def renew(self) -> None:
        """Take note that the sampler has a new set: persistent workers may know an old view of the data."""
        if self._dataset() is not self.dataset:
            self._inner = None

    def _dataset(self) -> Any:
        dataset, sampler = self.dataset, self.sampler
        if sampler.num_kept == sampler.num_samples or self._settings.negatives == "full":
            return dataset
        return self._profile.condensed(dataset, sampler.kept)

    def _run(
        self, now: Pass, batches: Iterator[Any], end_passes: Callable[[], bool] | None
    ) -> Generator[Any, None, None]:
        begin = monotonic()
        if end_passes is not None and end_passes():
            now.size = self.sampler.num_kept
            batches = self._draw()
        for fetched in self._rehearsed(batches):
            if fetched.reordered:
                raise TypeError(REORDERED)
            fields = self._labels(fetched.batch, len(fetched.indices))
            if fields:
                now.pending.append((fetched.indices, fields))
            now.drawn += int((fetched.indices >= 0).sum())
            yield fetched.batch
            now.seconds = monotonic() - begin
        now.exhausted = True

    def _rehearsed(self, batches: Iterator[Fetched]) -> Iterator[Fetched]:
        """The batches, also if the first can't be mixed: this may not be the student's loader."""
        if self.batches.rehearse:
            try:
                first = next(batches, None)
            except Exception as error:  # if it is the host's own, it comes again
                self.unmixable = TypeError(
                    f"{error}. With kcd run and kcd patch: give --mixing none, or let the profile name the images' `fields`"
                )
                self.unmixable.__cause__, self.batches.rehearse = error, False
                batches = self._draw()
            else:
                yield from () if first is None else (first,)
        yield from batches

    def _labels(self, batch: Any, rows: int) -> dict[str, torch.Tensor]:
        """What may be the labels of a batch, and never the images: those would be kept alive here."""
        try:
            targets = self._profile.targets(batch)
        except Exception as error:  # as of a loader of something else
            self.unlabelled = f"{type(error).__name__}: {error}"
            return {}
        fields = targets if isinstance(targets, Mapping) else {"": targets}
        # Copies: the host may write to its own.
        found = {
            name: one.clone()
            for name, one in fields.items()
            if isinstance(one, torch.Tensor) and one.shape == (rows,)
        }
        if not found:
            given = ", ".join(
                f"{type(one).__name__} {list(one.shape) if isinstance(one, torch.Tensor) else ''}".rstrip()
                for one in fields.values()
            )
            self.unlabelled = f"it gives {given or 'nothing'}"
        return found


def shuffles(loader: DataLoader[Any]) -> bool:
    """Whether a loader is one that a student might be trained on."""
    try:
        _shuffled(loader)
    except UnfollowedError:  # ordered; or one that is rebuilt, of which the host knows nothing
        return False
    return True


def _shuffled(loader: DataLoader[Any]) -> tuple[int, bool]:
    """Batch size and drop_last of a loader that may be the student's, or UnfollowedError."""
    try:
        batching, sampler = understand(loader), _order(loader)
    except (TypeError, ValueError) as error:
        raise UnfollowedError(str(error).partition(";")[0]) from error
    if not getattr(sampler, "shuffle", isinstance(sampler, RandomSampler)):
        raise OrderedError("the loader does not shuffle")
    return batching


def _order(loader: DataLoader[Any]) -> Any:
    """The sampler that its batches come from; ``loader.sampler`` is another one where it was given ``batch_sampler=``."""
    return loader.batch_sampler.sampler  # type: ignore[union-attr]
