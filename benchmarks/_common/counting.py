"""What a recording launches, and what it makes wait: counted on fake CUDA tensors, and on a real device."""

from __future__ import annotations

import collections
import functools
import json
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

WINDOW = 32  # steps within which a tracker adds once all that has waited

# They allocate, or say something of a tensor; no schema marks them as views.
LAUNCH_NOTHING = {
    *("_unsafe_view", "empty", "empty_like", "empty_permuted", "empty_strided", "is_pinned", "new_empty"),
    *("new_empty_strided", "record_stream", "resize_", "set_"),
}
WAITING = re.compile(
    r"cuda(Stream|Device|Thread|Event)Synchronize|cu(Stream|Ctx|Event)Synchronize|(cudaMemcpy|cuMemcpy)(?!.*Async)"
)


# -- on fake tensors -------------------------------------------------------------------------------------


@contextmanager
def fake_cuda() -> Iterator[torch.device]:
    """Tensors made inside on the device have shapes, but no data, and need no device."""
    # Where there is a device, memory would be pinned for it, which fake tensors can't be.
    unavailable = mock.patch.object(torch.cuda, "is_available", return_value=False)
    with unavailable, FakeTensorMode(allow_non_fake_inputs=True):
        yield torch.device("cuda:0")


class Counter(TorchDispatchMode):
    """ATen operations that launch or copy something on a CUDA device, and copies from there to the host.

    Views and allocations launch nothing and do not count, nor does what is done in host memory alone.

    Attributes
    ----------
    seen : collections.Counter of str
        How often each operation was called.
    synchronisations, bytes_to_host : int
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: collections.Counter[str] = collections.Counter()
        self.synchronisations = self.bytes_to_host = 0

    @property
    def operations(self) -> int:
        return sum(self.seen.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given_tensors, made_tensors = _tensors((args, kwargs)), _tensors(made)
        from_device = any(x.device.type == "cuda" for x in given_tensors)
        if launches(func) and (from_device or any(x.device.type == "cuda" for x in made_tensors)):
            self.seen[str(func)] += 1
            to_host = [x for x in made_tensors if x.device.type == "cpu"] if from_device else []
            if func is torch.ops.aten._local_scalar_dense.default:  # a number, which is no tensor
                to_host = given_tensors
            self.synchronisations += bool(to_host)
            self.bytes_to_host += sum(x.numel() * x.element_size() for x in to_host)
        return made


def launches(func: Any) -> bool:
    """Whether an operation does something on a device, beside making a tensor or another view of it."""
    namespace, name = str(func).split(".")[:2]  # a fake tensor's device is asked for with prim.device
    view = getattr(func, "is_view", False) or torch.Tag.inplace_view in getattr(func, "tags", ())
    return namespace != "prim" and name not in LAUNCH_NOTHING and not view


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [x for x in tree_flatten(tree)[0] if isinstance(x, torch.Tensor)]


# -- on a device -----------------------------------------------------------------------------------------


@functools.cache
def _started(device: torch.device) -> None:
    """A profiler's first session may miss what the next ones see."""
    profiled(lambda: None, device)


def counts(run: Callable[[], object], device: torch.device) -> dict[str, int | None]:
    """Kernels, copies and synchronisations of a run, both ways; None for what could not be counted."""
    _started(device)
    run()  # what only a first call does is not counted
    seen = profiled(run, device) or dict.fromkeys(("kernels", "copies", "syncs_profiled"))
    return {**seen, "syncs_warned": warned(run, device)}


def on_device(
    run: Callable[[], object], idle: Mapping[str, int | None], device: torch.device, steps: int
) -> dict[str, Any]:
    """What ``run`` does on a CUDA device, as figures a step; None for what could not be counted.

    Parameters
    ----------
    run : callable
        ``steps`` recorded steps.
    idle : mapping
        The `counts` of the same without the recording, which are taken off.
    """
    row: dict[str, Any] = {}
    for key, number in counts(run, device).items():
        nothing = idle[key]
        row[key] = None if number is None or nothing is None else (number - nothing) / steps
    highest, before = peak(run, device)
    return {**row, "recording_peak_bytes": highest - before}


def profiled(run: Callable[[], object], device: torch.device) -> dict[str, int] | None:
    """Kernels, copies and synchronisations as torch's profiler sees them, or None if it does not see the device."""
    try:
        torch.cuda.synchronize(device)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
            torch.zeros(1, device=device)  # seen in any case, if anything is
            run()
            torch.cuda.synchronize(device)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            recorded.export_chrome_trace(str(path))
            events = json.loads(path.read_text(errors="replace"))["traceEvents"]
    except Exception as error:  # a profiler that can't be had is no reason to lose what was timed
        warnings.warn(f"torch's profiler counted nothing: {type(error).__name__}: {error}", stacklevel=2)
        return None
    tally = tallied(events)
    return tally if tally["kernels"] + tally["copies"] else None


def tallied(events: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Of a trace in Chrome's format. Its categories are the same in all versions, unlike its classes in Python."""
    tally = {"kernels": 0, "copies": 0, "syncs_profiled": 0}
    for event in events:
        category, name = str(event.get("cat", "")).lower(), str(event.get("name", ""))
        if event.get("ph") != "X":
            continue
        if category == "kernel":
            tally["kernels"] += 1
        elif category in ("gpu_memcpy", "gpu_memset"):
            tally["copies"] += 1
        elif category in ("cuda_runtime", "cuda_driver") and WAITING.match(name):
            tally["syncs_profiled"] += 1
    return tally


def warned(run: Callable[[], object], device: torch.device) -> int | None:
    """Synchronisations as torch's debug mode warns of them, or None if it does not warn."""

    def times(call: Callable[[], object]) -> int:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            before = torch.cuda.get_sync_debug_mode()
            torch.cuda.set_sync_debug_mode("warn")
            try:
                call()
            finally:
                torch.cuda.set_sync_debug_mode(before)
        # Not the one about the mode itself, which "does not yet detect all synchronizing operations".
        return sum("called a synchronizing" in str(warning.message) for warning in caught)

    return times(run) if times(torch.zeros(1, device=device).item) else None


def peak(run: Callable[[], object], device: torch.device) -> tuple[int, int]:
    """Bytes of tensors on the device: the most while it runs, and before."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device), before
