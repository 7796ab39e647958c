"""KCD as a plugin of torchdistill, by its YAML alone; nothing of torchdistill is patched.

::

    dependencies:
      - name: 'kcd_adapters.torchdistill'
    train:
      train_data_loader:
        dataset_wrapper: {key: 'KCDDatasetWrapper', kwargs: {}}
        batch_sampler:
          key: 'KCDBatchSampler'
          kwargs: {batch_size: 128, drop_last: False, ratio: 0.3, period: 34, mixing: 'none'}
        sampler: {class_or_func: !import_get {key: 'torch.utils.data.RandomSampler'}, kwargs: {}}
        kwargs: {num_workers: 2}
      student: {forward_proc: 'kcd_forward_batch_only'}
      post_epoch_process: 'kcd_default_post_epoch_process_with_teacher'

Every forward, pre-epoch and post-epoch process that torchdistill has is there under its own name after ``kcd_``.
The order stays that of the sampler in the configuration, `DistributedSampler` included. A data set wrapper
of torchdistill's goes inside: ``kwargs: {wrapper: {key: 'CRDDatasetWrapper', kwargs: {...}}}``.

To resume (``--start_epoch``), KCD needs its state, since torchdistill's checkpoints have no place for it:
``state: 'FILE'`` in the batch sampler's kwargs, and ``pre_epoch_process:
'kcd_default_pre_epoch_process_with_teacher'``. It is the state after the last epoch, and torchdistill's
examples write a checkpoint after the best one alone: resuming needs the two of the same epoch. Each training
stage with a loader of its own starts anew; one without continues with the loader of the stage before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from .sampler import KCDBatchSampler
from .wrapper import INDEX, KCDDatasetWrapper

__all__ = ["KCDBatchSampler", "KCDDatasetWrapper"]

_datasets = import_module("torchdistill.datasets.registry")
_processes = import_module("torchdistill.core.interfaces.registry")
import_module("torchdistill.datasets.wrapper")  # these fill the registries
for _name in ("forward_proc", "pre_epoch_proc", "post_epoch_proc"):
    import_module(f"torchdistill.core.interfaces.{_name}")


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


def _beginning(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """A pre-epoch process that resumes, where the first epoch is a later one."""

    @functools.wraps(original)
    def process(self: Any, epoch: int | None = None, **kwargs: Any) -> None:
        # A later training stage begins at a later epoch without being resumed.
        _session(name).begin(epoch if epoch and getattr(self, "stage_number", 1) == 1 else 0)
        original(self, epoch=epoch, **kwargs)

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
for _name, _pre in list(_processes.PRE_EPOCH_PROC_FUNC_DICT.items()):
    _processes.register_pre_epoch_proc_func(key=f"kcd_{_name}")(_beginning(_name, _pre))
for _name, _post in list(_processes.POST_EPOCH_PROC_FUNC_DICT.items()):
    _processes.register_post_epoch_proc_func(key=f"kcd_{_name}")(_ending(_name, _post))
