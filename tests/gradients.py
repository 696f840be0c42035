"""Rows, batches and gradients of the full objective, for the tests of several processes and of adapters."""

from dataclasses import fields
from types import SimpleNamespace

import torch

from geoalign_hf.data.schema import REGION_COLUMNS
from geoalign_hf.losses.distributed import backward_in_chunks
from geoalign_hf.losses.objective import LossWeights, compute_losses
from geoalign_hf.training.step import encode_batch, split_batch
from geoalign_hf.training.teacher import Teacher

TERMS = [term.name for term in fields(LossWeights)]
ALL_TERMS = LossWeights(**dict.fromkeys(TERMS, 0.7))


def keep_regions(row: dict, num: int) -> dict:
    """The row with its first regions alone."""
    return row | {name: row[name][:num] for name in REGION_COLUMNS if row.get(name)}


def list_cases(toy_rows) -> dict[str, list[dict]]:
    """Six rows by case, each with crops of its first two regions; the last rows are the last process's."""
    silent, plain = {"captions": [], "description": None}, {"hard_negatives": []}
    rows = toy_rows[1:7]
    cases = {
        "uneven": rows,
        "one has no region": rows[:3] + [keep_regions(row, 0) for row in rows[3:]],
        "one has no caption": [row | silent for row in rows[:3]] + rows[3:],
        "one has no negative": rows[:3] + [row | plain for row in rows[3:]],
        "all have the same words": [rows[0]] * 6,
    }
    return {
        case: [row | {"crops": list(range(min(2, len(row["boxes"]))))} for row in rows]
        for case, rows in cases.items()
    }


def compute_grads(
    module, model, batch, loss_weights, num_chunks: int = 1, label_smoothing: float = 0.0
) -> dict[str, torch.Tensor]:
    """Losses and gradients by name; `module` is the model or a wrapper round it."""
    model.zero_grad(set_to_none=True)
    targets = Teacher("self", model, 0.0).embed_crops(model, batch)

    def encode(chunk):
        return encode_batch(module, chunk, with_crops=True)

    def compute(embeds):
        crops = embeds["crop_embeds"], targets
        return compute_losses(SimpleNamespace(**embeds), batch, loss_weights, *crops, label_smoothing)

    if num_chunks == 1:
        losses = compute(encode(batch))
        losses["loss"].backward()
    else:
        no_sync = {"no_sync": module.no_sync} if module is not model else {}
        chunks = split_batch(batch, num_chunks)
        losses = backward_in_chunks(chunks, encode, compute, torch.Tensor.backward, **no_sync)
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    return {name: loss.detach() for name, loss in losses.items()} | grads


def check_grads(found: dict, expected: dict, model) -> None:
    """Compare the gradients of all trained parameters."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    total = torch.stack([expected[name].norm() for name in names]).norm()
    for name in names:
        # The bias of keys has no gradient but rounding, hence the floor beside the relative bound.
        bound = 1e-5 * expected[name].norm() + 1e-7 * total
        assert (found[name] - expected[name]).norm() <= bound, name
