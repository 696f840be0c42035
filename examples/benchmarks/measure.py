"""Measures the peak memory and the time of a call in a process of its own.

Memory that one case has used and freed would hide the memory of the next, so each runs in a new process. On
CPU the peak is the kernel's record of resident memory, on CUDA that of torch's allocator.
"""

import ctypes
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch

PROCESS = Path("/proc/self")


class Measurement(NamedTuple):
    """Peak memory of a call in MiB, without its inputs, its seconds, and its results."""

    peak: float
    seconds: float
    result: list[np.ndarray]


def measure_alone(prepare: Callable, args: tuple, warm_up: tuple, device: str) -> Measurement:
    """Measure one call in a new process.

    Args:
        prepare: a function of a module. `prepare(*args)` creates the inputs and returns the call, a function
            without arguments that returns tensors.
        args: the arguments of the call that is measured.
        warm_up: the arguments of a small call that runs first, so that threads and libraries are loaded.
        device: `cpu` or `cuda`, the device of the call.

    Raises:
        RuntimeError: on CPU, if the system does not record peak memory.
    """
    if device == "cpu" and not (PROCESS / "clear_refs").exists():
        raise RuntimeError(
            "the system has no /proc/self/clear_refs, so peak memory cannot be read. Run on Linux or on CUDA."
        )
    threads = (torch.get_num_threads(),)
    with ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, threads) as pool:
        return pool.submit(_measure, prepare, args, warm_up, device).result()


def _measure(prepare: Callable, args: tuple, warm_up: tuple, device: str) -> Measurement:
    prepare(*warm_up)()
    call = prepare(*args)
    if device == "cuda":
        call()  # the first call waits for allocations, which torch keeps
    memory = _reset_peak(device)
    start = time.perf_counter()
    result = call()
    synchronize(device)
    seconds = time.perf_counter() - start
    peak = (_read_peak(device) - memory) / 2**20
    return Measurement(peak, seconds, [tensor.detach().cpu().numpy() for tensor in result])


def _reset_peak(device: str) -> int:
    """Reset the recorded peak, and return the bytes in use."""
    if device == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    ctypes.CDLL(None).malloc_trim(0)  # return freed memory to the system, where it would hide new allocations
    (PROCESS / "clear_refs").write_text("5")
    return _read_status("VmRSS")


def _read_peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else _read_status("VmHWM")


def _read_status(name: str) -> int:
    lines = (PROCESS / "status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def synchronize(device: str) -> None:
    """Wait until the device has finished its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def take_medians(measurements: list[Measurement]) -> Measurement:
    """Return the median peak and seconds of equal calls, and the result of the first."""
    peaks, seconds, results = zip(*measurements, strict=True)
    return Measurement(median(peaks), median(seconds), results[0])


def compare(arrays: list[np.ndarray], references: list[np.ndarray]) -> float:
    """Return the largest difference of arrays, each relative to the largest value of its reference."""
    return max(
        float(np.abs(array - reference).max() / max(np.abs(reference).max(), np.finfo(np.float32).tiny))
        for array, reference in zip(arrays, references, strict=True)
    )
