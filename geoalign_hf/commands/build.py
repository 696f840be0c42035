"""`geoalign-hf build`."""

from pathlib import Path

from ..dataset_builder.build import BuildConfig, run_build


def build(config: BuildConfig) -> Path:
    """Build a dataset of rows from annotated images."""
    run_build(config)
    return Path(config.output_dir)
