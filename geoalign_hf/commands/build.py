"""`geoalign-hf build`."""

import time
from pathlib import Path

from ..dataset_builder import build as builder


def build(config: builder.BuildConfig) -> Path:
    """Build a dataset of rows from annotated images."""
    start = time.perf_counter()
    statistics = builder.build(config)
    print(
        f"{statistics['num_rows']} rows, {statistics['num_regions']} regions of "
        f"{len(statistics['concepts'])} concepts, {statistics['num_hard_negatives']} hard negatives; "
        f"skipped: {statistics['left_out'] or 'nothing'}; {time.perf_counter() - start:.0f} s"
    )
    return Path(config.output)
