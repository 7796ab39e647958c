"""What a run with KCD is to do: one frozen record, from a command line, JSON, or the environment.

`kcd run` reads it from its command line and hands it to child processes through the environment;
`kcd patch` writes it into the patched script, as the arguments of a call.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from kcd_core import CondensationSchedule
from kcd_core.base.arguments import checked_bytes, checked_choice
from kcd_core.base.arrays import checked_float, checked_int
from kcd_core.condense import check_settings
from kcd_core.mixing import Mixer, resolve_mixing
from kcd_core.recipes import Mixing
from kcd_core.rules import SelectName
from kcd_core.unused import check_used
from kcd_core.values import ValueName

__all__ = ["CHOICES", "SHIMS", "VARIABLE", "Settings", "number"]

#: The environment variable that child processes read their settings from, as JSON.
VARIABLE = "KCD_SETTINGS"

#: The shims that ``--no-shim`` can leave out, by name; `kcd_adapters.hosts.shims` has what they do.
SHIMS = (
    "tensorboard_logger",
    "train_data",
    "alias_cuda",
    "ragged_lists",
    "mdistiller_ragged_lists",
    "torch_six",
    "dali",
    "wandb",
    "output_folders",
    "accuracy_view",
)


@dataclass(frozen=True)
class Settings:
    """All of it has the paper's value by default.

    Parameters
    ----------
    ratio, stages, warmup
        See `kcd_core.CondensationSchedule`.
    period : int or "auto"
        Epochs of a stage, at whose end the samples are ranked, and the least valuable dropped. "auto" is the period that
        `kcd_core.CondensationSchedule.for_epochs` chooses, once the script's number of epochs is known: `for_epochs`.
    alpha, min_weight
        See `kcd_core.condense`.
    mixing : {"auto", "cumulative", "fresh", "none"}
        See `kcd_core.wrap_loader`.
    mixing_cache : str or int
        See `kcd_core.wrap_loader`.
    value : str
        See `kcd_core.KnowledgeValueTracker`.
    select : {"random", "rs2"}, optional
        What replaces the ranking: see `kcd_core.condense_step`. Nothing is mixed then.
    ask : float, in (0, 1], optional
        Share of the samples that the teacher is asked for, from the second epoch on. Default: it is asked for all.
    ask_multiple : int, at least 1
        The number of rows of a batch that it is asked for is rounded up to a multiple of it.
    negatives : {"kept", "full"}
        Where CRD draws its negatives from: the condensed set, or all data.
    profile : str, optional
        The profile to use, where it is not to be recognised by the checkout's files: a name, or a file NAME.py.
    student : str, optional
        With the profile ``auto``, which model is the student: its class, or its place among those that are trained in the
        process, the first 1. Default: the one that is trained.
    if_unobserved : {"stop", "warn"}
        What to do once an epoch of training is over in which nothing was observed.
    no_shims : tuple of str
        Shims that are not to be used, by name; "all" means all of them.
    history : str, optional
        A JSON file to write what each stage did to.
    log : str, optional
        A file to append a line of JSON to when a stage ends.
    tensorboard : str, optional
        A folder to write TensorBoard's files to, with torch's own writer.

    Raises
    ------
    ValueError, TypeError
        If a setting is outside its range.
    """

    ratio: float = 0.7
    stages: int = 6
    period: int | Literal["auto"] = 40
    warmup: int = 0
    alpha: float = 0.03
    min_weight: float = 0.7
    mixing: str = "auto"
    mixing_cache: str | int = "0"
    value: ValueName = "entropy"
    select: SelectName | None = None
    ask: float | None = None
    ask_multiple: int = 1
    negatives: str = "kept"
    profile: str | None = None
    student: str | None = None
    if_unobserved: str = "stop"
    no_shims: tuple[str, ...] = ()
    history: str | None = None
    log: str | None = None
    tensorboard: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.period, str) and self.period != "auto":
            raise ValueError(f"period must be a number of epochs, or auto, got {self.period!r}")
        period = 1 if self.period == "auto" else self.period
        CondensationSchedule(
            self.ratio, self.stages, period, self.warmup
        )  # raises where a number is outside its range
        check_settings(self.alpha, self.min_weight)
        if self.ask is not None and not 0 < checked_float(self.ask, "ask", "a number in (0, 1]") <= 1:
            raise ValueError(
                f"ask must be in (0, 1], the share that the teacher is asked for, got {self.ask}"
            )
        checked_int(self.ask_multiple, "ask_multiple", 1)
        if self.value in ("kd_divergence", "reducible_loss"):
            raise ValueError(
                f"value can't be {self.value} here: it needs the teacher's logits, and an adapter sees the student's "
                f"alone; choose among {', '.join(CHOICES['value'])}"
            )
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        checked_choice(self.select, "select", (None, *get_args(SelectName)))
        check_used(vars(self))
        if self.student is not None and self.profile != "auto":
            raise ValueError("student names a model for the profile auto, and no other takes it: add --auto")
        if self.student is not None and not (
            self.student.isidentifier() or (self.student.isdecimal() and int(self.student))
        ):
            raise ValueError(f"student must be a class's name, or a number from 1, got {self.student!r}")
        object.__setattr__(self, "no_shims", tuple(self.no_shims))
        for name in self.no_shims:
            if name not in (*SHIMS, "all"):
                raise ValueError(f"there is no shim {name!r}; there are {', '.join(SHIMS)}")

    @property
    def mixes(self) -> bool:
        """Whether anything may be mixed."""
        return self.mixing != "none" and self.select is None

    def recipes(self, mixer: Mixer) -> Mixing:
        """``mixing``, as a sampler takes it, where samples are mixed by ``mixer``."""
        return resolve_mixing(self.mixing if self.mixes else None, mixer)

    @property
    def cache_bytes(self) -> int:
        """``mixing_cache`` as a number."""
        return checked_bytes(self.mixing_cache, "mixing_cache")

    def schedule(self) -> CondensationSchedule:
        """The schedule.

        Raises
        ------
        ValueError
            If the period is "auto": `for_epochs` replaces it by a number.
        """
        if self.period == "auto":
            raise ValueError(
                "period can't be auto here, where the run's number of epochs is not known: give a number, "
                "CondensationSchedule.for_epochs(epochs, ratio).period"
            )
        return CondensationSchedule(self.ratio, self.stages, self.period, self.warmup)

    def for_epochs(self, epochs: int | None) -> Settings:
        """These settings for a run of so many epochs, None if nobody knows: with a number as the period.

        Raises
        ------
        ValueError
            If the period is "auto", and no number can be chosen for it.
        """
        if self.period != "auto":
            return self
        if epochs is None:
            raise ValueError(
                "--period auto needs the run's number of epochs, and the script's command line does not tell it. Give the "
                "script its option for it, such as --epochs, or give kcd a number: "
                f"--period P, the number of epochs divided by {self.stages + 1} (one more than --stages)"
            )
        if epochs <= self.stages:
            raise ValueError(
                f"--period auto needs more than {number(self.stages, 'epoch')}, one for each of --stages and one that trains "
                f"on the final set; the script trains for {epochs}. Give fewer --stages, or train for longer"
            )
        chosen = CondensationSchedule.for_epochs(epochs, self.ratio, self.stages)
        return dataclasses.replace(self, period=chosen.period)

    def __str__(self) -> str:
        """A line for people: what is always of interest, and what differs from the paper's."""
        period = self.period if self.period == "auto" else number(self.period, "epoch")
        negatives = {"kept": "the kept set", "full": "all data"}[self.negatives]
        others = {"warmup": self.warmup, "alpha": self.alpha, "min_weight": self.min_weight}
        changed = "".join(f", {name} {value}" for name, value in others.items() if name in self.to_dict())
        if self.ask is not None:
            changed += f", teacher asked for {self.ask} from the second epoch on"
        chosen = (
            f"value {self.value}, mixing {self.mixing}" if self.select is None else f"select {self.select}"
        )
        return (
            f"ratio {self.ratio} in {number(self.stages, 'stage')} of {period}, {chosen}, "
            f"negatives from {negatives}{changed}"
        )

    def to_dict(self) -> dict[str, Any]:
        """The settings that are not the default's, ready for JSON."""
        changed = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        changed["no_shims"] = list(self.no_shims)
        default = {f.name: f.default for f in dataclasses.fields(self)} | {"no_shims": []}
        return {name: value for name, value in changed.items() if value != default[name]}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Settings:
        """The inverse of `to_dict`; what is missing has its default.

        Raises
        ------
        ValueError
            If a name is unknown.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(given, Mapping) or not known.issuperset(given):
            raise ValueError(
                f"KCD settings must be an object with names among {sorted(known)}, got {given!r}"
            )
        return cls(**given)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Settings:
        return cls.from_dict(json.loads(text))

    def export(self) -> None:
        """Hand these settings to processes started from now on."""
        os.environ[VARIABLE] = self.to_json()

    @classmethod
    def from_environment(cls) -> Settings:
        """The settings that `export` left; the defaults, if there are none."""
        text = os.environ.get(VARIABLE)
        return cls.from_json(text) if text else cls()


def number(count: int, what: str) -> str:
    """``1 epoch``, ``2 epochs``."""
    return f"{count} {what}{'s' * (count != 1)}"


#: What settings that are words may be.
CHOICES = {
    "mixing": ("auto", "cumulative", "fresh", "none"),
    "value": ("entropy", "cross_entropy", "margin"),
    "negatives": ("kept", "full"),
    "if_unobserved": ("stop", "warn"),
}
