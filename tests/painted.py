"""A toy model whose answers are painted, and pictures to paint them in."""

from types import SimpleNamespace

import torch
from PIL import Image
from torch.nn.functional import avg_pool2d, normalize, pad

# Each concept is a colour, and a box is painted in the colour of what the toy model shall say.
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class ColourModel(torch.nn.Module):
    """Embeds a region as the colour at its centre, a text as the colours it names: answers are painted.

    A text without a colour is the fourth unit vector, which no picture is similar to.
    """

    def __init__(self, processor, size: int = 64):
        super().__init__()
        self.config = SimpleNamespace(
            vision_config=SimpleNamespace(image_size=size, hidden_act="gelu"),
            text_config=SimpleNamespace(max_position_embeddings=77, vocab_size=len(processor.tokenizer)),
            dense_mode="last",
            projection_dim=4,
        )
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.tokenizer = processor.tokenizer

    def embed_text(self, input_ids, attention_mask):
        words = self.tokenizer.batch_decode(input_ids, skip_special_tokens=True)
        named = [[float(colour in text) for colour in COLOURS] for text in words]
        named = [[*found, float(not any(found))] for found in named]
        return normalize(torch.tensor(named), dim=-1)

    def embed_images(self, pixel_values):
        whole = torch.tensor([[[0.0, 0.0, 1.0, 1.0]]]).repeat(len(pixel_values), 1, 1)
        return self.embed_regions(pixel_values, whole)[:, 0]

    def embed_regions(self, pixel_values, region_boxes, region_mask=None, **kwargs):
        centers = (region_boxes[..., :2] + region_boxes[..., 2:]) / 2  # (B, R, 2)
        columns, rows = (centers * pixel_values.shape[-1]).long().unbind(-1)
        images = torch.arange(len(pixel_values)).unsqueeze(-1)
        return pad(normalize(pixel_values.permute(0, 2, 3, 1)[images, rows, columns], dim=-1), (0, 1))

    def get_patch_features(self, pixel_values):
        return pad(avg_pool2d(pixel_values, 16), (0, 0, 0, 0, 0, 1))


def paint(size, *patches) -> Image.Image:
    image = Image.new("RGB", size, (128, 128, 128))
    for box, colour in patches:
        image.paste(COLOURS[colour], tuple(box))
    return image


def paint_row(size, regions, **columns) -> dict:
    """Regions are (box, concept, colour painted)."""
    image = paint(size, *[(box, colour) for box, _, colour in regions])
    concepts = [concept for _, concept, _ in regions]
    boxes = [list(map(float, box)) for box, _, _ in regions]
    return {"image": image, "boxes": boxes, "phrases": concepts, "concepts": concepts} | columns
