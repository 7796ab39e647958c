"""Whether torch.compile can work here: it compiles its kernels, or what launches them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

import torch


def no_compiler(device: torch.device) -> str:
    """Why torch.compile can't work for this device, if it can't."""
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed"
        names, language = os.environ.get("CC") or "gcc clang", "C"
    else:
        names, language = os.environ.get("CXX") or "g++ clang++", "C++"
    if not any(map(shutil.which, names.split())):
        return f"there is no {language} compiler ({' or '.join(names.split())})"
    # Debian's own scheme names a folder that is not where its headers are, as Triton knows.
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    header = Path(sysconfig.get_path("include", scheme), "Python.h")
    if not header.exists():
        return f"Python's headers are not installed ({header})"
    return ""
