"""What is asked of every saved state before anything is taken over from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np

from .arrays import checked_int

__all__ = ["check_rank", "check_same", "check_together", "differ", "state_bool", "state_int", "value_name"]

SHOWN = 3  # of the keys that something lacks which is no state


def check_same(
    state: Mapping[str, Any],
    mine: Mapping[str, Any],
    owner: str,
    *,
    needs: tuple[str, ...] = (),
    hints: Mapping[str, str] | None = None,
) -> None:
    """Refuse what is not a state of ``owner``, or was saved with other settings than ``mine``.

    ``hints``: what to do about a setting, where its name does not say it.
    """
    if not isinstance(state, Mapping):
        raise ValueError(
            f"not a {owner} state: expected what state_dict() returned, got {type(state).__name__}"
        )
    if "version" in mine and differ(state.get("version"), mine["version"]) and "version" in state:
        raise ValueError(
            f"this {owner} state is of version {state['version']!r}, and this kcd_core reads version "
            f"{mine['version']}: finish the run with the kcd_core that saved it, or start anew"
        )
    missing = [key for key in (*mine, *needs) if key not in state]
    if missing:
        shown, more = missing[:SHOWN], len(missing) - SHOWN
        raise ValueError(
            f"not a {owner} state: it has no {', '.join(map(repr, shown))}"
            + (f", nor {more} other things that state_dict() returns" if more > 0 else "")
        )
    others = [key for key, value in mine.items() if differ(state[key], value)]
    if others:
        raise ValueError(
            f"this {owner} state was saved "
            + "; ".join(f"with {key} = {state[key]!r}, here it is {mine[key]!r}" for key in others)
            + "".join((hints or {}).get(key, "") for key in others)
        )


def state_int(state: Mapping[str, Any], key: str, minimum: int, owner: str) -> int:
    """An integer of a state of ``owner``."""
    try:
        return checked_int(state[key], key, minimum)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the {owner} state is damaged: {error}") from None


def state_bool(state: Mapping[str, Any], key: str, owner: str) -> bool:
    """A truth value of a state of ``owner``."""
    if not isinstance(state[key], bool):
        raise ValueError(f"the {owner} state is damaged: {key} must be a bool, got {state[key]!r}")
    return state[key]  # type: ignore[no-any-return]


def differ(a: Any, b: Any) -> bool:
    """Whether two values of a setting do; what can't be compared does."""
    try:
        return bool(a != b)
    except (RuntimeError, TypeError, ValueError):  # arrays, or what holds them
        return True


def check_rank(saved: tuple[int, int], here: tuple[int, int], owner: str) -> None:
    """Refuse what was saved by another rank, or one of another number: both are (rank, of how many)."""
    if saved != here:
        raise ValueError(
            f"this {owner} state was saved by rank {saved[0]} of {saved[1]}, and this is rank {here[0]} of "
            f"{here[1]}: give every rank a list of what all {saved[1]} ranks saved"
        )


def check_together(
    saved: Sequence[tuple[int, int]], moments: Sequence[Mapping[str, str]], owner: str
) -> None:
    """See that these are the states of all ranks of one run at one step.

    ``saved`` are (rank, of how many); ``moments``, what must be the same on all of them.
    """
    if not saved:
        raise ValueError(f"not a {owner} state: an empty list")
    of, ranks = saved[0][1], {rank for rank, _ in saved}
    if {number for _, number in saved} != {of} or len(saved) != of or ranks != set(range(of)):
        missing = [rank for rank in range(min(of, len(saved) + 5)) if rank not in ranks][:5]
        raise ValueError(
            f"the states of all {of} ranks are needed, each once: missing are those of {missing}, given are "
            f"{[f'{rank} of {number}' for rank, number in saved]}"
        )
    for (rank, _), moment in zip(saved, moments, strict=True):
        for what, mine in moment.items():
            if mine != moments[0][what]:
                raise ValueError(
                    f"these states were not saved at one step: rank {rank} has another {what} than rank "
                    f"{saved[0][0]}, {mine:.20} against {moments[0][what]:.20}"
                )


def value_name(value: Any) -> str:
    """A name to recognise ``value`` by in a checkpoint: of a partial, or a frozen dataclass, with what it sets."""
    if isinstance(value, partial):
        given = [_setting(x) for x in value.args]
        given += [f"{key}={_setting(x)}" for key, x in sorted(value.keywords.items())]
        return value_name(value.func) + (f"({', '.join(given)})" if given else "")
    parameters = getattr(value, "__dataclass_params__", None)
    if parameters is not None and parameters.frozen and not isinstance(value, type):
        given = [f"{each.name}={_setting(getattr(value, each.name))}" for each in fields(value)]
        return f"{type(value).__qualname__}({', '.join(given)})"
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _setting(x: Any) -> str:
    """The same in every process, which the repr of what has an address is not."""
    if isinstance(x, np.generic):
        x = x.item()
    if x is None or isinstance(x, (bool, int, float, str, bytes)):
        return repr(x)
    if isinstance(x, (tuple, list)):
        return f"[{', '.join(map(_setting, x))}]"
    return value_name(x)  # of anything else, what it is called, or its type
