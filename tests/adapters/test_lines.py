"""The lines ``kcd: TEXT`` that adapters print in somebody else's program."""

from __future__ import annotations

import subprocess
import sys

from helpers import SECONDS


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
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS, check=True
    )
    assert (
        done.stdout == "kcd: 100% of it\nkcd: WARNING: beware\n" + 5 * "kcd: still told\nkcd: not forgotten\n"
    )
    assert done.stderr == ""


def test_lines_go_where_they_can() -> None:
    code = """
import io, sys
from kcd_adapters.telling import say

class Plain:
    def write(self, text):
        sys.__stdout__.write(text.upper())

sys.stdout = Plain()  # as old repositories do, which write to a file, too
say("to it")
sys.stdout = io.StringIO()
sys.stdout.close()
say("to python's own")
sys.stdout = None
say("nowhere")
sys.__stdout__.close()
say("nowhere")
sys.stdout = sys.__stdout__
say("nowhere")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS, check=True
    )
    assert done.stdout == "KCD: TO IT\nkcd: to python's own\n"
    assert done.stderr == ""


def test_a_programs_own_package_kcd_logs_as_ever() -> None:
    code = """
import logging, sys
if len(sys.argv) > 1:
    from kcd_adapters.telling import say
    say("a line")
loss = logging.getLogger("kcd.loss")
loss.warning("before logging is set up")
logging.basicConfig(level=logging.DEBUG, format="%(name)s %(message)s")
loss.debug("a detail")
loss.info("once")
"""
    without, beside = (
        subprocess.run(
            [sys.executable, "-c", code, *also], capture_output=True, text=True, timeout=SECONDS, check=True
        )
        for also in ([], ["beside"])
    )
    assert without.stderr == beside.stderr == "before logging is set up\nkcd.loss a detail\nkcd.loss once\n"
    assert (without.stdout, beside.stdout) == ("", "kcd: a line\n")
