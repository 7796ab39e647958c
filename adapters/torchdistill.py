"""KCD as a plugin of torchdistill, by its YAML alone; nothing of torchdistill is patched.

::

    dependencies:
      - name: 'kcd_adapters.torchdistill'
    train:
      train_data_loader:
        dataset_wrapper: {key: 'KCDDatasetWrapper', kwargs: {}}
        batch_sampler:
          key: 'KCDBatchSampler'
          kwargs: {batch_size: 128, drop_last: False, ratio: 0.7, stages: 6, period: 40}
        sampler: {class_or_func: !import_get {key: 'torch.utils.data.RandomSampler'}, kwargs: {}}
        kwargs: {num_workers: 2}
      student: {forward_proc: 'kcd_forward_batch_only'}
      post_epoch_process: 'kcd_default_post_epoch_process_with_teacher'

Every forward and post-epoch process that torchdistill has is there under its own name after ``kcd_``.
The order stays that of the sampler in the configuration, `DistributedSampler` included. A data set wrapper
of torchdistill's goes inside: ``kwargs: {wrapper: {key: 'CRDDatasetWrapper', kwargs: {...}}}``.

Each training stage with a loader of its own starts anew. A resumed run does, too: torchdistill's
checkpoints have no place for more.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, DistributedSampler, RandomSampler

from kcd_core import CondensationHistory, KnowledgeValueTracker, distributed
from kcd_core.condense import condense_stage
from kcd_core.keyed import PADDING, Key
from kcd_core.mixing import default_mixer

from .contrast import restrict
from .files import write_whole
from .hosted import HostBatches, HostOrder
from .settings import Settings

__all__ = ["KCDBatchSampler", "KCDDatasetWrapper"]

_datasets = import_module("torchdistill.datasets.registry")
_wrappers = import_module("torchdistill.datasets.wrapper")
_processes = import_module("torchdistill.core.interfaces.registry")
import_module("torchdistill.core.interfaces.forward_proc")  # which fill the registry
import_module("torchdistill.core.interfaces.post_epoch_proc")

INDEX = "kcd_index"  # the sample's place in the data set, in torchdistill's supplementary dict


class KCDDatasetWrapper(Dataset[Any]):
    """Fetches by the keys that `KCDBatchSampler` yields, mixes, and puts the index where recording finds it.

    Parameters
    ----------
    org_dataset : Dataset
        Returns ``(sample, target)``.
    wrapper : dict, optional
        ``key``, ``args`` and ``kwargs`` of another registered wrapper, to be put around the data set first.
    """

    def __init__(self, org_dataset: Any, wrapper: Mapping[str, Any] | None = None) -> None:
        self.org_dataset = org_dataset
        self.inner: Any
        if wrapper is None:
            self.inner = _wrappers.BaseDatasetWrapper(org_dataset)
        else:
            make = _datasets.get_dataset_wrapper(wrapper["key"])
            self.inner = make(org_dataset, *(wrapper.get("args") or ()), **(wrapper.get("kwargs") or {}))
        self.view = self.inner  # with CRD's negatives restricted to what is kept
        self.mixer = default_mixer(org_dataset)

    def __getitem__(self, key: Key) -> tuple[Any, Any, dict[str, Any]]:
        index, steps, padding = (key, (), False) if isinstance(key, int) else key
        view = self.view
        if steps:  # the wrapper inside sees the mixed sample where it would see the plain one
            view = copy.copy(view)
            view.org_dataset = _Mixed(self.org_dataset, index, self.mixer(self.org_dataset, index, steps))
        sample, target, supplement = view[index]
        return sample, target, {**supplement, INDEX: PADDING if padding else index}

    def __len__(self) -> int:
        return len(self.org_dataset)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "org_dataset":
            raise AttributeError(name)
        return getattr(self.org_dataset, name)


class _Mixed:
    """A data set in which one sample is another."""

    def __init__(self, dataset: Any, index: int, sample: Any) -> None:
        self._dataset, self._index, self._sample = dataset, index, sample

    def __getitem__(self, index: int) -> Any:
        return self._sample if index == self._index else self._dataset[index]

    def __len__(self) -> int:
        return len(self._dataset)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_dataset":
            raise AttributeError(name)
        return getattr(self._dataset, name)


class KCDBatchSampler:
    """Batches of the condensed set, in the order of the sampler it is given; and KCD's state.

    Parameters
    ----------
    sampler : RandomSampler or DistributedSampler
        Over a `KCDDatasetWrapper`. It stays reachable as ``.sampler``, whose ``set_epoch`` torchdistill calls.
    batch_size : int
    drop_last : bool
    **settings
        Of `kcd_adapters.settings.Settings`: ``ratio``, ``stages``, ``period`` and so on.

    Raises
    ------
    TypeError
        If the sampler does not shuffle, or the data set is not wrapped.
    ValueError
        If a setting is outside its range, or teacher outputs are cached while images are mixed.
    """

    current: KCDBatchSampler | None = (
        None  # torchdistill's processes are plain functions: no place for it there
    )

    def __init__(self, sampler: Any, batch_size: int, drop_last: bool = False, **settings: Any) -> None:
        self.settings = Settings.from_dict(settings)
        self.schedule = self.settings.schedule()
        shuffled = (type(sampler) is RandomSampler and not sampler.replacement) or (
            isinstance(sampler, DistributedSampler) and sampler.shuffle
        )
        if not shuffled:
            raise TypeError(
                f"KCDBatchSampler needs a RandomSampler without replacement or a shuffling DistributedSampler, "
                f"got {type(sampler).__name__}"
            )
        dataset = sampler.dataset if isinstance(sampler, DistributedSampler) else sampler.data_source
        if not isinstance(dataset, KCDDatasetWrapper):
            raise TypeError(
                "KCDBatchSampler needs dataset_wrapper: {key: 'KCDDatasetWrapper', kwargs: {}} in the same "
                f"train_data_loader, got a {type(dataset).__name__}"
            )
        mixing = None if self.settings.mixing == "none" else self.settings.mixing
        if mixing and any(hasattr(d, "cache_dir_path") for d in (dataset.inner, dataset.org_dataset)):
            raise ValueError(
                "cached teacher outputs are wrong for mixed images: use mixing: 'none', or no cache"
            )
        self.sampler, self.batch_size, self.drop_last = sampler, int(batch_size), bool(drop_last)
        self.dataset = dataset
        self.order = HostOrder(sampler, len(dataset), mixing=mixing)
        self.tracker = KnowledgeValueTracker(len(dataset), value=self.settings.value)
        self.history = CondensationHistory(len(dataset))
        self.epoch = self.drawn = self.observed = 0
        self._batches = HostBatches(self.order, self.batch_size, self.drop_last)
        self._moved = False
        KCDBatchSampler.current = self

    def __iter__(self) -> Iterator[list[Any]]:
        if self.observed:
            raise RuntimeError(
                "an epoch began before KCD ended the one before: use post_epoch_process: "
                "'kcd_default_post_epoch_process_with_teacher' (or 'kcd_' and the one you have)"
            )
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)

    def record(self, indices: torch.Tensor, output: torch.Tensor, targets: Any) -> None:
        """Record the student's logits of one batch."""
        if output.is_cuda and not self._moved:
            self.tracker.to(output.device)
            self._moved = True
        if self.order.num_replicas > 1 and bool((indices < 0).any()):  # what pads a rank's length
            rows = torch.nonzero(indices >= 0).squeeze(1)
            indices, rows = indices[rows], rows.to(output.device)
            output, targets = output[rows], None if targets is None else targets[rows]
        self.tracker.update(indices, output, targets=targets)
        self.observed += len(indices)

    def end_epoch(self, loader: Any) -> None:
        """Condense, if a stage ends."""
        if not self.observed:
            raise RuntimeError(
                "KCD saw no prediction of the student in this epoch: use student: {forward_proc: "
                "'kcd_forward_batch_only'} (or 'kcd_' and the one you have)"
            )
        self.epoch += 1
        self.drawn, self.observed = self.drawn + self.observed, 0
        if not self.schedule.due(self.epoch):
            return
        settings = self.settings
        chosen, value, count = condense_stage(
            self.tracker,
            self.order,
            self.schedule,
            alpha=settings.alpha,
            min_weight=settings.min_weight,
            select=None,
        )
        self.history.append(chosen, value, count, epoch=self.epoch, alpha=settings.alpha)
        if settings.negatives == "kept":
            self.dataset.view = restrict(self.dataset.inner, chosen.kept)
            if self.dataset.view is not self.dataset.inner and getattr(loader, "persistent_workers", False):
                raise ValueError(
                    "persistent workers don't see that CRD's negatives changed: use persistent_workers: "
                    "False, or negatives: 'full'"
                )
        if distributed.rank() == 0:
            print(
                f"kcd: stage {chosen.stage} after epoch {self.epoch}: {len(chosen.kept)} of {chosen.num_samples} "
                f"kept, {len(chosen.dropped)} dropped, cut {chosen.cut:.4f}",
                flush=True,
            )
            if settings.history is not None:
                content = {
                    "settings": asdict(settings),
                    "summary": {"epochs": self.epoch, "repository": "torchdistill"},
                    "history": self.history.state_dict(),
                }
                write_whole(Path(settings.history), json.dumps(content).encode())


def _session(name: str) -> KCDBatchSampler:
    if KCDBatchSampler.current is None:
        raise RuntimeError(f"{name} is used without batch_sampler: {{key: 'KCDBatchSampler', ...}}")
    return KCDBatchSampler.current


def _recording(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
    """A student's forward process that records what it returns."""

    @functools.wraps(forward)
    def process(
        model: Any, sample_batch: Any, targets: Any = None, supp_dict: Any = None, **kwargs: Any
    ) -> Any:
        output = forward(model, sample_batch, targets, supp_dict, **kwargs)
        if isinstance(supp_dict, dict) and INDEX in supp_dict and torch.is_grad_enabled():
            indices = supp_dict[INDEX]
            views = 4 if name == "forward_batch4sskd" else 1  # rotations of a sample; the first is as it was
            if not isinstance(output, torch.Tensor) or output.shape[:-1] != (views * len(indices),):
                raise TypeError(
                    f"kcd_{name} needs the student's logits, [{views * len(indices)}, classes], got "
                    f"{tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__}"
                )
            _session(name).record(indices, output[::views], targets)
        return output

    return process


def _ending(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """A post-epoch process that ends KCD's epoch as well."""

    @functools.wraps(original)
    def process(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        _session(name).end_epoch(self.train_data_loader)

    return process


_datasets.register_dataset_wrapper(key="KCDDatasetWrapper")(KCDDatasetWrapper)
_datasets.register_batch_sampler(key="KCDBatchSampler")(KCDBatchSampler)
for _name, _forward in list(_processes.FORWARD_PROC_FUNC_DICT.items()):
    _processes.register_forward_proc_func(key=f"kcd_{_name}")(_recording(_name, _forward))
for _name, _post in list(_processes.POST_EPOCH_PROC_FUNC_DICT.items()):
    _processes.register_post_epoch_proc_func(key=f"kcd_{_name}")(_ending(_name, _post))
