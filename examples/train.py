"""Train a GeoAlignCLIP on images with boxes: `geoalign-hf train` as a script, for launchers that start one.

    python examples/train.py --dataset outputs/rows --validation_share 0.1 --output_dir outputs/train --bf16
    accelerate launch --config_file examples/accelerate_configs/ddp.yaml examples/train.py ...
    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 examples/train.py ...

`--help` lists all options. For training from Python see quickstart.py; for a loop of your own see
train_accelerate.py; for adapters see train_lora.py.
"""

import sys

from geoalign_hf.cli import run

if __name__ == "__main__":
    sys.exit(run("train", sys.argv[1:]))
