"""Time, CPU time, peak memory and size of builds of generated rows.

    python examples/benchmarks/build_scale.py --num_rows 2000 8000 32000 --num_workers 2

Each row is an image with six boxes. Memory is the highest resident memory of the process that was started,
and of any of its workers, as the kernel records it. Both should not grow with the number of rows.
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


def write_source(folder: Path, num_rows: int, side: int = 256) -> Path:
    """Write images and a COCO file."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(num_rows):
        coarse = rng.integers(60, 120, (8, 8, 3), dtype=np.uint8)
        pixels = np.asarray(Image.fromarray(coarse).resize((side, side))).copy()
        for x, y, kind in zip(
            *rng.integers(0, side - 24, (2, 6)), rng.integers(0, len(CONCEPTS), 6), strict=True
        ):
            pixels[y : y + 24, x : x + 24] = (240, 40 * kind, 60)
            entry = {"id": len(annotations), "image_id": i, "category_id": int(kind)}
            annotations.append(entry | {"bbox": [int(x), int(y), 24, 24]})
        Image.fromarray(pixels).save(folder / f"{i}.jpg", quality=85)
        images.append({"id": i, "file_name": f"{i}.jpg", "width": side, "height": side})
    categories = [{"id": i, "name": name} for i, name in enumerate(CONCEPTS)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "coco.json").write_text(json.dumps(content))
    return folder / "coco.json"


def list_family(pid: int) -> list[int]:
    """List a process and all that it has started, as far as they still run."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):  # it has ended meanwhile
            continue
    family = [pid]
    for parent in family:
        family += [child for child, its_parent in parents.items() if its_parent == parent]
    return family


def read_peak(pid: int) -> float:
    """Return the highest resident memory of a process so far, in MiB; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return max((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), default=0.0)


def read_cpu(pid: int) -> float:
    """Return the CPU seconds of a process so far, without those of the processes that it started."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure_build(coco: Path, output: Path, num_workers: int) -> dict[str, float]:
    """Return the seconds of a build, its CPU seconds, and the peak memory of parent and workers in MiB."""
    command = [sys.executable, "-m", "geoalign_hf_cli", "build", "--coco", str(coco)]
    command += ["--output_dir", str(output), "--num_workers", str(num_workers)]
    start, peaks, cpu = time.perf_counter(), {"parent": 0.0, "worker": 0.0}, {}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        for pid in list_family(process.pid):
            name = "parent" if pid == process.pid else "worker"
            peaks[name] = max(peaks[name], read_peak(pid))
            cpu[pid] = max(cpu.get(pid, 0.0), read_cpu(pid))
        time.sleep(0.2)
    if process.returncode:
        raise RuntimeError(f"the build ended with status {process.returncode}: {' '.join(command)}")
    return {"seconds": time.perf_counter() - start, "cpu_seconds": sum(cpu.values())} | peaks


def main() -> None:
    """Print one line per number of rows, then how memory grows with the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--num_rows", type=int, nargs="+", default=[2000, 8000, 32000], help="Numbers of rows."
    )
    parser.add_argument("--num_workers", type=int, default=2, help="Number of processes of the build.")
    parser.add_argument("--side", type=int, default=256, help="Side of the images in pixels.")
    arguments = parser.parse_args()
    print("| rows | seconds | CPU seconds | rows/CPU s | parent MiB | worker MiB | Parquet kB per row |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    results = []
    for num_rows in arguments.num_rows:
        with tempfile.TemporaryDirectory() as folder:
            coco = write_source(Path(folder), num_rows, arguments.side)
            output = Path(folder) / "rows"
            found = measure_build(coco, output, arguments.num_workers)
            results.append(found)
            size = sum(path.stat().st_size for path in output.glob("data/*.parquet")) / num_rows / 1000
            cpu = found["cpu_seconds"]
            numbers = f"{found['seconds']:.0f} | {cpu:.0f} | {num_rows / cpu:.0f}"
            peaks = f"{found['parent']:.0f} | {found['worker']:.0f}"
            print(f"| {num_rows} | {numbers} | {peaks} | {size:.1f} |", flush=True)
    if len(results) > 1:
        more = arguments.num_rows[-1] - arguments.num_rows[0]
        for name in ("parent", "worker"):
            slope = (results[-1][name] - results[0][name]) * 2**20 / more
            print(f"{name}: {slope:.0f} bytes of peak memory per row")


if __name__ == "__main__":
    main()
