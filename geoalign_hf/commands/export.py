"""`geoalign-hf export`."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.export import Dim
from transformers import PreTrainedModel

from ..embedding.checkpoints import load_model, load_processor
from ..options import option
from ..storage import write_json
from .inputs import MODEL, check_is_geoalign, check_model_exists

TOLERANCE = 1e-4
SMALLEST_COSINE = 0.95  # of embeddings in int8 and in float32
SIZES = ((1, 1), (1, 5), (3, 1), (3, 5), (2, 3))  # numbers of images or texts, and of regions or tokens
SINGLE_FILE = 2**31 - 2**24  # bytes of weights; a protobuf with its graph cannot hold 2 GiB


@dataclass
class ExportOptions:
    """What is exported, and where to."""

    model: str = option(default=MODEL, help="Folder or Hub repository of a GeoAlignCLIP.")
    region_form: Literal["boxes", "quads"] = option(
        default="boxes", help="Form of the regions: boxes, or oriented boxes."
    )
    quantize: Literal["none", "int8"] = option(
        default="none",
        help="Type of the weights of a second set of files: int8 is smaller and faster on CPUs; none writes "
        "no second set.",
    )
    output_dir: str = option(
        default="outputs/onnx", help="Folder of image.onnx, text.onnx, region.onnx and the processor."
    )


class Tower(torch.nn.Module):
    """One method of the model as a module, whose inputs have the order of their names."""

    def __init__(self, model: torch.nn.Module, method: str, names: tuple[str, ...]):
        super().__init__()
        self.model, self.method, self.names = model, method, names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Call the method."""
        return getattr(self.model, self.method)(**dict(zip(self.names, inputs, strict=True)))


def export(options: ExportOptions) -> Path:
    """Export the image, text and region towers to ONNX, and compare their outputs with the model's.

    The exported towers take any number of images, texts, tokens and regions. With `--quantize int8` each
    tower is also written with weights of 8 bits. `parity.json` holds how far every file is from the model.
    """
    check_model_exists(options.model)
    processor = load_processor(options.model)
    check_is_geoalign(processor, options.model)
    model = load_model(options.model, dtype=torch.float32).eval()
    form, output_dir = options.region_form, Path(options.output_dir)
    images, texts, tokens, regions = (Dim(name) for name in ("images", "texts", "tokens", "regions"))
    region_axes, text_axes = {0: images, 1: regions}, {0: texts, 1: tokens}
    image_axes = {"pixel_values": {0: images}}
    output_dir.mkdir(parents=True, exist_ok=True)
    processor.save_pretrained(output_dir)
    torch.manual_seed(0)
    parity = {}
    for name, method, axes, draw in (
        ("image", "embed_images", image_axes, lambda num, _: draw_images(model, num, 1, form)[:1]),
        (
            "text",
            "embed_text",
            {"input_ids": text_axes, "attention_mask": text_axes},
            lambda num, more: draw_texts(processor.tokenizer, num, 4 + more),
        ),
        (
            "region",
            "embed_regions",
            image_axes | {f"region_{form}": region_axes, "region_mask": region_axes},
            lambda num, more: draw_images(model, num, more, form),
        ),
    ):
        path = output_dir / f"{name}.onnx"
        tower = Tower(model, method, tuple(axes)).eval()
        export_tower(tower, axes, draw(2, 3), path)
        parity[path.name] = {"largest_difference": (difference := compare_tower(tower, path, draw))}
        print(f"{path}: differs from the model by at most {difference:.1e}")
        if options.quantize == "int8":
            small = quantize_tower(path)
            parity[small.name] = {"smallest_cosine": (cosine := compare_cosines(tower, small, draw))}
            share = small.stat().st_size / path.stat().st_size
            print(f"{small}: cosine with the model at least {cosine:.5f}, {share:.2f} of the size")
    write_json(output_dir / "parity.json", parity)
    return output_dir


def export_tower(tower: Tower, axes: dict[str, dict[int, Dim]], example: tuple, path: Path) -> None:
    """Export a tower whose `axes` may have any length."""
    num_bytes = sum(parameter.nbytes for parameter in tower.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # torch warns of names that it chooses itself; outputs are compared below
        torch.onnx.export(
            tower,
            example,
            path,
            input_names=list(axes),
            output_names=[f"{path.stem}_embeds"],
            dynamic_shapes=(tuple(axes.values()),),
            dynamo=True,
            external_data=num_bytes > SINGLE_FILE,
            verbose=False,
        )


def compare_tower(tower: Tower, path: Path, draw: Callable[[int, int], tuple]) -> float:
    """Compare an exported tower with the model, on inputs of other sizes than the exported ones.

    Args:
        tower: Tower of the model.
        path: Exported file.
        draw: Function that draws inputs, given the number of images or texts and of regions or tokens.

    Returns:
        The largest difference of an entry.

    Raises:
        ValueError: If it is above `TOLERANCE`.
    """
    largest = 0.0
    for size, found, expected in run_both(tower, path, draw):
        difference = float(np.abs(found - expected).max()) if found.shape == expected.shape else np.inf
        if not difference <= TOLERANCE:
            raise ValueError(
                f"{path} differs from the model by {difference:.1e} on inputs of size {size}; "
                f"at most {TOLERANCE} is accepted. Do not use the file; try another version of torch."
            )
        largest = max(largest, difference)
    return largest


def quantize_tower(path: Path) -> Path:
    """Write an exported tower with weights of 8 bits. Activations are quantised anew in every call."""
    from onnxruntime.quantization import QuantType, quantize_dynamic  # optional

    small = path.with_suffix(".int8.onnx")
    # 7 bits of range: with 8, sums of products overflow on CPUs without VNNI instructions.
    kinds = ["MatMul", "Gemm"]
    quantize_dynamic(path, small, kinds, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)
    return small


def compare_cosines(tower: Tower, path: Path, draw: Callable[[int, int], tuple]) -> float:
    """Return the smallest cosine of an embedding of a quantised tower with that of the model.

    Raises:
        ValueError: If it is below `SMALLEST_COSINE`.
    """
    smallest = 1.0
    for _, found, expected in run_both(tower, path, draw):
        is_real = np.abs(expected).any(axis=-1)  # embeddings of padding are zeros
        smallest = min(smallest, float((found * expected).sum(axis=-1)[is_real].min()))
    if not smallest >= SMALLEST_COSINE:
        raise ValueError(
            f"{path} gives embeddings with a cosine of {smallest:.3f} to those of the model; at least "
            f"{SMALLEST_COSINE} is accepted. Use the files without int8."
        )
    return smallest


def run_both(tower: Tower, path: Path, draw: Callable[[int, int], tuple]) -> Iterator[tuple]:
    """Run an exported tower and the model on inputs of several sizes; yield the size and both outputs."""
    import onnxruntime  # optional

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in SIZES:
        inputs = draw(*size)
        arrays = {name: value.numpy() for name, value in zip(tower.names, inputs, strict=True)}
        with torch.inference_mode():
            expected = tower(*inputs).numpy()
        yield size, np.asarray(session.run(None, arrays)[0]), expected


def draw_images(model: PreTrainedModel, num_images: int, num_regions: int, form: str) -> tuple:
    """Draw random pixel values, regions, and a mask of the regions that are real."""
    side = model.config.vision_config.image_size
    start = 0.5 * torch.rand(num_images, num_regions, 2)
    stop = start + 0.1 + 0.4 * torch.rand(num_images, num_regions, 2)
    (x0, y0), (x1, y1) = start.unbind(-1), stop.unbind(-1)
    regions = torch.cat([start, stop], dim=-1)
    if form == "quads":
        middle_x, middle_y = (x0 + x1) / 2, (y0 + y1) / 2
        corners = [middle_x, y0, x1, middle_y, middle_x, y1, x0, middle_y]
        regions = torch.stack(corners, dim=-1).unflatten(-1, (4, 2))
    mask = torch.rand(num_images, num_regions) < 0.7
    mask[0] = True
    return torch.randn(num_images, 3, side, side), regions, mask


def draw_texts(tokenizer, num_texts: int, num_tokens: int) -> tuple:
    """Draw random token ids with an end of text, and their mask."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    ids = torch.randint(0, min(bos, eos), (num_texts, num_tokens))
    lengths = torch.randint(2, num_tokens + 1, (num_texts, 1))
    lengths[0] = num_tokens
    ids[:, 0] = bos
    positions = torch.arange(num_tokens)
    ids = ids.masked_fill(positions >= lengths - 1, eos)  # CLIP pads with the end of text, too
    return ids, (positions < lengths).long()
