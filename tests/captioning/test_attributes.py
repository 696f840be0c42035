"""Laws of facts: what is said of a drawn scene is so, and what is unclear is not said."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from geoalign_hf.captioning.attributes import HUES, Facts, choose_colour, code_colours, find_facts, find_signs
from geoalign_hf.captioning.grammar import COLOURS, PLACES


def draw(boxes, colours=None, size=(200, 200), ground=(90, 95, 90), concepts=None, **columns) -> dict:
    """A gray scene with one filled box for each region."""
    image = Image.new("RGB", size, ground)
    for box, colour in zip(boxes, colours or ["white"] * len(boxes), strict=True):
        x0, y0, x1, y1 = box
        ImageDraw.Draw(image).rectangle((x0, y0, x1 - 1, y1 - 1), fill=colour)
    concepts = concepts or ["tank"] * len(boxes)
    return {"image": image, "boxes": [list(map(float, box)) for box in boxes], "concepts": concepts} | columns


def place(facts: Facts, *regions: int) -> str | None:
    return facts.find_place(list(regions))


# Places


@pytest.mark.parametrize(
    ("box", "name"),
    [((5, 5, 25, 25), "upper left"), ((170, 170, 190, 190), "lower right"), ((90, 5, 110, 25), "top"),
     ((90, 90, 110, 110), "center"), ((5, 60, 25, 75), "left"), ((60, 60, 75, 75), None),
     ((10, 10, 190, 30), "top"),     ((0, 0, 200, 200), None),
     ((5, 5, 105, 25), "top")]
)  # fmt: skip
def test_a_place_is_said_where_it_is_clear(box, name):
    assert place(find_facts(draw([box])), 0) == name


def test_a_group_has_a_place_if_all_of_it_lies_there():
    facts = find_facts(draw([(5, 5, 25, 25), (30, 5, 50, 25), (170, 5, 190, 25)]))
    assert place(facts, 0, 1) == "upper left"
    assert place(facts, 0, 1, 2) == "top"


def test_every_place_that_is_said_may_be_said():
    rng = np.random.default_rng(0)
    for _ in range(300):
        x, y, width, height = rng.uniform(0, 150), rng.uniform(0, 150), rng.uniform(5, 50), rng.uniform(5, 50)
        facts = find_facts(draw([]) | {"boxes": [[x, y, x + width, y + height]], "concepts": ["ship"]})
        name = place(facts, 0)
        if name:
            assert facts.may_lie_at(0, name)
            opposite = PLACES[tuple(-sign for sign in find_signs(name))]
            assert name == "center" or not facts.may_lie_at(0, opposite)


# Colours


@pytest.mark.parametrize("colour", COLOURS)
def test_the_colour_of_a_region_is_told_from_its_pixels(colour):
    facts = find_facts(draw([(50, 50, 90, 90)], [colour]))
    assert facts.colours == [colour] and facts.possible_colours == [frozenset({colour})]


def test_the_colour_of_the_ground_is_no_colour_of_a_region():
    assert find_facts(draw([(50, 50, 90, 90)], ["green"], ground=(0, 128, 0))).colours == [None]


def test_two_colours_are_none_and_both_are_possible():
    row = draw([(50, 50, 90, 90)], ["red"])
    ImageDraw.Draw(row["image"]).rectangle((50, 50, 69, 89), fill="blue")
    facts = find_facts(row)
    assert facts.colours == [None] and facts.possible_colours == [frozenset({"red", "blue"})]


def test_neighbours_of_the_same_colour_are_no_ground():
    facts = find_facts(draw([(50, 50, 90, 90), (92, 50, 132, 90), (50, 92, 132, 132)]))
    assert facts.colours == ["white"] * 3


def test_gray_dark_and_mixed_pixels_have_no_colour():
    pixels = np.uint8([[[128, 128, 128], [20, 10, 10], [150, 130, 110], [200, 120, 40]]])
    assert code_colours(pixels).tolist() == [[0, 0, 0, 0]]


def test_a_colour_that_is_around_as_well_is_not_said():
    assert choose_colour({"white": 0.6}, {"white": 0.05}) == "white"
    assert choose_colour({"white": 0.6}, {"white": 0.07}) is None
    assert choose_colour({"white": 0.6, "red": 0.3}, {}) is None
    assert choose_colour({"white": 0.2}, {}) is None


# Sizes


def test_a_size_is_that_among_its_kind_in_the_image():
    boxes = [(5, 5, 25, 25), (40, 5, 60, 25), (80, 5, 110, 35), (120, 5, 132, 17), (5, 100, 95, 190)]
    facts = find_facts(draw(boxes, concepts=["tank"] * 4 + ["field"]))
    assert facts.sizes == [None, None, "large", "small", None]


def test_of_two_none_is_large_and_what_the_edge_cuts_is_not_judged():
    assert find_facts(draw([(5, 5, 15, 15), (40, 5, 80, 45)])).sizes == [None, None]
    boxes = [(5, 5, 25, 25), (40, 5, 60, 25), (80, 5, 100, 25), (190, 5, 200, 10)]
    assert find_facts(draw(boxes)).sizes == [None] * 4


def test_what_is_cut_or_has_too_few_of_its_kind_may_have_any_size():
    boxes = [(5, 5, 25, 25), (40, 5, 60, 25), (80, 5, 110, 35), (120, 5, 132, 17), (5, 190, 8, 200)]
    facts = find_facts(draw([*boxes, (50, 100, 90, 140)], concepts=["tank"] * 5 + ["field"]))
    both = {"small", "large"}
    assert facts.possible_sizes == [frozenset(), frozenset(), {"large"}, {"small"}, both, both]


def test_an_oriented_region_is_as_long_as_its_quad():
    boxes = [(10, 10, 30, 30), (50, 10, 70, 30), (90, 10, 110, 30)]
    quads = [[[x0, y0], [x1, y0], [x1, y1], [x0, y1]] for x0, y0, x1, y1 in boxes]
    quads[2] = [[100, 10], [110, 20], [100, 30], [90, 20]]  # its sides are 20 / 2 ** 0.5 long
    assert find_facts(draw(boxes, quads=quads)).sizes == [None] * 3


# Groups and relations


def test_close_regions_of_one_concept_are_a_group():
    boxes = [(5, 5, 25, 25), (30, 5, 50, 25), (55, 5, 75, 25), (150, 150, 170, 170), (80, 5, 100, 25)]
    facts = find_facts(draw(boxes, concepts=["tank"] * 4 + ["ship"]))
    assert facts.list_group(1) == [0, 1, 2] and facts.list_group(3) == [3] and facts.list_group(4) == [4]


def test_even_regions_on_a_line_are_a_row():
    def is_row(*centers, side=10):
        boxes = [(x - side, y - side, x + side, y + side) for x, y in centers]
        return find_facts(draw(boxes)).is_in_row(list(range(len(boxes))))

    assert is_row((20, 20), (50, 21), (80, 20))
    assert is_row((20, 20), (50, 50), (80, 80))
    assert not is_row((20, 20), (50, 20))
    assert not is_row((20, 20), (50, 40), (80, 20))
    assert not is_row((20, 20), (45, 20), (100, 20))


def test_relations_hold_from_one_side_alone():
    facts = find_facts(
        draw([(10, 50, 30, 70), (35, 50, 55, 70), (150, 150, 170, 170)], concepts=["a", "b", "c"])
    )
    assert facts.holds(0, "to the left of", 1) and facts.holds(1, "to the right of", 0)
    assert not facts.holds(1, "to the left of", 0)
    assert facts.holds(0, "next to", 1) and not facts.holds(0, "next to", 2)
    assert not facts.holds(0, "to the left of", 2)  # far away, and lower
    assert facts.may_hold(0, "to the left of", 2)
    assert facts.list_nearest(0) == [1, 2]


def test_an_image_without_regions_has_no_facts():
    facts = find_facts(draw([]))
    assert len(facts) == 0 and facts.kinds == {}


def test_a_thousand_regions_are_neither_grouped_nor_counted():
    boxes = [(x, y, x + 3, y + 3) for x in range(0, 200, 5) for y in range(0, 200, 5)]
    facts = find_facts(draw(boxes))
    assert len(facts) == 1600 and facts.uncounted == {"tank"} and facts.list_group(5) == [5]
    assert set(facts.colours) == {None} and set(facts.possible_colours) == {frozenset(COLOURS)}


def test_colours_are_those_of_hue_saturation_and_brightness_in_floating_point():
    pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    pixels[:100] = pixels[:100] // 8 + 200  # pale and bright
    hsv = np.asarray(Image.fromarray(pixels).convert("HSV"), float)
    hue, saturation, brightness = hsv[..., 0] * 360 / 256, hsv[..., 1] / 255, hsv[..., 2] / 255
    expected = np.zeros(hue.shape, dtype=int)
    expected[(brightness > 0.75) & (saturation < 0.15)] = 1 + COLOURS.index("white")
    for name, (low, high) in HUES.items():
        is_hue = (hue - low) % 360 < high - low
        expected[(saturation > 0.35) & (brightness > 0.25) & is_hue] = 1 + COLOURS.index(name)
    assert set(expected.flat) == set(range(1 + len(COLOURS)))
    assert (code_colours(pixels) == expected).all()
