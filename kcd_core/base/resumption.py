"""Whether all ranks save at one moment, and resume from one: a rank that loaded no state has no part in that.

No collective: a rank may load alone, or draw a first batch alone, as trainers do to see what a loader yields, and would
then wait in one that no other rank is in. So may one that saves alone, and meet the others in another collective, of the
model's. Each rank leaves word in the group's key-value store instead.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from typing import Any

from . import distributed

__all__ = ["WAIT", "await_all", "check_one_moment", "leave_word"]

WAIT = 300.0  # seconds that a rank gives the others to load their states, or to save them


def await_all(what: str, group: Any) -> None:
    """Wait until every rank has called this as often, `WAIT` at most. ``what`` they do next, in a word.

    Raises
    ------
    RuntimeError
        If one has not by then: it can be called again.
    """
    if distributed.world_size(group) == 1 or (store := distributed.store(group)) is None:
        return
    mine, *others = sorted(range(distributed.world_size(group)), key=lambda r: r != distributed.rank(group))
    times = store.add(f"kcd_core/{what}/{mine}", 1)
    deadline = time.monotonic() + WAIT
    while waiting := [other for other in others if store.add(f"kcd_core/{what}/{other}", 0) < times]:
        if time.monotonic() > deadline:
            store.add(f"kcd_core/{what}/{mine}", -1)
            raise RuntimeError(
                f"this rank {what} the states of all ranks, and rank(s) {waiting} did not come within {WAIT:.0f} s: call it, "
                "or whatever saves a checkpoint, on every rank, and not on the main one alone"
            )
        time.sleep(0.02)


def leave_word(run: str, times: int, moment: Mapping[str, str], group: Any) -> None:
    """Tell the other ranks from which ``moment`` this one resumes: what names its parts, and what they are.

    ``times``: how often this rank has loaded a state of this ``run``.
    """
    if distributed.world_size(group) > 1 and (store := distributed.store(group)) is not None:
        store.set(_key(run, distributed.rank(group), times), json.dumps(_short(moment)))


def check_one_moment(run: str, times: int, moment: Mapping[str, str], group: Any) -> None:
    """See that the other ranks resume from the same moment. Waits until they have loaded, `WAIT` at most.

    Raises
    ------
    RuntimeError
        If one resumes from another moment, or has not loaded a state by then.
    """
    if distributed.world_size(group) == 1 or (store := distributed.store(group)) is None:
        return
    leave_word(run, times, moment, group)  # the group may be younger than the load
    mine, here, deadline = _short(moment), distributed.rank(group), time.monotonic() + WAIT
    waiting = [other for other in range(distributed.world_size(group)) if other != here]
    while waiting:
        late = time.monotonic() > deadline
        for other in waiting[:]:
            if not store.check([key := _key(run, other, times)]):
                continue
            theirs = json.loads(store.get(key))
            if theirs == mine:
                waiting.remove(other)
            else:
                differences = [f"{name} {theirs.get(name)} (here {mine.get(name)})" for name in {**mine, **theirs}
                               if theirs.get(name) != mine.get(name)]  # fmt: skip
                raise RuntimeError(
                    f"the ranks resume from different moments: rank {other} from {', '.join(differences)}. Load on "
                    "every rank what was saved at one step"
                )
        if waiting and late:
            raise RuntimeError(
                f"this rank resumes from a saved state, and rank(s) {waiting} have not loaded one within {WAIT:.0f} s, or "
                "not for this loader: every rank must make the same loaders in the same order, and load, as often as the "
                "others, what it saved, or the list of what all ranks saved"
            )
        if waiting:
            time.sleep(0.02)


def _key(run: str, rank: int, times: int) -> str:
    return f"kcd_core/{run}/{rank}/{times}"


def _short(moment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: text if len(text) <= 20 else hashlib.sha256(text.encode()).hexdigest()[:12]
        for name, text in moment.items()
    }
