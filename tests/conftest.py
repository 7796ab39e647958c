"""What all tests share: hypothesis settings, and the recorded reference data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.npz"))

# A shared machine may stall for longer than any deadline; the seed is fixed so that CI is repeatable.
hypothesis.settings.register_profile("kcd", deadline=None, max_examples=60, derandomize=True)
hypothesis.settings.register_profile("long", deadline=None, max_examples=2000)
hypothesis.settings.load_profile("kcd")


@pytest.fixture(params=GOLDEN, ids=lambda path: path.stem)
def golden(request: pytest.FixtureRequest) -> dict[str, Any]:
    """One recorded run: plain numbers and arrays by name."""
    with np.load(request.param) as arrays:
        return {name: x.item() if x.ndim == 0 else x for name, x in arrays.items()}
