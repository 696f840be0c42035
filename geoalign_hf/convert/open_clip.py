"""Gives weights in OpenCLIP's layout the names and the configuration of transformers.

OpenAI's CLIP, OpenCLIP, Long-CLIP, RemoteCLIP, GeoRSCLIP, SkyCLIP and FarSLIP share this layout.
"""

import gzip
import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from .weights import KEPT_POSITIONS

# Keys that a CLIP of two plain transformers does not have, and what they belong to.
FOREIGN = {
    r"vision_model\.|text_model\.": "the layout of transformers; give the folder with its config.json",
    r"visual\.trunk\.": "a vision tower of timm",
    r"visual\.(layer\d|attnpool)": "a ResNet",
    r"visual\.attn_pool": "attention pooling",
    r"text_decoder\.": "CoCa's decoder",
    r"text\.transformer\.(?!resblocks\.)": "a text tower of transformers",
    r"logit_bias": "SigLIP's bias",
    r".*\.ls_[12]\.": "LayerScale",
}
# The weights whose shapes give the sizes of the towers, and their number of axes.
SIZED = {
    "visual.conv1.weight": 4,
    "visual.positional_embedding": 2,
    "visual.transformer.resblocks.0.mlp.c_fc.weight": 2,
    "visual.proj": 2,
    "token_embedding.weight": 2,
    "positional_embedding": 2,
    "transformer.resblocks.0.mlp.c_fc.weight": 2,
    "text_projection": 2,
}
# Settings that the keys do not show, with the only value that transformers' CLIP supports.
SETTINGS = {
    "vision_cfg": {"pool_type": "tok", "final_ln_after_pool": False, "act_kwargs": None, "norm_kwargs": None},
    "text_cfg": {"pool_type": "argmax", "no_causal_mask": False, "act_kwargs": None, "norm_kwargs": None},
}
# Vision towers whose heads are not 64 wide; by open_clip's model_configs: H, g, bigG and e.
HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104, 1792: 112}
# From our names to OpenCLIP's.
RENAMED = {
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.": "visual.conv1.",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",
    "vision_model.post_layernorm.": "visual.ln_post.",
    "visual_projection.weight": "visual.proj",
    "text_model.encoder.layers.": "transformer.resblocks.",
    "text_model.embeddings.token_embedding.": "token_embedding.",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.": "ln_final.",
    "text_projection.weight": "text_projection",
    ".layer_norm": ".ln_",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
    ".self_attn.out_proj.": ".attn.out_proj.",
    ".self_attn.q_proj.": ".attn.in_proj_",
    ".self_attn.k_proj.": ".attn.in_proj_",
    ".self_attn.v_proj.": ".attn.in_proj_",
}


def measure_towers(
    weights: dict[str, torch.Tensor],
    source: str | Path,
    model_config: dict | None = None,
    activation: str | None = None,
    vision_heads: int | None = None,
    text_heads: int | None = None,
) -> dict:
    """Derive a configuration from the shapes of weights, and from OpenCLIP's configuration if there is one.

    Args:
        weights: weights by name, as `read_weights` returns them.
        source: name of the source, for messages.
        model_config: `model_cfg` of OpenCLIP's `open_clip_config.json`, if there is one.
        activation: `quick_gelu` or `gelu`; required without `model_config`.
        vision_heads: number of attention heads. None takes the configured number, or that of OpenCLIP's
            towers of this width.
        text_heads: number of attention heads. None takes the configured number, or one per 64 of the width.

    Returns:
        The fields of `CLIPConfig`, without token ids.

    Raises:
        ValueError: if these are not the weights of two plain transformers, if the activation is missing, or
            if an argument contradicts the configuration. Settings that transformers' CLIP does not support
            are also refused.
    """
    for pattern, meaning in FOREIGN.items():
        found = sorted(key for key in weights if re.match(pattern, key))
        if found:
            raise ValueError(
                f"{source} cannot be converted: it has {meaning}, with the keys {_list_keys(found)}. Only "
                "CLIPs of two plain transformers can be converted."
            )
    missing = [key for key, axes in SIZED.items() if key not in weights or weights[key].ndim != axes]
    if missing:
        raise ValueError(
            f"{source} is not an OpenCLIP state dict of a ViT: the weights {missing} are missing or have "
            f"another number of axes. It has the keys {_list_keys(sorted(weights))}. Give a CLIP checkpoint."
        )
    sizes = {key: weights[key].shape for key in SIZED}
    positions, width = sizes["visual.positional_embedding"]
    side = math.isqrt(positions - 1)
    if side**2 != positions - 1:
        raise ValueError(
            f"{source}: visual.positional_embedding has {positions} rows; expected 1 + a square number. "
            "Only models of square images can be converted."
        )
    options = {"activation": activation, "vision_heads": vision_heads, "text_heads": text_heads}
    if model_config:
        configured = _read_settings(model_config, width, source)
        for name, value in options.items():
            if value not in (None, configured[name]):
                raise ValueError(
                    f"{source} has {name} {configured[name]} in its configuration, but {value} is given. "
                    f"Omit --{name}."
                )
        options = configured
    if options["activation"] is None:
        raise ValueError(
            f"{source} does not contain its activation function. Give --activation as its authors' code has "
            "it: quick_gelu for OpenAI's weights and OpenCLIP's models named -quickgelu (GeoRSCLIP B/32 and "
            "FarSLIP), gelu for OpenCLIP's other models (RemoteCLIP, by its README)."
        )
    patch_size = sizes["visual.conv1.weight"][-1]
    vocab_size, text_width = sizes["token_embedding.weight"]
    vision_heads, text_heads = options["vision_heads"], options["text_heads"]
    num_vision_heads = width / HEAD_WIDTHS.get(width, 64) if vision_heads is None else vision_heads
    num_text_heads = text_width / 64 if text_heads is None else text_heads
    common = {
        "projection_dim": sizes["visual.proj"][-1],
        "hidden_act": options["activation"],
        "layer_norm_eps": 1e-5,
    }
    vision = {
        "hidden_size": width,
        "intermediate_size": sizes["visual.transformer.resblocks.0.mlp.c_fc.weight"][0],
        "num_hidden_layers": _count_layers(weights, "visual.transformer"),
        "num_attention_heads": _check_heads(source, "vision_heads", num_vision_heads, width),
        "patch_size": patch_size,
        "image_size": side * patch_size,
    }
    text = {
        "hidden_size": text_width,
        "intermediate_size": sizes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        "num_hidden_layers": _count_layers(weights, "transformer"),
        "num_attention_heads": _check_heads(source, "text_heads", num_text_heads, text_width),
        "vocab_size": vocab_size,
        "max_position_embeddings": sizes["positional_embedding"][0],
    }
    return {
        "vision_config": vision | common,
        "text_config": text | common,
        "projection_dim": common["projection_dim"],
    }


def _read_settings(model_config: dict, width: int, source: str | Path) -> dict:
    for tower, settings in SETTINGS.items():
        for name, expected in settings.items():
            found = model_config.get(tower, {}).get(name, expected)
            if found != expected:
                raise ValueError(
                    f"{source}: open_clip_config.json sets {tower}.{name} to {found!r}, but transformers' "
                    f"CLIP supports only {expected!r}. This model cannot be converted."
                )
    return {
        "activation": "quick_gelu" if model_config.get("quick_gelu") else "gelu",
        "vision_heads": width // model_config.get("vision_cfg", {}).get("head_width", 64),
        "text_heads": model_config.get("text_cfg", {}).get("heads", 8),
    }


def _count_layers(weights: dict, tower: str) -> int:
    found = (re.match(rf"{re.escape(tower)}\.resblocks\.(\d+)\.", key) for key in weights)
    return 1 + max(int(match[1]) for match in found if match)


def _check_heads(source: str | Path, name: str, heads: float, width: int) -> int:
    if heads < 1 or heads % 1 or width % heads:
        raise ValueError(
            f"{source}: a tower of width {width} cannot have {heads:g} heads. Give --{name}, a divisor of "
            "the width."
        )
    return int(heads)


def _list_keys(keys: list[str], limit: int = 20) -> str:
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return f"{keys[:limit]}{more}"


def rename_weights(
    weights: dict[str, torch.Tensor], shapes: Mapping[str, torch.Size]
) -> tuple[dict[str, torch.Tensor], dict[str, list[str]]]:
    """Rename OpenCLIP's weights to transformers' names, and account for every key.

    Args:
        weights: weights by name, as `read_weights` returns them, of any floating-point type.
        shapes: the shapes of all parameters, by transformers' names.

    Returns:
        The parameters, in float32, and the problems: lists of the source's keys by kind. All lists are empty
        if every parameter has a weight and every key is used.
    """
    named, used = {}, set()
    missing, reshaped = set(), set()
    for key, shape in shapes.items():
        name = _name_source(key)
        if name not in weights:
            missing.add(name)
            continue
        used.add(name)
        tensor = weights[name].float()
        if part := re.search(r"\.self_attn\.([qkv])_proj\.", key):
            tensor = tensor.tensor_split(3)["qkv".index(part[1])]
        elif name in ("visual.proj", "text_projection"):
            tensor = tensor.T
        elif name == "logit_scale" and tensor.numel() == 1:
            tensor = tensor.reshape(())  # some versions keep it in a list of one
        if tensor.shape != shape:
            reshaped.add(name)
        named[key] = tensor.contiguous()
    problems = {
        "missing": sorted(missing),
        "not used": sorted(weights.keys() - used),
        "of another shape": sorted(reshaped),
        "not floating point": sorted(name for name in used if not weights[name].is_floating_point()),
        "not finite": sorted(name for name in used if not weights[name].isfinite().all()),
    }
    return named, problems


def _name_source(key: str) -> str:
    for ours, theirs in RENAMED.items():
        key = key.replace(ours, theirs)
    return key


def stretch_positions(table: torch.Tensor, length: int) -> torch.Tensor:
    """Stretch a table of text positions as Long-CLIP does.

    The first 20 rows, which short captions have trained well, are kept. Row j after them is the linear
    interpolation of the table at 20 + (j - 20) * (L - 20) / (length - 20). After the last row of the table,
    the line through its last two rows is continued. From 77 to 248 rows this is Long-CLIP's factor of 4.

    Args:
        table: (L, hidden), more than 20 rows.
        length: number of rows to stretch to, more than L.

    Returns:
        (length, hidden).

    Raises:
        ValueError: if the table has 20 rows or fewer, or at least `length` rows.

    Source:
        Long-CLIP, https://arxiv.org/abs/2403.15378, section 3.1, and `load_from_clip` in its code.
    """
    L, keep = len(table), KEPT_POSITIONS
    if not keep < L < length:
        raise ValueError(
            f"text_length is {length} and the source has {L} positions; expected more than {L}, and a source "
            f"with more than {keep} positions. Give a larger text_length."
        )
    positions = keep + torch.arange(length - keep, dtype=torch.float64) * (L - keep) / (length - keep)
    left = positions.long().clamp(max=L - 2)
    fraction = (positions - left).unsqueeze(-1)
    stretched = torch.lerp(table[left].double(), table[left + 1].double(), fraction)  # (length - 20, hidden)
    return torch.cat([table[:keep], stretched.to(table.dtype)])


def read_bpe(path: str | Path) -> CLIPTokenizer:
    """Build CLIP's tokenizer from its list of merges, OpenCLIP's `bpe_simple_vocab_16e6.txt.gz`."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : 49152 - 256 - 2 + 1]  # OpenCLIP does not use the rest either
    merges = [tuple(line.split()) for line in lines]
    characters = list(bytes_to_unicode().values())
    tokens = [*characters, *(f"{character}</w>" for character in characters), *map("".join, merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
