"""The YAML files that scripts take their options from."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

__all__ = ["read_yaml"]


def read_yaml(path: str) -> dict[str, Any]:
    """What the file holds; nothing where there is none, or no mapping in it: what is wrong with it, the script says."""
    if not (path and Path(path).is_file()):
        return {}
    try:
        yaml = importlib.import_module("yaml")
    except ImportError:  # without it, the script can't read the file either
        return {}
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}
