"""A script that resumes where KCD can't resume with it: KCD begins again, which is said once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..profiles import Profile
from .journal import Journal

__all__ = ["Again"]


class Again:
    """Sees whether an optimizer is given a saved state before the student is trained.

    A profile with ``checkpoint`` has a state of KCD's beside the script's, or says that there is none.
    """

    def __init__(self, profile: Profile, journal: Journal) -> None:
        self._journal = journal
        self._loaded, self._silent = False, profile.checkpoint is not None

    def loaded(self, _: Any, state_dict: Any, *__: Any, **___: Any) -> None:
        """The script has given an optimizer a state, which is empty unless it was saved after a step."""
        self._loaded |= isinstance(state_dict, Mapping) and bool(state_dict.get("state"))

    def begin(self) -> None:
        """The student is trained from now on."""
        if self._loaded and not self._silent:
            self._journal.warn(
                "an optimizer was given a saved state. If the script resumes, KCD does not resume with it: it starts again, in "
                "its epoch 1, with all samples. To resume with the set, let a profile name the functions that save and load "
                "(`checkpoint`, docs/profiles.md), or put kcd's three lines into the script (docs/guide.md#resuming)"
            )
        self._silent = True  # what is loaded later is no state to resume from
