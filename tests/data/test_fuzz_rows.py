"""The law of rows under generated input: rows that can be used, or a ValueError that names the row."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from geoalign_hf.data.schema import FEATURES, build_rows, count_rows, write_rows

IMAGE = Image.new("RGB", (8, 6))
NUMBERS = st.one_of(
    st.integers(-20, 40), st.floats(), st.sampled_from([10**400, -(10**30), 1e-320, 1e308, True, None])
)
JUNK = st.recursive(
    st.one_of(NUMBERS, st.text(max_size=5), st.sampled_from(["\ud800", b"x", {}, {"a": 1}, "a ship"])),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=8,
)


def make_row(num_regions: int) -> dict:
    boxes = [[r, r, r + 2.5, r + 2] for r in range(num_regions)]
    return {
        "image": IMAGE,
        "captions": ["a scene"],
        "description": "A scene.",
        "boxes": boxes,
        "quads": [[[x0, y0], [x1, y0], [x1, y1], [x0, y1]] for x0, y0, x1, y1 in boxes],
        "phrases": ["a ship"] * num_regions,
        "concepts": ["ship"] * num_regions,
        "ambiguous": [True] * num_regions,
        "hard_negatives": [["a car"]] * num_regions,
        "negative_kinds": [["concept"]] * num_regions,
        "difficult": [False] * num_regions,
        "unboxed": ["pier"],
        "source": "a.png",
        "window": [0, 0, 8, 6],
    }


def draw_change(data, value, depth: int = 0):
    """Replace one part of a value, at any depth, by junk; or drop or double it."""
    if isinstance(value, (list, dict)) and value and depth < 4 and data.draw(st.integers(0, 3)):
        key = data.draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
        value = value.copy()
        action = data.draw(st.sampled_from(["change", "change", "change", "drop", "double"]))
        if action == "change":
            value[key] = draw_change(data, value[key], depth + 1)
        elif action == "drop" or isinstance(value, dict):
            del value[key]
        else:
            value.insert(key, value[key])
        return value
    return data.draw(JUNK)


def check(row: dict) -> None:
    assert list(row) == list(FEATURES)
    for x0, y0, x1, y1 in row["boxes"]:
        assert all(map(math.isfinite, (x0, y0, x1, y1))) and x0 < x1 and y0 < y1
    for name in ("phrases", "concepts"):
        assert len(row[name]) == len(row["boxes"])


@pytest.mark.parametrize("num_examples", [150, pytest.param(2_000, marks=pytest.mark.slow)])
def test_rows_are_stored_as_they_are_or_refused_by_number(num_examples, tmp_path):
    def law(data):
        row = make_row(data.draw(st.integers(0, 3)))
        for _ in range(data.draw(st.integers(1, 2))):
            row = draw_change(data, row)
        try:
            built = build_rows([make_row(1), row])
        except ValueError as error:
            assert "row 1" in str(error), error
            return
        stored = built.remove_columns("image")[1]
        check({"image": None} | stored)
        for name, value in stored.items():  # nothing is changed silently
            given_value = row.get(name)
            assert value == given_value or (given_value is None and not value), (name, value, given_value)
        count_rows([stored])

    settings(max_examples=num_examples)(given(st.data())(law))()


def test_arrays_are_taken_as_lists(tmp_path):
    np = pytest.importorskip("numpy")
    row = make_row(2)
    arrays = row | {
        "boxes": np.array(row["boxes"]),
        "quads": np.array(row["quads"]),
        "window": np.array([0, 0, 8, 6]),
    }
    arrays |= {"difficult": np.array([False, False]), "concepts": np.array(["ship", "ship"])}
    first, second = build_rows([row, arrays]).remove_columns("image")
    assert first == second


@pytest.mark.parametrize(
    "image", [None, 5, b"x", {}, {"bytes": "x"}, {"bytes": b"x", "name": "a"}, "", "\ud800", [1]]
)
def test_an_image_of_another_kind_is_refused_by_its_row(image, tmp_path):
    with pytest.raises(ValueError, match="row 1"):
        build_rows([make_row(1), make_row(1) | {"image": image}])
    with pytest.raises(ValueError, match="row 0"):
        write_rows([make_row(1) | {"image": image}], tmp_path / "a.parquet")
    assert not (tmp_path / "a.parquet").exists()
