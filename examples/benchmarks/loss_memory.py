"""Compares our contrastive loss with open_clip's: peak memory and time of one forward and backward pass.

`contrast_pairs` computes the logits in blocks, and once more in the backward pass. open_clip's `ClipLoss`
holds all of them in memory. Both get the same unit vectors and scale, in float32. Each case runs in a process
of its own, and its peak excludes the inputs. All cases run once in each round, so that other work on the
machine slows all of them equally.

    pip install --no-deps open_clip_torch
    OMP_NUM_THREADS=1 python examples/benchmarks/loss_memory.py

Prints the peak and time of ClipLoss at 16,384 rows and of our loss at 16,384 and 32,768 rows, and the largest
relative difference of value and gradients at equal rows. It fails if the difference exceeds 2e-5, or if our
loss at twice the rows needs at least a tenth of ClipLoss's peak. It takes 8 minutes and 5 GB on one CPU core,
and needs no network.
"""

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from measure import compare, measure_alone, take_medians
from torch.nn.functional import normalize

from geoalign_hf.losses.contrastive import contrast_pairs

WIDTH, SCALE, TOLERANCE = 512, 1 / 0.07, 2e-5


def load_clip_loss() -> ModuleType:
    """Load only open_clip's loss.py, because the whole package requires torchvision."""
    package = importlib.util.find_spec("open_clip")
    if package is None:
        raise RuntimeError(
            "this benchmark compares with open_clip, which is not installed. "
            "Run: pip install --no-deps open_clip_torch"
        )
    path = Path(package.submodule_search_locations[0], "loss.py")
    spec = importlib.util.spec_from_file_location("open_clip_loss", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prepare_pass(name: str, num_rows: int, device: str) -> Callable:
    """Draw pairs of unit vectors with cosines of about 0.3, and return the pass over them."""
    random = torch.Generator().manual_seed(0)
    left = normalize(torch.randn(num_rows, WIDTH, generator=random), dim=-1)
    noise = torch.randn(num_rows, WIDTH, generator=random).mul_(3 / WIDTH**0.5)
    right = normalize(noise.add_(left), dim=-1)
    inputs = [tensor.to(device).requires_grad_() for tensor in (left, right, torch.tensor(SCALE))]
    ids = torch.arange(num_rows, device=device).unsqueeze(-1)
    clip_loss = load_clip_loss().ClipLoss() if name == "ClipLoss" else None

    def run() -> list[torch.Tensor]:
        left, right, scale = inputs
        loss = clip_loss(*inputs) if clip_loss else contrast_pairs(left, right, ids, scale)
        return [loss, *torch.autograd.grad(loss, inputs)]

    return run


def main():
    """Measure every case, print the table and check it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=16_384, help="Number of rows of ClipLoss.")
    parser.add_argument(
        "--max_peak_ratio", type=float, default=0.1, help="Upper limit of our peak relative to ClipLoss's."
    )
    parser.add_argument("--rounds", type=int, default=3, help="Number of rounds; the median is reported.")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="Device to run on."
    )
    args = parser.parse_args()
    load_clip_loss()
    # 1. The rounds.
    cases = [("ClipLoss", args.rows), ("ours", args.rows), ("ours", 2 * args.rows)]
    rounds = [
        [
            measure_alone(prepare_pass, (*case, args.device), (case[0], 256, args.device), args.device)
            for case in cases
        ]
        for _ in range(args.rounds)
    ]
    measured = [take_medians(list(measurements)) for measurements in zip(*rounds, strict=True)]
    # 2. The table.
    dense, ours, ours_twice = measured
    print(f"{'':10}{'rows':>9}{'peak, MiB':>12}{'ratio':>8}{'seconds':>10}{'ratio':>8}")
    for (name, rows), (peak, seconds, _) in zip(cases, measured, strict=True):
        ratios = peak / dense.peak, seconds / dense.seconds
        print(f"{name:10}{rows:9,}{peak:12.0f}{ratios[0]:8.3f}{seconds:10.2f}{ratios[1]:8.2f}")
    difference = compare(ours.result, dense.result)
    print(f"largest relative difference of value and gradients at {args.rows:,} rows: {difference:.1e}")
    # 3. The checks.
    if not difference <= TOLERANCE:
        raise SystemExit(f"value or gradients differ from ClipLoss's by {difference:.1e}, over {TOLERANCE}.")
    if not (ratio := ours_twice.peak / dense.peak) < args.max_peak_ratio:
        raise SystemExit(f"our peak is {ratio:.3f} of ClipLoss's; expected less than {args.max_peak_ratio}.")


if __name__ == "__main__":
    main()
