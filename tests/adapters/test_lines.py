"""The lines ``kcd: TEXT`` that adapters print in somebody else's program."""

from __future__ import annotations

import subprocess
import sys


def test_lines_are_printed_where_print_does_and_warnings_say_so() -> None:
    code = """
import contextlib, io, logging
from kcd_adapters.telling import say
from kcd_core.log import LOGGER
LOGGER.info("before anything was said")
say("100% of it")
say("beware", logging.WARNING)
LOGGER.debug("a detail")
with contextlib.redirect_stdout(io.StringIO()) as elsewhere:
    say("there")
assert elsewhere.getvalue() == "kcd: there\\n", elsewhere.getvalue()
logging.basicConfig(level=logging.DEBUG)
LOGGER.debug("a detail")
for quiet in (
    LOGGER.handlers.clear,  # as dictConfig() does where it names the logger
    lambda: LOGGER.setLevel(logging.CRITICAL),
    lambda: logging.disable(logging.CRITICAL),
    lambda: setattr(LOGGER, "disabled", True),
    lambda: setattr(LOGGER, "propagate", True),
):
    quiet()
    say("still told")
    LOGGER.debug("a detail")
    LOGGER.info("not forgotten")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert (
        done.stdout == "kcd: 100% of it\nkcd: WARNING: beware\n" + 5 * "kcd: still told\nkcd: not forgotten\n"
    )
    assert done.stderr == ""
