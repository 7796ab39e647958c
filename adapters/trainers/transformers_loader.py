"""The condensed loader as Hugging Face's Trainer reads it."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

from .accelerate import AcceleratedLoader

__all__ = ["INDICES", "UNKNOWN", "Batches"]

INDICES = "kcd_indices"  # of a batch's rows: its key on the way from the loader to the training step
UNKNOWN = ": this version of transformers counts in a way that KCDTrainerMixin doesn't know"


class Batches:
    """What is left of an epoch, with the indices in the batches, since those of a whole accumulation group are drawn before
    the first of them is trained on.

    Parameters
    ----------
    loader : AcceleratedLoader
        With ``return_index``.
    resumed_epoch, batches_done : int
        Where this training began: in which epoch, and how many of its batches were done before.
    """

    def __init__(self, loader: AcceleratedLoader, resumed_epoch: int, batches_done: int) -> None:
        self._loader, self._resumed_epoch, self._batches_done = loader, resumed_epoch, batches_done

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __len__(self) -> int:
        resumed = self._loader.epoch == self._resumed_epoch
        return len(self._loader) - (self._batches_done if resumed else 0)

    def __iter__(self) -> Iterator[Any]:
        for indices, batch in self._loader:
            if not isinstance(batch, MutableMapping):
                raise TypeError(
                    f"the data collator must return dicts, which the batch's indices can travel in; got {type(batch).__name__}"
                )
            batch[INDICES] = indices
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """What the Trainer counts is compared, and changes nothing."""
        if epoch != self._loader.epoch - 1:
            raise RuntimeError(
                f"the Trainer begins epoch {epoch + 1}, and the condensed loader is in epoch {self._loader.epoch}{UNKNOWN}"
            )
