"""`geoalign-hf build`."""

from pathlib import Path

from ..dataset_builder.build import BuildConfig, run_build
from ..images import ImageOptions


def build(config: BuildConfig, image_options: ImageOptions) -> Path:
    """Build a dataset of rows from annotated images."""
    run_build(config, image_options)
    return Path(config.output_dir)
