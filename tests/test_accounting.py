"""Laws of `examples/benchmarks/accounting.py`: bytes do not depend on whether arithmetic is done."""

import os
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "benchmarks"))
import build_scale
from accounting import MemoryAccount

from geoalign_hf.data.collator import RowCollator
from geoalign_hf.losses.objective import LossWeights
from geoalign_hf.training.step import compute_gradients


def test_tensors_are_counted_while_they_exist():
    with MemoryAccount() as account:
        first = torch.zeros(1000)
        second = first.view(10, 100)  # the same memory
        third = second + 1
        del first, second
        fourth = third[:5].exp()
    assert account.current == third.nbytes + fourth.nbytes == 6000
    assert account.peak == 8000


@pytest.mark.parametrize("mini_batch_size", [None, 1])
def test_a_step_without_arithmetic_takes_the_same_bytes(model, processor, toy_rows, mini_batch_size):
    rows = [row | {"crops": [0]} for row in toy_rows[:3] if row["boxes"]]
    batch = RowCollator(processor, max(len(row["boxes"]) for row in rows))(rows)
    accelerator = Accelerator(cpu=True)
    peaks = []
    for threshold in (None, 1000):
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        with MemoryAccount(threshold) as account:
            account.count([list(model.parameters()), list(batch.values())])
            for _ in range(2):
                compute_gradients(accelerator, model, batch, LossWeights(), None, mini_batch_size)
                optimizer.step()
                optimizer.zero_grad()
        peaks.append(account.peak)
    assert peaks[0] == peaks[1] > 0


def test_build_scale_counts_the_cpu_seconds_of_a_process():
    start = time.process_time()
    while time.process_time() - start < 0.1:
        pass
    before = time.process_time()
    measured = build_scale.read_cpu(os.getpid())
    assert before - 0.05 <= measured <= time.process_time() + 0.05  # the kernel counts hundredths
    assert build_scale.read_cpu(2**30) == 0.0  # no such process
