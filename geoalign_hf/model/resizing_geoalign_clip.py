# Copyright 2026 The geoalign_hf authors. Licensed under the Apache License, Version 2.0.
"""Resizing images to the input of the model, faster than the stock image processors."""

import numpy as np
import torch
from PIL import Image
from transformers.image_utils import PILImageResampling

TORCH_MODES = {PILImageResampling.BICUBIC: "bicubic", PILImageResampling.BILINEAR: "bilinear"}


def can_resize_fast(settings: dict) -> bool:
    """Return whether `resize_fast` gives the result of an image processor with these settings."""
    size = {name for name, value in (settings["size"] or {}).items() if value}
    layout, mean = settings.get("data_format"), settings.get("image_mean") or ()
    return bool(
        settings.get("do_resize")
        and size == {"height", "width"}
        and settings.get("resample") in TORCH_MODES
        and not settings.get("do_center_crop")
        and not settings.get("do_pad")
        and settings.get("do_rescale")
        and settings.get("rescale_factor") == 1 / 255
        and settings.get("do_normalize")
        and np.size(mean) == np.size(settings.get("image_std") or ()) == 3
        and getattr(layout, "value", layout) in (None, "channels_first")
        and settings.get("device") in (None, "cpu")
    )


def resize_fast(images: list[Image.Image], settings: dict, backend: str) -> torch.Tensor:
    """Resize, rescale and normalise RGB images as a stock image processor does, in less time.

    The filter is that of the image processor's backend, because PIL's and torch's saturate differently:
    PIL's, image by image, or torch's antialiased filter on uint8, on all images of one size together. Both
    give the stock result within 1 of 255.

    Args:
        images: of mode RGB.
        settings: `size`, `resample`, `image_mean` and `image_std` of the image processor.
        backend: `pil` or `torchvision`.

    Returns:
        (B, 3, height, width), float32.
    """
    resize = _resize_by_torch if backend == "torchvision" else _resize_by_pil
    size = settings["size"]["height"], settings["size"]["width"]
    # numpy outside of the filter: torch would start its threads for every one of these small steps.
    pixels = resize(images, size, settings["resample"]).astype(np.float32)
    pixels -= np.float32(settings["image_mean"]).reshape(3, 1, 1) * 255
    pixels /= np.float32(settings["image_std"]).reshape(3, 1, 1) * 255
    return torch.from_numpy(pixels)


def _resize_by_pil(images: list[Image.Image], size: tuple[int, int], resample: int) -> np.ndarray:
    resized = np.empty((len(images), *size, 3), dtype=np.uint8)
    for i, image in enumerate(images):
        resized[i] = np.asarray(image.resize((size[1], size[0]), resample))
    return resized.transpose(0, 3, 1, 2)


def _resize_by_torch(images: list[Image.Image], size: tuple[int, int], resample: int) -> np.ndarray:
    resized = np.empty((len(images), 3, *size), dtype=np.uint8)
    for image_size in {image.size for image in images}:
        members = [i for i, image in enumerate(images) if image.size == image_size]
        group = torch.from_numpy(np.stack([np.asarray(images[i]) for i in members])).permute(0, 3, 1, 2)
        if image_size != size[::-1]:
            mode = TORCH_MODES[PILImageResampling(resample)]
            group = torch.nn.functional.interpolate(group, size, mode=mode, antialias=True)
        resized[members] = group.numpy()
    return resized
