"""Both packages, imported from this checkout, whether it is installed or not."""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def importable() -> None:
    """Let this process, and all that it starts, import `kcd_core` and `kcd_adapters` from this checkout.

    Nothing is done where they are installed from it. Else the checkout goes on the path, for this process and in
    ``PYTHONPATH``, with a temporary folder in which `kcd_adapters` is a link to ``adapters``: only an installation
    gives it that name.
    """
    if _from_here("kcd_core", "kcd_core") and _from_here("kcd_adapters", "adapters"):
        return
    folder = tempfile.mkdtemp(prefix="kcd-gpu-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    Path(folder, "kcd_adapters").symlink_to(ROOT / "adapters", target_is_directory=True)
    sys.path[:0] = [folder, str(ROOT)]
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([folder, str(ROOT), *([before] if before else [])])
    importlib.invalidate_caches()


def _from_here(package: str, folder: str) -> bool:
    spec = importlib.util.find_spec(package)
    return (
        spec is not None and spec.origin is not None and Path(spec.origin).resolve().parent == ROOT / folder
    )
