"""Compares LoRA with full fine-tuning: number of trained parameters, peak memory and time.

Full fine-tuning holds a gradient and two moments of AdamW for every weight, and the activations of every
block. LoRA holds them only for its adapters; with adapters on the last blocks it holds no activations of the
earlier ones. The model is a ViT with random weights and a small text tower. The scenes are drawn, and the
objective is the default one without crops. Each case runs in a process of its own, over two steps of AdamW,
and its peak excludes model and batch. All cases run once in each round, so that other work on the machine
slows all of them equally.

    OMP_NUM_THREADS=1 python examples/benchmarks/lora_memory.py

Prints the number of trained parameters, the peak and the time of each method, also relative to full
fine-tuning. It fails if a frozen weight has changed. It takes about 3 minutes on one CPU core, and needs no
network.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from measure import measure_alone, take_medians

from geoalign_hf.convert.from_scratch import build_model
from geoalign_hf.data.collator import RowCollator
from geoalign_hf.losses.objective import LossWeights
from geoalign_hf.training.lora import AdapterConfig, adapt_model, count_parameters
from geoalign_hf.training.step import compute_gradients
from geoalign_hf.training.teacher import Teacher

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the folder of the examples
from toy_rows import draw_rows  # noqa: E402

METHODS = {
    "full": AdapterConfig(),
    "LoRA, both towers": AdapterConfig(lora="vision,text"),
    "LoRA, last 2 blocks": AdapterConfig(lora="vision,text", lora_blocks=2),
    "frozen towers": AdapterConfig(freeze="vision,text"),
}


def prepare_steps(
    method: str, batch_size: int, width: int, depth: int, image_size: int, device: str
) -> Callable:
    """Draw a batch, build and adapt the model, and return the function that runs two steps."""
    torch.manual_seed(0)
    rows = draw_rows(batch_size)
    texts = [text for row in rows for text in [*row["captions"], row["description"], *row["phrases"]]]
    model, processor = build_model(texts, image_size=image_size, width=width, depth=depth)
    batch = RowCollator(processor, max_regions=max(len(row["boxes"]) for row in rows))(rows)
    batch = {key: tensor.to(device) for key, tensor in batch.items()}
    model = adapt_model(model, METHODS[method]).to(device).train()
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    before = [float(parameter.sum()) for parameter in frozen]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no")
    weights, teacher = LossWeights(crop_consistency=0.0), Teacher("self", model, 0.0)

    def run() -> list[torch.Tensor]:
        optimizer = torch.optim.AdamW(trained, 1e-4)
        for _ in range(2):
            compute_gradients(accelerator, model, batch, weights, teacher)
            optimizer.step()
            optimizer.zero_grad()
        if [float(parameter.sum()) for parameter in frozen] != before:
            raise SystemExit(f"{method}: a frozen weight has changed.")
        return [torch.tensor(count_parameters(model))]

    return run


def main():
    """Measure every method, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_size", type=int, default=8, help="Number of images per step.")
    parser.add_argument("--width", type=int, default=512, help="Width of the vision tower, a multiple of 64.")
    parser.add_argument("--depth", type=int, default=8, help="Number of blocks of the vision tower.")
    parser.add_argument("--image_size", type=int, default=224, help="Side of the images, a multiple of 16.")
    parser.add_argument("--rounds", type=int, default=3, help="Number of rounds; the median is reported.")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="Device to run on."
    )
    args = parser.parse_args()
    # Otherwise small tensors that are kept would prevent freed memory from returning to the system.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # read by the C library of each new process
    shape = (args.batch_size, args.width, args.depth, args.image_size, args.device)
    warm_up = (2, 64, 2, 32, args.device)
    # 1. The rounds.
    rounds = [
        [
            measure_alone(prepare_steps, (method, *shape), (method, *warm_up), args.device)
            for method in METHODS
        ]
        for _ in range(args.rounds)
    ]
    measured = [take_medians(list(measurements)) for measurements in zip(*rounds, strict=True)]
    # 2. The table.
    print(f"{'method':22}{'trained':>12}{'ratio':>8}{'peak, MiB':>11}{'ratio':>7}{'seconds':>9}{'ratio':>7}")
    full = measured[0]
    for method, (peak, seconds, (counts,)) in zip(METHODS, measured, strict=True):
        ratio = counts[0] / full.result[0][0]
        print(
            f"{method:22}{counts[0]:12,}{ratio:8.4f}{peak:11.0f}{peak / full.peak:7.3f}"
            f"{seconds:9.2f}{seconds / full.seconds:7.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
