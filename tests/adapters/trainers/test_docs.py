"""The examples of docs/trainers.md run as they stand there, each where its library is installed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[3] / "docs" / "trainers.md"

#: The sections that have examples, and the library that each needs.
LIBRARIES = {
    "Lightning": "lightning",
    "Hugging Face Trainer": "transformers",
    "Language models (TRL)": "trl",
    "Accelerate": "accelerate",
    "timm": "timm",
    "Fabric": "lightning",
    "Composer": "composer",
    "ignite": "ignite",
    "sentence-transformers": "sentence_transformers",
}


def sections() -> dict[str, str]:
    """The text under each heading; that before the first is under ""."""
    first, *others = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {"": first, **dict(part.partition("\n")[::2] for part in others)}


def anchor(heading: str) -> str:
    """What GitHub makes of a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_the_table_has_every_section() -> None:
    found = sections()
    assert list(found)[1:] == [*LIBRARIES, "What is not supported"]
    assert re.findall(r"\| \[(.*?)\]\(#(.*?)\) \|", found[""]) == [
        (heading, anchor(heading)) for heading in LIBRARIES
    ]


@pytest.mark.parametrize("heading", LIBRARIES)
def test_examples_run(
    heading: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip(
        LIBRARIES[heading], reason=f"{LIBRARIES[heading]} is not installed: make test-trainers"
    )
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", sections()[heading], re.MULTILINE | re.DOTALL)
    assert {"python", "text"} <= {language for language, _ in blocks}
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    printed = ""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for language, text in blocks:
            if language == "python":
                exec(compile(text, f"trainers.md, {heading}", "exec"), names)
                printed = capsys.readouterr().out
            elif language == "text":
                for line in text.splitlines():
                    _, found, printed = printed.partition(line)
                    assert found, f"not printed: {line}"
