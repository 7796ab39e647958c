"""The most memory that a call holds at a time, beyond what was there: counted, not sampled."""

from __future__ import annotations

import tracemalloc
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Counts the bytes of live tensors that were made under it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor):  # from before, or over NumPy's memory
                self.add(tensor.untyped_storage(), 0)
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage(), tensor.untyped_storage().nbytes())
        return made

    def add(self, storage: Any, size: int) -> None:
        key = storage._cdata
        if key not in self.known:
            self.known.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.gone, key, size).atexit = False

    def gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def peak(device: torch.device, call: Callable[[], Any]) -> int:
    """Bytes on ``device`` beyond those before. On the CPU, of tensors and of what NumPy holds, each at its peak.

    What is made once and stays, such as a library's workspace, is to be there already.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with Live():
        torch.zeros(1)  # the first mode imports a lot
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    try:
        with Live() as live:
            call()
        return live.most + tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
