"""The marked block that ``kcd patch`` puts into a script: bytes in, bytes out, no file touched.

Everything works on bytes, since a byte that is decoded and encoded again may come back as another one. The
block is ASCII, stands alone before the first ordinary statement, and its first line records the SHA-256 of
the script without it: so the settings inside can be edited, and it can still be told whether all the rest
is as it was.
"""

from __future__ import annotations

import ast
import hashlib
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["FORMAT", "MARK", "Block", "call", "find", "insert"]

FORMAT = 1
BOM = b"\xef\xbb\xbf"
MARK = b"# >>> kcd patch "
_BEGIN = re.compile(re.escape(MARK) + rb"(\d+) sha256=([0-9a-f]{64}) >>>\s*")
_END = b"# <<< kcd patch <<<"
_CALLED = b"kcd_adapters.auto.install("
_LINE = re.compile(
    rb"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+"
)  # Python's own idea of a line, in every encoding it reads
_CALL = """\
# Added by `kcd patch`: this script trains with KCD. The settings may be edited; `kcd unpatch` removes the block.
import kcd_adapters.auto
kcd_adapters.auto.install(
    __name__,
{settings})
"""


@dataclass(frozen=True)
class Block:
    """A block found in a script.

    Attributes
    ----------
    format : int
        The format it was written in; this version writes `FORMAT`.
    call : bytes
        The lines between the markers, with ``\\n`` as their ends.
    rest : bytes
        The script without the block.
    as_left : bool
        Whether the rest is, to the byte, what it was when the block was inserted.
    """

    format: int
    call: bytes
    rest: bytes
    as_left: bool

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that are written in the block, as it is now.

        Raises
        ------
        ValueError
            If one is no plain literal any more, so that it can't be read without being executed.
        """
        found: dict[str, Any] = {}
        for node in (node for part in _statements(self.call) for node in ast.walk(part)):
            for keyword in node.keywords if isinstance(node, ast.Call) else ():
                try:
                    found[str(keyword.arg)] = ast.literal_eval(keyword.value)
                except ValueError:
                    raise ValueError(f"the setting {keyword.arg} in its block is no plain literal") from None
        return found


def call(settings: Mapping[str, Any]) -> bytes:
    """The lines between the markers: the call that installs KCD, one setting a line.

    Raises
    ------
    ValueError
        If a setting is not a plain literal, which could not be read back from source.
    """
    lines = []
    for name, value in settings.items():
        try:
            plain = ast.literal_eval(ascii(value)) == value
        except (SyntaxError, ValueError):
            plain = False
        if not (plain and name.isidentifier()):
            raise ValueError(f"setting {name!r} = {value!r} can't be written into a script")
        lines.append(f"    {name}={value!a},\n")
    return _CALL.format(settings="".join(lines)).encode("ascii")


def insert(source: bytes, lines: bytes) -> bytes:
    """The script with a block before its first ordinary statement.

    Comments, the docstring and ``from __future__`` imports stay in front, as Python demands. The result is
    parsed, and must be the script's own statements with the block's among them.

    Raises
    ------
    ValueError
        If the script is no Python, holds no statement, has a block already, or can't take one.
    """
    if find(source) is not None:
        raise ValueError("it holds a kcd block already")
    body, added = _statements(source), _statements(lines)
    head = _header(body)
    if head == len(body):
        raise ValueError("it holds no statement")
    first = body[head]
    number = min([first.lineno, *(d.lineno for d in getattr(first, "decorator_list", []))])
    if head and number <= (body[head - 1].end_lineno or 0):
        raise ValueError(f"line {number} holds its docstring or a __future__ import and one more statement")
    pieces = _LINE.findall(source)
    before = b"".join(pieces[: number - 1]) or (BOM if source.startswith(BOM) else b"")
    newline = pieces[number - 1][len(pieces[number - 1].rstrip(b"\r\n")) :] or b"\n"
    begin = f"# >>> kcd patch {FORMAT} sha256={hashlib.sha256(source).hexdigest()} >>>\n".encode()
    block = (begin + lines + _END + b"\n").replace(b"\n", newline)
    patched = before + block + source[len(before) :]
    # A last check that trusts nothing above: encodings, line ends and continuation lines have many traps.
    found = find(patched)
    same = [ast.dump(node) for node in _statements(patched)] == [
        ast.dump(node) for node in body[:head] + added + body[head:]
    ]
    if not same or found is None or found.rest != source:
        raise ValueError(f"a block before line {number} would change its meaning")
    return patched


def find(source: bytes) -> Block | None:
    """The block in a script; None if there is none.

    Raises
    ------
    ValueError
        If the markers are not one begin followed by one end.
    """
    bom = BOM if source.startswith(BOM) else b""
    lines = _LINE.findall(source[len(bom) :])
    if _CALLED not in source:
        return None  # who merely quotes the markers
    begins = [(row, match) for row, line in enumerate(lines) if (match := _BEGIN.fullmatch(line))]
    ends = [row for row, line in enumerate(lines) if line.rstrip() == _END]
    if not begins and not ends:
        return None
    if len(begins) != 1 or len(ends) != 1 or begins[0][0] > ends[0]:
        raise ValueError(
            f"its kcd markers are damaged: {len(begins)} begin and {len(ends)} end where one of each, in this "
            "order, is expected; remove the block's lines with an editor"
        )
    (start, match), end = begins[0], ends[0]
    rest = bom + b"".join(lines[:start] + lines[end + 1 :])
    inside = b"".join(line.rstrip(b"\r\n") + b"\n" for line in lines[start + 1 : end])
    if _CALLED not in inside:
        return None
    return Block(int(match[1]), inside, rest, hashlib.sha256(rest).hexdigest().encode() == match[2])


def _statements(source: bytes) -> list[ast.stmt]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the script's style, which is its author's business
            compile(source, "<script>", "exec", dont_inherit=True)
            return ast.parse(source).body
    except SyntaxError as error:
        where = f" (line {error.lineno})" if error.lineno else ""
        raise ValueError(f"it is no valid Python: {error.msg}{where}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"it is no valid Python: {error}") from None


def _header(body: list[ast.stmt]) -> int:
    """How many statements at the top must stay in front of everything."""
    for place, node in enumerate(body):
        future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
        if not future and not (place == 0 and _is_text(node)):
            return place
    return len(body)


def _is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
