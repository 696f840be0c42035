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


def resize_fast(images: list[Image.Image], settings: dict) -> torch.Tensor:
    """Resize, rescale and normalise RGB images as a stock image processor does, in less time.

    The filter is torch's antialiased one on uint8, which is several times faster than PIL's. Pixels are
    within 1 of 255 of those of Pillow 13, except about one in 100,000, which is within 2. Earlier versions of
    Pillow, and torchvision, filter tall pictures in another order, which differs by up to 8 at hard edges.

    Args:
        images: of mode RGB.
        settings: `size`, `resample`, `image_mean` and `image_std` of the image processor.

    Returns:
        (B, 3, height, width), float32.
    """
    height, width = size = settings["size"]["height"], settings["size"]["width"]
    mode = TORCH_MODES[settings["resample"]]
    # numpy outside of the filter: torch would start its threads for every one of these small steps.
    scale = 1 / (np.float32(settings["image_std"]) * 255).reshape(3, 1, 1)
    offset = np.float32(settings["image_mean"]).reshape(3, 1, 1) * 255 * scale
    pixels = np.empty((len(images), 3, *size), dtype=np.float32)
    for image, result in zip(images, pixels, strict=True):
        resized = torch.from_numpy(np.array(image)[None]).permute(0, 3, 1, 2)  # the filter's fastest layout
        # Pillow 13 filters such pictures down first, and then across.
        is_tall = image.height - height > 2 * max(image.width - width, 0)
        for target in [(height, image.width)] * is_tall + [size]:
            if resized.shape[2:] != target:
                resized = torch.nn.functional.interpolate(resized, target, mode=mode, antialias=True)
        np.multiply(resized[0].numpy(), scale, out=result, dtype=np.float32, casting="unsafe")
        result -= offset
    return torch.from_numpy(pixels)
