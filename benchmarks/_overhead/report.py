"""What was measured, in words and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from _common.report import verdict

from kcd_core.base import style
from kcd_core.base.files import write_whole
from kcd_core.base.style import FAINT, INK, KEPT

from .recorders import ARMS, EPOCHS

MOST = 1.005  # the target for a step's time, to plain KD's
MOST_OF_AUTHORS = 0.7  # and for the recording's, to the authors'
LEAST_ROUNDS = 30  # of which a target is called met or missed
NOTE = """\
added us is the recording alone, timed in rounds of its own after the student's forward pass; on CUDA, host time, with
the device idle when it begins: what the recording launches and the copies that it waits for, not the step before. The
ratio is of whole steps: it has, too, what giving the index along with each sample costs (the wrapped loader's work for
kcd, a column of the data set for authors and infobatch), and noise, as wide as its interval. A target is met or missed
if its whole interval is; of fewer than six rounds or windows there is none, and of fewer than 30 rounds no verdict. infobatch is one process: the all_gather of
every step under DDP is measured by benchmarks/communication.py"""
NOTE_ON_CUDA = """\
kernels, copies and waits are a step's, of the recording alone, over windows of 32 with what is deferred; waits are
synchronisations, as torch's profiler sees them and as torch.cuda.set_sync_debug_mode warns of them. peak MB is of whole
steps, while the students of all arms are held; own peak kB is what the recording holds beside that"""

CAPTION = f"""\
Dots: the ratio of medians. Bars: 95 % intervals (bootstrap of the rounds); hollow: too few rounds for one. Each panel has a
scale of its own. Dotted: the target, at most {MOST}."""


def table(report: dict[str, Any]) -> str:
    lines = []
    for result in report["pairs"]:
        rows = result["arms"]
        lines += [
            f"{result['pair']}, batch {result['batch']}, {result['rounds']} rounds, {result['windows']} windows",
            "arm         ms a step   ratio   95 % interval      added us   share of a step",
        ]
        for arm, row in rows.items():
            line = f"{arm:10} {row['median_ms']:10.2f}"
            if "ratio" in row:
                low, high = row["ratio_95"] or (np.nan, np.nan)
                line += f"  {row['ratio']:6.4f}  {low:6.4f} .. {high:6.4f}  {row['added_us']:9.1f}   {row['added_share']:.3%}"
            lines.append(line)
        lines += targets(rows["kcd"], result["rounds"])
        if "peak_bytes" in rows["kd"]:
            lines += ["", "arm         kernels    copies     waits   waits warned of   peak MB   own peak kB"]
            for arm, row in rows.items():
                line = f"{arm:10}"
                for key, width in (
                    ("kernels", 9),
                    ("copies", 10),
                    ("syncs_profiled", 10),
                    ("syncs_warned", 18),
                ):
                    line += f"{_counted(row, key):>{width}}"
                line += f"{row['peak_bytes'] / 1e6:10.1f}"
                if "recording_peak_bytes" in row:
                    line += f"{row['recording_peak_bytes'] / 1e3:14.1f}"
                lines.append(line)
        lines.append("")
    lines += [NOTE, *([NOTE_ON_CUDA] if "peak_bytes" in report["pairs"][0]["arms"]["kd"] else []), ""]
    lines.append("recording    operations   syncs   bytes to host   bytes a sample   stage end at 50,000, ms")
    for arm, row in report["recording"].items():
        lines.append(
            f"{arm:10} {row['operations']:12.1f}  {row['synchronisations']:6.2f}  {row['bytes_to_host']:14.0f}"
            f"  {row['bytes_per_sample']:15.0f}  {1e3 * row['stage_end_s']:24.1f}"
        )
    lines.append(
        "\noperations that launch or copy, synchronisations and bytes are a step's, on fake CUDA tensors; the "
        f"authors' memory is their matrix after {EPOCHS} epochs"
    )
    return "\n".join(lines)


def targets(row: dict[str, Any], rounds: int) -> list[str]:
    """A line for each of kcd's targets, of its row."""
    lines = []
    for text, key, most in (
        ("ratio", "ratio", MOST),
        ("added us to the authors'", "added_to_authors", MOST_OF_AUTHORS),
    ):
        found = row[f"{key}_95"]
        between = "no interval" if found is None else f"{found[0]:.3f} .. {found[1]:.3f}"
        told = verdict(found, at_most=most) if rounds >= LEAST_ROUNDS else "too few rounds for a verdict"
        lines.append(f"target of kcd: {text} at most {most}: {row[key]:.3f} ({between}), {told}")
    return lines


def _counted(row: dict[str, Any], key: str) -> str:
    if key not in row:  # plain KD records nothing
        return ""
    return "not seen" if row[key] is None else f"{row[key]:.2f}"


def plot(report: dict[str, Any], path: Path) -> None:
    write_whole(path, style.png(figure_of(report["pairs"])))


def figure_of(pairs: list[dict[str, Any]]) -> Any:
    """A panel for each pair: how long a step of each arm is, to plain KD's."""
    figure = style.figure(max(4.2 * len(pairs), 6.3), 3.2)
    arms = [arm for arm in ARMS if arm != "kd"]
    for axes, result in zip(np.atleast_1d(figure.subplots(1, len(pairs))), pairs, strict=True):
        axes.axvline(1, color=FAINT, linewidth=0.9)
        axes.axvline(MOST, color=INK, linewidth=0.9, linestyle=":")
        for place, arm in enumerate(arms):
            row, color = result["arms"][arm], KEPT if arm == "kcd" else INK
            found = row["ratio_95"]
            if found:
                axes.hlines(-place, *found, color=color, linewidth=1.5)
            axes.plot(row["ratio"], -place, "o", color=color, markerfacecolor=None if found else "white")
        axes.set_yticks([-place for place in range(len(arms))], arms)
        axes.set_ylim(0.5 - len(arms), 0.5)
        plain = f"{result['arms']['kd']['median_ms']:.3g} ms"
        axes.set_title(f"{result['pair']}: plain KD takes {plain} a step", fontsize=10, color=INK)
        axes.set_xlabel("time of a step / plain KD's", color=INK)
        style.plain(axes)
    figure.supxlabel(CAPTION, fontsize=9, color=INK, x=0.01, ha="left")
    return figure
