"""Contact sheets show every row, with its regions in their places."""

import numpy as np
from PIL import Image

from geoalign_hf.dataset_builder.contact_sheet import (
    MARK,
    ROWS_PER_PAGE,
    SIDE,
    WIDTH,
    draw_contact_sheet,
    draw_pages,
)


def test_a_region_is_drawn_in_its_place_and_text_stands_beside_the_image():
    row = {
        "image": Image.new("RGB", (SIDE // 2, SIDE // 4)),
        "boxes": [[20, 20, 60, 60]],
        "phrases": ["a ship"],
    }
    pixels = np.asarray(draw_contact_sheet([row]))
    y, x = np.nonzero((pixels == MARK).all(axis=-1)[:, :SIDE])
    assert [x.min(), y.min(), x.max(), y.max()] == [40, 40, 120, 120]
    assert (pixels[:, SIDE:] > 200).any()


def test_long_text_stays_on_the_page():
    words = " ".join(["a very long phrase about a ship"] * 20)
    row = {"image": Image.new("RGB", (90, 90)), "boxes": [[1, 1, 9, 9]], "phrases": [words]}
    pixels = np.asarray(draw_contact_sheet([row | {"description": words}]))
    assert (pixels[:, WIDTH - 4 :] < 60).all() and (pixels[:, WIDTH - 100 :] > 200).any()


def test_rows_stand_one_below_the_other():
    row = {"image": Image.new("RGB", (90, 90)), "boxes": [], "phrases": []}
    one, three = draw_contact_sheet([row]), draw_contact_sheet([row] * 3)
    assert three.size == (one.width, 3 * one.height)


def test_many_rows_are_divided_into_pages(tmp_path):
    rows = [{"image": Image.new("RGB", (90, 90)), "boxes": [], "phrases": []}] * (ROWS_PER_PAGE + 1)
    pages = [Image.open(path) for path in draw_pages(rows, tmp_path)]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["contact_sheet.png", "contact_sheet_2.png"]
    assert pages[0].height == ROWS_PER_PAGE * pages[1].height
