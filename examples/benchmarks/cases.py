"""The cases of `run_all.py`: our way and a peer's way of the same work.

A case is a function of a size and a device. It returns our call, the peer's call, and the tolerance within
which their results, lists of tensors, must be equal.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from loss_memory import load_clip_loss
from PIL import Image
from torch.nn import functional as F
from transformers import CLIPImageProcessorPil, pipeline

from geoalign_hf.convert.from_scratch import build_model, train_tokenizer
from geoalign_hf.data.collator import RowCollator
from geoalign_hf.evaluation.metrics.retrieval import rank_own
from geoalign_hf.evaluation.retrieval import rank_in_blocks
from geoalign_hf.losses.contrastive import contrast_pairs
from geoalign_hf.losses.objective import PRESETS, LossWeights
from geoalign_hf.model.masks_geoalign_clip import _overlap_pixels, masks_to_coverage
from geoalign_hf.model.packing_geoalign_clip import pack_texts
from geoalign_hf.model.processing_geoalign_clip import GeoAlignCLIPProcessor
from geoalign_hf.model.regions_geoalign_clip import pool_regions, weigh_boxes
from geoalign_hf.readers.coco import read_coco
from geoalign_hf.training.step import compute_gradients, encode_batch

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the folder of the examples
from toy_rows import draw_rows  # noqa: E402

SIDE, NUM_NEGATIVES, WIDTH = 224, 4, 512
WORDS = ("near the water", "by a road", "in the shade", "among trees")


class Pair(NamedTuple):
    """Our call, the peer's call, and the largest relative difference of their results."""

    ours: Callable
    peer: Callable
    tolerance: float


def draw_pictures(num: int, side: int = 512) -> list[Image.Image]:
    """Draw pictures that are smooth like photographs."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (num, 24, 24, 3), dtype=np.uint8)
    return [Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC) for pixels in coarse]


def build_processors() -> tuple[CLIPImageProcessorPil, GeoAlignCLIPProcessor]:
    """Build the stock image processor, and our processor with it."""
    stock = CLIPImageProcessorPil(size={"height": SIDE, "width": SIDE}, do_center_crop=False)
    return stock, GeoAlignCLIPProcessor(stock, train_tokenizer(["a ship"]))


def prepare_images(num: int, device: str) -> Pair:
    """Resize and normalise pictures in memory. The peer is transformers' CLIPImageProcessor on PIL."""
    images, (stock, processor) = draw_pictures(num), build_processors()
    return Pair(
        lambda: [processor(images=images, return_tensors="pt")["pixel_values"]],
        lambda: [stock(images, return_tensors="pt")["pixel_values"]],
        0.02,
    )


def prepare_files(num: int, device: str) -> Pair:
    """Decode, resize and normalise JPEG files. The peer is the same as of `prepare_images`."""
    folder = Path(tempfile.mkdtemp())
    paths = [folder / f"{i}.jpg" for i in range(num)]
    for path, image in zip(paths, draw_pictures(num), strict=True):
        image.save(path, quality=90)
    stock, processor = build_processors()
    return Pair(
        lambda: [processor(images=paths, return_tensors="pt")["pixel_values"]],
        lambda: [stock(stock.fetch_images(list(map(str, paths))), return_tensors="pt")["pixel_values"]],
        0.02,
    )


def read_boxes(num: int, device: str) -> Pair:
    """Read COCO boxes of one image into a row. The peer parses the file and checks nothing."""
    folder = Path(tempfile.mkdtemp())
    draw_pictures(1)[0].save(folder / "0.png")
    numbers = np.random.default_rng(0).integers(1, 200, (num, 4)).tolist()
    content = {
        "images": [{"id": 1, "file_name": "0.png", "width": 512, "height": 512}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": i, "bbox": box} for i, box in enumerate(numbers)
        ],
        "categories": [{"id": i, "name": f"kind {i}"} for i in range(num)],
    }
    path = folder / "boxes.json"
    path.write_text(json.dumps(content))

    def parse() -> list[torch.Tensor]:
        boxes = [annotation["bbox"] for annotation in json.loads(path.read_text())["annotations"]]
        return [torch.tensor([[x, y, x + w, y + h] for x, y, w, h in boxes])]

    def read() -> list[torch.Tensor]:
        (row,) = read_coco(path, folder)
        return [torch.tensor(row["boxes"])]

    return Pair(read, parse, 0)


def resample_masks(num: int, device: str) -> Pair:
    """Resample masks to patches. The peer multiplies the matrices of all pixels."""
    random = np.random.default_rng(0)
    masks = np.zeros((num, 512, 512), dtype=bool)
    for mask, (x, y, w, h) in zip(masks, random.integers(30, 200, (num, 4)), strict=True):
        mask[y : y + h, x : x + w] = True
    masks, matrix = torch.from_numpy(masks), _overlap_pixels(512, 14)
    return Pair(
        lambda: [masks_to_coverage(masks, (14, 14))],
        lambda: [matrix @ masks.float() @ matrix.T],
        1e-5,
    )


def pool_boxes(num: int, device: str) -> Pair:
    """Pool boxes of 8 maps, with gradients. The peer samples 6 x 6 points per box, as RoIAlign does."""
    torch.manual_seed(0)
    features = torch.randn(8, 14, 14, WIDTH, device=device)
    features = F.avg_pool2d(features.movedim(-1, 1), 5, 1, 2).movedim(1, -1).requires_grad_()
    start = 0.6 * torch.rand(8, num, 2, device=device)
    boxes = torch.cat([start, start + 0.1 + 0.3 * torch.rand(8, num, 2, device=device)], dim=-1)
    steps = (torch.arange(6, device=device) + 0.5) / 6
    points = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1).flatten(0, 1)  # (36, 2)

    def run(pool) -> list[torch.Tensor]:
        pooled = pool()
        return [pooled, *torch.autograd.grad(pooled.sum(), features)]

    def sample():
        places = boxes[..., None, :2] + points * (boxes[..., None, 2:] - boxes[..., None, :2])
        sampled = F.grid_sample(
            features.movedim(-1, 1), 2 * places - 1, padding_mode="border", align_corners=False
        )
        return sampled.mean(dim=-1).mT

    return Pair(
        lambda: run(lambda: pool_regions(features.flatten(1, 2), weigh_boxes(boxes, (14, 14)))),
        lambda: run(sample),
        0.1,
    )


def contrast(num: int, device: str) -> Pair:
    """Compute the contrastive loss and its gradients. The peer is open_clip's ClipLoss."""
    torch.manual_seed(0)
    left, right = (
        F.normalize(torch.randn(num, WIDTH, device=device), dim=-1).requires_grad_() for _ in range(2)
    )
    scale, ids = torch.tensor(14.0, device=device), torch.arange(num, device=device).unsqueeze(-1)
    clip_loss = load_clip_loss().ClipLoss()

    def run(loss) -> list[torch.Tensor]:
        return [loss, *torch.autograd.grad(loss, (left, right))]

    return Pair(
        lambda: run(contrast_pairs(left, right, ids, scale)),
        lambda: run(clip_loss(left, right, scale)),
        2e-5,
    )


def rank(num: int, device: str) -> Pair:
    """Rank the own candidate of each query, with the scores. The peer sorts all scores."""
    left, right = np.random.default_rng(0).normal(size=(2, num, WIDTH)).astype(np.float32)
    own = [[i] for i in range(num)]

    def sort():
        order = np.argsort(-(left @ right.T), axis=1, kind="stable")
        return np.argmax(order == np.arange(num)[:, None], axis=1) + 1

    def rank_ours():
        return rank_own(left @ right.T, own)

    return Pair(lambda: [torch.from_numpy(rank_ours())], lambda: [torch.from_numpy(sort())], 0)


def rank_product(num: int, device: str) -> Pair:
    """Rank the own candidate of each query, as the evaluators do. The peer only multiplies."""
    numbers = np.random.default_rng(0).integers(-4, 5, (2, num, WIDTH))  # whole, so that products are exact
    left, right = torch.from_numpy(numbers.astype(np.float32))
    own, scores = [[i] for i in range(num)], left @ right.T
    expected = (scores >= scores.diagonal()[:, None]).sum(dim=1)

    def multiply() -> list[torch.Tensor]:
        torch.mm(left, right.T)
        return [expected]

    return Pair(lambda: [torch.from_numpy(rank_in_blocks(left, right, own))], multiply, 0)


def name_images(num: int, device: str) -> Pair:
    """Name pictures among 16 concepts by the stock pipeline. The peer does it without cached texts."""
    torch.manual_seed(0)
    things = ("ship", "road", "tank", "pier", "bridge", "silo", "court", "track")
    labels = [f"a {size} {thing}" for size in ("large", "small") for thing in things]
    model, processor = build_model(labels, image_size=64, width=128, depth=4, text_width=256, text_depth=6)
    parts = {"tokenizer": processor.tokenizer, "image_processor": processor.image_processor}
    model = model.to(device).eval()
    classify = pipeline("zero-shot-image-classification", model=model, device=device, **parts)
    images = draw_pictures(num, 64)

    def run(is_cached: bool) -> list[torch.Tensor]:
        model.cache_texts(is_cached)
        answers = classify(images, candidate_labels=labels)
        by_label = [sorted(answer, key=lambda entry: entry["label"]) for answer in answers]
        return [torch.tensor([[entry["score"] for entry in answer] for answer in by_label])]

    return Pair(lambda: run(True), lambda: run(False), 1e-5)


def build_step(num: int, device: str, weights: LossWeights = PRESETS["fg_clip"], **shape):
    """Build a small model and a batch of drawn rows whose phrases have four hard negatives each."""
    torch.manual_seed(0)
    rows = draw_rows(num)
    for row in rows:
        row["hard_negatives"] = [[f"{phrase} {words}" for words in WORDS] for phrase in row["phrases"]]
        row["negative_kinds"] = [["position"] * NUM_NEGATIVES for _ in row["phrases"]]
    texts = [text for row in rows for text in [*row["captions"], row["description"], *row["phrases"], *WORDS]]
    shape = {"image_size": 128, "width": 256, "depth": 4, "text_width": 256, "text_depth": 4} | shape
    model, processor = build_model(texts, **shape)
    collate = RowCollator(processor, max(len(row["boxes"]) for row in rows), text_kinds=weights.text_kinds)
    batch = {key: tensor.to(device) for key, tensor in collate(rows).items()}
    return rows, model.to(device).train(), processor, batch


def step(num: int, device: str, weights: LossWeights = PRESETS["fg_clip"]) -> Pair:
    """Compute the gradients of a step of the preset fg_clip. The peer encodes as FG-CLIP does.

    The peer calls the text tower for captions, descriptions, phrases and negatives, each padded to all
    positions, and compares everything by full matrices. Regions are pooled in the same way. Embeddings must
    be equal.
    """
    rows, model, processor, batch = build_step(num, device, weights)
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no")
    padding = {"padding": "max_length", "max_length": model.config.text_config.max_position_embeddings}
    padding |= {"truncation": True, "return_tensors": "pt"}
    images, is_real = batch["pixel_values"], batch["region_mask"]
    regions = {key: value for key, value in batch.items() if key.startswith("region_")}
    negatives = [text for row in rows for texts in row["hard_negatives"] for text in texts]
    groups = [[row["captions"][0] for row in rows], [row["description"] for row in rows]]
    groups += [[text for row in rows for text in row["phrases"]], negatives]
    tokens = [processor.tokenizer(group, **padding).to(device) for group in groups]

    def encode():
        return [model.embed_text(group["input_ids"], group["attention_mask"]) for group in tokens]

    def run_peer():
        model.zero_grad()
        captions, descriptions, phrases, wrong = encode()
        output = model(pixel_values=images, **regions)
        embeds = output.region_embeds[is_real]
        scale = model.logit_scale.exp()

        def compare(left, right):
            logits, target = scale * left @ right.T, torch.arange(len(left), device=left.device)
            return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

        choices = torch.cat([phrases.unsqueeze(1), wrong.unflatten(0, (-1, NUM_NEGATIVES))], dim=1)
        hard = torch.einsum("rd,rkd->rk", embeds, choices) * scale
        target = torch.zeros(len(hard), dtype=torch.long, device=hard.device)
        loss = compare(output.image_embeds, captions) + compare(output.image_embeds, descriptions)
        loss = loss + 0.1 * compare(embeds, phrases) + 0.5 * F.cross_entropy(hard, target)
        loss.backward()
        found = [phrases.detach(), output.image_embeds.detach(), embeds.detach()]
        return [descriptions.detach(), *found] if weights.description else found

    def run_ours():
        model.zero_grad()
        compute_gradients(accelerator, model, batch, weights)
        return check_ours() if not checked else checked

    checked: list[torch.Tensor] = []

    def check_ours():
        with torch.no_grad():
            embeds = encode_batch(model, batch)
        texts = embeds["text_embeds"]
        if weights.description:
            checked.append(texts[batch["description_index"]].view(num, -1))
        checked.append(texts[batch["phrase_index"][is_real]])
        checked.extend([embeds["image_embeds"], embeds["region_embeds"][is_real]])
        return checked

    return Pair(run_ours, run_peer, 1e-4)


def step_default(num: int, device: str) -> Pair:
    """Compute the gradients of a step of the default objective. The peer is the same as of `step`.

    The default objective encodes concepts and no descriptions; the peer encodes descriptions and no concepts.
    """
    return step(num, device, LossWeights())


def accumulate(num: int, device: str) -> Pair:
    """Compute the gradients of a step in mini-batches of 4. The peer computes them at once."""
    _, model, _, batch = build_step(num, device)
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no")
    weights = LossWeights(concept=0.0)
    names = [name for name, _ in model.named_parameters() if not name.endswith("k_proj.bias")]

    def run(size: int | None) -> list[torch.Tensor]:
        model.zero_grad()
        compute_gradients(accelerator, model, batch, weights, mini_batch_size=size)
        gradients = dict(model.named_parameters())
        return [gradients[name].grad.clone() for name in names if gradients[name].grad is not None]

    return Pair(lambda: run(4), lambda: run(None), 1e-4)


def encode_texts(num: int, device: str) -> Pair:
    """Encode the texts of a step. The peer pads each to all positions of the text tower."""
    rows, model, processor, _ = build_step(num, device)
    texts = [text for row in rows for text in [row["captions"][0], row["description"], *row["phrases"]]]
    texts = list(dict.fromkeys(texts))
    length = model.config.text_config.max_position_embeddings
    input_ids, text_ids, order = pack_texts(
        processor.tokenizer(texts)["input_ids"], processor.tokenizer.pad_token_id
    )
    padded = processor.tokenizer(texts, padding="max_length", max_length=length, return_tensors="pt").to(
        device
    )
    packed = {"input_ids": input_ids.to(device), "text_ids": text_ids.to(device)}
    place = order.argsort().to(device)

    def run(encode) -> list[torch.Tensor]:
        model.zero_grad()
        embeds = encode()
        embeds.sum().backward()
        return [embeds.detach()]

    return Pair(
        lambda: run(lambda: model(**packed, return_logits=False).text_embeds[place]),
        lambda: run(lambda: model.embed_text(padded["input_ids"], padded["attention_mask"])),
        1e-4,
    )
