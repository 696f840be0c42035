"""`geoalign-hf convert`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..convert.convert import convert_clip
from ..options import option
from ..storage import atomic_folder
from .inputs import ViewOptions


@dataclass
class ConvertOptions:
    """What is converted, and the facts that a file of weights does not hold."""

    _positional = ("source", "output_dir")

    source: str = option(
        help="Folder or Hub repository of a transformers or OpenCLIP model, or a file of weights in "
        "OpenCLIP's layout (on the Hub REPOSITORY/FILE)."
    )
    output_dir: str = option(help="Folder of the converted model. It must be new or empty.")
    dense_mode: Literal["last", "value"] = option(
        default="last", help="Patch features that regions are pooled from."
    )
    activation: Literal["quick_gelu", "gelu"] | None = option(
        default=None,
        help="Activation function of the towers. A file of weights requires it; other sources refuse it.",
    )
    vision_heads: int | None = option(
        default=None, help="Number of attention heads of the vision tower, for a file of unusual width."
    )
    text_heads: int | None = option(
        default=None, help="Number of attention heads of the text tower. By default, one per 64 of its width."
    )
    tokenizer: str | None = option(
        default=None,
        help="Folder or repository of the tokenizer, or OpenCLIP's file of merges, if it is not CLIP's.",
    )
    text_length: int | None = option(
        default=None, help="Number of positions that the text tower is stretched to, such as 248."
    )


def convert(options: ConvertOptions, view: ViewOptions) -> Path:
    """Convert a CLIP checkpoint into a GeoAlignCLIP. The embeddings of a transformers CLIP are compared."""
    arguments = dict(vars(options))
    output_dir = Path(arguments.pop("output_dir"))
    if output_dir.is_file() or output_dir.is_dir() and any(output_dir.iterdir()):
        raise ValueError(f"{output_dir} exists and is not empty. Give another folder, or remove it.")
    model, processor = convert_clip(**arguments)
    view.apply(model.config)
    with atomic_folder(output_dir) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return output_dir
