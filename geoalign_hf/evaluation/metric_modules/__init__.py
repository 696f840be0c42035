"""The metrics as `evaluate.Metric`s: computed over shards and processes, without a download.

Each file holds one metric, because `evaluate.load` takes one metric from a file:

    import evaluate
    from geoalign_hf.evaluation.metric_modules import find_metric

    metric = evaluate.load(find_metric("region_accuracy"), concepts=["ship", "bridge"])
    metric.add_batch(predictions=[0, 1], references=[0, 0])
    scores = metric.compute()

With several processes give `num_process`, `process_id` and `experiment_id`; every process adds at least one
batch. `compute` returns the scores on process 0 and None on the others.
"""

from pathlib import Path

FOLDER = Path(__file__).parent


def list_metrics() -> list[str]:
    """List the names of the metrics."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "base"))


def find_metric(name: str) -> str:
    """Find the file of a metric, for `evaluate.load`.

    Raises:
        ValueError: if there is no metric of this name.

    Example:
        >>> Path(find_metric("region_accuracy")).name
        'region_accuracy.py'
    """
    if name not in list_metrics():
        raise ValueError(f"There is no metric {name!r}; there are {list_metrics()}.")
    return str(FOLDER / f"{name}.py")
