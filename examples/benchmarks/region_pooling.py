"""Compares methods of pooling regions from a map of patch features: time of one forward and backward pass.

Every method pools the same rectangles on the same random map (8 images, 512 channels) into one vector per
region, and computes the gradient of the map. The preparation of the regions (weights, points, masks) is part
of the time. All methods run once in each round, so that other work on the machine slows all of them equally.

    python examples/benchmarks/region_pooling.py --threads 1

Prints a table of medians, relative to our boxes, and the milliseconds of our boxes. It takes about 10 seconds
and needs no network. The rows of roi_align need torchvision.
"""

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from statistics import median

import torch
from torch.nn import functional as F

from geoalign_hf.model.regions_geoalign_clip import pool_regions, quads_to_xyxy, weigh_boxes, weigh_quads

NUM_IMAGES, NUM_CHANNELS, GRID_SIDES, NUM_REGIONS = 8, 512, (14, 28), (1, 8, 64)


def draw_quads(num_regions: int, device: str) -> torch.Tensor:
    """Draw rectangles at any angle, sides 0.05 to 0.4, all inside the image: (B, R, 4, 2)."""
    numbers = torch.rand(NUM_IMAGES, num_regions, 5, 1, device=device)
    half_sides, angles = 0.025 + 0.175 * numbers[..., :2, :], 2 * math.pi * numbers[..., 2, :]
    signs = torch.tensor([[-1, 1, 1, -1], [-1, -1, 1, 1]], device=device)
    x, y = (half_sides * signs).unbind(-2)  # (B, R, 4)
    turned = [x * angles.cos() - y * angles.sin(), x * angles.sin() + y * angles.cos()]
    return torch.stack(turned, dim=-1) + 0.3 + 0.4 * numbers[..., 3:, :].mT


def pool_weighed(weigh: Callable, features: torch.Tensor, quads: torch.Tensor) -> torch.Tensor:
    """Compute a weight of each patch, and pool by one matrix product."""
    return pool_regions(features.flatten(1, 2), weigh(quads, features.shape[1:3]))


def pool_points(features: torch.Tensor, quads: torch.Tensor) -> torch.Tensor:
    """Average the 2 x 2 points halfway between the center and the corners of each rectangle."""
    points = quads + quads.mean(dim=-2, keepdim=True) - 1  # (B, R, 4, 2), from [0, 1] to [-1, 1]
    feature_map = features.movedim(-1, 1)  # (B, D, h, w)
    return F.grid_sample(feature_map, points, padding_mode="border", align_corners=False).mean(dim=-1).mT


def count_points(quads: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Weight each patch by the number of its 8 x 8 points that lie inside each rectangle."""
    x = (torch.arange(8 * grid[0], device=quads.device) + 0.5) / (8 * grid[0])
    y = x.unsqueeze(-1)
    is_inside = torch.tensor(True, device=quads.device)
    for corner, following in zip(quads.unbind(-2), quads.roll(-1, dims=-2).unbind(-2), strict=True):
        x0, y0 = corner[..., None, None].unbind(-3)  # (B, R, 1, 1)
        x1, y1 = following[..., None, None].unbind(-3)
        is_inside = is_inside & ((x1 - x0) * (y - y0) >= (y1 - y0) * (x - x0))  # (B, R, 8 * h, 8 * w)
    cover = F.avg_pool2d(is_inside.float(), 8).flatten(-2)
    return cover / cover.sum(dim=-1, keepdim=True)


def pool_roi_align(features: torch.Tensor, quads: torch.Tensor, sampling_ratio: int) -> torch.Tensor:
    """Pool the bounding boxes of the rectangles with torchvision, one bin per box."""
    from torchvision.ops import roi_align

    boxes = list(features.shape[1] * quads_to_xyxy(quads))
    pooled = roi_align(features.movedim(-1, 1), boxes, 1, 1.0, sampling_ratio, aligned=True)
    return pooled.view(*quads.shape[:2], -1)


def time_pass(pool: Callable, features: torch.Tensor, quads: torch.Tensor, gradient: torch.Tensor) -> float:
    """Measure the seconds of one forward and backward pass."""
    start = time.perf_counter()
    torch.autograd.grad(pool(features, quads), features, gradient)
    if features.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main():
    """Time every method on every map, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="Number of rounds; the median is reported.")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="Number of CPU threads of torch."
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="Device to run on.")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    # 1. The methods.
    ways = {"our boxes": partial(pool_weighed, lambda quads, grid: weigh_boxes(quads_to_xyxy(quads), grid))}
    ways["our quads"] = partial(pool_weighed, weigh_quads)
    ways["quads, 8 x 8 points a patch"] = partial(pool_weighed, count_points)
    ways["grid_sample, 2 x 2 points"] = pool_points
    for num in (2, -1) if find_spec("torchvision") else ():
        ways[f"roi_align, sampling {num}"] = partial(pool_roi_align, sampling_ratio=num)
    # 2. One round to warm up, then the rounds that are measured.
    cases = [(side, R) for side in GRID_SIDES for R in NUM_REGIONS]
    medians = []
    for side, R in cases:
        features = torch.randn(NUM_IMAGES, side, side, NUM_CHANNELS, device=args.device, requires_grad=True)
        gradient = torch.randn(NUM_IMAGES, R, NUM_CHANNELS, device=args.device)
        inputs = (features, draw_quads(R, args.device), gradient)
        rounds = [{name: time_pass(ways[name], *inputs) for name in ways} for _ in range(args.rounds + 1)]
        medians.append({name: median(seconds[name] for seconds in rounds[1:]) for name in ways})
    # 3. The table.
    print(f"{'map, regions per image':30}" + "".join(f"{f'{side} x {side}, {R}':>13}" for side, R in cases))
    for name in ways:
        print(f"{name:30}" + "".join(f"{seconds[name] / seconds['our boxes']:13.2f}" for seconds in medians))
    times = "".join(f"{1000 * seconds['our boxes']:13.2f}" for seconds in medians)
    print(f"{'our boxes, milliseconds':30}{times}")
    if not find_spec("torchvision"):
        print("torchvision is not installed, so roi_align was not measured")


if __name__ == "__main__":
    main()
