"""ReviewKD (dvlab-research/ReviewKD), its ImageNet script. It fetches ahead, and needs apex.

Its images are PIL's until they are collated, and have no mixture: ``--mixing none``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from .profile import Profile

__all__ = ["PROFILE"]


def refuse(arguments: Sequence[str]) -> str | None:
    try:
        usable = importlib.util.find_spec("apex.amp") is not None
    except Exception:  # there is none, or one that can't be imported
        usable = False
    return None if usable else "it needs NVIDIA's apex (https://github.com/NVIDIA/apex): install it first"


PROFILE = Profile(
    name="reviewkd_imagenet",
    title="ReviewKD (ImageNet)",
    covers="its ImageNet script, where apex is installed",
    script="ImageNet/imagenet_amp.py",
    marks=("ImageNet/models/reviewkd.py",),
    observe="torch.nn.functional.cross_entropy",
    method=lambda arguments: "reviewkd",
    refuse=refuse,
)
