"""OpenCLIP's layout of weights: read as plain tensors, measured, and named as transformers names them.

In comes a file in the layout that OpenAI's CLIP, OpenCLIP and Long-CLIP share, and RemoteCLIP, GeoRSCLIP,
SkyCLIP and FarSLIP with them; out come the fields of a configuration and weights by our names. A pickle is
never run: files are read by safetensors or with `weights_only=True`.
"""

import gzip
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

KEPT_POSITIONS = 20  # Long-CLIP, https://arxiv.org/abs/2403.15378, section 3.1
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
# Stored beside the weights by some versions; all of it follows from the weights' shapes.
BUFFERS = {"attn_mask", "input_resolution", "context_length", "vocab_size"}
# Keys of what is no CLIP of two plain transformers.
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
# The weights whose shapes tell the sizes of the towers, and their axes.
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
# Settings that leave no trace among the keys, with the only value that a CLIP of transformers has.
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


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a file of weights and bring its variants into one form.

    A training checkpoint gives its weights, without optimiser and counters. A prefix of all keys (`module.`)
    goes, and so do `text.` of OpenCLIP's CustomTextCLIP and buffers that follow from the weights. Long-CLIP's
    two tables of positions become the one that they amount to.

    Args:
        path: a `.safetensors` file, or one that `torch.save` wrote.

    Returns:
        Weights by the names of OpenCLIP's CLIP.

    Raises:
        ValueError: if the file holds anything that is no tensor, or tables of positions that do not fit.
    """
    weights = _unwrap(_load_tensors(Path(path)), path)
    strangers = sorted(str(key) for key, value in weights.items() if not isinstance(value, torch.Tensor))
    if strangers or not weights:
        raise ValueError(
            f"{path} is no state dict: not tensors: {strangers}. Give a file that holds weights by name, "
            f"alone or under one of {WRAPPERS}."
        )
    anchor = "visual.class_embedding"
    prefix = next((key.removesuffix(anchor) for key in weights if key.endswith(anchor)), "")
    if all(key.startswith(prefix) for key in weights):
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    plain = {key.removeprefix("text."): value for key, value in weights.items()}
    if "text.token_embedding.weight" in weights and len(plain) == len(weights):
        weights = plain
    weights = {key: value for key, value in weights.items() if key not in BUFFERS}
    if "positional_embedding_res" in weights:
        weights = fold_positions(weights, path)
    return weights


def _load_tensors(path: Path) -> Mapping:
    if zipfile.is_zipfile(path) and any(
        name.endswith("/constants.pkl") for name in zipfile.ZipFile(path).namelist()
    ):
        raise ValueError(
            f"{path} is a TorchScript archive: weights with code, which is not run here. Take the same "
            "weights from the Hub (openai/clip-vit-base-patch32 and others), or, where you trust the file, "
            "save them alone: torch.save(torch.jit.load(PATH).state_dict(), 'weights.pt')."
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}. Fetch it again.") from error
    except Exception as error:
        raise ValueError(describe_pickle(path, error)) from error


def describe_pickle(source: str | Path, error: Exception) -> str:
    """Say what a file holds that `weights_only=True` did not read, without torch's advice to run it."""
    found = re.findall(r"GLOBAL (\S+)", str(error)) or [type(error).__name__]
    return (
        f"{source} cannot be read as plain tensors (found {found[0]}), and a pickle is not run here. Where "
        "you trust the file, load it yourself and save its state dict alone."
    )


def _unwrap(content: object, path: str | Path) -> Mapping:
    while isinstance(content, Mapping):
        found = [name for name in WRAPPERS if isinstance(content.get(name), Mapping)]
        if not found:
            return content
        others = [name for name, value in content.items() if name not in found and _is_weights(value)]
        if len(found) > 1 or others:
            raise ValueError(
                f"{path} holds weights under each of {found + others}. Save the ones you want alone."
            )
        content = content[found[0]]
    raise ValueError(f"{path} holds a {type(content).__name__}; expected a state dict.")


def _is_weights(value: object) -> bool:
    is_named = isinstance(value, Mapping) and value and all(isinstance(key, str) for key in value)
    return is_named and all(isinstance(tensor, torch.Tensor) for tensor in value.values())


def fold_positions(weights: dict[str, torch.Tensor], source: str | Path) -> dict[str, torch.Tensor]:
    """Make one table of Long-CLIP's two: it reads the first 20 rows of one and the rest of the other.

    Raises:
        ValueError: if the tables differ in shape.

    Source:
        Long-CLIP, `model/model_longclip.py`: `encode_text` weighs the two by `mask1` and `mask2`.
    """
    weights = dict(weights)
    kept, rest = weights.get("positional_embedding"), weights.pop("positional_embedding_res")
    if kept is None or kept.shape != rest.shape:
        shape = None if kept is None else tuple(kept.shape)
        raise ValueError(
            f"{source}: positional_embedding has shape {shape}, but positional_embedding_res "
            f"{tuple(rest.shape)}. Long-CLIP's have one shape. Give a whole checkpoint."
        )
    weights["positional_embedding"] = torch.cat([kept[:KEPT_POSITIONS], rest[KEPT_POSITIONS:]])
    return weights


def measure_towers(
    weights: dict[str, torch.Tensor],
    source: str | Path,
    model_config: dict | None = None,
    activation: str | None = None,
    vision_heads: int | None = None,
    text_heads: int | None = None,
) -> dict:
    """Tell a configuration from shapes, and from what is told beside them.

    Args:
        weights: as `read_weights` gives them.
        source: for messages.
        model_config: `model_cfg` of OpenCLIP's `open_clip_config.json`, if there is one.
        activation: `quick_gelu` or `gelu`; must be given where there is no `model_config`.
        vision_heads: None takes the configured ones, or as many as OpenCLIP's towers of this width have.
        text_heads: None takes the configured ones, or one per 64 of the width.

    Returns:
        Fields of `CLIPConfig`, without token ids.

    Raises:
        ValueError: if these are no weights of two plain transformers, if the configuration asks for something
            that transformers' CLIP has not, or if what is needed is not told or told in two ways.
    """
    for pattern, meaning in FOREIGN.items():
        found = sorted(key for key in weights if re.match(pattern, key))
        if found:
            raise ValueError(f"{source} holds {meaning}, which cannot be mapped: {_list_keys(found)}.")
    missing = [key for key, axes in SIZED.items() if key not in weights or weights[key].ndim != axes]
    if missing:
        raise ValueError(
            f"{source} is no OpenCLIP state dict of a ViT: missing, or not of as many axes: {missing}. It "
            f"holds: {_list_keys(sorted(weights))}."
        )
    sizes = {key: weights[key].shape for key in SIZED}
    positions, width = sizes["visual.positional_embedding"]
    side = math.isqrt(positions - 1)
    if side**2 != positions - 1:
        raise ValueError(
            f"{source}: visual.positional_embedding has {positions} rows; expected 1 + a square number. "
            "Only square images can be mapped."
        )
    options = {"activation": activation, "vision_heads": vision_heads, "text_heads": text_heads}
    if model_config:
        told = _read_settings(model_config, width, source)
        for name, value in options.items():
            if value not in (None, told[name]):
                raise ValueError(
                    f"{source} says {name} {told[name]}, and {value} is given. Leave out --{name}."
                )
        options = told
    if options["activation"] is None:
        raise ValueError(
            f"{source} does not tell its activation. Give --activation as the code of its authors loads it: "
            "quick_gelu for OpenAI's weights and OpenCLIP's models named -quickgelu (GeoRSCLIP B/32 and "
            "FarSLIP), gelu for OpenCLIP's other models (RemoteCLIP, by its README)."
        )
    patch_size = sizes["visual.conv1.weight"][-1]
    vocab_size, text_width = sizes["token_embedding.weight"]
    vision_heads, text_heads = options["vision_heads"], options["text_heads"]
    vision_heads = width / HEAD_WIDTHS.get(width, 64) if vision_heads is None else vision_heads
    text_heads = text_width / 64 if text_heads is None else text_heads
    common = {
        "projection_dim": sizes["visual.proj"][-1],
        "hidden_act": options["activation"],
        "layer_norm_eps": 1e-5,
    }
    vision = {
        "hidden_size": width,
        "intermediate_size": sizes["visual.transformer.resblocks.0.mlp.c_fc.weight"][0],
        "num_hidden_layers": _count_layers(weights, "visual.transformer"),
        "num_attention_heads": _check_heads(source, "vision_heads", vision_heads, width),
        "patch_size": patch_size,
        "image_size": side * patch_size,
    }
    text = {
        "hidden_size": text_width,
        "intermediate_size": sizes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        "num_hidden_layers": _count_layers(weights, "transformer"),
        "num_attention_heads": _check_heads(source, "text_heads", text_heads, text_width),
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
                    f"{source}: open_clip_config.json sets {tower}.{name} to {found!r}. A transformers CLIP "
                    f"has {expected!r} and nothing else, so this one cannot be mapped."
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
            f"{source}: a tower {width} wide cannot have {heads:g} heads. Give --{name}, a divisor of that."
        )
    return int(heads)


def _list_keys(keys: list[str], limit: int = 20) -> str:
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return f"{keys[:limit]}{more}"


def rename_weights(
    weights: dict[str, torch.Tensor], shapes: Mapping[str, torch.Size]
) -> tuple[dict[str, torch.Tensor], dict[str, list[str]]]:
    """Fill every parameter of a CLIP from OpenCLIP's weights, and account for every key.

    Args:
        weights: as `read_weights` gives them, of any floating type.
        shapes: of the parameters to be filled, by transformers' names.

    Returns:
        The filled parameters, in float32, and what is wrong: lists of the source's keys by kind, all of them
        empty where every parameter is filled and every key is used.
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
        "left over": sorted(weights.keys() - used),
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

    The first 20 rows, which short captions have trained well, stay; row j beyond them is read at place
    20 + (j - 20) * (L - 20) / (length - 20) of the table by linear interpolation, and past its last row the
    line through the last two goes on. From 77 to 248 that is Long-CLIP's factor of 4.

    Args:
        table: (L, hidden), more than 20 rows.
        length: rows to stretch to, more than L.

    Returns:
        (length, hidden).

    Raises:
        ValueError: if the table has no row beyond the first 20, or is not to grow.

    Source:
        Long-CLIP, https://arxiv.org/abs/2403.15378, section 3.1, and `load_from_clip` in its code.
    """
    L, keep = len(table), KEPT_POSITIONS
    if not keep < L < length:
        raise ValueError(
            f"text_length is {length}, and the source has {L} positions. It must be more than those, and "
            f"they more than the {keep} that are kept."
        )
    places = keep + torch.arange(length - keep, dtype=torch.float64) * (L - keep) / (length - keep)
    left = places.long().clamp(max=L - 2)
    share = (places - left).unsqueeze(-1)
    stretched = torch.lerp(table[left].double(), table[left + 1].double(), share)  # (length - 20, hidden)
    return torch.cat([table[:keep], stretched.to(table.dtype)])


def read_bpe(path: str | Path) -> CLIPTokenizer:
    """Build CLIP's tokenizer of its list of merges, `bpe_simple_vocab_16e6.txt.gz`, as OpenCLIP ships it."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : 49152 - 256 - 2 + 1]  # the rest is not used, by OpenCLIP either
    merges = [tuple(line.split()) for line in lines]
    characters = list(bytes_to_unicode().values())
    tokens = [*characters, *(f"{character}</w>" for character in characters), *map("".join, merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
