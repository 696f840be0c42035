"""`geoalign-hf check-leakage`."""

from pathlib import Path

from ..dataset_builder.leakage import LeakageConfig, run_leakage
from ..images import ImageOptions
from .inputs import check_default_rows


def check_leakage(config: LeakageConfig, image_options: ImageOptions) -> Path | None:
    """Find images and captions of evaluation sets in the rows of a dataset."""
    if not (config.eval_coco or config.eval_captions or config.eval_images):
        raise ValueError("there are no evaluation sets. Give --eval_coco, --eval_captions or --eval_images.")
    check_default_rows(config.dataset)
    run_leakage(config, image_options)
    return Path(config.output) if config.output else None
