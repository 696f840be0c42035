"""Compare ways to fine-tune: what LoRA trains and holds in memory, against full fine-tuning.

Full fine-tuning holds a gradient and two moments of AdamW for every weight, and the activations of every
block. LoRA holds them for its adapters alone, and on the last blocks no activations of those before. The
model is a ViT with random weights and a small text tower; the scenes are drawn, the objective is the default
one without crops. Each case runs in a process of its own, and its peak is counted from the moment at which
model and batch are there, over two steps of AdamW. The cases take turns in each round, so that other work
slows all alike.

    OMP_NUM_THREADS=1 python examples/benchmarks/lora_memory.py

Prints for each way the numbers that are trained, the peak and the time, each also as a ratio to full
fine-tuning; fails if a frozen weight has moved. About 3 minutes on one core of a CPU. Offline.
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

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the examples
from toy_rows import draw_rows  # noqa: E402

WAYS = {
    "full": AdapterConfig(),
    "LoRA, both towers": AdapterConfig(lora="vision,text"),
    "LoRA, last 2 blocks": AdapterConfig(lora="vision,text", lora_blocks=2),
    "frozen towers": AdapterConfig(freeze="vision,text"),
}


def prepare_steps(
    way: str, batch_size: int, width: int, depth: int, image_size: int, device: str
) -> Callable:
    """Draw a batch, build and adapt the model, and make the call that takes two steps."""
    torch.manual_seed(0)
    rows = draw_rows(batch_size)
    texts = [text for row in rows for text in [*row["captions"], row["description"], *row["phrases"]]]
    model, processor = build_model(texts, image_size=image_size, width=width, depth=depth)
    batch = RowCollator(processor, max_regions=max(len(row["boxes"]) for row in rows))(rows)
    batch = {key: tensor.to(device) for key, tensor in batch.items()}
    model = adapt_model(model, WAYS[way]).to(device).train()
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
            raise SystemExit(f"{way}: a frozen weight has moved.")
        return [torch.tensor(count_parameters(model))]

    return run


def main():
    """Measure every way and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--width", type=int, default=512, help="of the vision tower, a multiple of 64")
    parser.add_argument("--depth", type=int, default=8, help="blocks of the vision tower")
    parser.add_argument("--image_size", type=int, default=224, help="a multiple of 16")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the median is taken")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    # Small tensors that stay, between large ones that go, would keep freed memory from the system, and count.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # read by the C library of each new process
    shape = (args.batch_size, args.width, args.depth, args.image_size, args.device)
    warm_up = (2, 64, 2, 32, args.device)
    # 1. Rounds in which the ways take turns.
    rounds = [
        [measure_alone(prepare_steps, (way, *shape), (way, *warm_up), args.device) for way in WAYS]
        for _ in range(args.rounds)
    ]
    measured = [take_medians(list(measurements)) for measurements in zip(*rounds, strict=True)]
    # 2. Their rows of the table.
    print(f"{'way':22}{'trained':>12}{'ratio':>8}{'peak, MiB':>11}{'ratio':>7}{'seconds':>9}{'ratio':>7}")
    full = measured[0]
    for way, (peak, seconds, (counts,)) in zip(WAYS, measured, strict=True):
        share = counts[0] / full.result[0][0]
        print(
            f"{way:22}{counts[0]:12,}{share:8.4f}{peak:11.0f}{peak / full.peak:7.3f}"
            f"{seconds:9.2f}{seconds / full.seconds:7.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
