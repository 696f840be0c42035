"""Checkpoints of other CLIPs into ours, with every key accounted for and the result checked.

    geoalign-hf convert SOURCE OUTPUT_DIR

SOURCE is a folder or Hub repository of a transformers CLIP or in OpenCLIP's format, or a file of weights in
OpenCLIP's layout (`REPOSITORY/FILE` on the Hub); OUTPUT_DIR a folder that loads by `from_pretrained`.
"""

import importlib.util
import json
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import nn
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerBase
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling
from transformers.utils import cached_file, has_file

from ..model.configuration_geoalign_clip import GeoAlignCLIPConfig
from ..model.modeling_geoalign_clip import GeoAlignCLIPModel
from ..model.processing_geoalign_clip import GeoAlignCLIPProcessor
from .open_clip import (
    describe_pickle,
    measure_towers,
    read_bpe,
    read_weights,
    rename_weights,
    stretch_positions,
)

OUR_KEYS = {"region_scale.logit_scale", "scene_scale.offset"}
TOLERANCE = 1e-5  # of a unit vector's entries, in float32
TOKENIZER = "openai/clip-vit-base-patch32"  # all CLIPs of OpenAI and most of OpenCLIP have its vocabulary
SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = tuple(
    f"open_clip_{name}" for name in ("model.safetensors", "pytorch_model.bin", "pytorch_model.pt")
)


def convert_clip(
    source: str | Path,
    dense_mode: str = "last",
    activation: str | None = None,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    tokenizer: str | Path | None = None,
    text_length: int | None = None,
) -> tuple[GeoAlignCLIPModel, GeoAlignCLIPProcessor]:
    """Make a GeoAlignCLIP of another CLIP.

    Images are resized to a square and not cropped, since boxes must keep their ground; CLIP's own processor
    crops. No pickle is run: files are read by safetensors or with `weights_only=True`. A file alone is taken
    for what OpenCLIP's plain models are, since its keys do not tell: causal texts read at their end, images
    read at the class token.

    Args:
        source: folder or Hub repository of a transformers CLIP, or with OpenCLIP's `open_clip_config.json`;
            or a file of weights in OpenCLIP's layout, on disk or as `REPOSITORY/FILE` on the Hub.
        dense_mode: which patch features regions are pooled from; see `GeoAlignCLIPConfig`.
        activation: `quick_gelu` or `gelu`; for a file of weights alone, and never guessed there, since the
            wrong one costs accuracy without a word.
        vision_heads: for a file of weights alone. None takes those of OpenCLIP's towers of this width.
        text_heads: for a file of weights alone. None takes one per 64 of the width.
        tokenizer: folder or repository, or OpenCLIP's file of merges (`.txt.gz`). None takes the source's; if
            it has none, that file of an installed open_clip, else `openai/clip-vit-base-patch32`.
        text_length: positions to stretch the text tower to; see `stretch_positions`.

    Returns:
        The model, in evaluation mode and float32, and its processor.

    Raises:
        ValueError: if the source is no CLIP of two plain transformers; if a weight is missing, does not fit,
            is not finite or is left over; if something must be given; if an embedding differs by more than
            1e-5 from that of the source, where that is a transformers CLIP.
    """
    options = {"activation": activation, "vision_heads": vision_heads, "text_heads": text_heads}
    found = find_open_clip(source)
    if found:
        model, image_processor, tokenizer = _convert_open_clip(source, *found, dense_mode, tokenizer, options)
    else:
        given = [f"--{name}" for name, value in options.items() if value is not None]
        if given:
            raise ValueError(f"{source} tells {', '.join(given)} in its config.json. Leave that out.")
        model, image_processor = _convert_transformers(source, dense_mode)
        tokenizer = load_tokenizer(tokenizer or source)
    if text_length is not None:
        stretch_text(model, text_length)
    tokenizer.model_max_length = model.config.text_config.max_position_embeddings
    return model, GeoAlignCLIPProcessor(image_processor, tokenizer)


def find_open_clip(source: str | Path) -> tuple[str, str | None] | None:
    """Find a file of weights in OpenCLIP's layout, and the configuration beside it.

    Returns:
        Paths of both, fetched from the Hub if need be, the second None for a file that stands alone; or None
        if the source is a transformers CLIP.

    Raises:
        ValueError: if it is neither.
    """
    path, source = Path(source), str(source)
    if path.is_file():
        return source, None
    if not path.is_dir() and (path.is_absolute() or path.suffix in SUFFIXES):
        owner, repository, name = (source.split("/", 2) + ["", ""])[:3]
        if path.is_absolute() or not name:
            raise ValueError(f"{source} is not there. Give a file, folder, repository or REPOSITORY/FILE.")
        return cached_file(f"{owner}/{repository}", name), None
    if has_file(source, "config.json"):
        return None
    weights = next((name for name in OPEN_CLIP_WEIGHTS if has_file(source, name)), None)
    if weights is None or not has_file(source, OPEN_CLIP_CONFIG):
        raise ValueError(
            f"{source} was not found, or holds neither config.json nor {OPEN_CLIP_CONFIG} with one of "
            f"{', '.join(OPEN_CLIP_WEIGHTS)}. If it holds weights alone, name the file: {source}/FILE."
        )
    return cached_file(source, weights), cached_file(source, OPEN_CLIP_CONFIG)


def _convert_transformers(source, dense_mode):
    clip_config = CLIPConfig.from_pretrained(source)
    if clip_config.model_type != "clip":
        raise ValueError(f"{source} holds a model of type {clip_config.model_type!r}; expected 'clip'.")
    fields = clip_config.to_dict()
    for name in ("model_type", "architectures", "transformers_version"):
        fields.pop(name, None)
    config = GeoAlignCLIPConfig(**fields, dense_mode=dense_mode)
    options = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        model, report = GeoAlignCLIPModel.from_pretrained(source, config=config, **options)
    except UnpicklingError as error:
        raise ValueError(describe_pickle(source, error)) from error
    problems = {
        "missing": sorted(set(report["missing_keys"]) - OUR_KEYS),
        "left over": sorted(key for key in report["unexpected_keys"] if not key.endswith("position_ids")),
        "of another shape": sorted(key for key, *_ in report["mismatched_keys"]),
    }
    refuse_problems(source, problems)
    model.eval()
    check_parity(model, CLIPModel.from_pretrained(source, dtype=torch.float32).eval())
    return model, CLIPImageProcessor.from_pretrained(source, **size_images(config))


def _convert_open_clip(source, weights_file, config_file, dense_mode, tokenizer, options):
    told = json.loads(Path(config_file).read_text()) if config_file else {}
    weights = read_weights(weights_file)
    fields = measure_towers(weights, source, told.get("model_cfg"), **options)
    tokenizer = load_tokenizer(tokenizer or resolve_tokenizer(source, told))
    text, last = fields["text_config"], len(tokenizer) - 1
    if tokenizer.eos_token_id != last or last >= text["vocab_size"]:
        raise ValueError(
            f"the tokenizer has {last + 1} tokens with the end of text at {tokenizer.eos_token_id}, and "
            f"{source} embeds {text['vocab_size']}. Give a --tokenizer of no more tokens than those, the end "
            "of text last."
        )
    # OpenCLIP reads a text at its highest id, and that is its end.
    text |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = GeoAlignCLIPConfig(**fields, dense_mode=dense_mode)
    with torch.device("meta"):
        parameters = dict(GeoAlignCLIPModel(config).named_parameters())
    shapes = {name: weight.shape for name, weight in parameters.items() if name not in OUR_KEYS}
    named, problems = rename_weights(weights, shapes)
    refuse_problems(source, problems)
    model = GeoAlignCLIPModel.from_pretrained(None, config=config, state_dict=named, dtype=torch.float32)
    pixels = told.get("preprocess_cfg", {})
    bilinear = pixels.get("interpolation") == "bilinear"  # all else is bicubic, as in OpenCLIP
    image_processor = CLIPImageProcessor(
        image_mean=pixels.get("mean", OPENAI_CLIP_MEAN),
        image_std=pixels.get("std", OPENAI_CLIP_STD),
        resample=PILImageResampling.BILINEAR if bilinear else PILImageResampling.BICUBIC,
        **size_images(config),
    )
    return model.eval(), image_processor, tokenizer


def refuse_problems(source: str | Path, problems: dict[str, list[str]]) -> None:
    """Refuse a checkpoint of which anything is wrong, naming all of it by kind.

    Raises:
        ValueError: if any list is not empty.
    """
    listed = "; ".join(f"{kind}: {keys}" for kind, keys in problems.items() if keys)
    if listed:
        raise ValueError(
            f"{source} does not fit a CLIP of its configuration: {listed}. Give a whole CLIP checkpoint."
        )


def size_images(config: CLIPConfig) -> dict:
    """Give the options of an image processor that resizes to a square and does not crop."""
    S = config.vision_config.image_size
    return {"size": {"height": S, "width": S}, "do_center_crop": False}


def resolve_tokenizer(source: str | Path, told: dict) -> str | Path:
    """Say where the tokenizer of OpenCLIP's weights is: beside them, told beside them, or CLIP's own."""
    if told and has_file(source, "tokenizer_config.json"):
        return source
    if name := told.get("model_cfg", {}).get("text_cfg", {}).get("hf_tokenizer_name"):
        return name
    package = importlib.util.find_spec("open_clip")
    if package is None:
        return TOKENIZER
    return Path(package.submodule_search_locations[0], "bpe_simple_vocab_16e6.txt.gz")


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder, a repository or OpenCLIP's file of merges."""
    return read_bpe(source) if str(source).endswith(".txt.gz") else AutoTokenizer.from_pretrained(source)


@torch.no_grad()
def stretch_text(model: GeoAlignCLIPModel, text_length: int) -> None:
    """Give the text tower more positions, in place, by `stretch_positions`.

    Texts of no more than 20 tokens keep their embeddings.

    Raises:
        ValueError: if the tower has no fewer positions already, or not more than 20.
    """
    embeddings = model.text_model.embeddings
    table = stretch_positions(embeddings.position_embedding.weight, text_length)
    embeddings.position_embedding = nn.Embedding.from_pretrained(table, freeze=False)
    embeddings.position_ids = torch.arange(text_length).unsqueeze(0)
    for config in (model.config.text_config, model.text_model.config):
        config.max_position_embeddings = text_length


@torch.no_grad()
def check_parity(model: GeoAlignCLIPModel, clip: CLIPModel) -> None:
    """Compare embeddings of random images and token ids with the source model's.

    Raises:
        ValueError: if an entry of a unit vector differs by more than 1e-5.
    """
    generator = torch.Generator().manual_seed(0)
    vision, text = clip.config.vision_config, clip.config.text_config
    pixel_values = torch.randn(2, 3, vision.image_size, vision.image_size, generator=generator)
    input_ids = torch.randint(3, text.vocab_size - 3, (2, text.max_position_embeddings), generator=generator)
    input_ids[:, -1] = text.eos_token_id if isinstance(text.eos_token_id, int) else text.vocab_size - 1
    ours = model(input_ids=input_ids, pixel_values=pixel_values)
    theirs = clip(input_ids=input_ids, pixel_values=pixel_values)
    for name in ("image_embeds", "text_embeds"):
        difference = (getattr(ours, name) - getattr(theirs, name)).abs().max().item()
        if not difference <= TOLERANCE:
            raise ValueError(
                f"{name} differ from the source's by {difference:.2e}, more than {TOLERANCE:.0e}."
            )
