"""`geoalign-hf check-leakage`."""

from ..dataset_builder.leakage import LeakageConfig, run_leakage


def check_leakage(config: LeakageConfig) -> None:
    """Find images and captions of evaluation sets in the rows of a dataset."""
    run_leakage(config)
