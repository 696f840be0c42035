"""One step of training: from a batch to embeddings, to the loss of all processes, to gradients.

Each modality is encoded once with gradients: all texts, and the images together with the crops that a term
trains on. The teacher encodes crops that are only targets, without gradients. A batch that exceeds the memory
is encoded in mini-batches, with the gradient of the whole batch.
"""

from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import torch
from accelerate import Accelerator, DistributedType

from ..data.collator import CROP_KEYS, LOSS_KEYS
from ..losses.distributed import backward_in_chunks
from ..losses.objective import LossWeights, compute_losses
from ..model.packing_geoalign_clip import NO_TEXT
from .teacher import Teacher, get_crop_regions


def compute_gradients(
    accelerator: Accelerator,
    model: torch.nn.Module,
    batch: dict[str, torch.Tensor],
    loss_weights: LossWeights,
    teacher: Teacher | None = None,
    mini_batch_size: int | None = None,
    label_smoothing: float = 0.0,
) -> dict[str, torch.Tensor]:
    """Compute the loss of one batch and add its gradients to those of the parameters.

    Args:
        accelerator: the accelerator that prepared the model.
        model: the prepared model, with its wrapper.
        batch: batch of this process, as `RowCollator` makes it.
        loss_weights: weights of the terms.
        teacher: source of the targets of `crop_consistency`. None takes the model itself.
        mini_batch_size: largest number of images that are encoded at once; None encodes the whole batch. The
            gradient is the same. It must be equal on all processes.
        label_smoothing: part of the target of the concept terms, in [0, 1]; see `compute_losses`.

    Returns:
        The terms and `loss`, as `compute_losses` returns them.
    """
    teacher = teacher or Teacher("self", model, 0.0)
    num_chunks = -(-len(batch["pixel_values"]) // (mini_batch_size or len(batch["pixel_values"])))
    chunks = split_batch(batch, num_chunks) if num_chunks > 1 else [batch]
    trains_crops = loss_weights.crop_concept > 0
    target_embeds = None
    # Crops that are trained on are embedded anyway (with dropout), so the model as teacher needs no own pass.
    if loss_weights.crop_consistency and not (trains_crops and teacher.kind == "self"):
        student = accelerator.unwrap_model(model)
        with accelerator.autocast():
            target_embeds = torch.cat([teacher.embed_crops(student, chunk) for chunk in chunks])

    def encode(chunk):
        with accelerator.autocast():
            return encode_batch(model, chunk, trains_crops)

    def compute(embeds):
        targets = embeds.get("target_embeds") if target_embeds is None else target_embeds
        output, crops = SimpleNamespace(**embeds), embeds.get("crop_embeds")
        return compute_losses(output, batch, loss_weights, crops, targets, label_smoothing)

    if num_chunks > 1:
        # FSDP without synchronization would hold each gradient whole.
        is_sharded = accelerator.distributed_type == DistributedType.FSDP
        no_sync = nullcontext if is_sharded else partial(accelerator.no_sync, model)
        return backward_in_chunks(chunks, encode, compute, accelerator.backward, no_sync)
    terms = compute(encode(batch))
    accelerator.backward(terms["loss"])
    return terms


def encode_batch(
    model: torch.nn.Module, batch: dict[str, torch.Tensor], with_crops: bool = False
) -> dict[str, torch.Tensor]:
    """Encode images, regions and texts of a batch in one forward pass, with crops among the images.

    Returns:
        `image_embeds` (B, D), `region_embeds` (B, R, D), `text_embeds` (N, D), `logit_scale`,
        `region_logit_scale` (); with crops also `crop_embeds` (Q, D), each crop as an image, and
        `target_embeds` (Q, D), without gradient, its region pooled from its patches.
    """
    inputs = {key: tensor for key, tensor in batch.items() if key not in LOSS_KEYS | CROP_KEYS}
    B = len(inputs["pixel_values"])
    if with_crops:
        inputs |= _append_crops(inputs, batch)
    output = model(**inputs, return_logits=False)
    names = ("image_embeds", "region_embeds", "text_embeds", "logit_scale", "region_logit_scale")
    embeds = {name: getattr(output, name) for name in names}
    if with_crops:
        embeds["crop_embeds"] = embeds["image_embeds"][B:]
        embeds["target_embeds"] = embeds["region_embeds"][B:, 0].detach()
        embeds |= {name: embeds[name][:B] for name in ("image_embeds", "region_embeds")}
    return embeds


def _append_crops(inputs, batch) -> dict[str, torch.Tensor]:
    """Append the crops to the images, each with its one region."""
    Q, R = len(batch["crop_values"]), inputs["region_mask"].shape[1]
    is_first = (torch.arange(R, device=inputs["region_mask"].device) == 0).expand(Q, R)
    appended = {"pixel_values": batch["crop_values"], "region_mask": is_first}
    for name, regions in get_crop_regions(batch).items():
        appended[name] = regions.expand(Q, R, *regions.shape[2:])
    return {name: torch.cat([inputs[name], tensor]) for name, tensor in appended.items()}


def split_batch(batch: dict[str, torch.Tensor], num_chunks: int) -> list[dict[str, torch.Tensor]]:
    """Split the inputs of the model: images with their regions and crops, and rows of packed texts.

    Every chunk holds images and texts, if need be a row of texts that is all padding, so that every pass runs
    through both towers.

    Args:
        batch: batch of B rows, as `RowCollator` makes it.
        num_chunks: number of chunks, from 1 to B.

    Returns:
        The chunks. Their concatenated embeddings are those of the batch.
    """
    (B, R), M = batch["region_mask"].shape, len(batch["input_ids"])
    by_row = [
        key
        for key in ("pixel_values", "region_mask", "region_boxes", "region_quads", "region_coverage")
        if key in batch
    ]
    by_crop = [key for key in CROP_KEYS if key in batch]
    chunks = []
    for k in range(num_chunks):
        rows, texts = (slice(k * num // num_chunks, (k + 1) * num // num_chunks) for num in (B, M))
        chunk = {key: batch[key][rows] for key in by_row}
        if by_crop:
            place = batch["crop_index"] // R
            is_here = (place >= rows.start) & (place < rows.stop)
            chunk |= {key: batch[key][is_here] for key in by_crop}
        chunk |= {key: batch[key][texts] for key in ("input_ids", "text_ids")}
        if not len(chunk["input_ids"]):
            chunk["input_ids"] = batch["input_ids"][:1]
            chunk["text_ids"] = torch.full_like(chunk["input_ids"], NO_TEXT)
        chunks.append(chunk)
    return chunks
