"""Training throughput of a ViT-B/16 and the decoding that keeps it busy, for `run_all.py`.

FLOPs are those of the matrix products of both towers, counted from their sizes; the backward pass costs twice
the forward pass. Model FLOPs utilisation is their rate relative to the peak of the GPU in bf16.
"""

import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from cases import build_processors, build_step, draw_pictures
from measure import synchronize

from geoalign_hf.losses.objective import PRESETS, compute_losses
from geoalign_hf.training.step import encode_batch

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40": 181e12}  # dense bf16 FLOP/s of data sheets


def count_flops(width: int, depth: int, num_rows: int, num_tokens: int) -> float:
    """Count the forward FLOPs of a transformer with an MLP of four times its width."""
    linear = 24 * num_tokens * width**2
    attention = 4 * num_tokens**2 * width
    return num_rows * depth * (linear + attention)


def measure_training(device: str, is_tiny: bool, rounds: int) -> dict:
    """Time training steps with packed texts, sdpa and bf16, compiled on a GPU.

    Returns:
        Batch size, seconds per step, images per second, peak memory in GiB (None on a CPU), FLOP/s, and their
        share of the GPU's peak (None if it is not known).
    """
    batch_size = 2 if is_tiny else 256 if device == "cuda" else 4
    shape = {"image_size": 64, "width": 128, "depth": 1}
    if not is_tiny:
        shape = {
            "image_size": 224,
            "width": 768,
            "depth": 12,
            "text_width": 512,
            "text_depth": 12,
            "embed_dim": 512,
        }
    _, model, _, batch = build_step(batch_size, device, **shape)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5)
    encoder = torch.compile(model) if device == "cuda" else model

    def train() -> None:
        with torch.autocast(device, torch.bfloat16):
            embeds = encode_batch(encoder, batch)
        loss = compute_losses(type("Output", (), embeds), batch, PRESETS["fg_clip"])["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronize(device)

    for _ in range(3 if device == "cuda" else 1):
        train()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        train()
        times.append(time.perf_counter() - start)
    vision, text = model.config.vision_config, model.config.text_config
    num_patches = (vision.image_size // vision.patch_size) ** 2 + 1
    flops = count_flops(vision.hidden_size, vision.num_hidden_layers, batch_size, num_patches)
    flops += count_flops(text.hidden_size, text.num_hidden_layers, *batch["input_ids"].shape)
    rate = 3 * flops / median(times)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    peak = next((value for key, value in PEAKS.items() if key in name), None)
    return {
        "device": name,
        "batch_size": batch_size,
        "seconds_per_step": median(times),
        "images_per_second": batch_size / median(times),
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None,
        "flops_per_second": rate,
        "model_flops_utilisation": rate / peak if peak else None,
    }


def measure_decoding(images_per_second: float, rounds: int) -> dict:
    """Time the preparation of JPEG files of 512 x 512 pixels on one core, with and without drafts.

    Returns:
        Images per second and core for each way, and the cores that keep up with training.
    """
    _, processor = build_processors()
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.jpg" for i in range(8)]
        for path, image in zip(paths, draw_pictures(8), strict=True):
            image.save(path, quality=90)
        rates = {}
        for way in ("full", "draft"):
            times = []
            for _ in range(rounds):
                start = time.process_time()
                processor(images=paths, draft_jpeg=way == "draft", return_tensors="pt")
                times.append(time.process_time() - start)
            rates[way] = len(paths) / median(times)
    cores = {way: images_per_second / rate for way, rate in rates.items()}
    return {"images_per_second_and_core": rates, "cores_for_training": cores}
