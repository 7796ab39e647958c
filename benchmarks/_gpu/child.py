"""One part of `gpu.py`, in a process of its own.

    python -m _gpu.child ORDERS

Run by gpu.py in the folder of benchmarks. ORDERS is JSON: the part's module, and what a `Part` is made of. The exit status is 1 if the part
failed. Standard input is the line to gpu.py: when it closes, this process and all it started end.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from .part import Part


def end_with_parent() -> None:
    """End this process and its children as soon as gpu.py is gone, even if that was killed."""
    line = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # what the part starts must not read from the line

    def wait() -> None:
        while os.read(line, 1):
            pass
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main(orders: dict[str, Any]) -> bool:
    """Run the part; whether it failed."""
    start = time.monotonic()
    part = Part(
        orders["name"],
        orders["device"],
        orders["quick"],
        Path(orders["data_dir"]) if orders["data_dir"] else None,
        Path(orders["out"]),
        orders["deadline"],
        about=orders["about"],
    )
    try:
        importlib.import_module(orders["module"]).run(part)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        part.fail("ended early", f"{type(error).__name__}: {error}")
    part.write(ended=True, seconds=round(time.monotonic() - start, 1))
    return bool(part.failures)


if __name__ == "__main__":
    faulthandler.enable()  # a crash, or an end from outside, says where it came
    faulthandler.register(signal.SIGTERM, chain=True)
    end_with_parent()
    sys.exit(main(json.loads(sys.argv[1])))
