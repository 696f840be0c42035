"""Tables and a figure of the cells of `ablation.py`."""

from pathlib import Path
from statistics import mean, stdev

import numpy as np
from matplotlib.figure import Figure

COLUMNS = ("region micro", "region macro", "phrases", "hard negatives", "retrieval")
NUM_DRAWS = 2000
# What the scene term adds. Differences from `full` are in a column of the first tables.
PAIRS = (("scene + region", "region"), ("scene + concept", "concept"))


def compare_cells(cells: list[dict], references: list[dict]) -> tuple[float, float, float]:
    """Compare region accuracy (micro) of two rows, paired by seed and by picture.

    Args:
        cells: the cells of one row, one per seed.
        references: those of the other row, with the same seeds.

    Returns:
        The mean difference in percent, and a 95 % interval: seeds and pictures are drawn anew 2000 times.
    """
    pictures = np.array(cells[0]["pictures"])
    sizes = np.bincount(pictures)
    differences = np.array(
        [
            np.bincount(pictures, np.subtract(cell["hits"], other["hits"], dtype=float))
            for cell, other in zip(cells, references, strict=True)
        ]
    )  # (seeds, pictures), sums over the regions of a picture
    generator = np.random.default_rng(0)
    draws = []
    for _ in range(NUM_DRAWS):
        seeds = generator.integers(len(differences), size=len(differences))
        drawn = generator.integers(len(sizes), size=len(sizes))
        draws.append(differences[seeds][:, drawn].mean(axis=0).sum() / max(sizes[drawn].sum(), 1))
    low, high = np.percentile(draws, [2.5, 97.5])
    return tuple(100 * float(value) for value in (differences.mean(axis=0).sum() / sizes.sum(), low, high))


def make_tables(cells: list[dict], figure_path: Path) -> str:
    """Make one Markdown table per arm, and a figure of the region accuracy.

    Args:
        cells: results of `ablation.run_cell`.
        figure_path: PNG file to write.

    Returns:
        The tables. Scores are in percent, with their standard deviation over the seeds. The last column is
        the difference of `region micro` from the row `full`. A last table has the differences of `PAIRS`.
    """
    groups: dict[tuple[str, str], list[dict]] = {}
    for cell in sorted(cells, key=lambda cell: cell["seed"]):
        groups.setdefault((cell["arm"], cell["row"]), []).append(cell)
    arms = list(dict.fromkeys(cell["arm"] for cell in cells))
    rows = list(dict.fromkeys(cell["row"] for cell in cells))
    figure = Figure(figsize=(5 * len(arms) + 2, 0.35 * len(rows) + 1.2), layout="constrained")
    lines = []
    for panel, arm in zip(np.atleast_1d(figure.subplots(1, len(arms), sharey=True)), arms, strict=True):
        lines += [f"| {arm} | {' | '.join(COLUMNS)} | micro against full |", "| --- " * 7 + "|"]
        numbers = {}
        for row in rows:
            group = groups[arm, row]
            texts = []
            for column in COLUMNS:
                values = [100 * cell["scores"][column] for cell in group]
                texts.append(f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else ""))
                numbers[row, column] = values
            difference = "" if row == "full" else _write_difference(groups, arm, row, "full")
            lines.append(f"| {row} | {' | '.join(texts)} | {difference} |")
        lines.append("")
        for row in rows:
            values = numbers[row, COLUMNS[0]]
            panel.barh(row, mean(values), color="#4878a8")
            panel.plot(values, [row] * len(values), ".", color="black", markersize=4)
        panel.set_title(f"boxes: {arm}")
        panel.set_xlabel("region top-1, micro, percent")
    lines += _compare_pairs(groups, arms)
    figure.axes[0].invert_yaxis()  # which all panels share
    figure.savefig(figure_path, dpi=100)
    return "\n".join(lines).rstrip()


def _compare_pairs(groups: dict, arms: list[str]) -> list[str]:
    lines = [f"| region micro | {' | '.join(arms)} |", "| --- " * (1 + len(arms)) + "|"]
    for row, other in PAIRS:
        differences = [_write_difference(groups, arm, row, other) for arm in arms]
        if any(differences):
            lines.append(f"| {row} against {other} | {' | '.join(differences)} |")
    return lines if len(lines) > 2 else []


def _write_difference(groups: dict, arm: str, row: str, other: str) -> str:
    if not {(arm, row), (arm, other)} <= groups.keys():
        return ""
    center, low, high = compare_cells(groups[arm, row], groups[arm, other])
    return f"{center:+.1f} [{low:+.1f}, {high:+.1f}]"
