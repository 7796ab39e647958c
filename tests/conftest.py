"""What all tests share: hypothesis settings, and the recorded reference data."""

from __future__ import annotations

import os
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from helpers import GOLDEN

# Tensors are tiny here, and threads that wait for each other on a busy machine cost tenfold.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start

# A shared machine may stall for longer than any deadline; the seed is fixed so that CI is repeatable.
UNTIMED: dict[str, Any] = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("kcd", max_examples=60, derandomize=True, **UNTIMED)
hypothesis.settings.register_profile("long", max_examples=2000, **UNTIMED)
hypothesis.settings.load_profile("kcd")


@pytest.fixture(params=GOLDEN, ids=lambda path: path.stem)
def golden(request: pytest.FixtureRequest) -> dict[str, Any]:
    """One recorded run: plain numbers and arrays by name."""
    with np.load(request.param) as arrays:
        return {name: x.item() if x.ndim == 0 else x for name, x in arrays.items()}
