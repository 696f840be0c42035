"""Evaluation results: files of scores and arrays."""

from pathlib import Path

import numpy as np

from ..storage import atomic_file, write_json


def save_arrays(path: str | Path, **arrays) -> None:
    """Write arrays or tensors to one `.npz` file; its folder is created."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        np.savez(file, allow_pickle=False, **{name: np.asarray(array) for name, array in arrays.items()})


def write_metrics(path: str | Path, metrics: dict[str, dict]) -> None:
    """Write results to a JSON file.

    Args:
        path: path of the file; its folder is created.
        metrics: scores by the name of the result, each with its `protocol`.

    Raises:
        ValueError: if a result has no protocol, or a number is NaN or infinite.
    """
    if bare := [name for name, scores in metrics.items() if "protocol" not in scores]:
        raise ValueError(
            f"the results {bare} have no protocol, and scores mean nothing without one. "
            "Write what an evaluator of geoalign_hf.evaluation returns."
        )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, metrics)
