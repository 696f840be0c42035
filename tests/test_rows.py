"""Laws of the row: what is refused on the way in, and what comes back as it was."""

import re

import pytest
from datasets import load_from_disk
from PIL import Image

from geoalign_hf.rows import FEATURES, REGION_COLUMNS, build_rows, check_columns, list_concepts

MINIMAL = {"image": Image.new("RGB", (8, 6)), "boxes": [], "phrases": [], "concepts": []}


def refuses(message: str):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


# Rows of any source


def test_a_row_comes_back_as_it_went_in(toy_rows, rows):
    for drawn, stored in zip(toy_rows, rows, strict=True):
        assert list(stored["image"].convert("RGB").tobytes()) == list(drawn["image"].tobytes())
        for name in drawn.keys() - {"image"}:
            assert stored[name] == drawn[name], name


def test_rows_are_the_same_after_saving_and_loading(rows, tmp_path):
    rows.save_to_disk(str(tmp_path / "rows"))
    loaded = load_from_disk(str(tmp_path / "rows"))
    assert loaded.features == FEATURES
    for before, after in zip(rows, loaded, strict=True):
        assert before.pop("image").tobytes() == after.pop("image").tobytes()
        assert before == after


def test_what_may_be_missing_is_empty(tmp_path):
    Image.new("RGB", (8, 6), (1, 2, 3)).save(tmp_path / "a.png")
    row = build_rows([MINIMAL | {"image": tmp_path / "a.png", "quads": None}])[0]
    assert row.pop("image").getpixel((7, 5)) == (1, 2, 3)
    assert row == {
        "captions": [], "description": None, "boxes": [], "quads": [], "phrases": [], "concepts": [],
        "hard_negatives": [], "negative_kinds": [], "difficult": [], "unboxed": [], "source": None,
        "window": [],
    }  # fmt: skip


def test_a_row_that_lacks_a_column_is_refused():
    with refuses(
        "row 1 lacks ['phrases', 'concepts']; it has ['boxes', 'image']. "
        "Give every row an image and its regions."
    ):
        build_rows([MINIMAL, {name: MINIMAL[name] for name in ("image", "boxes")}])


@pytest.mark.parametrize("name", ["image", "boxes", "phrases", "concepts"])
def test_a_row_whose_required_column_is_none_is_refused_as_if_it_lacked_it(name):
    left = sorted(MINIMAL.keys() - {name})
    with refuses(f"row 0 lacks ['{name}']; it has {left}. Give every row an image and its regions."):
        build_rows([MINIMAL | {name: None}])


def test_unknown_columns_are_refused():
    with refuses(
        "row 0 has the unknown columns ['bbox', 'labels']; a row has ['image', 'captions', 'description', "
        "'boxes', 'quads', 'phrases', 'concepts', 'hard_negatives', 'negative_kinds', 'difficult', "
        "'unboxed', 'source', 'window']."
    ):
        build_rows([MINIMAL | {"labels": [], "bbox": []}])


@pytest.mark.parametrize("name", [name for name in REGION_COLUMNS if name != "boxes"])
def test_lists_of_different_lengths_are_refused(name):
    quad = [[0, 0], [1, 0], [1, 1], [0, 1]]
    row = MINIMAL | {"boxes": [[0, 0, 1, 1]] * 2, "phrases": ["a ship"] * 2, "concepts": ["ship"] * 2}
    row |= {"quads": [quad] * 2, "hard_negatives": [[], []], "negative_kinds": [[], []]}
    row |= {"difficult": [True, False]}
    with refuses(f"row 1 has 2 boxes, but 1 {name}. Give one entry per region, in the same order."):
        build_rows([row, row | {name: row[name][:1]}])


def test_no_rows_are_refused():
    with refuses("there are no rows. Give at least one."):
        build_rows([])


def test_a_dataset_without_the_columns_of_a_row_is_refused(rows):
    check_columns(rows)
    with refuses(
        "the dataset lacks the columns ['boxes', 'phrases']; it has ['captions', 'concepts', 'description', "
        "'difficult', 'hard_negatives', 'image', 'negative_kinds', 'quads', 'source', 'unboxed', 'window']. "
        "Rename them, or build rows with geoalign_hf.rows.from_coco or build_rows."
    ):
        check_columns(rows.remove_columns(["boxes", "phrases"]))


def test_the_concepts_of_rows_are_listed_once_each_by_alphabet(rows):
    assert list_concepts(rows) == ["airplane", "road", "ship", "storage tank", "tennis court"]
