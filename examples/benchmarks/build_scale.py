"""Time, peak memory and size of builds of generated rows.

    python examples/benchmarks/build_scale.py --num_rows 2000 8000 --num_workers 2

Each row is an image of 256 x 256 pixels with six boxes. Memory is the highest resident memory of any single
process of the build, workers included, as the kernel records it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

CONCEPTS = ("ship", "airplane", "storage tank", "tennis court", "small vehicle")


def write_source(folder: Path, num_rows: int) -> Path:
    """Write images and a COCO file."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(num_rows):
        coarse = rng.integers(60, 120, (8, 8, 3), dtype=np.uint8)
        pixels = np.asarray(Image.fromarray(coarse).resize((256, 256))).copy()
        for x, y, kind in zip(*rng.integers(8, 216, (2, 6)), rng.integers(0, len(CONCEPTS), 6), strict=True):
            pixels[y : y + 24, x : x + 24] = (240, 40 * kind, 60)
            entry = {"id": len(annotations), "image_id": i, "category_id": int(kind)}
            annotations.append(entry | {"bbox": [int(x), int(y), 24, 24]})
        Image.fromarray(pixels).save(folder / f"{i}.jpg", quality=85)
        images.append({"id": i, "file_name": f"{i}.jpg", "width": 256, "height": 256})
    categories = [{"id": i, "name": name} for i, name in enumerate(CONCEPTS)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "coco.json").write_text(json.dumps(content))
    return folder / "coco.json"


def measure_build(coco: Path, output: Path, num_workers: int) -> tuple[float, float]:
    """Return the seconds of a build and its peak memory in MiB."""
    command = [sys.executable, "-m", "geoalign_hf", "build", "--coco", str(coco), "--output_dir", str(output)]
    command += ["--num_workers", str(num_workers)]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"the build ended with status {status}: {errors.decode()[-500:]}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def main() -> None:
    """Print one line per number of rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_rows", type=int, nargs="+", default=[2000, 8000], help="Numbers of rows.")
    parser.add_argument("--num_workers", type=int, default=1, help="Number of processes of the build.")
    arguments = parser.parse_args()
    print("| rows | seconds | rows/s | peak MiB | Parquet kB per row |\n| --- | --- | --- | --- | --- |")
    for num_rows in arguments.num_rows:
        with tempfile.TemporaryDirectory() as folder:
            coco = write_source(Path(folder), num_rows)
            output = Path(folder) / "rows"
            seconds, peak = measure_build(coco, output, arguments.num_workers)
            size = sum(path.stat().st_size for path in output.glob("data/*.parquet")) / num_rows / 1000
            speed = num_rows / seconds
            print(f"| {num_rows} | {seconds:.0f} | {speed:.0f} | {peak:.0f} | {size:.1f} |", flush=True)


if __name__ == "__main__":
    main()
