"""Checkpoints of other CLIPs into ours, with every key accounted for and the result checked.

    python -m geoalign_hf.convert SOURCE DEST

SOURCE is a folder or Hub repository of a transformers CLIP; DEST a folder that loads by `from_pretrained`.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel

from .model.configuration_geoalign_clip import GeoAlignCLIPConfig
from .model.modeling_geoalign_clip import GeoAlignCLIPModel
from .model.processing_geoalign_clip import GeoAlignCLIPProcessor

OUR_KEYS = {"region_scale.logit_scale"}
TOLERANCE = 1e-5  # of a unit vector's entries, in float32


def convert_clip(
    source: str | Path, dense_mode: str = "last"
) -> tuple[GeoAlignCLIPModel, GeoAlignCLIPProcessor]:
    """Make a GeoAlignCLIP of a transformers CLIP.

    Images are resized to a square and not cropped, since boxes must keep their ground; CLIP's own processor
    crops.

    Args:
        source: folder or Hub repository with config, safetensors weights, and tokenizer.
        dense_mode: which patch features regions are pooled from; see `GeoAlignCLIPConfig`.

    Returns:
        The model, in evaluation mode, and its processor.

    Raises:
        ValueError: if the source is no CLIP, a weight is missing, does not fit or is left over, or an
            embedding differs from the source's by more than 1e-5.
    """
    clip_config = CLIPConfig.from_pretrained(source)
    if clip_config.model_type != "clip":
        raise ValueError(f"{source} holds a model of type {clip_config.model_type!r}; expected 'clip'.")
    fields = clip_config.to_dict()
    for name in ("model_type", "architectures", "transformers_version"):
        fields.pop(name, None)
    config = GeoAlignCLIPConfig(**fields, dense_mode=dense_mode)
    model, report = GeoAlignCLIPModel.from_pretrained(
        source, config=config, output_loading_info=True, ignore_mismatched_sizes=True, use_safetensors=True
    )
    problems = {
        "missing": sorted(set(report["missing_keys"]) - OUR_KEYS),
        "left over": sorted(key for key in report["unexpected_keys"] if not key.endswith("position_ids")),
        "of another shape": sorted(key for key, *_ in report["mismatched_keys"]),
    }
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {keys}" for kind, keys in problems.items() if keys)
        raise ValueError(
            f"{source} does not fit a CLIP of its configuration: {listed}. Give a whole CLIP checkpoint."
        )
    model.eval()
    check_parity(model, CLIPModel.from_pretrained(source, use_safetensors=True).eval())
    S = config.vision_config.image_size
    image_processor = CLIPImageProcessor.from_pretrained(
        source, size={"height": S, "width": S}, do_center_crop=False
    )
    return model, GeoAlignCLIPProcessor(image_processor, AutoTokenizer.from_pretrained(source))


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


def main() -> None:
    """Convert from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", help="folder or Hub repository of a transformers CLIP")
    parser.add_argument("dest", type=Path, help="folder to write")
    parser.add_argument("--dense_mode", default="last", help="last or value")
    arguments = parser.parse_args()
    model, processor = convert_clip(arguments.source, arguments.dense_mode)
    model.save_pretrained(arguments.dest)
    processor.save_pretrained(arguments.dest)


if __name__ == "__main__":
    main()
