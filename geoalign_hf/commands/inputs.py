"""Options that several verbs share: the model, and the rows.

Their defaults are what `geoalign-hf train` and `geoalign-hf build` write by default.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import ProcessorMixin

from ..data.loading import read_rows
from ..embedding import checkpoints
from ..embedding.embedder import Embedder
from ..hub.cards import name_dataset
from ..images import DEFAULT_OPTIONS, ImageOptions
from ..model.configuration_geoalign_clip import GeoAlignCLIPConfig
from ..model.processing_geoalign_clip import GeoAlignCLIPProcessor
from ..options import option

MODEL = "outputs/train/final"
ROWS, VALIDATION_ROWS, TEST_ROWS = "outputs/rows", "outputs/rows_validation", "outputs/rows_test"


@dataclass
class ModelOptions:
    """The model, and how it embeds."""

    _argument_group_name = "model"

    model: str = option(
        default=MODEL, help="Folder or Hub repository of a GeoAlignCLIP, a stock CLIP or an adapter."
    )
    image_size: int | None = option(
        default=None, help="Side that images are resized to, in pixels. By default, that of the model."
    )
    batch_size: int = option(default=16, help="Number of images per forward pass.")

    def load(self, image_options: ImageOptions = DEFAULT_OPTIONS) -> Embedder:
        """Load the model and its processor."""
        model, processor = load_model(self.model)
        return Embedder(model, processor, self.image_size, self.batch_size, image_options)


@dataclass
class ViewOptions:
    """The view in which the model looks at a region. It is stored in the config of the model."""

    _argument_group_name = "view of a region"

    region_view: Literal["image", "window"] | None = option(
        default=None,
        help="View in which the model looks at a region: the whole image, or a window around the region. By "
        "default that of the model: the window for a new model, the image for a converted one.",
    )
    region_context: float | None = option(
        default=None,
        help="Side of that window in longer sides of the region's box, at least 1. By default that of the "
        "model: 1.6 for new and converted models.",
    )

    def list_given(self) -> list[str]:
        """List the options that were given."""
        return [f"--{name}" for name, value in vars(self).items() if value is not None]

    def apply(self, config: GeoAlignCLIPConfig) -> None:
        """Set the view in the config of a model.

        Raises:
            ValueError: If a context is given for the view `image`, or is below 1.
        """
        config.region_view = self.region_view or config.region_view
        if self.region_context is not None:
            if config.region_view == "image":
                raise ValueError(
                    "--region_context is the size of a window, but the model looks at the whole image. Add "
                    "--region_view window, or omit it."
                )
            config.region_context = self.region_context
        config.validate_region_view()


@dataclass
class RowOptions:
    """The rows that are evaluated."""

    _argument_group_name = "rows"

    dataset: str = option(
        default=TEST_ROWS, help="Folder or Hub repository of rows, or a COCO .json file (with --images)."
    )
    split: str | None = option(
        default=None, help="Split of a folder or repository. By default, test or the only split."
    )
    images: str | None = option(default=None, help="Folder of the images of a COCO file.")

    def check(self) -> None:
        """Refuse rows that do not exist, before a model is loaded."""
        check_source(self.dataset, self.images)

    def load(self, image_options: ImageOptions) -> Dataset:
        """Load the rows."""
        return load_rows(self.dataset, self.images, self.split, "test", image_options)

    def describe(self, rows: Dataset) -> dict[str, str | None]:
        """Name the loaded rows for a protocol."""
        return {"dataset": name_dataset(self.dataset), "split": str(rows.split) if rows.split else None}


def check_model_exists(name: str) -> None:
    """Check a model that is a folder.

    Raises:
        ValueError: If the model that training writes by default does not exist, or a folder holds no model.
    """
    if name == MODEL and not Path(name).exists():
        raise ValueError(f"{name} does not exist. Train a model with geoalign-hf train, or give --model.")
    names = ("config.json", "adapter_config.json")
    if Path(name).is_dir() and not any((Path(name) / file).exists() for file in names):
        raise ValueError(
            f"{name} has no config.json, so it holds no model. Give the folder of a saved model."
        )


def check_is_geoalign(processor: ProcessorMixin, name: str) -> None:
    """Refuse a stock CLIP for a verb that needs a GeoAlignCLIP.

    Raises:
        ValueError: If the processor of the model is not that of a GeoAlignCLIP.
    """
    if not isinstance(processor, GeoAlignCLIPProcessor):
        raise ValueError(
            f"{name} has a {type(processor).__name__}, but this verb needs a GeoAlignCLIP. Convert the model "
            f"first: geoalign-hf convert {name} OUTPUT_DIR."
        )


def check_search(texts: list[str], images: list[str], top_k: int) -> None:
    """Check what is searched for, before a model is loaded.

    Raises:
        ValueError: If there is neither a text nor an image, or `top_k` is below 1.
    """
    if not texts and not images:
        raise ValueError("there is nothing to search for. Give a text, or files with --image.")
    if top_k < 1:
        raise ValueError(f"--top_k is {top_k}. Give 1 or more.")


def load_model(name: str) -> tuple[torch.nn.Module, ProcessorMixin]:
    """Load a model onto the device of this process, and its processor.

    Raises:
        ValueError: If the model that training writes by default is asked for and does not exist, or a file
            of the model is damaged.
    """
    check_model_exists(name)
    model, processor = checkpoints.load_model(name), checkpoints.load_processor(name)
    checkpoints.check_tokens(processor.tokenizer, model)
    return model.to(PartialState().device), processor


def load_rows(
    source: str, images: str | None, split: str | None, default_split: str, image_options: ImageOptions
) -> Dataset:
    """Load rows of a folder, a Hub repository, or a COCO file with its images; see `check_source`."""
    check_source(source, images)
    return read_rows(source, images, split, default_split, image_options)


def check_source(source: str, images: str | None) -> None:
    """Check where rows come from.

    Raises:
        ValueError: If the dataset that building writes by default does not exist, or a COCO file is given
            without its images.
    """
    check_default_rows(source)
    if source.endswith(".json") and images is None:
        raise ValueError(f"--dataset is the COCO file {source}, but --images is not given. Give both.")


def check_default_rows(source: str) -> None:
    """Check that a dataset exists if it is one that building writes by default.

    Raises:
        ValueError: If it does not exist.
    """
    for name, command in ((ROWS, "geoalign-hf build"), (TEST_ROWS, "geoalign-hf build --split test")):
        if source == name and not Path(name).exists():
            raise ValueError(f"{name} does not exist. Build it with {command}, or give --dataset.")
