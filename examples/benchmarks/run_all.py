"""Measures our way and a peer's way of every piece of work, and how the cost of each grows.

    OMP_NUM_THREADS=1 python examples/benchmarks/run_all.py            # three to eight minutes on one core
    python examples/benchmarks/run_all.py --device cuda                # larger sizes and a ViT-B/16 in bf16

Ours and the peer's take turns, so that other work on the machine slows both. A benchmark fails if their
results differ. Prints and writes one Markdown table and one JSON file: for each case the ratio of peer to
ours in process CPU time (on CUDA: wall time) at the largest size, the median and half the range of both, the
exponent of the growth over the sizes, and what limits the case. Needs open_clip (`pip install --no-deps
open_clip_torch`) and onnxruntime, but no network.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median

import cases
import cases_inference
import torch
from measure import compare, synchronize
from throughput import measure_decoding, measure_training

MEMORY = "memory bandwidth"
# Function of cases.py or cases_inference.py: (what is done, unit, sizes on a CPU, sizes on a GPU, limit).
TITLES = {
    "prepare_images": ("prepare images in memory", "images", (4, 8, 16, 32), (32, 64, 128, 256), MEMORY),
    "prepare_files": ("prepare JPEG files", "images", (4, 8, 16, 32), (32, 64, 128, 256), "decoding"),
    "read_boxes": (
        "read COCO boxes, checked",
        "boxes",
        (500, 1000, 2000, 4000),
        (500, 1000, 2000, 4000),
        "Python",
    ),
    "resample_masks": ("resample masks", "masks", (4, 8, 16, 32), (16, 32, 64, 128), MEMORY),
    "pool_boxes": ("pool regions, with gradients", "regions", (8, 16, 32, 64), (16, 32, 64, 128), "FLOPs"),
    "encode_texts": ("texts of a step, with gradients", "images", (1, 2, 4, 8), (16, 32, 64, 128), "FLOPs"),
    "contrast": ("contrastive loss", "rows", (256, 512, 1024, 2048), (2048, 4096, 8192, 16384), "FLOPs"),
    "step": ("training step, preset fg_clip", "images", (1, 2, 4, 8), (16, 32, 64, 128), "FLOPs"),
    "step_default": ("training step, default objective", "images", (1, 2, 4, 8), (16, 32, 64, 128), "FLOPs"),
    "accumulate": ("cached accumulation", "images", (6, 8, 12, 16), (16, 32, 64, 128), "FLOPs"),
    "name_images": ("zero-shot, stock pipeline", "images", (4, 8, 16, 32), (16, 32, 64, 128), "FLOPs"),
    "pool_or_crop": ("images and 8 regions, with gradients", "images", (1, 2, 4, 8), (4, 8, 16, 32), "FLOPs"),
    "embed_bfloat16": ("embed images, bfloat16", "images", (1, 2, 4, 8), (16, 32, 64, 128), "FLOPs"),
    "embed_int8": ("embed images, int8 in ONNX Runtime", "images", (1, 2, 4, 8), (1, 2, 4, 8), "FLOPs"),
    "rank_product": (
        "retrieval ranks and the product",
        "queries",
        (512, 1024, 2048, 4096),
        (1024, 2048, 4096, 8192),
        "FLOPs",
    ),
    "rank": ("retrieval ranks", "queries", (256, 512, 1024, 2048), (1024, 2048, 4096, 8192), MEMORY),
}


def time_call(call, device: str) -> tuple[float, float]:
    """Return the CPU and the wall seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    synchronize(device)
    return time.process_time() - cpu, time.perf_counter() - wall


def measure_pair(name: str, size: int, device: str, rounds: int) -> dict:
    """Check that both ways agree, and time them in turns.

    Raises:
        SystemExit: if their results differ by more than the tolerance of the case.
    """
    module = cases if hasattr(cases, name) else cases_inference
    ours, peer, tolerance = getattr(module, name)(size, device)
    found, expected = ours(), peer()
    arrays = ([part.detach().cpu().numpy() for part in parts] for parts in (found, expected))
    difference = compare(*arrays)  # relative to the largest value
    if not difference <= tolerance:
        raise SystemExit(f"{name} at {size}: results differ by {difference:.1e}, over {tolerance:.1e}.")
    times = [(time_call(ours, device), time_call(peer, device)) for _ in range(rounds)]
    result = {"size": size, "difference": difference}
    for way, measured in zip(("ours", "peer"), zip(*times, strict=True), strict=True):
        for kind, seconds in zip(("cpu", "wall"), zip(*measured, strict=True), strict=True):
            result[f"{way}_{kind}"] = median(seconds)
            result[f"{way}_{kind}_spread"] = max(seconds) - min(seconds)
    return result


def fit_exponent(sizes: list[int], seconds: list[float]) -> float:
    """Fit b of seconds = a * size ** b, by least squares of the logarithms."""
    x, y = torch.tensor(sizes, dtype=torch.float64).log(), torch.tensor(seconds, dtype=torch.float64).log()
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y) / (x @ x))


def summarize(name: str, measured: list[dict], kind: str) -> dict:
    """Compute the ratio at the largest size, and the growth of both ways."""
    title, unit, *_, limit = TITLES[name]
    sizes, last = [entry["size"] for entry in measured], measured[-1]
    seconds = {way: [entry[f"{way}_{kind}"] for entry in measured] for way in ("ours", "peer")}
    growth = {way: fit_exponent(sizes, values) for way, values in seconds.items()}
    ratio = last[f"peer_{kind}"] / last[f"ours_{kind}"]
    return {
        "title": title,
        "unit": unit,
        "limit": limit,
        "ratio": ratio,
        "growth": growth,
        "measured": measured,
    }


def write_table(results: dict, kind: str) -> str:
    """Write the results as a Markdown table, in milliseconds."""
    lines = [
        f"| what | size | ours, ms {kind} | peer, ms {kind} | peer / ours | growth ours, peer | limit |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in results.values():
        last, growth = result["measured"][-1], result["growth"]
        ours, peer = (
            f"{1000 * last[f'{way}_{kind}']:.2f} ± {500 * last[f'{way}_{kind}_spread']:.2f}"
            for way in ("ours", "peer")
        )
        lines.append(
            f"| {result['title']} | {last['size']} {result['unit']} | {ours} | {peer} "
            f"| {result['ratio']:.2f} | {growth['ours']:.2f}, {growth['peer']:.2f} | {result['limit']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure every case, and write the table and the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="Device to run on.")
    parser.add_argument("--rounds", type=int, default=5, help="Number of rounds; the median is reported.")
    parser.add_argument(
        "--cases", nargs="+", choices=list(TITLES), default=list(TITLES), help="Cases to run."
    )
    parser.add_argument("--tiny", action="store_true", help="Whether to run small sizes, for a test.")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks"), help="Output folder.")
    args = parser.parse_args()
    kind = "wall" if args.device == "cuda" else "cpu"
    results = {}
    for name in args.cases:
        sizes = (1, 2, 3, 4) if args.tiny else TITLES[name][3 if args.device == "cuda" else 2]
        measured = [measure_pair(name, size, args.device, args.rounds) for size in sizes]
        results[name] = summarize(name, measured, kind)
        print(write_table({name: results[name]}, kind).splitlines()[-1], flush=True)
    training = measure_training(args.device, args.tiny, args.rounds)
    decoding = measure_decoding(training["images_per_second"], args.rounds)
    args.output.mkdir(parents=True, exist_ok=True)
    table = write_table(results, kind)
    table += f"\ntraining: {json.dumps(training)}\n\ndecoding: {json.dumps(decoding)}\n"
    (args.output / "benchmarks.md").write_text(table)
    content = {"device": args.device, "cases": results, "training": training, "decoding": decoding}
    (args.output / "benchmarks.json").write_text(json.dumps(content, indent=1))
    print(f"\n{table}\n{args.output / 'benchmarks.md'}, {args.output / 'benchmarks.json'}")


if __name__ == "__main__":
    main()
