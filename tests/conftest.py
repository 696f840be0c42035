"""A two-layer model, its processor and eight toy rows, all made in memory."""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any import of the library reads it
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import pytest
import torch
from toy_rows import CONCEPTS, draw_rows

from geoalign_hf.model.processing_geoalign_clip import CONCEPT_TEMPLATES
from geoalign_hf.rows import build_rows
from geoalign_hf.scratch import build_model

torch.set_num_threads(1)  # small tensors: more threads wait for each other


@pytest.fixture(scope="session")
def toy_rows():
    """Eight rows, drawn once."""
    return draw_rows(8)


@pytest.fixture(scope="session")
def rows(toy_rows):
    """The same as a dataset."""
    return build_rows(toy_rows)


@pytest.fixture(scope="session")
def built(toy_rows):
    """A model of two layers with fresh weights, and its processor; not to be changed."""
    texts = [text for row in toy_rows for text in [*row["captions"], *row["phrases"]]]
    texts += [template.format(concept) for template in CONCEPT_TEMPLATES for concept in CONCEPTS]
    torch.manual_seed(0)
    model, processor = build_model(
        texts, image_size=64, patch_size=16, width=64, depth=2, text_width=64, text_depth=2, embed_dim=32
    )
    return model.eval(), processor


@pytest.fixture
def model(built):
    """A copy that a test may change."""
    import copy

    return copy.deepcopy(built[0])


@pytest.fixture(scope="session")
def processor(built):
    """The processor of `model`."""
    return built[1]


@pytest.fixture(scope="session")
def folder(built, tmp_path_factory):
    """The model and its processor, saved."""
    path = tmp_path_factory.mktemp("saved") / "model"
    built[0].save_pretrained(path)
    built[1].save_pretrained(path)
    return path
