"""The torchdistill plugin's data set wrapper: samples by key, mixed, each with its index."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from torch.utils.data import Dataset

from kcd_core.base.padding import PADDING
from kcd_core.loading.keys import Key, Keys
from kcd_core.loading.mixed_images import MixedSamples
from kcd_core.mixing import default_mixer
from kcd_core.recipes import Steps
from kcd_core.rehearsal import rehearse

__all__ = ["INDEX", "KCDDatasetWrapper"]

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
            self.inner = import_module("torchdistill.datasets.wrapper").BaseDatasetWrapper(org_dataset)
        else:
            make = import_module("torchdistill.datasets.registry").get_dataset_wrapper(wrapper["key"])
            self.inner = make(org_dataset, *(wrapper.get("args") or ()), **(wrapper.get("kwargs") or {}))
        self.view = self.inner  # with CRD's negatives restricted to what is kept
        self.mixer = default_mixer(org_dataset)
        self._made = MixedSamples(org_dataset)

    def __getitem__(self, key: Key) -> tuple[Any, Any, dict[str, Any]]:
        return self._sample(key)

    def _sample(self, key: Key, mixed: Callable[[int], Any] | None = None) -> tuple[Any, Any, dict[str, Any]]:
        index, steps, padding = (key, (), False) if isinstance(key, int) else key
        view = self.view
        if steps != ():  # the wrapper inside sees the mixed sample where it would see the plain one
            view = copy.copy(view)
            view.org_dataset = _Mixed(self.org_dataset, index, self._mixed(index, steps, mixed))
        sample, target, supplement = view[index]
        return sample, target, {**supplement, INDEX: PADDING if padding else index}

    def __getitems__(self, keys: Keys) -> list[Any]:
        if keys.rehearse:
            drawn = [index for index in keys.indices.tolist() if index != PADDING]
            with _told():
                rehearse(
                    self.mixer, self.org_dataset, {index: self.org_dataset[index] for index in drawn[:2]}
                )
        mixed = self._made.of(keys.images, keys.slots())
        return [self._sample(key, mixed) for key in keys]

    def _mixed(self, index: int, steps: Steps | int, mixed: Any) -> Any:
        with _told():
            if isinstance(steps, int):  # it was mixed before
                return mixed(index)
            return self.mixer(self.org_dataset, index, steps)

    def __len__(self) -> int:
        return len(self.org_dataset)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "org_dataset":
            raise AttributeError(name)
        return getattr(self.org_dataset, name)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f"{error}. In torchdistill: mixing: 'none' in KCDBatchSampler's kwargs") from error


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
