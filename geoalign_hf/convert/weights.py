"""Reads files of weights in OpenCLIP's layout. Pickles are never executed.

Files are read by safetensors or with `weights_only=True`.
"""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

KEPT_POSITIONS = 20  # Long-CLIP, https://arxiv.org/abs/2403.15378, section 3.1
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
# Entries that some versions store beside the weights. They follow from the shapes of the weights.
BUFFERS = {"attn_mask", "input_resolution", "context_length", "vocab_size"}


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a file of weights, and bring the variants of OpenCLIP's layout into one form.

    From a training checkpoint only the weights are taken. These parts are removed: a prefix of all keys
    (`module.`), the prefix `text.` of OpenCLIP's CustomTextCLIP, and buffers that follow from the weights.
    Long-CLIP's two tables of positions are merged into one.

    Args:
        path: a `.safetensors` file, or a file that `torch.save` wrote.

    Returns:
        Weights by the names of OpenCLIP's CLIP.

    Raises:
        ValueError: if the file cannot be read, has entries that are not tensors, or has two tables of
            positions of different shapes.
    """
    weights = _unwrap(_load_tensors(Path(path)), path)
    strangers = sorted(str(key) for key, value in weights.items() if not isinstance(value, torch.Tensor))
    if strangers or not weights:
        raise ValueError(
            f"{path} is not a state dict: the entries {strangers} are not tensors. Give a file with weights "
            f"by name, at the top or under one of {WRAPPERS}."
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
            f"{path} is a TorchScript archive. It holds code, which is not executed here. Use the same "
            "weights from the Hub (openai/clip-vit-base-patch32 and others), or, if you trust the file, save "
            "its weights: torch.save(torch.jit.load(PATH).state_dict(), 'weights.pt')."
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises almost any type on a broken file
        raise ValueError(describe_unreadable(path, error)) from error


def describe_unreadable(source: str | Path, error: Exception) -> str:
    """Describe why a file or folder of weights cannot be read, without torch's advice to execute a pickle."""
    path = Path(source)
    for file in sorted(path.glob("*model*")) if path.is_dir() else [path] if path.is_file() else []:
        with file.open("rb") as opened:
            if opened.read(64).lstrip().lower().startswith((b"<!doctype", b"<html")):
                return f"{file} is a web page, not a file of weights. Download the file itself again."
    if isinstance(error, SafetensorError):
        return f"{source} is not a valid safetensors file ({error}). Download it again."
    found = re.findall(r"GLOBAL (\S+)", str(error))
    if not found:
        return (
            f"{source} cannot be read as weights ({type(error).__name__}). Give a file that torch.save or "
            "safetensors wrote, or download it again."
        )
    return (
        f"{source} cannot be read as plain tensors (found {found[0]}), and pickles are not executed here. If "
        "you trust the file, load it yourself and save only its state dict."
    )


def _unwrap(content: object, path: str | Path) -> Mapping:
    while isinstance(content, Mapping):
        found = [name for name in WRAPPERS if isinstance(content.get(name), Mapping)]
        if not found:
            return content
        others = [name for name, value in content.items() if name not in found and _is_weights(value)]
        if len(found) > 1 or others:
            raise ValueError(
                f"{path} has weights under each of {found + others}. Save the ones you want in a file of "
                "their own."
            )
        content = content[found[0]]
    raise ValueError(
        f"{path} has a {type(content).__name__}; expected a state dict. Save model.state_dict()."
    )


def _is_weights(value: object) -> bool:
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(key, str) and isinstance(entry, torch.Tensor) for key, entry in value.items())


def fold_positions(weights: dict[str, torch.Tensor], source: str | Path) -> dict[str, torch.Tensor]:
    """Merge Long-CLIP's two tables of positions: the first 20 rows of one, and the other rows of the second.

    Raises:
        ValueError: if the tables differ in shape.

    Source:
        Long-CLIP, `model/model_longclip.py`: `encode_text` multiplies the two by `mask1` and `mask2`.
    """
    weights = dict(weights)
    kept, rest = weights.get("positional_embedding"), weights.pop("positional_embedding_res")
    if kept is None or kept.shape != rest.shape:
        shape = None if kept is None else tuple(kept.shape)
        raise ValueError(
            f"{source}: positional_embedding has shape {shape} and positional_embedding_res has shape "
            f"{tuple(rest.shape)}; expected equal shapes. Give a complete Long-CLIP checkpoint."
        )
    weights["positional_embedding"] = torch.cat([kept[:KEPT_POSITIONS], rest[KEPT_POSITIONS:]])
    return weights
