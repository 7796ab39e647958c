"""A griffe extension: parameters that a docstring describes together are listed one by one, each with its own type and default."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

TOGETHER = re.compile(r"^(\w+(?:, \w+)+)(?= :|$)(.*)$")


def one_by_one(text: str) -> str:
    """A docstring in which every "a, b : int" of its parameters is an "a : int" and a "b : int", with the text of both."""
    before, heading, after = text.partition("\nParameters\n----------\n")
    blocks = re.split(r"\n(?=\S)", after)  # a name, and what is indented below it
    for place, block in enumerate(blocks):
        if block.endswith("----") or (place + 1 < len(blocks) and blocks[place + 1].startswith("----")):
            break  # another section
        names, _, description = block.partition("\n")
        if found := TOGETHER.match(names):
            blocks[place] = "\n".join(f"{name}{found[2]}\n{description}" for name in found[1].split(", "))
    return before + heading + "\n".join(blocks)


class OneByOne(Extension):
    """Does so for every object."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = one_by_one(obj.docstring.value)
