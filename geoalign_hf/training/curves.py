"""A picture of the numbers that a run has logged."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure


def draw_curves(records: list[dict], path: Path, names: Sequence[str]) -> None:
    """Draw numbers of the records over the steps, one panel per number.

    Args:
        records: log entries with a `step`, as `trainer.state.log_history` holds them. They need not have the
            same numbers.
        path: PNG file to write.
        names: names of the numbers, in the order of the panels. A number that was logged less than twice gets
            no panel.
    """
    counts = Counter(name for record in records for name in record)
    names = [name for name in names if counts[name] > 1]
    columns = max(1, min(4, len(names)))
    rows = max(1, -(-len(names) // columns))
    width, height = 3.6 * columns, 2.4 * rows
    figure = Figure(figsize=(width, height))
    # Fixed margins, in inches: a layout that measures every label takes longer than a short training.
    figure.subplots_adjust(
        0.5 / width, 0.3 / height, 1 - 0.1 / width, 1 - 0.3 / height, wspace=0.25, hspace=0.3
    )
    for axes, name in zip(figure.subplots(rows, columns, squeeze=False).flat, names, strict=False):
        points = [(record["step"], record[name]) for record in records if name in record]
        axes.plot(
            *zip(*points, strict=True), linewidth=1, marker="o" if len(points) < 30 else None, markersize=3
        )
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.locator_params(nbins=5)
    for axes in figure.axes[len(names) :]:
        axes.set_axis_off()
    figure.savefig(path, dpi=110)
