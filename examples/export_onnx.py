"""Export the image, text and region towers to ONNX, and check that they say what the model says.

    python examples/export_onnx.py --model outputs/train/final
    python examples/export_onnx.py --model outputs/train/final --region_form quads     # oriented boxes

Takes about 20 seconds for a small model. Writes `image.onnx` (pixel_values to image_embeds), `text.onnx`
(input_ids, attention_mask to text_embeds) and `region.onnx` (pixel_values, region_boxes or region_quads,
region_mask to region_embeds; zeros for padding), with any number of images, texts, tokens and regions, and
saves the processor beside them. Prints for each the largest difference to the model over inputs of other
sizes than those exported, and fails where it is above 1e-4. Needs: pip install "geoalign_hf[onnx]".
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch.export import Dim
from transformers import AutoModel, AutoProcessor

import geoalign_hf  # noqa: F401  (registers the classes)

TOLERANCE = 1e-4
SINGLE_FILE = 2**31 - 2**24  # bytes of weights; a protobuf with its graph cannot hold 2 GiB


class Tower(torch.nn.Module):
    """One of the model's methods as a module, whose inputs stand in the order of their names."""

    def __init__(self, model: torch.nn.Module, method: str, names: tuple[str, ...]):
        super().__init__()
        self.model, self.method, self.names = model, method, names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Call the method."""
        return getattr(self.model, self.method)(**dict(zip(self.names, inputs, strict=True)))


def draw_images(model: torch.nn.Module, num_images: int, num_regions: int, form: str) -> tuple:
    """Draw pixel values, regions somewhere in them, and which of these are real."""
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
    """Draw token ids that end somewhere, and their mask."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    ids = torch.randint(0, min(bos, eos), (num_texts, num_tokens))
    lengths = torch.randint(2, num_tokens + 1, (num_texts, 1))
    lengths[0] = num_tokens
    ids[:, 0] = bos
    places = torch.arange(num_tokens)
    ids = ids.masked_fill(places >= lengths - 1, eos)  # CLIP pads with its end, too
    return ids, (places < lengths).long()


def main() -> None:
    """Load, export, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder or Hub repository")
    parser.add_argument("--region_form", default="boxes", choices=["boxes", "quads"], help="of regions")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/export_onnx"))
    arguments = parser.parse_args()

    # 1. The model in float32, and of each tower the inputs, their axes and how to draw them.
    model = AutoModel.from_pretrained(arguments.model, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(arguments.model)
    form = arguments.region_form
    images, texts, tokens, regions = (Dim(name) for name in ("images", "texts", "tokens", "regions"))
    of_region, of_text = {0: images, 1: regions}, {0: texts, 1: tokens}
    of_image = {"pixel_values": {0: images}}
    towers = {
        "image": ("embed_images", of_image, lambda num, _: draw_images(model, num, 1, form)[:1]),
        "text": (
            "embed_text",
            {"input_ids": of_text, "attention_mask": of_text},
            lambda num, more: draw_texts(processor.tokenizer, num, 4 + more),
        ),
        "region": (
            "embed_regions",
            of_image | {f"region_{form}": of_region, "region_mask": of_region},
            lambda num, more: draw_images(model, num, more, form),
        ),
    }

    # 2. Each tower, exported from two images or texts and compared on one, two and three.
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    processor.save_pretrained(arguments.output_dir)
    torch.manual_seed(0)
    size = sum(parameter.nbytes for parameter in model.parameters())
    for name, (method, axes, draw) in towers.items():
        tower, path = Tower(model, method, tuple(axes)).eval(), arguments.output_dir / f"{name}.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about names of its own; what comes out is compared
            torch.onnx.export(
                tower,
                draw(2, 3),
                path,
                input_names=list(axes),
                output_names=[f"{name}_embeds"],
                dynamic_shapes=(tuple(axes.values()),),
                dynamo=True,
                external_data=size > SINGLE_FILE,
                verbose=False,
            )
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        largest = 0.0
        for num, more in ((1, 1), (1, 5), (3, 1), (3, 5), (2, 3)):
            inputs = draw(num, more)
            arrays = {key: value.numpy() for key, value in zip(axes, inputs, strict=True)}
            (found,) = session.run(None, arrays)
            with torch.inference_mode():
                expected = tower(*inputs).numpy()
            difference = np.abs(found - expected).max() if found.shape == expected.shape else np.inf
            if not difference <= TOLERANCE:
                raise ValueError(
                    f"{path} differs from the model by {difference:.1e} on inputs of {num} and {more}; "
                    f"at most {TOLERANCE} is right. Do not use it; try another version of torch."
                )
            largest = max(largest, difference)
        print(f"{path}: differs by at most {largest:.1e}")


if __name__ == "__main__":
    main()
