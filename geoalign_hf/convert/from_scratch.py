"""A small model with fresh weights, and a tokenizer that is trained on the texts at hand.

It is meant for tests, quick trials and small data sets without a Hub. Where a pretrained CLIP is available,
start from that instead (`convert.py`).
"""

import json
from collections.abc import Iterable

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPImageProcessor, CLIPTokenizer

from ..model.configuration_geoalign_clip import GeoAlignCLIPConfig
from ..model.modeling_geoalign_clip import GeoAlignCLIPModel
from ..model.processing_geoalign_clip import GeoAlignCLIPProcessor

BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(texts: Iterable[str], vocab_size: int = 2000, max_length: int = 77) -> CLIPTokenizer:
    """Train a byte-level BPE tokenizer of CLIP's kind, which can write any text.

    Args:
        texts: texts to train on.
        vocab_size: largest number of tokens; 514 of them are bytes and special tokens.
        max_length: number of positions of the text tower.

    Example:
        >>> tokenizer = train_tokenizer(["a ship", "a ship at a pier"])
        >>> tokenizer.tokenize("a ship")
        ['a</w>', 'ship</w>']
    """
    characters = sorted(ByteLevel.alphabet())
    characters += [f"{character}</w>" for character in characters]

    def build(merges):
        tokens = [*characters, *map("".join, merges), BOS, EOS]
        return CLIPTokenizer(
            vocab={token: i for i, token in enumerate(tokens)}, merges=merges, model_max_length=max_length
        )

    # As special tokens, the characters that end a word get ids in this order. Otherwise they would get ids in
    # the order of a hash map, and every process would merge equally frequent pairs in another order.
    learnt = build([]).train_new_from_iterator(
        texts,
        vocab_size=max(vocab_size, len(characters) + 2),
        new_special_tokens=characters[256:],
        show_progress=False,
    )
    merges = json.loads(learnt.backend_tokenizer.to_str())["model"]["merges"]
    return build([tuple(merge) for merge in merges])


def build_model(
    texts: Iterable[str],
    image_size: int = 224,
    patch_size: int = 16,
    width: int = 256,
    depth: int = 6,
    text_width: int = 128,
    text_depth: int = 2,
    embed_dim: int = 128,
    dropout: float = 0.0,
    region_view: str = "window",
    region_context: float = 1.6,
    stem: str = "patch",
) -> tuple[GeoAlignCLIPModel, GeoAlignCLIPProcessor]:
    """Build a small model with fresh weights and the processor that goes with it.

    Args:
        texts: texts to train the tokenizer on.
        image_size: side of `pixel_values`.
        patch_size: side of a patch.
        width: width of the vision tower; it has one attention head per 64.
        depth: number of blocks of the vision tower.
        text_width: width of the text tower; it has one attention head per 64.
        text_depth: number of blocks of the text tower.
        embed_dim: D, the width of the joint space.
        dropout: dropout rate of the attention weights.
        region_view: picture in which the model looks at a region, see `GeoAlignCLIPConfig`. Small models with
            fresh weights learn far faster from windows.
        region_context: side of a window as a multiple of the longer side of its box.
        stem: first layer of the vision tower, see `GeoAlignCLIPConfig`.

    Raises:
        ValueError: if a width is not a multiple of 64, or the image size is not a multiple of the patch size.
    """
    for name, value, factor in (
        ("width", width, 64), ("text_width", text_width, 64), ("image_size", image_size, patch_size)
    ):  # fmt: skip
        if value % factor:
            raise ValueError(f"{name} is {value}; it must be a multiple of {factor}.")
    tokenizer = train_tokenizer(texts)
    vision = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "image_size": image_size,
        "patch_size": patch_size,
    }
    text = {"hidden_size": text_width, "num_hidden_layers": text_depth, "vocab_size": len(tokenizer)}
    for tower in (vision, text):
        tower |= {
            "intermediate_size": 4 * tower["hidden_size"],
            "num_attention_heads": tower["hidden_size"] // 64,
            "projection_dim": embed_dim,
            "attention_dropout": dropout,
            "hidden_act": "gelu",
        }
    text |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = GeoAlignCLIPConfig(
        text_config=text,
        vision_config=vision,
        projection_dim=embed_dim,
        region_view=region_view,
        region_context=region_context,
        stem=stem,
    )
    size = {"height": image_size, "width": image_size}
    image_processor = CLIPImageProcessor(size=size, do_center_crop=False)
    model = GeoAlignCLIPModel(config)
    positions = model.vision_model.embeddings.position_embedding.weight
    with torch.no_grad():  # the class token's position stays as it is
        positions[1:] = encode_grid(image_size // patch_size, width)
    patch_size = model.config.vision_config.patch_size
    return model, GeoAlignCLIPProcessor(image_processor, tokenizer, patch_size)


def encode_grid(side: int, width: int) -> torch.Tensor:
    """Encode the position of every patch by sines and cosines of its x and y.

    They are the initial values of the learned positions. A small vision tower then has from the start which
    patches are neighbors; it could not learn that from CLIP's random values and little data.

    Args:
        side: number of patches along each side.
        width: width of the vision tower, a multiple of 4.

    Returns:
        (side * side, width), in [-1, 1], row by row.

    Source:
        Better plain ViT baselines for ImageNet-1k, https://arxiv.org/abs/2205.01580.

    Example:
        >>> encode_grid(2, 4)[:, 0].tolist() == [0.0, torch.tensor(1.0).sin().item()] * 2
        True
    """
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    frequencies = 10_000.0 ** -torch.linspace(0, 1, width // 4)
    angles = [
        position.flatten().unsqueeze(-1) * frequencies for position in (x, y)
    ]  # (side * side, width / 4)
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=-1)
