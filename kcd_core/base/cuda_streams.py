"""The order of CUDA streams: what one of them recorded is there before another reads it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

from .arrays import Array, is_tensor

__all__ = ["StreamOrder", "refuse_capture"]


class StreamOrder:
    """Lets whichever CUDA stream is current wait for the one that was current before. The host waits for neither."""

    def __init__(self) -> None:
        self._last: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_last": None}  # a stream is this process's

    def join(self, device: Any, held: Callable[[], Iterable[Array]]) -> None:
        """Go on in the current stream of ``device`` after all that was done until the last call.

        Parameters
        ----------
        device : torch device or None
        held : callable
            Gives what was made in another stream and is used in this one: its memory is not given away before
            this one has read it.

        Raises
        ------
        RuntimeError
            If a CUDA graph is being captured.
        """
        if not _in_use(device):
            return
        refuse_capture(device)
        cuda = sys.modules["torch"].cuda
        stream = cuda.current_stream(device)
        if stream == self._last:
            return
        if self._last is not None:
            stream.wait_stream(self._last)
            for x in filter(is_tensor, held()):
                x.record_stream(stream)
        self._last = stream


def refuse_capture(device: Any) -> None:
    """Raise RuntimeError if a CUDA graph is being captured, where ``device`` is one of CUDA's."""
    if _in_use(device) and sys.modules["torch"].cuda.is_current_stream_capturing():
        raise RuntimeError(
            "a CUDA graph is being captured, and its replays would record nothing: capture the student alone, "
            "and record its output outside of the graph, after each replay"
        )


def _in_use(device: Any) -> bool:
    """Whether ``device`` is one of CUDA's, and CUDA has begun."""
    return device is not None and device.type == "cuda" and bool(sys.modules["torch"].cuda.is_initialized())
