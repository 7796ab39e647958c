"""One thread fetches, another records, a third saves; and an interrupt comes at any line."""

import itertools
import queue
import signal
import sys
import threading
import time

import numpy as np
import pytest
from helpers import Plain, index_of, logits_of, wrap
from torch.utils.data import Dataset

import kcd_core as kcd

LONG = kcd.CondensationSchedule(ratio=0.5, stages=1, period=100)


class Numbers(Dataset):
    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        return float(index)


@pytest.fixture
def eager_threads():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def make(n, return_index=False, **options):
    return wrap(
        Numbers(n), schedule=LONG, kcd_options={"mixing": None, "return_index": return_index}, **options
    )


@pytest.mark.parametrize("ahead", [2, 40, 0])
def test_one_thread_fetches_and_another_records_with_indices(ahead, eager_threads):
    n = 4000
    loader, fetched = make(n, True, batch_size=2), queue.Queue(ahead)

    def fetch():
        for batch in loader:
            fetched.put(batch)
        fetched.put(None)

    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    while (batch := fetched.get()) is not None:
        loader.record(values=batch[1], indices=batch[0])
    thread.join()
    assert loader.tracker.value.tolist() == list(range(n))
    assert (loader.tracker.count == 1).all()
    assert loader.state_dict()["position"] == n


def test_a_state_saved_by_another_thread_is_of_one_moment(eager_threads):
    loader, states, ended = make(3000, batch_size=10), [], threading.Event()

    def save():
        while not ended.is_set():
            state = loader.state_dict()
            states.append((int(np.sum(np.asarray(state["tracker"]["count"]))), state["position"]))

    thread = threading.Thread(target=save)
    thread.start()
    for number, values in enumerate(loader):
        loader.record(values=values)
        seen = len(states)
        while number % 50 == 0 and len(states) < seen + 2 and thread.is_alive():  # it may be given no core
            time.sleep(0)
    ended.set()
    thread.join()
    assert len({position for _, position in states}) > 3
    assert [recorded - position for recorded, position in states] == [0] * len(states)


def at_line(number, act, call):
    """Calls, and acts at a line of the loader's own modules; whether it got that far."""
    seen = itertools.count()

    def trace(frame, event, _):
        if "loading" not in frame.f_code.co_filename:
            return trace  # a step of the tracker's is not the loader's
        if event == "line" and next(seen) == number:
            sys.settrace(None)
            act()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return next(seen) > number


@pytest.mark.parametrize("by_indices", [False, True])
@pytest.mark.parametrize("kind", ["interrupt", "handler"])
def test_an_interrupt_at_any_line_of_record_leaves_recordings_and_position_together(kind, by_indices):
    """And a state saved in a signal's handler has them together."""
    states = set()
    for number in itertools.count():
        saved, got_there = interrupted(number, kind, by_indices)
        for state in saved:
            recorded = int(np.sum(np.asarray(state["tracker"]["count"])))
            assert (recorded, state["recorded"], state["position"]) in {(8, 8, 8), (16, 16, 16)}, number
            states.add(recorded)
        if not got_there:
            break
    assert states == {8, 16}
    assert number > 20


def interrupted(number, kind, by_indices):
    """The second record is, at a line: the states saved then, and whether it has so many."""
    loader, saved = wrap(Plain(24), schedule=LONG, kcd_options={"mixing": None}), []

    def act():
        if kind == "interrupt":
            raise KeyboardInterrupt
        saved.append(loader.state_dict())

    batches = iter(loader)
    loader.record(logits_of(index_of(next(batches)), 1))
    indices = index_of(next(batches))
    options = {"indices": indices} if by_indices else {}
    got_there = at_line(number, act, lambda: loader.record(logits_of(indices, 1), **options))
    saved.append(loader.state_dict())
    for batch in batches:
        loader.record(logits_of(index_of(batch), 1))
    return saved, got_there


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="POSIX")
def test_a_handler_that_saves_does_not_wait_for_the_record_it_interrupts():
    loader = make(64)
    before = signal.signal(signal.SIGUSR1, lambda *_: states.append(loader.state_dict()))
    states = []
    try:
        for values in loader:
            signal.raise_signal(signal.SIGUSR1)
            with loader._reader.lock:
                signal.raise_signal(signal.SIGUSR1)
            loader.record(values=values)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert [state["position"] for state in states] == [8 * (at // 2) for at in range(16)]
