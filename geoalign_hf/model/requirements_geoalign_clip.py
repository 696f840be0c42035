# Copyright 2026 The geoalign_hf authors. Licensed under the Apache License, Version 2.0.
"""Refuses versions of transformers that are too old. Other files import this one before anything else."""

import transformers

REQUIRED_TRANSFORMERS = "5.18"

if [int(part) for part in transformers.__version__.split(".")[:2]] < [5, 18]:
    raise ImportError(
        f"GeoAlignCLIP needs transformers {REQUIRED_TRANSFORMERS} or newer, not {transformers.__version__}. "
        f"Run: pip install 'transformers>={REQUIRED_TRANSFORMERS},<6'"
    )
