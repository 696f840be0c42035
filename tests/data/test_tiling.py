"""Laws of tiles: every pixel is in one, no region moves, and lost regions are reported."""

import numpy as np
import pytest
from PIL import Image

from geoalign_hf.data.tiling import cut_tiles, list_tiles
from geoalign_hf.readers.skipped import SkipReport


@pytest.mark.parametrize(
    ("width", "height", "side", "overlap"),
    [(25, 8, 10, 2), (10, 10, 10, 0), (101, 67, 20, 7), (5, 90, 30, 29), (31, 30, 30, 10)],
)
def test_tiles_cover_the_image_and_share_the_overlap(width, height, side, overlap):
    tiles = list_tiles((width, height), side, overlap)
    seen = np.zeros((height, width), dtype=int)
    for x0, y0, x1, y1 in tiles:
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
        assert (x1 - x0, y1 - y0) == (min(side, width), min(side, height))
        seen[y0:y1, x0:x1] += 1
    assert seen.min() == 1
    assert len(set(tiles)) == len(tiles)
    columns = sorted({(x0, x1) for x0, _, x1, _ in tiles})
    assert all(before[1] - after[0] >= overlap for before, after in zip(columns, columns[1:], strict=False))


def test_an_overlap_as_wide_as_a_tile_is_refused():
    with pytest.raises(
        ValueError, match=r"^overlap is 10, but tiles have 10 pixels a side. Choose 0 <= overlap < side.$"
    ):
        list_tiles((25, 8), 10, 10)


def test_tiles_overlap_by_half_unless_told_otherwise():
    assert list_tiles((95, 40), 40) == list_tiles((95, 40), 40, overlap=20)


@pytest.fixture
def row():
    """A ship well inside the left tile, one across both, one that lies askew across both."""
    pixels = np.random.default_rng(0).integers(0, 255, (40, 70, 3), dtype=np.uint8)
    boxes = [[5.0, 5.0, 15.0, 9.0], [30.0, 20.0, 50.0, 24.0], [25.0, 26.0, 45.0, 38.0]]
    return {
        "image": Image.fromarray(pixels),
        "source": "scene.png",
        "captions": ["a long story"],
        "description": "a longer one",
        "boxes": boxes,
        "quads": [[[x0, y0], [x1, y0], [x1, y1], [x0, y1]] for x0, y0, x1, y1 in boxes[:2]]
        + [[[25.0, 26.0], [29.0, 26.0], [45.0, 38.0], [41.0, 38.0]]],
        "phrases": ["a ship"] * 3,
        "concepts": ["ship", "barge", "ship"],
        "difficult": [False, True, False],
    }


def test_each_tile_shows_its_window_and_keeps_regions_where_they_lie(row):
    tiles = list(cut_tiles(row, 40, 10, 0.2, SkipReport()))
    assert [tile["window"] for tile in tiles] == [[0, 0, 40, 40], [30, 0, 70, 40]]
    for tile in tiles:
        left, top, right, bottom = tile["window"]
        assert tile["image"].tobytes() == row["image"].crop((left, top, right, bottom)).tobytes()
        for box, quad, concept in zip(tile["boxes"], tile["quads"], tile["concepts"], strict=True):
            whole = [[x + left, y + top] for x, y in quad]
            r = row["quads"].index(whole)  # the quad as it was, in the frame of the tile
            assert concept == row["concepts"][r]
            x0, y0, x1, y1 = row["boxes"][r]
            assert box == [
                max(x0, left) - left,
                max(y0, top) - top,
                min(x1, right) - left,
                min(y1, bottom) - top,
            ]
        assert tile["captions"] == [] and tile["description"] is None


def test_visibility_is_measured_on_the_area_of_the_quad(row):
    # Of the barge half is in the left tile; of the box of the askew ship 0.75, of its own area 0.8125.
    (left, _) = cut_tiles(row, 40, 10, 0.8, SkipReport())
    assert left["concepts"] == ["ship", "ship"] and left["difficult"] == [False, False]
    assert left["unboxed"] == ["barge"]


def test_regions_that_no_tile_keeps_are_reported(row):
    report = SkipReport()
    tiles = list(cut_tiles(row, 30, 0, 0.9, report))
    assert [tile["concepts"] for tile in tiles][:1] == [["ship"]]
    assert report.entries == [
        {
            "kind": "cut region",
            "message": "scene.png: region 2, ship at [25.0, 26.0, 45.0, 38.0], is visible by 0.9 or more in "
            "no tile.",
        }
    ]


def test_an_image_no_larger_than_a_tile_is_not_cut(row):
    assert list(cut_tiles(row, 70, 10, 0.5, SkipReport())) == [row]
