"""`geoalign-hf check-leakage`."""

from pathlib import Path

from ..dataset_builder.leakage import LeakageConfig, run_leakage


def check_leakage(config: LeakageConfig) -> Path | None:
    """Find images and captions of evaluation sets in the rows of a dataset."""
    run_leakage(config)
    return Path(config.output) if config.output else None
