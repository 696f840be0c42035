"""Laws of augmentation: regions and words stay true of the changed image."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from geoalign_hf.data.augmentation import DIRECTIONS, Augmentation, _turn
from geoalign_hf.data.windows import cut_window

STILL = {"turn": False, "light": 0.0}


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def paint(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """A black image with one white half-open box."""
    image = Image.new("RGB", size)
    x0, y0, x1, y1 = box
    ImageDraw.Draw(image).rectangle((x0, y0, x1 - 1, y1 - 1), fill=(255, 255, 255))
    return image


def find_white(image: Image.Image) -> list[float]:
    rows, columns = np.nonzero(np.asarray(image)[..., 0] > 127)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def make_row(size=(40, 24), boxes=((5, 3, 12, 20),), **columns) -> dict:
    concepts = [f"concept {r}" for r in range(len(boxes))]
    return {
        "image": paint(size, boxes[0]) if boxes else Image.new("RGB", size),
        "boxes": [list(map(float, box)) for box in boxes],
        "phrases": [f"a {concept}" for concept in concepts],
        "concepts": concepts,
        "hard_negatives": [[f"no {concept}"] for concept in concepts],
        "captions": ["many things"],
        "description": "many things, long",
    } | columns  # fmt: skip


# Turning


@pytest.mark.parametrize("number", range(8))
def test_a_box_bounds_the_same_pixels_after_every_turn(number):
    turned = _turn(make_row(), number)
    assert turned["boxes"] == [find_white(turned["image"])]


@pytest.mark.parametrize("number", range(8))
def test_a_quad_bounds_the_same_pixels_after_every_turn(number):
    quad = [[8.0, 2.0], [30.0, 10.0], [24.0, 20.0], [4.0, 12.0]]
    row = make_row(quads=[quad])
    row["image"] = Image.new("RGB", (40, 24))
    ImageDraw.Draw(row["image"]).polygon([tuple(corner) for corner in quad], fill=(255, 255, 255))
    turned = _turn(row, number)
    expected = Image.new("RGB", turned["image"].size)
    ImageDraw.Draw(expected).polygon([tuple(corner) for corner in turned["quads"][0]], fill=(255, 255, 255))
    differ = np.asarray(expected)[..., 0] != np.asarray(turned["image"])[..., 0]
    # PIL draws pixel centres, so a border one pixel wide may differ; the area inside is 276 pixels.
    assert differ.sum() <= 60
    (x0, y0), (x1, y1) = np.min(turned["quads"][0], axis=0), np.max(turned["quads"][0], axis=0)
    assert np.abs(np.subtract(find_white(turned["image"]), [x0, y0, x1, y1])).max() <= 1


@pytest.mark.parametrize("number", range(8))
def test_each_corner_of_a_quad_goes_where_its_pixel_goes(number):
    corners = [(3, 2), (30, 5), (25, 20), (6, 15)]
    row = make_row(quads=[[[x + 0.5, y + 0.5] for x, y in corners]])
    row["image"] = Image.new("RGB", (40, 24))
    for k, corner in enumerate(corners):
        row["image"].putpixel(corner, (50 + k, 0, 0))
    turned = _turn(row, number)
    found = [turned["image"].getpixel((int(x), int(y)))[0] for x, y in turned["quads"][0]]
    assert found == [50, 51, 52, 53]


def test_the_eight_turns_give_eight_different_images():
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    row = make_row(image=Image.fromarray(pixels))
    turned = [_turn(row, number)["image"] for number in range(8)]
    assert len({(image.size, image.tobytes()) for image in turned}) == 8


@pytest.mark.parametrize("number", range(8))
def test_a_row_without_regions_is_turned(number):
    turned = _turn(make_row(boxes=()), number)
    assert turned["boxes"] == [] and turned["quads"] == []
    assert turned["image"].size == ((24, 40) if number // 2 % 2 else (40, 24))


@pytest.mark.parametrize(
    "columns",
    [
        {"captions": ["a ship at the left"]},
        {"captions": ["a ship", "Northern quay"]},
        {"description": "The ship lies at the upper right."},
        {"phrases": ["the westernmost ship"]},
        {"hard_negatives": [["the ship below"]]},
    ],
    ids=["caption", "second caption", "description", "phrase", "hard negative"],
)
def test_words_that_speak_of_directions_keep_the_row_as_it_lies(columns):
    row = make_row(**columns)
    change = Augmentation(whole_share=1.0, light=0.0)
    for number in range(20):
        changed = change(row, seed(number))
        assert changed["image"].tobytes() == row["image"].tobytes() and changed["boxes"] == row["boxes"]


def test_other_words_leave_all_eight_turns_open():
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    row = make_row(image=Image.fromarray(pixels))
    change = Augmentation(whole_share=1.0, light=0.0)
    seen = {change(row, seed(number))["image"].tobytes() for number in range(80)}
    assert len(seen) == 8


def test_only_whole_words_are_directions():
    assert not DIRECTIONS.search("an upright desktop, a leftover and a rightful cover")
    assert DIRECTIONS.search("in the South-East")


# Windows


def test_a_window_drops_hidden_regions_together_with_their_words():
    boxes = [(2, 2, 8, 8), (10, 2, 20, 8), (16, 10, 20, 20), (30, 2, 38, 8)]
    quads = [[[x0, y0], [x1, y0], [x1, y1], [x0, y1]] for x0, y0, x1, y1 in boxes]
    row = make_row(boxes=boxes, quads=quads)
    # Of the regions 1, 0.8, 0.5 and 0 are visible.
    cut = cut_window(row, (0, 1, 18, 24), min_visible=0.6)
    assert cut["boxes"] == [[2, 1, 8, 7], [10, 1, 18, 7]]
    assert cut["quads"] == [
        [[2, 1], [8, 1], [8, 7], [2, 7]],
        [[10, 1], [20, 1], [20, 7], [10, 7]],  # kept whole
    ]
    assert cut["concepts"] == ["concept 0", "concept 1"]
    assert cut["phrases"] == ["a concept 0", "a concept 1"]
    assert cut["hard_negatives"] == [["no concept 0"], ["no concept 1"]]
    assert cut["image"].size == (18, 23)
    assert cut["captions"] == [] and cut["description"] is None


@pytest.mark.parametrize(("min_visible", "num_kept"), [(0.0, 2), (0.5, 2), (0.51, 1), (1.0, 1)])
def test_a_region_stays_if_its_visible_share_reaches_the_bound(min_visible, num_kept):
    row = make_row(boxes=[(2, 2, 8, 8), (16, 10, 20, 20), (30, 2, 38, 8)])
    assert len(cut_window(row, (0, 0, 18, 24), min_visible)["boxes"]) == num_kept


def test_words_of_the_scene_stay_where_no_region_was_lost():
    row = make_row(boxes=[(2, 2, 8, 8), (10, 2, 20, 8)])
    cut = cut_window(row, (1, 1, 18, 24), min_visible=0.5)
    assert cut["captions"] == ["many things"] and cut["description"] == "many things, long"


def test_words_of_a_scene_without_regions_stay():
    assert cut_window(make_row(boxes=()), (0, 0, 9, 9))["captions"] == ["many things"]


def test_words_that_tell_of_the_whole_image_do_not_outlive_a_cut():
    row = make_row(boxes=[(2, 2, 8, 8), (10, 2, 20, 8), (22, 2, 30, 8)])
    row |= {"phrases": ["one of three ships in a row", "a red ship", "a ship"], "concepts": ["ship"] * 3}
    row |= {"hard_negatives": [["one of five ships in a row"], ["a blue ship"], ["a ship at the left"]]}
    row |= {"negative_kinds": [["count"], ["colour"], ["position"]], "captions": ["ships at the top"]}
    cut = cut_window(row, (1, 1, 40, 24))
    assert cut["phrases"] == ["a ship", "a red ship", "a ship"]
    assert cut["hard_negatives"] == [[], ["a blue ship"], []]
    assert cut["negative_kinds"] == [[], ["colour"], []]
    assert cut["captions"] == [] and cut["description"] is None
    whole = cut_window(row, (0, 0, 40, 24))
    assert whole["phrases"] == row["phrases"] and whole["captions"] == row["captions"]


def test_what_is_in_sight_without_its_region_stays_known():
    row = make_row(boxes=[(2, 2, 8, 8), (16, 10, 20, 20), (30, 2, 38, 8)], unboxed=["crane"])
    assert cut_window(row, (0, 0, 17, 24))["unboxed"] == ["concept 1", "crane"]


def test_a_row_that_was_cut_is_itself_unchanged():
    row = make_row(boxes=[(2, 2, 8, 8), (30, 2, 38, 8)])
    before = {name: str(value) for name, value in row.items()}
    cut_window(row, (0, 0, 18, 24))
    assert {name: str(value) for name, value in row.items()} == before


# Chance and light


def test_the_same_seed_gives_the_same_row(toy_rows):
    for number, row in enumerate(toy_rows):
        first, second = (Augmentation()(row, seed(number)) for _ in range(2))
        assert first.pop("image").tobytes() == second.pop("image").tobytes()
        assert first == second


def test_another_seed_gives_another_row(toy_rows):
    images = {Augmentation()(toy_rows[0], seed(number))["image"].tobytes() for number in range(10)}
    assert len(images) == 10


def test_light_leaves_size_boxes_and_words_as_they_are(toy_rows):
    change = Augmentation(whole_share=1.0, turn=False, light=0.5)
    for number, row in enumerate(toy_rows):
        changed = change(row, seed(number))
        assert changed["image"].size == row["image"].size
        assert changed["image"].tobytes() != row["image"].tobytes()
        assert changed | {"image": None} == row | {"image": None}


def test_nothing_switched_on_leaves_the_pixels_as_they_are(toy_rows):
    change = Augmentation(whole_share=1.0, **STILL)
    for row in toy_rows:
        assert change(row, seed(0))["image"].tobytes() == row["image"].tobytes()


def test_a_gray_image_becomes_rgb():
    row = make_row(image=Image.new("L", (40, 24), 90))
    changed = Augmentation(whole_share=1.0, **STILL)(row, seed(0))
    assert changed["image"].mode == "RGB" and changed["image"].getpixel((3, 3)) == (90, 90, 90)


@pytest.mark.parametrize(
    "options, found",
    [
        ({"whole_share": 1.5}, "whole_share is 1.5"),
        ({"shift": -0.1}, "shift is -0.1"),
        ({"min_context": 0.9}, "min_context is 0.9"),
        ({"min_context": 3.0}, "max_context 2.5"),
        ({"views_per_row": 0}, "views_per_row is 0"),
    ],
)
def test_options_out_of_range_are_refused(options, found):
    with pytest.raises(ValueError, match=found):
        Augmentation(**options)
