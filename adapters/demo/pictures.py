"""The demo's pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import kcd_core as kcd
from kcd_core.base import style
from kcd_core.base.files import write_whole

from .datasets import Split
from .results import Run

__all__ = ["draw", "draw_accuracy", "draw_classes", "draw_images", "draw_values"]

COLUMNS = 10
MOST_CLASSES = 20  # that the picture of the classes has room for


def draw(
    folder: Path,
    split: Split,
    arms: Mapping[str, Sequence[Run]],
    shown: Run | None,
    mixed: Run | None = None,
) -> list[Path]:
    """Draw a comparison, and what one run did.

    Parameters
    ----------
    folder : Path
        Where the PNG files go.
    split : Split
    arms : mapping
        Arm to its runs; the first is plain distillation.
    shown : Run, optional
        Its tracker, history and sets are shown; it had a stage at least.
    mixed : Run, optional
        Its mixtures are shown.

    Returns
    -------
    list of Path
        The files.
    """
    figures = {"accuracy.png": draw_accuracy(arms)}
    if shown is not None:
        figures["values.png"] = draw_values(shown.loader.history)
        figures["classes.png"] = draw_classes(split, shown.sets)
        if split.train.data.ndim > 2:  # else they are vectors, not images
            figures["images.png"] = draw_images(split, shown.loader.tracker, mixed.sets if mixed else [])
    for name, figure in figures.items():
        write_whole(folder / name, style.png(figure))
    return [folder / name for name in figures]


def draw_accuracy(arms: Mapping[str, Sequence[Run]]) -> Any:
    """Accuracy against the share of samples drawn: a point for each run, and a bar at each arm's mean."""
    figure = style.figure(8.4, 4.6)
    axes = figure.subplots()
    plain = next(iter(arms.values()))
    some = {name: runs for name, runs in arms.items() if runs}
    shares = {name: 100 * runs[0].cost.drawn / plain[0].cost.drawn for name, runs in some.items()}
    for place, ((name, runs), (marker, color, _)) in enumerate(zip(some.items(), style.ARMS, strict=False)):
        percent, share = [100 * run.accuracy for run in runs], shares[name]
        label = f"{name}: {share:.1f} % of the samples, {median(run.seconds for run in runs):.1f} s a run"
        # Hollow, and the later the smaller, so that arms that draw as many are all seen.
        look: Any = {"color": color, "markerfacecolor": "none", "markersize": 11 - 1.5 * place}
        axes.plot([share] * len(percent), percent, marker, label=label, **look)
        axes.plot(share, fmean(percent), "_", color=color, markersize=40 - 5 * place, markeredgewidth=2)
    axes.set_xlabel("samples drawn, % of KD's")
    axes.set_ylabel("test accuracy, %\n(a point a run, the bar is their mean)")
    axes.margins(x=0.15)
    style.plain(axes)
    style.legend(figure)
    axes.set_title(
        "Accuracy against samples drawn, in the runs of all seeds; seconds are medians", loc="left"
    )
    return figure


def draw_values(history: kcd.CondensationHistory) -> Any:
    """How the values of all samples move stage by stage, with the cut."""
    figure = history.plot().figure
    figure.suptitle(
        "What the samples are worth to the student, stage by stage, in KC-KD's first run", x=0.01, ha="left"
    )
    return figure


def draw_classes(split: Split, sets: Sequence[kcd.CondensedSet]) -> Any:
    """The share of every class that each stage keeps."""
    targets, number = split.train.targets, len(split.classes)
    everyone = np.bincount(targets, minlength=number)
    kept = [np.bincount(targets[chosen.kept], minlength=number) for chosen in sets]
    shares = (np.stack(kept) / np.maximum(1, everyone)).T
    order = np.argsort(-shares[:, -1], kind="stable")
    order = order[everyone[order] > 0]
    title = "Share of each class that KC-KD's first run keeps,\nthe most kept in the end first"
    if len(order) > MOST_CLASSES:
        half = MOST_CLASSES // 2
        title += f" (the {half} most and the {half} least kept of {len(order)})"
        order = np.concatenate([order[:half], order[-half:]])
    shares = shares[order]
    figure = style.figure(2.5 + 0.9 * len(sets), 1.5 + 0.36 * len(order))
    axes = figure.subplots()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap=style.SHARES, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        color = "white" if share < 0.6 else "black"
        axes.text(column, row, f"{share:.0%}", ha="center", va="center", color=color, fontsize=9)
    axes.set_xticks(
        range(len(sets)),
        [f"stage {chosen.stage}\n{len(chosen.kept) / len(targets):.1%} of all" for chosen in sets],
    )
    axes.set_yticks(range(len(order)), [split.classes[i] for i in order])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, loc="left")
    axes.set_xlabel("stage, and the share of all samples that it keeps")
    axes.set_ylabel("class")
    figure.colorbar(
        image, ax=axes, format=lambda share, _: f"{share:.0%}", label="kept, share of the class"
    ).outline.set_visible(False)
    return figure


def draw_images(split: Split, tracker: kcd.KnowledgeValueTracker, sets: Sequence[kcd.CondensedSet]) -> Any:
    """The most and the least valuable images, and some that were mixed at the first stage that mixes."""
    images, names = _Pixels(split.train.data), [split.classes[t] for t in split.train.targets]
    value = torch.as_tensor(tracker.value).cpu().numpy()  # may lie on an accelerator
    order = np.argsort(-value, kind="stable")
    order = order[np.isfinite(value[order])]
    best, worst = order[:COLUMNS], order[-COLUMNS:]
    rows: list[tuple[str, list[tuple[Any, str]]]] = [
        (what, [(images[i], f"{names[i]}\n{value[i]:.3f}") for i in some])
        for what, some in (("most valuable\n(entropy in nats)", best), ("least valuable", worst))
    ]
    mixing = next((chosen for chosen in sets if len(chosen.tail)), None)
    if mixing is not None:
        places = np.unique(np.linspace(0, len(mixing.tail) - 1, COLUMNS).round().astype(int))
        pairs = [(int(mixing.tail[p]), int(mixing.dropped[p]), float(mixing.weights[p])) for p in places]
        rows += [
            (f"barely kept\n(stage {mixing.stage})", [(images[kept], names[kept]) for kept, _, _ in pairs]),
            ("dropped", [(images[dropped], names[dropped]) for _, dropped, _ in pairs]),
            (
                "their mixture\n(share of the kept)",
                [(kcd.mix_arrays(images, pair[0], (pair,)), f"{pair[2]:.0%}") for pair in pairs],
            ),
        ]
    figure = style.figure(1.6 + COLUMNS, 0.5 + 1.25 * len(rows))
    grid = figure.subplots(len(rows), COLUMNS, squeeze=False)
    for line, (what, cells) in zip(grid, rows, strict=True):
        line[0].set_ylabel(what, rotation=0, ha="right", va="center", labelpad=8)
        for axes in line[len(cells) :]:
            axes.set_axis_off()
        for axes, (pixels, caption) in zip(line, cells, strict=False):
            axes.imshow(pixels, cmap="gray_r", vmin=0, vmax=255)
            axes.set_xlabel(caption, fontsize=9, labelpad=3)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_color("0.8")
    title = "KC-KD's first run: the most and the least valuable"
    if mixing is not None:
        title += "; the first run of KC-KD, mixed: what is mixed (the more valuable, the further to the left)"
    figure.suptitle(title, x=0.01, ha="left")
    return figure


class _Pixels:
    """Images alone, untransformed: all that `mix_arrays` asks for."""

    def __init__(self, data: npt.NDArray[np.uint8]) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return self.data[int(index)]
