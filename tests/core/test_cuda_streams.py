"""The order of CUDA streams, without a GPU: what torch is asked for, in which order."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

import kcd_core as kcd
from kcd_core.base.cuda_streams import StreamOrder, refuse_capture
from kcd_core.recordings import Recordings

CUDA = torch.device("cuda", 1)


class Stream:
    def __init__(self, name: str, log: list[Any]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: Stream) -> None:
        self.log.append((self.name, "waits for", other.name))


class Held(torch.Tensor):
    """A tensor whose memory streams may record."""

    def record_stream(self, stream: Any) -> None:
        stream.log.append(("memory kept for", stream.name))


class FakeCuda:
    """`torch.cuda` with two streams, and a log of what they are told."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.one, self.two = Stream("one", self.log), Stream("two", self.log)
        self.current, self.capturing, self.initialized = self.one, False, True
        self.devices: list[Any] = []

    def is_initialized(self) -> bool:
        return self.initialized

    def is_current_stream_capturing(self) -> bool:
        return self.capturing

    def current_stream(self, device: Any = None) -> Stream:
        self.devices.append(device)
        return self.current


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    fake = FakeCuda()
    names = ("is_initialized", "is_current_stream_capturing", "current_stream")
    with mock.patch.multiple("torch.cuda", **{name: getattr(fake, name) for name in names}):
        yield fake


def held() -> list[Any]:
    return [torch.zeros(2).as_subclass(Held), np.zeros(2)]  # indices in host memory belong to no stream


def test_a_stream_waits_for_the_one_before(cuda: FakeCuda) -> None:
    order = StreamOrder()
    for _ in range(2):
        order.join(CUDA, held)
    assert cuda.log == []  # the same stream
    assert cuda.devices == [CUDA, CUDA]
    cuda.current = cuda.two
    for _ in range(2):
        order.join(CUDA, held)
    assert cuda.log == [("two", "waits for", "one"), ("memory kept for", "two")]
    cuda.current = cuda.one
    order.join(CUDA, held)
    assert cuda.log[2:] == [("one", "waits for", "two"), ("memory kept for", "one")]


def test_a_capture_is_refused(cuda: FakeCuda) -> None:
    order = StreamOrder()
    order.join(CUDA, held)
    cuda.capturing, cuda.current = True, cuda.two
    for refused in (lambda: order.join(CUDA, held), lambda: refuse_capture(CUDA)):
        with pytest.raises(RuntimeError, match="a CUDA graph is being captured"):
            refused()
    assert cuda.log == []
    order.join(torch.device("cpu"), held)  # no business of a tracker in host memory
    refuse_capture(None)
    cuda.capturing = False
    order.join(CUDA, held)
    assert cuda.log[0] == ("two", "waits for", "one")  # the refused call changed nothing


def test_nothing_is_asked_before_cuda_begins(cuda: FakeCuda) -> None:
    cuda.initialized, cuda.capturing = False, True
    StreamOrder().join(CUDA, held)
    StreamOrder().join(None, held)
    assert cuda.devices == []


def test_streams_are_not_pickled(cuda: FakeCuda) -> None:
    order = StreamOrder()
    order.join(CUDA, held)
    for made in (pickle.loads(pickle.dumps(order)), copy.deepcopy(order)):
        cuda.current = cuda.two
        made.join(CUDA, held)
    assert cuda.log == []


class OnCuda:
    """A device for a tracker of tensors in host memory to believe in."""

    type = "cuda"


@pytest.fixture
def tracker(cuda: FakeCuda) -> Any:
    made = kcd.KnowledgeValueTracker(4, device="cpu")
    with mock.patch.object(Recordings, "device", OnCuda()):
        made.recordings._streams.join(made.device, list)
        yield made


JOINING = {
    "record": lambda tracker: tracker.record([0], [1.0]),
    "update": lambda tracker: tracker.update([0], torch.zeros(1, 3)),
    "value": lambda tracker: tracker.value,
    "count": lambda tracker: tracker.count,
    "skipped": lambda tracker: tracker.skipped,
    "state": lambda tracker: tracker.state_dict(),
    "apply": lambda tracker: tracker.apply_state(tracker.check_state(STATE)),
    "pickle": lambda tracker: copy.copy(tracker),
}
STATE = kcd.KnowledgeValueTracker(4).state_dict()


@pytest.mark.parametrize("what", JOINING)
def test_whatever_touches_the_sums_joins_first(cuda: FakeCuda, tracker: Any, what: str) -> None:
    cuda.current = cuda.two
    with mock.patch.object(torch.Tensor, "record_stream", lambda x, stream: stream.log.append("kept")):
        JOINING[what](tracker)
    assert cuda.log == [("two", "waits for", "one"), "kept", "kept", "kept"]


@pytest.mark.parametrize("what", ["record", "update"])
def test_a_captured_step_records_nothing(cuda: FakeCuda, tracker: Any, what: str) -> None:
    cuda.capturing = True
    with pytest.raises(RuntimeError, match="replays would record nothing"):
        JOINING[what](tracker)
    assert not tracker.recordings.waiting


def test_a_value_is_not_computed_while_a_graph_is_captured(cuda: FakeCuda) -> None:
    calls: list[Any] = []
    made = kcd.KnowledgeValueTracker(4, device="cpu", value=lambda z: calls.append(z) or z[:, 0])
    cuda.capturing = True
    with (
        mock.patch.object(Recordings, "device", OnCuda()),
        pytest.raises(RuntimeError, match="captured"),
    ):
        made.update([0], torch.zeros(1, 3))
    assert not calls
