"""The law of the processor under generated input: right tensors, or a ValueError that names the place."""

import io
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from geoalign_hf.model.images_geoalign_clip import PLAIN_MODES, WIDE_MODES
from geoalign_hf.model.regions_geoalign_clip import (
    pool_regions,
    weigh_regions,
)

NUMBERS = st.one_of(
    st.integers(-20, 60),
    st.floats(),
    st.floats(0, 40),
    st.sampled_from([10**400, -(10**30), 1e-320, True, None]),
)
JUNK = st.recursive(
    st.one_of(
        NUMBERS,
        st.text(max_size=4),
        st.sampled_from([b"x", {}, {"a": 1}, 1j, np.nan, Image.new("L", (9, 7))]),
    ),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=6,
)
MODES = sorted(PLAIN_MODES | WIDE_MODES | {"LAB", "I;16B"})
DTYPES = [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64]
DTYPES += [np.float16, np.float32, np.float64, np.longdouble, np.complex64, np.bool_, object, "U3"]
TORCH_DTYPES = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool, torch.float16]
TORCH_DTYPES += [torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.uint16]
SHAPES = st.one_of(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5)),
    st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)),
    st.lists(st.integers(0, 6), max_size=5).map(tuple),
)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "stretch": st.sampled_from([(2, 98), (0, 100), (98, 2), (2,), "ab"]),
        "limits": st.sampled_from([(0, 1), (-5.0, 300), (0, math.nan), (1, 1)]),
        "bands": st.sampled_from([(1,), (3, 2, 1), (5, 1, 1), (0, 1, 2), (1, 2), (1.5, 1, 1)]),
        "size": st.sampled_from([48, {"height": 32, "width": 64}, {"shortest_edge": 32}, 0, -1, "x"]),
        "input_data_format": st.sampled_from(["channels_first", "channels_last", "x"]),
        "max_regions": st.sampled_from([0, 3, -1, 1.5, True]),
        "clip_boxes": st.booleans(),
        "max_pixels": st.sampled_from([1, 10**6, 0]),
        "do_rescale": st.booleans(),
        "return_tensors": st.sampled_from(["pt", "np", None, "tf"]),
    },
)


def draw_array(data, as_tensor: bool):
    shape, seed = data.draw(SHAPES), data.draw(st.integers(0, 99))
    generator = np.random.default_rng(seed)
    values = data.draw(st.sampled_from(["unit", "byte", "wide", "odd"]))
    array = generator.random(shape)
    if values != "unit":
        array = np.floor(array * {"byte": 256, "wide": 60_000, "odd": 9}[values]) - (
            4 if values == "odd" else 0
        )
    if values == "odd" and array.size:
        array.flat[0] = data.draw(st.sampled_from([math.nan, math.inf, -math.inf, 1e30]))
    with np.errstate(all="ignore"):
        if as_tensor:
            return torch.tensor(array).to(data.draw(st.sampled_from(TORCH_DTYPES)))
        return array.astype(data.draw(st.sampled_from(DTYPES)))


def draw_image(data):
    kind = data.draw(st.sampled_from(["pil", "array", "tensor", "file", "junk"]))
    if kind == "array":
        return draw_array(data, as_tensor=False)
    if kind == "tensor":
        return draw_array(data, as_tensor=True)
    if kind == "junk":
        return data.draw(
            st.one_of(JUNK, st.sampled_from(["/nowhere.png", "", "data:x", "ftp://x/a.png", b"", b"II*\0x"]))
        )
    image = Image.new(
        data.draw(st.sampled_from(MODES)), data.draw(st.sampled_from([(9, 7), (1, 1), (12, 3), (0, 4)]))
    )
    if kind == "file":
        file = io.BytesIO()
        try:
            image.save(file, data.draw(st.sampled_from(["PNG", "TIFF", "JPEG"])))
        except Exception:
            return image
        content = bytearray(file.getvalue())
        if content and data.draw(st.booleans()):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        return bytes(content)
    return image


def draw_regions(data, form: str):
    if not data.draw(st.integers(0, 3)):
        return data.draw(JUNK)
    entry = {
        "boxes": st.lists(NUMBERS, min_size=4, max_size=4),
        "quads": st.lists(st.lists(NUMBERS, min_size=2, max_size=2), min_size=4, max_size=4),
        "masks": st.sampled_from(
            [
                np.ones((7, 9), bool),
                np.eye(7, 9),
                np.full((7, 9), 0.5),
                np.zeros((7, 9)),
                np.full((7, 9), np.nan),
                np.ones((7, 9), np.uint8) * 255,
                np.ones((9, 7), bool),
                np.ones((0, 0)),
                np.eye(7, 9) * 1j,
            ]
        ),
    }[form]
    return data.draw(st.lists(st.one_of(entry, entry, entry, JUNK), max_size=3))


def check_batch(batch, num_images: int) -> None:
    """What comes out is finite and in its frame."""
    for name, value in batch.items():
        if isinstance(value, list) and len({np.shape(part) for part in value}) > 1:
            assert name == "pixel_values"  # images of different sizes, without return_tensors
            assert all(np.isfinite(part).all() for part in value) and len(value) == num_images
            continue
        array = np.asarray(value, dtype=np.float64)
        assert np.isfinite(array).all(), name
        if name.startswith("region_"):
            assert len(array) == num_images
        if name == "region_boxes":
            assert (array >= 0).all() and (array <= 1).all()
            assert (array[..., 2:] >= array[..., :2]).all()
        if name == "region_coverage":
            assert (array >= 0).all() and (array <= 1).all()


@pytest.mark.parametrize("num_examples", [60, pytest.param(2_000, marks=pytest.mark.slow)])
def test_images_are_read_or_refused_by_their_index(processor, num_examples):
    good = Image.new("RGB", (9, 7), (10, 20, 30))
    expected = processor(images=good, return_tensors="np")["pixel_values"][0]

    def law(data):
        image, options = draw_image(data), data.draw(OPTIONS)
        try:
            batch = processor(images=[good, image], **options)
        except (ValueError, TypeError) as error:
            names = (*OPTIONS_NAMES, "image 1", "images", "expected")
            assert any(name in str(error) for name in names), (type(error), error)
            return
        check_batch(batch, 2)
        first = np.asarray(batch["pixel_values"][0])
        if not options.keys() & {"size", "bands", "do_rescale"}:  # a good image stays what it was
            assert np.abs(first - expected).max() < 1e-6

    settings(max_examples=num_examples)(given(st.data())(law))()


OPTIONS_NAMES = (
    "stretch",
    "limits",
    "bands",
    "size",
    "input_data_format",
    "max_regions",
    "max_pixels",
    "do_rescale",
    "return_tensors",
    "tensor",
)


@pytest.mark.parametrize("num_examples", [60, pytest.param(2_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", ["boxes", "quads", "masks"])
def test_regions_are_in_their_frame_or_refused_by_their_place(built, form, num_examples):
    model, processor = built
    images = [Image.new("RGB", (9, 7)), Image.new("RGB", (9, 7), "red")]

    def law(data):
        regions = [draw_regions(data, form), draw_regions(data, form)]
        if not data.draw(st.integers(0, 9)):
            regions = data.draw(JUNK)
        if regions is None:
            return
        max_regions = data.draw(st.sampled_from([None, None, 2, 4]))
        try:
            batch = processor(images=images, return_tensors="pt", max_regions=max_regions, **{form: regions})
        except (ValueError, TypeError) as error:
            assert form in str(error) or "max_regions" in str(error), error
            return
        check_batch(batch, 2)
        counts = batch["region_mask"].sum(dim=1).tolist()
        assert counts == [len(part) for part in regions]
        key = {"boxes": "region_boxes", "quads": "region_quads", "masks": "region_coverage"}[form]
        weights = weigh_regions(2, (4, 4), **{key: batch[key]}, region_mask=batch["region_mask"])
        assert weights.isfinite().all() and (weights >= 0).all()
        assert torch.allclose(weights.sum(-1), batch["region_mask"].float(), atol=1e-4)
        pooled = pool_regions(torch.ones(2, 16, 3), weights)
        assert torch.allclose(pooled[batch["region_mask"]], torch.ones(3), atol=1e-4)

    settings(max_examples=num_examples)(given(st.data())(law))()


@pytest.mark.parametrize("num_examples", [60, pytest.param(2_000, marks=pytest.mark.slow)])
def test_texts_are_tokenized_or_refused_by_their_index(processor, num_examples):
    texts = st.one_of(st.text(max_size=8), st.lists(st.one_of(st.text(max_size=8), JUNK), max_size=4), JUNK)

    def law(data):
        text = data.draw(texts)
        if text is None:
            return
        try:
            batch = processor(text=text, return_tensors="pt", padding=True)
        except (ValueError, TypeError) as error:
            assert re.search(r"text(\[\d+\])?", str(error)), error
            return
        assert len(batch["input_ids"]) == (1 if isinstance(text, str) else len(text))
        assert batch["attention_mask"].any(dim=1).all()

    settings(max_examples=num_examples)(given(st.data())(law))()
