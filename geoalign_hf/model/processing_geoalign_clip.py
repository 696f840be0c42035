# Copyright 2026 The geoalign_hf authors. Licensed under the Apache License, Version 2.0.
"""The processor: images, regions and texts become tensors.

It takes images of any size, regions in pixels of the image as given, and texts. It returns one batch in which
everything is in the frame of `pixel_values`. Boxes change their frame here and nowhere else.
"""

from .requirements_geoalign_clip import REQUIRED_TRANSFORMERS  # noqa: F401  # before what older ones lack

# isort: split
import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_utils import get_size_dict
from transformers.image_utils import ImageInput
from transformers.processing_utils import ImagesKwargs, ProcessingKwargs, TextKwargs

from .image_options_geoalign_clip import check_rule
from .images_geoalign_clip import get_full_size, load_images
from .masks_geoalign_clip import check_masks, masks_to_coverage
from .regions_geoalign_clip import check_boxes, check_quads, stack_regions
from .resizing_geoalign_clip import can_resize_fast, resize_fast

CONCEPT_TEMPLATES = ("a satellite photo of {}.", "an aerial image of {}.", "{} seen from above.")

LARGEST_SIDE = 20_000  # pixels of an image as it enters the model
FORMS = ("boxes", "quads", "masks")
KEEPS_FRAME = {"do_resize", "do_rescale", "do_normalize", "do_convert_rgb"}


class GeoAlignCLIPProcessor(ProcessorMixin):
    """Prepares images, regions and texts for `GeoAlignCLIPModel`.

    Images are resized to a square without cropping, so that a box only has to be divided by the image size.
    A stock CLIP image processor and a stock CLIP tokenizer do the rest.

    Args:
        image_processor: a CLIP image processor.
        tokenizer: a CLIP tokenizer.
        patch_size: side of a patch of the model in pixels. With it, masks are returned with one number per
            patch, which is all that the model uses; None returns one number per pixel.
        image_rule: the `stretch`, `limits` and `bands` with which the images of the training were read. If a
            call gives no others, the scale is used for all images of more than 8 bits (but floats from 0 to 1
            are multiplied by 255 where `limits` go beyond 1), and `bands` for images that need a choice.
    """

    _auto_class = "AutoProcessor"

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        patch_size: int | None = None,
        image_rule: dict | None = None,
        **kwargs,
    ):
        self.patch_size = patch_size
        self.image_rule = check_rule(image_rule)
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
        stretch: tuple[float, float] | None = None,
        limits: tuple[float, float] | None = None,
        bands: tuple[int, ...] | None = None,
        max_pixels: int | None = None,
        draft_jpeg: bool = False,
        **kwargs,
    ) -> BatchFeature:
        """Prepare a batch.

        Args:
            images: one image or a list: PIL images, arrays, tensors, paths, URLs or the bytes of files. A
                file is turned upright by its orientation tag, and the result is the image as given. Anything
                but 8-bit images and floats in [0, 1] needs `stretch` or `limits`.
            text: one text or a list; no text may be empty.
            boxes: for each image a list of boxes, xyxy in pixels of the image as given, which may be empty.
            quads: for each image a list of oriented boxes, four corners x, y each, instead of boxes.
            masks: for each image an array (R, height, width), 1 or 255 inside the region, 0 outside, instead
                of boxes. Soft masks are refused.
            max_regions: number R of regions to pad to, so that all batches have one shape. None pads to the
                largest number in the batch.
            clip_boxes: whether to cut a box that is partly outside its image (the default). False refuses it.
            stretch: two percentiles of each picture that become 0 and 255, for more than 8 bits.
            limits: two values that become 0 and 255, for more than 8 bits.
            bands: numbers of the bands to use as red, green and blue, counted from 1.
            max_pixels: largest number of pixels of a file; None means PIL's limit.
            draft_jpeg: whether to decode a JPEG file at 1/2, 1/4 or 1/8 of its size where that is still as
                large as `pixel_values`. It saves about a third of the decoding. On photographs pixels differ
                by 2 of 255 on average, and by up to 100 at hard edges. Regions stay in pixels of the file.
            **kwargs: options of the image processor and the tokenizer, flat or in `images_kwargs` and
                `text_kwargs`. An integer `size` means a square.

        Returns:
            `pixel_values` (B, 3, S, S); `input_ids` and `attention_mask` (N, L); `region_mask` (B, R), True
            for real regions; and `region_boxes` (B, R, 4), `region_quads` (B, R, 4, 2) or `region_coverage`
            (B, R, h, w), all in [0, 1] of `pixel_values`. Padding boxes and quads are the whole image.

        Raises:
            ValueError: for any image, text, region or option that cannot be used; the message names it.

        Example:
            `processor(images=image, boxes=[[[40, 12, 310, 96]]], text=["a ship"], return_tensors="pt",
            padding=True)`
        """
        given = {"boxes": boxes, "quads": quads, "masks": masks}
        given = {form: regions for form, regions in given.items() if regions is not None}
        if len(given) > 1:
            raise ValueError(f"regions are given as {' and '.join(given)}. Give one form in a call.")
        if given and images is None:
            raise ValueError(
                f"{next(iter(given))} are given without images. Pass the images that they lie in."
            )
        if images is None and text is None:
            raise ValueError("neither images nor text is given. Pass images, text or both.")
        for_images, for_text = self._merge_options(kwargs)
        batch = BatchFeature()
        if text is not None:
            texts = _check_text(text)
            batch.update(self.tokenizer(text if isinstance(text, str) else texts, **for_text))
        if images is not None:
            settings = self._merge_settings(for_images)
            options = {"stretch": stretch, "limits": limits, "bands": bands, "max_pixels": max_pixels}
            options |= {"layout": for_images.pop("input_data_format", None), "fallback": self.image_rule}
            options["draft_side"] = _find_draft_side(settings) if draft_jpeg else None
            loaded = load_images(images, do_rescale=settings["do_rescale"], **options)
            batch.update(self._prepare(loaded, settings, for_images))
            for form, regions in given.items():
                size = _check_frame(settings)
                sizes = [get_full_size(image) for image in loaded]
                found = self._prepare_regions(
                    form, regions, sizes, size, max_regions, clip_boxes is not False
                )
                batch.update(_convert(found, for_images.get("return_tensors")))
        return batch

    def tokenize_concepts(self, concepts: list[str], templates=CONCEPT_TEMPLATES) -> BatchFeature:
        """Put every concept into every template and tokenize the sentences.

        Args:
            concepts: C names.
            templates: T sentences with one `{}` each.

        Returns:
            `input_ids` and `attention_mask`, (C, T, L), the arguments of `embed_concepts`.

        Raises:
            ValueError: if there is no concept, one is empty, or a template has no `{}`.
        """
        for name, words in (("concepts", concepts), ("templates", templates)):
            if isinstance(words, str) or not len(words):
                raise ValueError(f"{name} is {words!r}; it must be a list of at least one string.")
        concepts, templates = _check_text(concepts, "concepts"), _check_text(templates, "templates")
        for t, template in enumerate(templates):
            if template.count("{}") != 1:
                raise ValueError(
                    f"templates[{t}] = {template!r} must have one {{}} for the concept. Write one into it."
                )
        texts = [template.replace("{}", concept) for concept in concepts for template in templates]
        tokens = self.tokenizer(texts, padding=True, return_tensors="pt", return_attention_mask=True)
        shape = (len(concepts), len(templates), -1)
        return BatchFeature({key: tokens[key].view(shape) for key in ("input_ids", "attention_mask")})

    def check_regions(self, form: str, regions, size: tuple[int, int], name: str, clip_boxes: bool = True):
        """Check the regions of one image.

        Args:
            form: `boxes`, `quads` or `masks`.
            regions: regions of one image, as in a call.
            size: (width, height) of the image.
            name: name of the regions in messages.
            clip_boxes: whether to cut boxes that are partly outside.

        Returns:
            a tensor (R, 4) or (R, 4, 2) in pixels, float64, or (R, height, width), bool.

        Raises:
            ValueError: with the place, if a region cannot be used.
        """
        width, height = size
        if form == "masks":
            return check_masks(stack_regions(regions, (height, width), name), name)
        if form == "quads":
            return check_quads(stack_regions(regions, (4, 2), name), width, height, name, clip_boxes)
        return check_boxes(stack_regions(regions, (4,), name), width, height, name, clip_boxes)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Save the processor as every processor does."""
        saved = super().save_pretrained(save_directory, *args, **kwargs)
        vars(self).pop("auto_map", None)  # it is in the file, and a further save would write it again
        return saved

    @property
    def model_input_names(self) -> list[str]:
        """Keys of a batch of images and texts; regions add their own."""
        return self.image_processor.model_input_names + self.tokenizer.model_input_names

    def _merge_options(self, kwargs: dict) -> tuple[dict, dict]:
        """Sort options into those of the image processor and those of the tokenizer; refuse unknown ones."""
        for_images = {*ImagesKwargs.__annotations__, *self.image_processor.valid_kwargs.__annotations__}
        for_text = set(TextKwargs.__annotations__)
        nested = {
            "images_kwargs": for_images,
            "text_kwargs": for_text,
            "common_kwargs": for_images | for_text,
        }
        unknown = kwargs.keys() - for_images - for_text - nested.keys()
        for name, known in nested.items():
            unknown |= {f"{name}[{key!r}]" for key in (kwargs.get(name) or {}).keys() - known}
        if unknown:
            raise ValueError(
                f"the processor does not know the options {sorted(unknown)}. Regions are boxes, quads or "
                "masks; the others are options of the image processor and the tokenizer."
            )
        init_kwargs = dict(self.tokenizer.init_kwargs if self.tokenizer is not None else {})
        init_kwargs.pop("max_length", None)  # saved by a tokenizer that was trained with truncation
        try:
            merged = self._merge_kwargs(ProcessingKwargs, tokenizer_init_kwargs=init_kwargs, **kwargs)
        except StrictDataclassError as error:  # it is no ValueError
            raise ValueError(f"an option has a wrong type. {error}") from error
        form = merged["images_kwargs"].get("return_tensors")
        if getattr(form, "value", form) not in ("pt", "np", None):
            raise ValueError(f"return_tensors is {form!r}; expected 'pt', 'np' or None.")
        if isinstance(size := merged["images_kwargs"].get("size"), int):
            merged["images_kwargs"]["size"] = {"height": size, "width": size}
        _check_values(merged["text_kwargs"])
        return merged["images_kwargs"], merged["text_kwargs"]

    def _merge_settings(self, options: dict) -> dict:
        """Return all settings of the image processor, those of this call first."""
        names = {*self.image_processor.valid_kwargs.__annotations__, "do_rescale", "size"}
        settings = {name: getattr(self.image_processor, name, None) for name in names} | options
        _check_values(settings)
        if (size := settings["size"]) is not None:
            if isinstance(size, (list, tuple)) and len(size) == 1:
                size = size[0]
            size = dict(get_size_dict(dict(size) if hasattr(size, "keys") else size))
            if not all(side is None or 1 <= side <= LARGEST_SIDE for side in size.values()):
                raise ValueError(f"size is {size}. Give sides from 1 to {LARGEST_SIDE} pixels.")
            settings["size"] = size
        return settings

    def _prepare(self, images: list[Image.Image], settings: dict, options: dict) -> BatchFeature:
        if not can_resize_fast(settings):
            return self.image_processor(images, **options)
        pixels = resize_fast(images, settings)
        return _convert({"pixel_values": pixels}, options.get("return_tensors"))

    def _prepare_regions(
        self, form, regions, sizes, size, max_regions, clip_boxes
    ) -> dict[str, torch.Tensor]:
        """Check the regions of all images, bring them into the frame of `pixel_values`, and pad them."""
        regions = _check_lists(form, regions, len(sizes))
        checked = [
            self.check_regions(form, image_regions, image_size, f"{form}[{i}]", clip_boxes)
            for i, (image_regions, image_size) in enumerate(zip(regions, sizes, strict=True))
        ]
        R = _check_counts(form, [len(image_regions) for image_regions in checked], max_regions)
        if form == "masks":
            is_divisible = self.patch_size and not any(side % self.patch_size for side in size)
            grid = tuple(side // self.patch_size for side in size) if is_divisible else size
            key, padding = "region_coverage", torch.zeros(grid)
            scaled = [masks_to_coverage(image_masks, grid) for image_masks in checked]
        elif form == "quads":
            key, padding = "region_quads", torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
            scaled = [
                part / torch.tensor(image_size) for part, image_size in zip(checked, sizes, strict=True)
            ]
        else:
            key, padding = "region_boxes", torch.tensor([0.0, 0.0, 1.0, 1.0])
            scaled = [
                part / torch.tensor([*image_size, *image_size])
                for part, image_size in zip(checked, sizes, strict=True)
            ]
        padded = padding.repeat(len(sizes), R, *[1] * padding.ndim)
        for i, image_regions in enumerate(scaled):
            padded[i, : len(image_regions)] = image_regions.float()
        counts = torch.tensor([len(image_regions) for image_regions in checked])
        return {key: padded, "region_mask": torch.arange(R) < counts.unsqueeze(-1)}


def _check_text(text, name: str = "text") -> list[str]:
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, (list, tuple)) and not hasattr(texts, "tolist"):
        raise ValueError(f"{name} is a {type(text).__name__}. Give a string or a list of strings.")
    texts = list(texts)
    if not texts:
        raise ValueError(f"{name} is empty. Give at least one string.")
    for i, words in enumerate(texts):
        if not isinstance(words, str):
            raise ValueError(f"{name}[{i}] is {words!r:.80}, not a string. Give a list of strings.")
        if any("\ud800" <= character <= "\udfff" for character in words):
            raise ValueError(f"{name}[{i}] is {words!r:.80}, which is no valid Unicode. Correct it.")
        if not words.strip():
            raise ValueError(f"{name}[{i}] is empty. Every text needs at least one word; remove this one.")
    return texts


def _check_values(options: dict):
    """Refuse options that the image processor and the tokenizer do not check."""
    for name in ("image_mean", "image_std", "rescale_factor"):
        if (value := options.get(name)) is not None and not np.isfinite(np.asarray(value, np.float64)).all():
            raise ValueError(f"{name} is {value!r}. Give finite numbers.")
    for name, lowest in (("resample", 0), ("max_length", 1)):
        value = options.get(name)
        if value is not None and (not isinstance(value, int) or value < lowest):
            raise ValueError(f"{name} is {value!r:.80}. Give a whole number from {lowest}.")
    if options.get("size") in ([], ()):
        raise ValueError("size is empty. Give the side of a square in pixels.")


def _check_frame(settings: dict) -> tuple[int, int]:
    """Return the (height, width) to which images are resized; refuse settings that move the frame."""
    size = settings["size"] or {}
    moving: dict[str, object] = {
        name: True for name, value in settings.items() if name[:3] == "do_" and value
    }
    moving = {name: value for name, value in moving.items() if name not in KEEPS_FRAME}
    if not settings.get("do_resize"):
        moving["do_resize"] = False
    if not {"height", "width"} == {name for name, value in size.items() if value}:
        moving["size"] = size
    if moving:
        raise ValueError(
            f"the image processor has {', '.join(f'{name}={value}' for name, value in moving.items())}, so "
            "that regions would point at other pixels. Regions need images that are resized as a whole: "
            'do_resize=True, do_center_crop=False, do_pad=False and size={"height": S, "width": S}.'
        )
    return size["height"], size["width"]


def _find_draft_side(settings: dict) -> int:
    """Return the length below which no side of a JPEG file may be decoded."""
    size = settings["size"] or {}
    side = size.get("shortest_edge") or max(size.get("width") or 0, size.get("height") or 0)
    if not settings.get("do_resize") or not side:
        raise ValueError(
            f"draft_jpeg=True decodes JPEG files near the size that they are resized to, but do_resize is "
            f"{settings.get('do_resize')} and size is {size}. Leave draft_jpeg out."
        )
    return side


def _check_lists(form: str, regions, num_images: int) -> list:
    if (
        isinstance(regions, (str, dict))
        or not hasattr(regions, "__len__")
        or getattr(regions, "ndim", 1) == 0
    ):
        raise ValueError(f"{form} is a {type(regions).__name__}. Give one list of regions per image.")
    if len(regions) != num_images:
        raise ValueError(
            f"{form} are given for {len(regions)} images, but there are {num_images} images. "
            "Give one list per image, an empty one where there are no regions."
        )
    for i, part in enumerate(regions):
        if isinstance(part, (str, dict)) or not hasattr(part, "__len__") or getattr(part, "ndim", 1) == 0:
            raise ValueError(
                f"{form}[{i}] is {part!r:.80}. Give one list of regions per image, [] for an image without."
            )
    return list(regions)


def _check_counts(form: str, counts: list[int], max_regions: int | None) -> int:
    if max_regions is None:
        return max(counts)
    if not isinstance(max_regions, int) or max_regions < 0:
        raise ValueError(f"max_regions is {max_regions!r}; it must be a whole number, 0 or more.")
    for i, count in enumerate(counts):
        if count > max_regions:
            raise ValueError(
                f"image {i} has {count} {form}, but max_regions is {max_regions}. "
                "Raise max_regions, or choose the regions to keep."
            )
    return max_regions


def _convert(tensors: dict[str, torch.Tensor], return_tensors) -> BatchFeature:
    """Return tensors in the form that is asked for; without one, lists of arrays, one array per image."""
    name = getattr(return_tensors, "value", return_tensors)
    if name == "pt":
        return BatchFeature(tensors)
    arrays = {key: tensor.numpy() for key, tensor in tensors.items()}
    return BatchFeature(arrays if name == "np" else {key: list(array) for key, array in arrays.items()})
