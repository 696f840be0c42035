"""Adapt a model to new concepts from a few boxes of each: `geoalign-hf adapt` as a script.

    python examples/train.py --dataset train.json --images images/ --exclude_concepts ship --output_dir base
    python examples/adapt.py --model base/final --dataset train.json --test_dataset test.json \
        --images images/ --concepts ship --shots 1,4,16

`--help` lists all options and explains the table that it prints.
"""

import sys

from geoalign_hf.cli import run

if __name__ == "__main__":
    sys.exit(run("adapt", sys.argv[1:]))
