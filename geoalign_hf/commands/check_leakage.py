"""`geoalign-hf check-leakage`."""

from pathlib import Path

from ..dataset_builder.leakage import LeakageConfig, run_leakage
from ..images import ImageOptions


def check_leakage(config: LeakageConfig, image_options: ImageOptions) -> Path | None:
    """Find images and captions of evaluation sets in the rows of a dataset."""
    run_leakage(config, image_options)
    return Path(config.output) if config.output else None
