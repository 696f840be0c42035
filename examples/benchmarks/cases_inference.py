"""The cases of `run_all.py` on inference on a CPU: number formats, and crops in place of pooled regions."""

import tempfile
from functools import cache
from pathlib import Path

import torch
from cases import Pair
from torch.export import Dim
from torch.nn import functional as F

from geoalign_hf.commands.export import Tower, export_tower, quantize_tower
from geoalign_hf.convert.from_scratch import build_model

NUM_REGIONS = 8
SHAPE = {"image_size": 224, "patch_size": 16, "width": 384, "depth": 12}  # ViT-S/16


@cache
def build_tower(dtype: torch.dtype) -> Tower:
    """Build the image tower of a ViT-S/16 with fresh weights."""
    torch.manual_seed(0)
    model, _ = build_model(["a ship"], **SHAPE)
    return Tower(model.to(dtype).eval(), "embed_images", ("pixel_values",)).eval()


@cache
def export_int8() -> Path:
    """Export the image tower to ONNX with weights of 8 bits."""
    path = Path(tempfile.mkdtemp()) / "image.onnx"
    export_tower(
        build_tower(torch.float32), {"pixel_values": {0: Dim("images")}}, (torch.randn(2, 3, 224, 224),), path
    )
    return quantize_tower(path)


def embed_bfloat16(num: int, device: str) -> Pair:
    """Embed images with the model in bfloat16. The peer is the same model in float32."""
    images = torch.randn(num, 3, 224, 224, device=device)

    @torch.inference_mode()
    def embed(dtype: torch.dtype) -> list[torch.Tensor]:
        return [build_tower(dtype).to(device)(images.to(dtype)).float()]

    return Pair(lambda: embed(torch.bfloat16), lambda: embed(torch.float32), 0.1)


def embed_int8(num: int, device: str) -> Pair:
    """Embed images with ONNX Runtime and weights of 8 bits. The peer is the model in float32, in torch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(export_int8(), options, providers=["CPUExecutionProvider"])
    images, tower = torch.randn(num, 3, 224, 224), build_tower(torch.float32).cpu()

    @torch.inference_mode()
    def embed() -> list[torch.Tensor]:
        return [tower(images)]

    return Pair(
        lambda: [torch.from_numpy(session.run(None, {"pixel_values": images.numpy()})[0])], embed, 0.1
    )


def pool_or_crop(num: int, device: str) -> Pair:
    """Encode images and pool 8 regions of each, with gradients. The peer encodes a crop of every region.

    Regions that are pooled and crops are not the same features, so only embeddings of images are compared.
    """
    torch.manual_seed(0)
    model, _ = build_model(["a ship"], image_size=128, width=256, depth=4)
    model = model.to(device).train()
    images = torch.randn(num, 3, 128, 128, device=device)
    start = 0.6 * torch.rand(num, NUM_REGIONS, 2, device=device)
    boxes = torch.cat([start, start + 0.1 + 0.3 * torch.rand_like(start)], dim=-1)

    def pool() -> list[torch.Tensor]:
        model.zero_grad()
        output = model(pixel_values=images, region_boxes=boxes)
        (output.image_embeds.sum() + output.region_embeds.sum()).backward()
        return [output.image_embeds.detach()]

    def crop() -> list[torch.Tensor]:
        model.zero_grad()
        crops = [
            F.interpolate(image[None, :, y0:y1, x0:x1], (128, 128), mode="bilinear")
            for image, sides in zip(images, (128 * boxes).long().tolist(), strict=True)
            for x0, y0, x1, y1 in sides
        ]
        embeds = model.embed_images(torch.cat([images, *crops]))
        embeds.sum().backward()
        return [embeds[:num].detach()]

    return Pair(pool, crop, 1e-4)
