"""Compares methods of computing the gradient of a large batch: peak memory and time of one training step.

The plain step encodes the batch at once. Gradient caching encodes it chunk by chunk, twice, and holds the
embeddings in between, so that every image is still contrasted with all others. Gradient checkpointing keeps
the inputs of each block of the towers and computes the rest again. The model is a ViT with random weights and
a small text tower. The scenes are drawn, and the objective is the default one without crops. Each case runs
in a process of its own, and its peak excludes model, gradients and batch. All cases run once in each round,
so that other work on the machine slows all of them equally.

    OMP_NUM_THREADS=1 python examples/benchmarks/cached_accumulation.py

Prints the peak of each batch size and method, its time relative to the plain step, and the largest difference
of a gradient, relative to the largest value of that gradient. It fails if the difference exceeds 1e-4. It
takes about 8 minutes on one CPU core, or 3 with `--rounds 1`, and needs no network.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from measure import compare, measure_alone, take_medians

from geoalign_hf.convert.from_scratch import build_model
from geoalign_hf.data.collator import RowCollator
from geoalign_hf.losses.objective import LossWeights
from geoalign_hf.training.step import compute_gradients
from geoalign_hf.training.teacher import Teacher

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the folder of the examples
from toy_rows import draw_rows  # noqa: E402

WAYS, TOLERANCE = ("plain", "cached", "checkpointed"), 1e-4


def prepare_step(
    way: str, batch_size: int, chunk_size: int, width: int, depth: int, image_size: int, device: str
) -> Callable:
    """Draw a batch, build the model, and return the function that computes its gradients."""
    torch.manual_seed(0)
    rows = draw_rows(batch_size)
    texts = [text for row in rows for text in [*row["captions"], row["description"], *row["phrases"]]]
    model, processor = build_model(texts, image_size=image_size, width=width, depth=depth)
    batch = RowCollator(processor, max_regions=max(len(row["boxes"]) for row in rows))(rows)
    batch = {key: tensor.to(device) for key, tensor in batch.items()}
    if way == "checkpointed":
        old = getattr(model, "gradient_checkpointing_enable", None)  # its name before transformers 5.23
        getattr(model, "activation_checkpointing_enable", old)({"use_reentrant": False})
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no")
    model = accelerator.prepare(model).train()
    weights = LossWeights(crop_consistency=0.0)
    teacher = Teacher("self", model, 0.0)
    mini_batch_size = chunk_size if way == "cached" else None
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)

    def run() -> list[torch.Tensor]:
        for parameter in parameters.values():
            parameter.grad.zero_()
        compute_gradients(accelerator, model, batch, weights, teacher, mini_batch_size)
        # The gradient of a key's bias is rounding error: a softmax ignores a shift of all its inputs.
        return [p.grad for name, p in parameters.items() if not name.endswith("k_proj.bias")]

    return run


def main():
    """Measure every method at every batch size, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--batch_sizes", type=int, nargs="+", default=[16, 32, 64], help="Numbers of images per step."
    )
    parser.add_argument(
        "--chunk_size",
        type=int,
        default=4,
        help="Number of images encoded at once; it divides each batch size.",
    )
    parser.add_argument("--width", type=int, default=384, help="Width of the vision tower, a multiple of 64.")
    parser.add_argument("--depth", type=int, default=6, help="Number of blocks of the vision tower.")
    parser.add_argument("--image_size", type=int, default=224, help="Side of the images, a multiple of 16.")
    parser.add_argument("--rounds", type=int, default=3, help="Number of rounds; the median is reported.")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="Device to run on."
    )
    args = parser.parse_args()
    shape = (args.chunk_size, args.width, args.depth, args.image_size, args.device)
    print(f"{'batch':>5}  {'method':14}{'peak, MiB':>10}{'seconds':>9}{'ratio':>7}{'difference':>12}")
    for batch_size in args.batch_sizes:
        # 1. The rounds.
        rounds = [
            [
                measure_alone(
                    prepare_step, (way, batch_size, *shape), (way, args.chunk_size, *shape), args.device
                )
                for way in WAYS
            ]
            for _ in range(args.rounds)
        ]
        measured = [take_medians(list(measurements)) for measurements in zip(*rounds, strict=True)]
        # 2. The table.
        plain = measured[0]
        for way, (peak, seconds, gradients) in zip(WAYS, measured, strict=True):
            numbers = f"{peak:10.0f}{seconds:9.2f}{seconds / plain.seconds:7.2f}"
            difference = compare(gradients, plain.result)
            print(f"{batch_size:5}  {way:14}{numbers}{difference:12.1e}", flush=True)
            if not difference <= TOLERANCE:
                raise SystemExit(f"{way}: the gradients differ from the plain step's by {difference:.1e}.")


if __name__ == "__main__":
    main()
