"""Laws of near-duplicates: what shows the same ground is on one side of a split."""

import numpy as np
import pytest
from PIL import Image
from refusals import refuses

from geoalign_hf.data.duplicates import group_rows, split_validation
from geoalign_hf.data.schema import build_rows


def draw(seed: int, size: int = 96) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def rows():
    images = [
        draw(0),
        draw(0).resize((60, 60)).transpose(Image.Transpose.ROTATE_90),
        draw(1),
        draw(2),
        draw(2),
    ]
    images += [draw(3), draw(4), Image.new("RGB", (9, 9)), Image.new("RGB", (8, 8))]
    sources = [None, None, "a", None, None, "a", None, None, None]
    nothing = {"boxes": [], "phrases": [], "concepts": []}
    return build_rows({"image": i, "source": s} | nothing for i, s in zip(images, sources, strict=True))


def test_copies_turned_copies_and_windows_of_one_source_are_one_group(rows):
    groups = group_rows(rows)
    same = groups[:, None] == groups
    expected = np.eye(len(rows), dtype=bool)
    for i, j in ((0, 1), (2, 5), (3, 4)):
        expected[i, j] = expected[j, i] = True
    assert (same == expected).all()


@pytest.mark.parametrize("seed", range(3))
def test_a_split_keeps_groups_together_and_has_about_its_share(rows, seed):
    numbered = rows.add_column("number", list(range(len(rows))))
    train, validation = split_validation(numbered, 0.3, seed)
    assert sorted([*train["number"], *validation["number"]]) == list(range(len(rows)))
    groups = group_rows(rows)
    assert not set(groups[train["number"]]) & set(groups[validation["number"]])
    assert 3 <= len(validation) <= 4
    assert list(split_validation(numbered, 0.3, seed)[1]["number"]) == list(validation["number"])


def test_a_split_that_leaves_nothing_is_refused(rows):
    for share in (0.0, 1.0, float("nan")):
        with refuses(str(share)):
            split_validation(rows, share)
    with refuses("2 rows", "near-duplicates"):
        split_validation(rows.select([0, 1]), 0.5)
