"""What a run says of itself: through one logger, ``kcd``, which is quiet until somebody listens.

`kcd_core` configures nothing: it sets no level, and adds no handler that writes anywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

__all__ = ["LOGGER", "stage_line"]

LOGGER = logging.getLogger("kcd")
LOGGER.addHandler(logging.NullHandler())  # else warnings would go to stderr where nobody configured logging


def stage_line(record: Mapping[str, Any], num_samples: int) -> str:
    """What a stage did, by its record in the history of so many samples.

    >>> stage_line({"stage": 1, "epoch": 4, "kept": 1900, "dropped": 100, "mixed": 100, "cut": 1.5}, 2000)
    'stage 1 after epoch 4: 1900 of 2000 kept, 100 dropped, 100 mixed, cut 1.5000'
    """
    cut = "" if record["cut"] is None else f", cut {record['cut']:.4f}"
    return (
        f"stage {record['stage']} after epoch {record['epoch']}: {record['kept']} of {num_samples} kept, "
        f"{record['dropped']} dropped, {record['mixed']} mixed{cut}"
    )
