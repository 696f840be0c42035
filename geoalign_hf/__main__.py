"""Runs the command line as `python -m geoalign_hf`, and under `accelerate launch -m geoalign_hf`."""

import sys

from geoalign_hf_cli import main

sys.exit(main())
