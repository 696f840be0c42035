# Copyright 2026 The geoalign_hf authors. Licensed under the Apache License, Version 2.0.
"""Images, regions and words to tensors.

In come images of any size, regions in pixels of the image as given, and texts; out comes one batch in
which everything has the frame of `pixel_values`. Boxes change frame here and nowhere else.
"""

from .requirements_geoalign_clip import REQUIRED_TRANSFORMERS  # noqa: F401  # before what older ones lack

# isort: split
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from transformers import BatchFeature, ProcessorMixin
from transformers.image_utils import ImageInput, PILImageResampling, get_image_size, load_image
from transformers.processing_utils import ImagesKwargs

from .regions_geoalign_clip import check_boxes, check_quads, masks_to_coverage

CONCEPT_TEMPLATES = ("a satellite photo of {}.", "an aerial image of {}.", "{} seen from above.")

TORCH_MODES = {PILImageResampling.BICUBIC: "bicubic", PILImageResampling.BILINEAR: "bilinear"}


class GeoAlignCLIPProcessor(ProcessorMixin):
    """Prepares images, regions and texts for `GeoAlignCLIPModel`.

    Images are resized to a square without cropping, so a box needs no more than a division. A stock
    CLIP image processor and a stock CLIP tokenizer do the rest.
    """

    _auto_class = "AutoProcessor"

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        super().__init__(image_processor, tokenizer)

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | list[str] | None = None,
        boxes: list | None = None,
        quads: list | None = None,
        masks: list | None = None,
        max_regions: int | None = None,
        clip_boxes: bool | None = None,
        **kwargs,
    ) -> BatchFeature:
        """Prepare a batch.

        Args:
            images: one image or a list: PIL images, arrays, tensors, paths or URLs. A file is turned as its
                EXIF orientation says, and that is then the image as given.
            text: one text or a list, none of them empty.
            boxes: per image a list of boxes, xyxy pixels of the image as given; [] for an image without.
            quads: per image a list of oriented boxes, four corners x, y each, in place of boxes.
            masks: per image an array (R, height, width), True inside the region, in place of boxes.
            max_regions: pad to exactly this R, so that all batches have one shape; None takes the largest
                count.
            clip_boxes: whether to cut a box that is partly outside its image (the default); False makes it an
                error.
            **kwargs: anything the image processor and the tokenizer take (`padding`, `return_tensors`, ...).

        Returns:
            `pixel_values` (B, 3, S, S); `input_ids` and `attention_mask` (N, L); `region_mask` (B, R), True
            for real regions; and `region_boxes` (B, R, 4), `region_quads` (B, R, 4, 2) or `region_coverage`
            (B, R, S, S), all in [0, 1] of `pixel_values`. Padding boxes and quads are the whole image.

        Raises:
            ValueError: for any image, text or region that cannot be used; the message names it.

        Example:
            `processor(images=image, boxes=[[[40, 12, 310, 96]]], text=["a ship"], return_tensors="pt",
            padding=True)`
        """
        forms = {"boxes": boxes, "quads": quads, "masks": masks}
        given = [name for name, regions in forms.items() if regions is not None]
        if len(given) > 1:
            raise ValueError(f"regions are given as {' and '.join(given)}. Give one form in a call.")
        if given and images is None:
            raise ValueError(f"{given[0]} are given without images. Pass the images that they lie in.")
        if text is not None:
            _check_text(text)
        if images is None:
            return super().__call__(text=text, **kwargs)
        images = load_images(images)
        batch = self._prepare(images, text, **kwargs)
        if given:
            self._check_frame(kwargs)
            regions = forms[given[0]]
            if len(regions) != len(images):
                raise ValueError(
                    f"{given[0]} are given for {len(regions)} images, but there are {len(images)} images. "
                    "Give one list per image, an empty one where there are no regions."
                )
            counts = [len(region_list) for region_list in regions]
            R = max(counts) if max_regions is None else max_regions
            for i, count in enumerate(counts):
                if count > R:
                    raise ValueError(
                        f"image {i} has {count} {given[0]}, but max_regions is {R}. "
                        "Raise max_regions, or choose the regions to keep."
                    )
            scale = getattr(self, f"_scale_{given[0]}")
            sizes = [_get_size(image) for image in images]
            key, padded = scale(regions, sizes, batch, R, clip_boxes is not False)
            region_mask = torch.arange(R) < torch.tensor(counts).unsqueeze(-1)  # (B, R)
            regions_batch = BatchFeature({key: padded, "region_mask": region_mask})
            batch.update(regions_batch.convert_to_tensors(kwargs.get("return_tensors")))
        return batch

    def tokenize_concepts(self, concepts: list[str], templates=CONCEPT_TEMPLATES) -> BatchFeature:
        """Word every concept by every template and tokenize all of it.

        Args:
            concepts: C names.
            templates: T sentences with one `{}` each.

        Returns:
            `input_ids` and `attention_mask`, (C, T, L), what `embed_concepts` takes.

        Raises:
            ValueError: if there is no concept, one is empty, or a template lacks its `{}`.
        """
        if not concepts or isinstance(concepts, str):
            raise ValueError(f"concepts is {concepts!r}; it must be a list of at least one name.")
        if not templates or isinstance(templates, str):
            raise ValueError(
                f"templates is {templates!r}; it must be a list of at least one sentence with one {{}}."
            )
        for t, template in enumerate(templates):
            if template.count("{}") != 1:
                raise ValueError(f"templates[{t}] = {template!r} must hold one {{}}, where the concept goes.")
        _check_text(concepts, name="concepts")
        texts = [template.format(concept) for concept in concepts for template in templates]
        tokens = self.tokenizer(texts, padding=True, return_tensors="pt")
        shape = (len(concepts), len(templates), -1)
        return BatchFeature({key: tokens[key].view(shape) for key in ("input_ids", "attention_mask")})

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Save as every processor does."""
        saved = super().save_pretrained(save_directory, *args, **kwargs)
        vars(self).pop("auto_map", None)  # written to the file and of no use on the object
        return saved

    @property
    def model_input_names(self) -> list[str]:
        """Name what a batch of images and texts holds; regions add their own keys."""
        return self.image_processor.model_input_names + self.tokenizer.model_input_names

    def _prepare(self, images: list, text, **kwargs) -> BatchFeature:
        image_keys = {"images_kwargs", "common_kwargs", "device", *ImagesKwargs.__annotations__}
        has_image_kwargs = bool((image_keys - {"return_tensors", "size"}) & kwargs.keys())
        size = kwargs.get("size", self.image_processor.size)
        is_plain = kwargs.get("return_tensors") == "pt" and not has_image_kwargs
        if not (is_plain and can_resize_fast(self.image_processor, size) and all(map(_is_uint8_rgb, images))):
            return super().__call__(images=images, text=text, **kwargs)
        kwargs.pop("size", None)
        batch = BatchFeature() if text is None else super().__call__(text=text, **kwargs)
        batch["pixel_values"] = resize_fast(images, self.image_processor, (size["height"], size["width"]))
        return batch

    def _check_frame(self, kwargs):
        crops = kwargs.get("do_center_crop", self.image_processor.do_center_crop)
        if crops:
            raise ValueError(
                "this image processor crops (do_center_crop=True), so boxes would point at other pixels. "
                "Load it with do_center_crop=False and a square size."
            )

    def _scale_boxes(self, boxes, sizes, batch, R, clip_boxes):
        padded = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(len(boxes), R, 1)
        for i, (width, height) in enumerate(sizes):
            image_boxes = _to_tensor(boxes[i], (4,), f"boxes[{i}]")
            image_boxes = check_boxes(image_boxes, width, height, f"boxes[{i}]", clip_boxes)
            padded[i, : len(image_boxes)] = (image_boxes / torch.tensor([width, height] * 2)).float()
        return "region_boxes", padded

    def _scale_quads(self, quads, sizes, batch, R, clip_boxes):
        padded = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]).repeat(len(quads), R, 1, 1)
        for i, (width, height) in enumerate(sizes):
            image_quads = _to_tensor(quads[i], (4, 2), f"quads[{i}]")
            image_quads = check_quads(image_quads, width, height, f"quads[{i}]", clip_boxes)
            padded[i, : len(image_quads)] = (image_quads / torch.tensor([width, height])).float()
        return "region_quads", padded

    def _scale_masks(self, masks, sizes, batch, R, clip_boxes):
        S = tuple(batch["pixel_values"][0].shape[-2:])
        padded = torch.zeros(len(masks), R, *S)
        for i, (width, height) in enumerate(sizes):
            image_masks = _to_tensor(masks[i], (height, width), f"masks[{i}]").bool()
            for r, is_empty in enumerate((~image_masks.flatten(1).any(dim=1)).tolist()):
                if is_empty:
                    raise ValueError(f"masks[{i}][{r}] covers no pixel. Leave this region out.")
            padded[i, : len(image_masks)] = masks_to_coverage(image_masks, S)
        return "region_coverage", padded


def load_images(images, timeout: float | None = None) -> list:
    """Make a list of images from one image or many, and read those given as paths.

    Args:
        images: a PIL image, an array or tensor (H, W, 3) or (3, H, W), a path or URL; a list of those; or a
            4-dimensional array or tensor.
        timeout: of downloads, in seconds.

    Returns:
        a list of PIL images, arrays and tensors.

    Raises:
        ValueError: if a file cannot be read, an image has no pixels, or there is no image.
    """
    if isinstance(images, (str, Path, Image.Image)) or getattr(images, "ndim", 4) in (2, 3):
        images = [images]
    # Some of transformers' pipelines nest a list of images per text.
    flat = [image for entry in images for image in (entry if isinstance(entry, (list, tuple)) else [entry])]
    loaded = [_load(image, i, timeout) for i, image in enumerate(flat)]
    if not loaded:
        raise ValueError("images is empty. Give at least one image.")
    for i, image in enumerate(loaded):
        width, height = _get_size(image)
        if not width or not height:
            raise ValueError(f"image {i} has {width} x {height} pixels (width x height). Leave it out.")
    return loaded


def _load(image, i: int, timeout: float | None):
    if not isinstance(image, (str, Path)):
        return image
    if str(image).startswith(("http://", "https://", "data:")):
        return load_image(str(image), timeout=timeout)
    try:
        return load_image(str(image))
    except (OSError, ValueError, UnidentifiedImageError) as error:
        raise ValueError(
            f"image {i} cannot be read from {str(image)!r} ({error}). "
            "Give the path of an image that PIL can open."
        ) from error


def _get_size(image) -> tuple[int, int]:
    """Width and height in pixels."""
    if isinstance(image, Image.Image):
        return image.size
    if 0 in image.shape:  # transformers cannot tell its axes
        height, width = image.shape[:2] if image.shape[-1] in (1, 3, 4) else image.shape[-2:]
        return width, height
    height, width = get_image_size(image)
    return width, height


def _check_text(text, name: str = "text"):
    for i, words in enumerate([text] if isinstance(text, str) else text):
        if isinstance(words, str) and not words.strip():
            raise ValueError(f"{name}[{i}] is empty. Every text needs at least one word; leave this one out.")


def _to_tensor(regions, shape: tuple[int, ...], name: str) -> torch.Tensor:
    """One image's regions as (R, *shape)."""
    if len(regions) == 0:
        return torch.zeros(0, *shape)
    if not isinstance(regions, torch.Tensor):
        try:
            regions = torch.stack([torch.as_tensor(region) for region in regions])
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{name} holds regions of different shapes; each must be {list(shape)}."
            ) from error
    if tuple(regions.shape[1:]) != shape:
        raise ValueError(
            f"{name} has the shape {list(regions.shape)}; expected [R, {', '.join(map(str, shape))}]. "
            "Give a list per image, and in it one entry per region."
        )
    return regions.cpu()


def can_resize_fast(settings, size) -> bool:
    """Say whether `resize_fast` does just what an image processor with these settings would do."""
    return bool(
        settings.do_resize
        and set(dict(size)) >= {"height", "width"}
        and size["height"]
        and size["width"]
        and settings.resample in TORCH_MODES
        and not settings.do_center_crop
        and not getattr(settings, "do_pad", False)
        and settings.do_convert_rgb
        and settings.do_rescale
        and settings.rescale_factor == 1 / 255
        and settings.do_normalize
    )


def _is_uint8_rgb(image) -> bool:
    if isinstance(image, Image.Image):
        return image.mode not in ("I", "I;16", "F")
    return str(image.dtype).endswith("uint8") and image.ndim == 3 and 3 in (image.shape[0], image.shape[-1])


def resize_fast(images: list, image_processor, size: tuple[int, int]) -> torch.Tensor:
    """Resize, rescale and normalise 8-bit images: what a stock image processor does, without its detours.

    The filter is that of the image processor's own backend, since PIL's and torch's saturate differently:
    PIL's, image by image, or torch's antialiased one, on uint8 and on all images of one size together. Either
    gives the stock result within 1 of 255.

    Args:
        images: PIL images and uint8 arrays or tensors, (H, W, 3) or (3, H, W).
        image_processor: whose backend, filter, mean and standard deviation are used.
        size: (height, width) of the result.

    Returns:
        (B, 3, height, width), float32.
    """
    resize = _resize_by_torch if image_processor.backend == "torchvision" else _resize_by_pil
    # numpy outside the filter: torch would start its threads for every one of these small steps.
    pixels = resize(images, size, image_processor.resample).astype(np.float32)
    pixels -= np.float32(image_processor.image_mean).reshape(3, 1, 1) * 255
    pixels /= np.float32(image_processor.image_std).reshape(3, 1, 1) * 255
    return torch.from_numpy(pixels)


def _resize_by_pil(images: list, size: tuple[int, int], resample: int) -> np.ndarray:
    resized = np.empty((len(images), *size, 3), dtype=np.uint8)
    for i, image in enumerate(images):
        image = image if isinstance(image, Image.Image) else Image.fromarray(_to_channels_last(image))
        resized[i] = image.convert("RGB").resize(size[::-1], resample)
    return resized.transpose(0, 3, 1, 2)


def _resize_by_torch(images: list, size: tuple[int, int], resample: int) -> np.ndarray:
    pixels = [_to_channels_last(image) for image in images]
    resized = np.empty((len(images), 3, *size), dtype=np.uint8)
    for shape in {image.shape for image in pixels}:
        members = [i for i, image in enumerate(pixels) if image.shape == shape]
        group = torch.from_numpy(np.stack([pixels[i] for i in members])).permute(0, 3, 1, 2)
        if shape[:2] != size:
            mode = TORCH_MODES[resample]
            group = torch.nn.functional.interpolate(group, size, mode=mode, antialias=True)
        resized[members] = group.numpy()
    return resized


def _to_channels_last(image) -> np.ndarray:
    array = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    return np.ascontiguousarray(array if array.shape[-1] == 3 else array.transpose(1, 2, 0))
