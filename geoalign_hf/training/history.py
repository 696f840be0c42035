"""What happened in a run, step by step: a JSON line each, and a picture of them all at the end."""

import json
from pathlib import Path

from matplotlib.figure import Figure

from ..storage import write_text


class History:
    """Keeps the records of a run in a file that survives it.

    Args:
        path: of the file, one JSON object with a `step` a line.
        resumed_step: records after this step are of a run that was cut off, and are dropped; None drops all.
        is_written: whether this process writes; others keep nothing.
    """

    def __init__(self, path: Path, resumed_step: int | None, is_written: bool):
        self.path, self.is_written = path, is_written
        if is_written:
            records = [] if resumed_step is None else read_records(path)
            kept = [record for record in records if record["step"] <= resumed_step]
            write_text(path, "".join(f"{json.dumps(record)}\n" for record in kept))

    def add(self, step: int, numbers: dict[str, float]) -> None:
        """Append one record."""
        if self.is_written:
            with self.path.open("a") as file:
                file.write(f"{json.dumps({'step': step} | numbers)}\n")


def read_records(path: Path) -> list[dict]:
    """Read the records of a file; a last line that was cut off is none, and a missing file has none."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def draw_curves(records: list[dict], path: Path) -> None:
    """Draw every number of the records over the steps, one panel each.

    Args:
        records: of `read_records`; they need not have the same numbers.
        path: of the PNG.
    """
    names = list(dict.fromkeys(name for record in records for name in record if name != "step"))
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.4 * rows), layout="constrained")
    for axes, name in zip(figure.subplots(rows, columns, squeeze=False).flat, names, strict=False):
        points = [(record["step"], record[name]) for record in records if name in record]
        axes.plot(
            *zip(*points, strict=True), linewidth=1, marker="o" if len(points) < 30 else None, markersize=3
        )
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
    for axes in figure.axes[len(names) :]:
        axes.set_axis_off()
    figure.savefig(path, dpi=110)
