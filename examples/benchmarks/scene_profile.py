"""Measures which part of the work on a scene is outside the model, and the peak memory.

A model of the size of ViT-B/16 with random weights scores, embeds and classifies a scene of random pixels
that this script writes. The time in the model is that of its vision tower. On a CPU the model has one thread,
and CPU time is counted, which other work on the machine does not change. It includes the threads that read.
On a GPU the time that passes is counted.

    python examples/benchmarks/scene_profile.py --side 896

Prints one line per task. It takes about half a minute on one core and needs no network.
"""

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import rasterio
import shapely
import torch

from geoalign_hf import Embedder
from geoalign_hf.convert.from_scratch import build_model
from geoalign_hf.scenes.archive import SceneJob
from geoalign_hf.scenes.reader import Scene
from geoalign_hf.scenes.regions import embed_scene_regions
from geoalign_hf.scenes.score import score_scene

QUERIES = ["a ship", "a storage tank"]


def write_scene(path: Path, side: int) -> None:
    """Write a compressed, tiled GeoTIFF of three 16-bit bands, strip by strip."""
    profile = {"driver": "GTiff", "count": 3, "width": side, "height": side, "dtype": "uint16", "nodata": 0}
    profile |= {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}
    profile |= {"crs": "EPSG:32633", "transform": rasterio.Affine(0.5, 0, 500000, 0, -0.5, 5300000)}
    generator = np.random.default_rng(0)
    with rasterio.open(path, "w", photometric="RGB", **profile) as file:
        for row in range(0, side, 256):
            window = rasterio.windows.Window(0, row, side, min(256, side - row))
            coarse = generator.integers(1, 4000, (3, -(-window.height // 8), -(-side // 8)), dtype=np.uint16)
            fine = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, : window.height, :side]
            file.write(fine, window=window)


class Clock:
    """Sums the time that the main thread spends between `start` and `stop`.

    Args:
        device: where the model runs.
    """

    def __init__(self, device: str):
        self.device, self.seconds = device, 0.0

    def read(self, read_cpu: Callable[[], float]) -> float:
        """Return CPU time, or the time of day once the GPU has finished."""
        if self.device == "cpu":
            return read_cpu()
        torch.cuda.synchronize()
        return time.perf_counter()

    def start(self, *_) -> None:
        """Start counting."""
        self.began = self.read(time.thread_time)

    def stop(self, *_) -> None:
        """Stop counting."""
        self.seconds += self.read(time.thread_time) - self.began


def measure(name: str, task: Callable, clock: Clock) -> None:
    """Run a task, and print how much of its time was outside the model."""
    clock.seconds, start = 0.0, clock.read(time.process_time)
    task()
    seconds = clock.read(time.process_time) - start
    outside = 1 - clock.seconds / seconds
    print(f"{name:10}{seconds:10.1f} s{100 * outside:14.1f} % outside the model")


def main():
    """Measure the three tasks, and print the peak memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=896, help="Side of the scene in pixels.")
    parser.add_argument("--scale", type=float, default=1.0, help="Scene pixels per pixel of the input.")
    parser.add_argument("--regions", type=int, default=16, help="Number of regions.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="Device of the model.")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    # 1. A model of the size of ViT-B/16, and a scene.
    model, processor = build_model(
        QUERIES,
        image_size=224,
        patch_size=16,
        width=768,
        depth=12,
        text_width=64,
        text_depth=1,
        embed_dim=512,
    )
    embedder = Embedder(model.eval().to(args.device), processor)
    clock = Clock(args.device)
    model.vision_model.register_forward_pre_hook(clock.start)
    model.vision_model.register_forward_hook(clock.stop)
    with TemporaryDirectory() as folder:
        write_scene(Path(folder, "scene.tif"), args.side)
        scene = Scene(Path(folder, "scene.tif"))
        corners = np.random.default_rng(0).integers(0, args.side - 80, (args.regions, 2))
        boxes = [scene.to_ground(shapely.box(x, y, x + 60, y + 40)) for x, y in corners.tolist()]
        job = SceneJob([scene.path], Path(folder, "archive"), tile_side=round(224 * args.scale))
        # 2. The tasks.
        measure("score", lambda: score_scene(embedder, scene, QUERIES, args.scale, overlap=0.0), clock)
        measure("embed", lambda: job.run(embedder, "random"), clock)
        measure("classify", lambda: embed_scene_regions(embedder, scene, boxes), clock)
    # 3. The peak of resident memory since the start, in KiB on Linux.
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
