"""Converts checkpoints of other CLIPs. Every key is accounted for.

The embeddings of a converted transformers CLIP are compared with those of its source.

    geoalign-hf convert SOURCE OUTPUT_DIR

SOURCE is a folder or Hub repository, of a transformers CLIP or in OpenCLIP's format. It may also be a file of
weights in OpenCLIP's layout (`REPOSITORY/FILE` on the Hub). OUTPUT_DIR is a folder that `from_pretrained`
loads.
"""

import importlib.util
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerBase
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling
from transformers.utils import cached_file, has_file, logging

from ..model.configuration_geoalign_clip import GeoAlignCLIPConfig
from ..model.modeling_geoalign_clip import GeoAlignCLIPModel
from ..model.processing_geoalign_clip import GeoAlignCLIPProcessor
from ..storage import read_json
from .open_clip import measure_towers, read_bpe, rename_weights, stretch_positions
from .weights import describe_unreadable, read_weights

OUR_KEYS = {"region_scale.logit_scale", "scene_scale.offset"}
# Fields of a CLIP's config.json that describe the file or its code, not the model.
NOT_COPIED = {"model_type", "architectures", "transformers_version", "auto_map", "custom_pipelines"}
TOLERANCE = 1e-5  # difference of an entry of a unit vector, in float32
TOKENIZER = (
    "openai/clip-vit-base-patch32"  # its vocabulary is that of OpenAI's CLIPs and of most of OpenCLIP's
)
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
    """Build a GeoAlignCLIP with the weights of another CLIP.

    Images are resized to a square and not cropped, so that every box keeps its content. (CLIP's own
    processor crops.) Pickles are never executed: files are read by safetensors or with `weights_only=True`.
    The keys of a file of weights do not show how texts and images are pooled. Such a file is read as
    OpenCLIP's plain models are: causal texts at their last token, images at the class token.

    Args:
        source: folder or Hub repository of a transformers CLIP, or with OpenCLIP's `open_clip_config.json`;
            or a file of weights in OpenCLIP's layout, on disk or as `REPOSITORY/FILE` on the Hub.
        dense_mode: patch features that regions are pooled from; see `GeoAlignCLIPConfig`.
        activation: `quick_gelu` or `gelu`. It must be passed for a file of weights, and only there. It is not
            guessed, because a wrong one costs accuracy without any error.
        vision_heads: number of attention heads, for a file of weights. None takes the number that OpenCLIP's
            towers of this width have.
        text_heads: number of attention heads, for a file of weights. None takes one per 64 of the width.
        tokenizer: folder or repository, or OpenCLIP's file of merges (`.txt.gz`). None takes the tokenizer of
            the source. If the source has none, it takes the file of merges of an installed open_clip, or else
            `openai/clip-vit-base-patch32`.
        text_length: number of positions to stretch the text tower to; see `stretch_positions`.

    Returns:
        The model, in evaluation mode and float32, and its processor.

    Raises:
        ValueError: if the source is not a CLIP of two plain transformers or cannot be read; if a weight is
            missing, has another shape, is not finite or is not used; if a required argument is missing; or if
            an embedding differs by more than 1e-5 from that of a transformers CLIP.
    """
    options = {"activation": activation, "vision_heads": vision_heads, "text_heads": text_heads}
    found = find_open_clip(source)
    if found:
        model, image_processor, texts = _convert_open_clip(source, *found, dense_mode, tokenizer, options)
    else:
        given = [f"--{name}" for name, value in options.items() if value is not None]
        if given:
            raise ValueError(
                f"{source} has a config.json, which sets what {', '.join(given)} would set. Leave these out."
            )
        model, image_processor = _convert_transformers(source, dense_mode)
        texts = load_tokenizer(tokenizer or source)
    if text_length is not None:
        stretch_text(model, text_length)
    texts.model_max_length = model.config.text_config.max_position_embeddings
    # The source is not a GeoAlignCLIP, so an adapter must not name it as its base.
    model.name_or_path = model.config.name_or_path = ""
    patch_size = model.config.vision_config.patch_size
    return model, GeoAlignCLIPProcessor(image_processor, texts, patch_size)


def find_open_clip(source: str | Path) -> tuple[str, str | None] | None:
    """Find a file of weights in OpenCLIP's layout, and the configuration beside it.

    Returns:
        The paths of both, downloaded from the Hub if necessary; the second is None for a file without a
        configuration. None if the source is a transformers CLIP.

    Raises:
        ValueError: if the source is neither.
    """
    path, source = Path(source), str(source)
    if path.is_file():
        return source, None
    if not path.is_dir() and (path.is_absolute() or path.suffix in SUFFIXES):
        owner, repository, name = (source.split("/", 2) + ["", ""])[:3]
        if path.is_absolute() or not name:
            raise ValueError(f"{source} does not exist. Give a file, folder, repository or REPOSITORY/FILE.")
        return cached_file(f"{owner}/{repository}", name), None
    if has_file(source, "config.json"):
        return None
    weights = next((name for name in OPEN_CLIP_WEIGHTS if has_file(source, name)), None)
    if weights is None or not has_file(source, OPEN_CLIP_CONFIG):
        raise ValueError(
            f"{source} was not found, or has neither config.json nor {OPEN_CLIP_CONFIG} with one of "
            f"{', '.join(OPEN_CLIP_WEIGHTS)}. If it has only a file of weights, name the file: {source}/FILE."
        )
    return cached_file(source, weights), cached_file(source, OPEN_CLIP_CONFIG)


@contextmanager
def quiet_loading():
    """Silence the report of transformers, which names `OUR_KEYS` as missing; others are refused here."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _convert_transformers(source, dense_mode):
    clip_config = CLIPConfig.from_pretrained(source)
    if clip_config.model_type == GeoAlignCLIPConfig.model_type:
        raise ValueError(f"{source} is a GeoAlignCLIP already. Load it by AutoModel.from_pretrained.")
    if clip_config.model_type != "clip":
        raise ValueError(f"{source} has a model of type {clip_config.model_type!r}; expected 'clip'.")
    # A GeoAlignCLIP that the stock class has saved as a CLIP still has the fields of ours.
    fields = {name: value for name, value in clip_config.to_dict().items() if name not in NOT_COPIED}
    config = GeoAlignCLIPConfig(**fields | {"dense_mode": dense_mode})
    options = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        with quiet_loading():
            model, report = GeoAlignCLIPModel.from_pretrained(source, config=config, **options)
    except (UnpicklingError, SafetensorError) as error:
        raise ValueError(describe_unreadable(source, error)) from error
    problems = {
        "missing": sorted(set(report["missing_keys"]) - OUR_KEYS),
        "not used": sorted(
            key
            for key in report["unexpected_keys"]
            if not key.endswith("position_ids") and key not in OUR_KEYS
        ),
        "of another shape": sorted(key for key, *_ in report["mismatched_keys"]),
    }
    refuse_problems(source, problems)
    model.eval()
    check_parity(model, CLIPModel.from_pretrained(source, dtype=torch.float32).eval())
    return model, CLIPImageProcessor.from_pretrained(source, **size_images(config))


def _convert_open_clip(source, weights_file, config_file, dense_mode, tokenizer, options):
    settings = read_json(config_file) if config_file else {}
    weights = read_weights(weights_file)
    fields = measure_towers(weights, source, settings.get("model_cfg"), **options)
    tokenizer = load_tokenizer(tokenizer or resolve_tokenizer(source, settings))
    text, last = fields["text_config"], len(tokenizer) - 1
    if tokenizer.eos_token_id != last or last >= text["vocab_size"]:
        raise ValueError(
            f"the tokenizer has {last + 1} tokens, and its end of text is token {tokenizer.eos_token_id}. "
            f"{source} has embeddings of {text['vocab_size']} tokens. Give a --tokenizer with at most that "
            "many tokens, of which the end of text is the last."
        )
    # OpenCLIP reads a text at the token with the highest id, which is the end of text.
    text |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = GeoAlignCLIPConfig(**fields, dense_mode=dense_mode)
    with torch.device("meta"):
        parameters = dict(GeoAlignCLIPModel(config).named_parameters())
    shapes = {name: weight.shape for name, weight in parameters.items() if name not in OUR_KEYS}
    named, problems = rename_weights(weights, shapes)
    refuse_problems(source, problems)
    with quiet_loading():
        model = GeoAlignCLIPModel.from_pretrained(None, config=config, state_dict=named, dtype=torch.float32)
    pixels = settings.get("preprocess_cfg", {})
    bilinear = pixels.get("interpolation") == "bilinear"  # everything else is bicubic, as in OpenCLIP
    image_processor = CLIPImageProcessor(
        image_mean=pixels.get("mean", OPENAI_CLIP_MEAN),
        image_std=pixels.get("std", OPENAI_CLIP_STD),
        resample=PILImageResampling.BILINEAR if bilinear else PILImageResampling.BICUBIC,
        **size_images(config),
    )
    return model.eval(), image_processor, tokenizer


def refuse_problems(source: str | Path, problems: dict[str, list[str]]) -> None:
    """Refuse a checkpoint that has problems, and list them by kind.

    Raises:
        ValueError: if any list is not empty.
    """
    listed = "; ".join(f"{kind}: {keys}" for kind, keys in problems.items() if keys)
    if listed:
        raise ValueError(
            f"the weights of {source} do not match its configuration: {listed}. Give a complete CLIP "
            "checkpoint."
        )


def size_images(config: GeoAlignCLIPConfig) -> dict:
    """Return the options of an image processor that resizes to a square and does not crop."""
    S = config.vision_config.image_size
    return {"size": {"height": S, "width": S}, "do_center_crop": False}


def resolve_tokenizer(source: str | Path, settings: dict) -> str | Path:
    """Return the source of the tokenizer for OpenCLIP's weights.

    It is the source itself, the one named in its settings, or CLIP's own, in this order.
    """
    if settings and has_file(source, "tokenizer_config.json"):
        return source
    if name := settings.get("model_cfg", {}).get("text_cfg", {}).get("hf_tokenizer_name"):
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
    """Stretch the positions of the text tower in place; see `stretch_positions`.

    Texts of at most 20 tokens keep their embeddings.

    Raises:
        ValueError: if the tower already has at least `text_length` positions, or has 20 or fewer.
    """
    embeddings = model.text_model.embeddings
    table = stretch_positions(embeddings.position_embedding.weight, text_length)
    embeddings.position_embedding = nn.Embedding.from_pretrained(table, freeze=False)
    embeddings.position_ids = torch.arange(text_length).unsqueeze(0)
    for config in (model.config.text_config, model.text_model.config):
        config.max_position_embeddings = text_length


@torch.no_grad()
def check_parity(model: GeoAlignCLIPModel, clip: CLIPModel) -> None:
    """Compare the embeddings of random images and token ids with those of the source model.

    Raises:
        ValueError: if an entry of a unit vector differs by more than 1e-5.
    """
    generator = torch.Generator().manual_seed(0)
    side, text = model.config.vision_config.image_size, model.config.text_config
    pixel_values = torch.randn(2, 3, side, side, generator=generator)
    input_ids = torch.randint(3, text.vocab_size - 3, (2, text.max_position_embeddings), generator=generator)
    input_ids[:, -1] = text.eos_token_id if isinstance(text.eos_token_id, int) else text.vocab_size - 1
    ours = model(input_ids=input_ids, pixel_values=pixel_values)
    theirs = clip(input_ids=input_ids, pixel_values=pixel_values)
    for name in ("image_embeds", "text_embeds"):
        difference = (getattr(ours, name) - getattr(theirs, name)).abs().max().item()
        if not difference <= TOLERANCE:
            raise ValueError(
                f"{name} of the converted model differ from those of the source by {difference:.2e}, more "
                f"than {TOLERANCE:.0e}. Please report this with the source's config.json."
            )
