"""Laws of windows around regions: the region goes where its pixels go, and only true words remain."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from geoalign_hf.data.augmentation import Augmentation
from geoalign_hf.data.region_windows import ImagePyramid, view_region
from geoalign_hf.model.views_geoalign_clip import cut_windows

PLAIN = {"turn": False, "light": 0.0, "shift": 0.0, "stretch_sides": 0.0}


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def paint_row(boxes, size=(300, 200), **columns) -> dict:
    """A black image in which region r is a rectangle of brightness 100 + 50 * r."""
    image = Image.new("RGB", size)
    for r, (x0, y0, x1, y1) in enumerate(boxes):
        ImageDraw.Draw(image).rectangle((x0, y0, x1 - 1, y1 - 1), fill=(100 + 50 * r,) * 3)
    concepts = [f"concept {r}" for r in range(len(boxes))]
    return {
        "image": image,
        "boxes": [list(map(float, box)) for box in boxes],
        "phrases": [f"a red {concept}" for concept in concepts],
        "concepts": concepts,
        "hard_negatives": [[f"a blue {concept}"] for concept in concepts],
        "captions": ["many things"],
        "description": "many things, long",
    } | columns  # fmt: skip


def view(row, r, number=0, size=64, **options):
    return view_region(row, r, size, Augmentation(**options), seed(number), ImagePyramid(row["image"]))


@pytest.mark.parametrize("box", [(100, 60, 130, 80), (2, 150, 60, 170), (20, 40, 280, 140)])
def test_the_quad_of_a_region_lies_on_its_pixels_at_every_angle(box):
    row = paint_row([box])
    for number in range(20):
        window = view(row, 0, number, light=0.0)
        mask = Image.new("L", (64, 64))
        ImageDraw.Draw(mask).polygon([tuple(corner) for corner in window["quads"][0]], fill=255)
        drawn, seen = np.asarray(mask) > 0, np.asarray(window["image"])[..., 0] > 50
        assert (drawn & seen).sum() / (drawn | seen).sum() > 0.8


@pytest.mark.parametrize("box", [(0, 0, 90, 3), (297, 110, 300, 200), (0, 0, 4, 4), (0, 190, 300, 200)])
def test_a_region_at_the_border_stays_in_its_window_at_every_angle(box, processor):
    for number in range(60):
        window = view(paint_row([box]), 0, number, shift=0.2)
        x, y = np.mean(window["quads"][0], axis=0)
        assert 0 < x < 64 and 0 < y < 64
        processor(images=[window["image"]], quads=[window["quads"]], return_tensors="pt")


@pytest.mark.parametrize("box", [(100, 60, 132, 80), (-90, 60, 32, 80)], ids=["inside", "reaching outside"])
def test_a_window_without_chance_is_the_window_of_inference(box):
    row = paint_row([box])
    window = view(row, 0, size=64, min_context=2.0, max_context=2.0, **PLAIN)
    (expected,), (box,) = cut_windows(row["image"], row["boxes"], 2.0)
    assert window["image"].size == expected.size == (64, 64)
    assert window["boxes"][0] == pytest.approx(box.clamp(0, 64))
    differences = np.abs(np.asarray(window["image"], int) - np.asarray(expected, int))
    assert differences.max() <= 1


def test_the_side_of_a_window_lies_between_the_contexts_and_its_centre_near_that_of_the_region():
    row = paint_row([(140, 90, 160, 100)])
    for number in range(50):
        window = view(row, 0, number, turn=False, light=0.0, stretch_sides=0.0, shift=0.1)
        x0, y0, x1, y1 = window["boxes"][0]
        assert 1.2 <= 64 / (x1 - x0) <= 2.5
        assert abs((x0 + x1) / 2 - 32) <= 6.4 + 1e-6 and abs((y0 + y1) / 2 - 32) <= 6.4 + 1e-6


def test_the_region_comes_first_and_others_follow_if_enough_of_them_is_visible():
    row = paint_row([(100, 60, 110, 70), (112, 60, 122, 70), (124, 60, 134, 70), (250, 150, 260, 160)])
    window = view(row, 1, min_context=2.5, max_context=2.5, **PLAIN)  # from x = 104.5 to 129.5
    assert window["concepts"] == ["concept 1", "concept 0", "concept 2"]
    assert window["phrases"][1:] == ["a red concept 0", "a red concept 2"]
    assert window["unboxed"] == []
    alone = view(row, 1, min_context=2.5, max_context=2.5, min_visible=0.9, **PLAIN)
    assert alone["concepts"] == ["concept 1"] and alone["unboxed"] == ["concept 0", "concept 2"]


def test_texts_of_the_whole_image_are_dropped_and_texts_of_the_region_stay():
    window = view(paint_row([(100, 60, 110, 70)]), 0)
    assert window["captions"] == [] and window["description"] is None
    assert window["phrases"] == ["a red concept 0"] and window["hard_negatives"] == [["a blue concept 0"]]


def test_a_phrase_that_names_a_direction_is_replaced_since_the_window_is_turned():
    row = paint_row([(100, 60, 130, 70)], phrases=["the northern concept"])
    assert view(row, 0)["phrases"] == ["a concept 0"] and view(row, 0)["hard_negatives"] == [[]]


def test_a_large_window_is_drawn_from_a_smaller_copy_of_the_image():
    pyramid = ImagePyramid(Image.new("RGB", (801, 600), (9, 9, 9)))
    sizes = [pyramid.get_level(scale).size for scale in (0.3, 1.0, 2.0, 4.2, 1e9)]
    assert sizes[:4] == [(801, 600), (801, 600), (401, 300), (201, 150)] and min(sizes[4]) == 1


def test_the_same_seed_gives_the_same_window_and_another_one_another(toy_rows):
    images = [view(toy_rows[0], 0, number)["image"].tobytes() for number in (1, 1, 2)]
    assert images[0] == images[1] != images[2]


def test_a_share_of_the_windows_loses_one_rectangle_of_one_colour():
    row, sides = paint_row([(100, 60, 130, 80)], size=(400, 400)), []
    row["image"] = Image.new("RGB", (400, 400), (7, 7, 7))
    for number in range(200):
        window = view(row, 0, number, erase=0.5, light=0.0)
        plain = view(row, 0, number, light=0.0)
        assert {key: value for key, value in window.items() if key != "image"} == {
            key: value for key, value in plain.items() if key != "image"
        }
        pixels = np.asarray(window["image"])
        ys, xs = np.nonzero((pixels != np.asarray(plain["image"])).any(axis=2))
        if len(ys):
            painted = pixels[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
            assert (painted == painted[0, 0]).all()
            sides.append(painted.shape[:2])
    assert 70 < len(sides) < 130
    assert 0.15 * 64 - 1 < np.min(sides) < 14 and 24 < np.max(sides) < 0.45 * 64 + 1


def test_windows_are_rows_that_the_processor_takes(toy_rows, processor):
    for number in range(40):
        row = toy_rows[number % 8]
        window = view(row, number % len(row["boxes"]), number)
        columns = ("boxes", "quads", "phrases", "concepts", "hard_negatives")
        assert len({len(window[name]) for name in columns}) == 1
        processor(images=[window["image"]], boxes=[window["boxes"]], clip_boxes=False, return_tensors="pt")
        processor(images=[window["image"]], quads=[window["quads"]], return_tensors="pt")
