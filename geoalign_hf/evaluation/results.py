"""Evaluation results: files of scores and arrays."""

from pathlib import Path

import numpy as np

from ..storage import write_json


def save_arrays(path: str | Path | None, **arrays) -> None:
    """Write to an npz file what scores were made of, so that anyone can make them again; None: nothing."""
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **{name: np.asarray(array) for name, array in arrays.items()})


def write_metrics(path: str | Path, metrics: dict[str, dict]) -> None:
    """Write results to a JSON file.

    Args:
        path: of the file; its folder is made.
        metrics: scores by the name of the result, each with its `protocol`.

    Raises:
        ValueError: if a result has no protocol, or a number is none.
    """
    if bare := [name for name, scores in metrics.items() if "protocol" not in scores]:
        raise ValueError(
            f"the results {bare} have no protocol, and numbers mean nothing without. "
            "Write what the functions of geoalign_hf.evaluation give."
        )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, metrics)
