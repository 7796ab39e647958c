"""The scripts of examples/ that need a library beside torch run, each where it is installed, and print what was saved."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import SECONDS

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "trainers.md"

#: The script, the library that it needs, and where docs/trainers.md has it.
SCRIPTS = {
    "lightning_digits.py": ("lightning", "Lightning"),
    "transformers_digits.py": ("transformers", "Hugging Face Trainer"),
    "trl_gkd.py": ("trl", "Language models (TRL)"),
    "trl_packing.py": ("trl", "Language models (TRL)"),
    "accelerate_digits.py": ("accelerate", "Accelerate"),
    "timm_digits.py": ("timm", "timm"),
    "fabric_digits.py": ("lightning", "Fabric"),
    "composer_digits.py": ("composer", "Composer"),
    "ignite_digits.py": ("ignite", "ignite"),
    "sentence_embeddings.py": ("sentence_transformers", "sentence-transformers"),
    "tensorboard_digits.py": ("tensorboard", None),
    "wandb_digits.py": ("wandb", None),
}


def sections() -> dict[str, str]:
    """The text under each heading; that before the first is under ""."""
    first, *others = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {"": first, **dict(part.partition("\n")[::2] for part in others)}


def anchor(heading: str) -> str:
    """What GitHub makes of a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_each_trainer_has_a_row_a_section_and_a_script() -> None:
    found = sections()
    headings = list(dict.fromkeys(heading for _, heading in SCRIPTS.values() if heading))
    assert list(found)[1:] == [*headings, "What is not supported"]
    rows = re.findall(r"\| \[(.*?)\]\(#(.*?)\) \|", found[""])
    assert rows == [(heading, anchor(heading)) for heading in headings]
    for name, (_, heading) in SCRIPTS.items():
        assert heading is None or f"<!-- quoted from examples/{name} -->" in found[heading], name


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_prints_what_was_saved(name: str, tmp_path: Path) -> None:
    library, _ = SCRIPTS[name]
    pytest.importorskip(library, reason=f"{library} is not installed: make test-trainers")
    command = [sys.executable, str(ROOT / "examples" / name)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    last = done.stdout.strip().splitlines()[-1]
    saved = re.fullmatch(r"([\d,]+) of ([\d,]+) samples drawn, ([\d,]+) of ([\d,]+) kept", last)
    assert saved, f"the last line printed is {last!r}"
    drawn, all_of_them, kept, samples = (int(number.replace(",", "")) for number in saved.groups())
    assert 0 < drawn < all_of_them
    assert 0 < kept < samples
