"""Figures of evaluation results, drawn without a display."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ..storage import atomic_file


def draw_confusion(confusion: list[list[int]], concepts: Sequence[str], path: str | Path) -> None:
    """Draw a confusion matrix. Cells are coloured by the fraction of their row and labelled with counts.

    Args:
        confusion: (C, C), counts; one row per correct concept, one column per answer.
        concepts: C names.
        path: path of the PNG file; its folder is created.
    """
    counts = np.asarray(confusion, dtype=float)
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(4.0, 1.5 + 0.32 * len(concepts))  # inches
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(concepts)), concepts, rotation=90)
    axes.set_yticks(range(len(concepts)), concepts)
    axes.set_xlabel("answer")
    axes.set_ylabel("correct concept")
    for row, column in zip(*np.nonzero(counts), strict=True):
        colour = "white" if fractions[row, column] > 0.5 else "black"
        number = str(int(counts[row, column]))
        axes.text(column, row, number, ha="center", va="center", color=colour, fontsize=7)
    _save(figure, path)


def draw_score_map(
    image: Image.Image,
    score_map: np.ndarray,
    title: str,
    path: str | Path,
    polygons: Sequence | None = None,
) -> None:
    """Draw a score map over its picture, with the outlines of the truth.

    Args:
        image: the picture.
        score_map: (H, W), in [0, 1], of the whole picture at any resolution.
        title: the phrase.
        path: path of the PNG file; its folder is created.
        polygons: the truth, each a list of corners x, y in pixels of `image`. None draws no outlines.
    """
    width, height = image.size
    figure = Figure(figsize=(8, 8 * height / width + 0.6), layout="constrained")
    axes = figure.subplots()
    shown = image.convert("RGB")
    shown.thumbnail((1600, 1600))
    extent = (0, width, height, 0)
    axes.imshow(shown, extent=extent)
    axes.imshow(score_map, extent=extent, cmap="jet", alpha=0.45, vmin=0, vmax=1)
    for polygon in polygons or []:
        axes.plot(*zip(*[*polygon, polygon[0]], strict=True), color="white", linewidth=2)
    axes.set_title(title)
    _save(figure, path)


def _save(figure: Figure, path: str | Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        figure.savefig(file, dpi=120, format="png")
