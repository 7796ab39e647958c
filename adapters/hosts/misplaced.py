"""Options of kcd's that stand after the script, where they are the script's, and which the script does not seem to have."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path

__all__ = ["why_misplaced"]

PATTERNS = ("*.py", "*/*.py", "*/*/*.py")
MOST = 2000  # files: where there are more, nothing is said


def why_misplaced(script: Path, arguments: Sequence[str], own: Collection[str]) -> str:
    """What to say of arguments of a script that are options of kcd's ``own``; empty if the script may have them, too.

    It may if a Python file in its folder or in the one around names such an option, a field or a parameter: parsers are
    made of all of these.
    """
    ended = arguments.index("--") if "--" in arguments else len(arguments)
    given = dict.fromkeys(argument.partition("=")[0] for argument in arguments[:ended])
    meant = [name for name in given if name in own]
    if not meant:
        return ""
    roots = script.resolve().parents[:2]
    files = list(islice(chain.from_iterable(r.glob(p) for r in roots for p in PATTERNS), MOST))
    if len(files) == MOST:
        return ""
    for path in (script, *files):
        with suppress(OSError):  # a folder, say
            text = path.read_text(errors="ignore")
            meant = [name for name in meant if not _named(name, text)]
        if not meant:
            return ""
    return (
        f"after {script.name} stand options that no Python file around it names: {', '.join(meant)}. They go to the script; "
        f"kcd's own stand before {script.name}"
    )


def _named(option: str, text: str) -> bool:
    """Whether a file may declare an option: as text, or by the name of a field or parameter."""
    name = option.removeprefix("--").replace("-", "[-_]")
    return re.search(rf"--{name}|[\"']{name}[\"']|\b{name}\s*[:=]", text) is not None
