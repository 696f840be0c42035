"""Laws of the contact sheet: every row is on it, with its regions where they lie."""

import numpy as np
from PIL import Image

from geoalign_hf.dataset_builder.contact_sheet import SIDE, draw_contact_sheet


def test_a_region_is_drawn_where_it_lies_and_words_stand_beside_it():
    row = {
        "image": Image.new("RGB", (SIDE // 2, SIDE // 4)),
        "boxes": [[20, 20, 60, 60]],
        "phrases": ["a ship"],
    }
    pixels = np.asarray(draw_contact_sheet([row]))
    yellow = (pixels[..., 0] > 200) & (pixels[..., 1] > 200) & (pixels[..., 2] < 60)
    y, x = np.nonzero(yellow)
    assert [x.min(), y.min(), x.max(), y.max()] == [40, 40, 120, 120]
    assert (pixels[:, SIDE:] > 200).any()


def test_rows_stand_one_below_the_other():
    row = {"image": Image.new("RGB", (90, 90)), "boxes": [], "phrases": []}
    one, three = draw_contact_sheet([row]), draw_contact_sheet([row] * 3)
    assert three.size == (one.width, 3 * one.height)
