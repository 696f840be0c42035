"""Laws of the row: what source annotations become, and what is refused on the way in."""

import json
import re

import pytest
from datasets import load_from_disk
from PIL import Image
from transformers.utils import logging

from geoalign_hf.rows import (
    FEATURES,
    add_article,
    build_rows,
    check_columns,
    count_concepts,
    from_coco,
    list_concepts,
)

MINIMAL = {"image": Image.new("RGB", (8, 6)), "boxes": [], "phrases": [], "concepts": []}


def refuses(message: str):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


@pytest.fixture
def coco():
    """Two images of 20 x 10 pixels, the second without boxes."""
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 20, "height": 10},
            {"id": 3, "file_name": "b.png", "width": 20, "height": 10},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 2, "bbox": [1, 2, 3, 4]},
            {"id": 2, "image_id": 7, "category_id": 5, "bbox": [0.5, 1.5, 10, 2.25], "iscrowd": 0},
            {"id": 4, "image_id": 7, "category_id": 2, "bbox": [15, 5, 5, 5]},
        ],
        "categories": [{"id": 2, "name": "ship"}, {"id": 5, "name": "airport"}],
    }


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name, colour in (("a.png", (255, 0, 0)), ("b.png", (0, 0, 255))):
        Image.new("RGB", (20, 10), colour).save(folder / name)
    return folder


@pytest.fixture
def read(tmp_path, images):
    """Write COCO content to `path` and read it back as rows."""

    def write_and_read(content):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "coco.json").write_text(text, encoding="utf-8")
        return from_coco(tmp_path / "coco.json", images)

    write_and_read.path = tmp_path / "coco.json"
    return write_and_read


# COCO


def test_coco_boxes_become_corners_and_categories_become_words(read, coco):
    row = read(coco)[0]
    assert row["boxes"] == [[1.0, 2.0, 4.0, 6.0], [0.5, 1.5, 10.5, 3.75], [15.0, 5.0, 20.0, 10.0]]
    assert row["concepts"] == ["ship", "airport", "ship"]
    assert row["phrases"] == ["a ship", "an airport", "a ship"]
    assert row["captions"] == ["an aerial image with 2 ships and an airport"]
    assert row["description"] is None and row["quads"] == [] and row["hard_negatives"] == []


def test_rows_keep_the_order_of_the_file_and_each_its_own_image(read, coco):
    rows = read(coco)
    assert [row["image"].getpixel((0, 0)) for row in rows] == [(255, 0, 0), (0, 0, 255)]
    assert rows.features == FEATURES


def test_an_image_without_boxes_has_no_regions_and_no_caption(read, coco):
    row = read(coco)[1]
    assert {name: row[name] for name in ("boxes", "phrases", "concepts", "captions")} == {
        "boxes": [], "phrases": [], "concepts": [], "captions": [],
    }  # fmt: skip


def test_a_file_name_may_carry_its_folder_or_another_one(read, coco, images):
    (images / "sub").mkdir()
    (images / "a.png").rename(images / "sub" / "a.png")
    coco["images"][0]["file_name"] = "sub/a.png"  # there
    coco["images"][1]["file_name"] = "elsewhere/b.png"  # only its last part is
    assert [row["image"].getpixel((0, 0)) for row in read(coco)] == [(255, 0, 0), (0, 0, 255)]


def test_crowds_are_left_out_and_their_number_is_logged(read, coco, monkeypatch):
    for annotation in coco["annotations"][:2]:
        annotation["iscrowd"] = 1
    messages = []
    monkeypatch.setattr(logging.get_logger("geoalign_hf.rows"), "warning", messages.append)
    row = read(coco)[0]
    assert row["boxes"] == [[15.0, 5.0, 20.0, 10.0]] and row["captions"] == ["an aerial image with a ship"]
    assert messages == [f"{read.path}: left out 2 crowd annotations, which are no single region."]


def test_a_file_without_crowds_logs_nothing(read, coco, monkeypatch):
    messages = []
    monkeypatch.setattr(logging.get_logger("geoalign_hf.rows"), "warning", messages.append)
    read(coco)
    assert messages == []


def test_a_box_partly_outside_its_image_is_a_region(read, coco):
    coco["annotations"][0]["bbox"] = [-5, 2, 10, 4]
    assert len(read(coco)[0]["boxes"]) == 3


def test_an_annotation_of_an_unknown_image_is_refused(read, coco):
    coco["annotations"][1]["image_id"] = 99
    with refuses(
        f"{read.path}: annotation 2 names the image 99, which is not in the file. Add it or drop the box."
    ):
        read(coco)


def test_an_annotation_of_an_unknown_category_is_refused(read, coco):
    coco["annotations"][2]["category_id"] = 1
    with refuses(f"{read.path}: annotation 4 names the category 1; the file has [2, 5]."):
        read(coco)


def test_a_missing_image_file_is_refused(read, coco, images):
    coco["images"][1]["file_name"] = "deep/c.png"
    with refuses(f"{read.path}: image 3 is missing at {images / 'c.png'}. Give the folder it lies in."):
        read(coco)


@pytest.mark.parametrize(
    ("bbox", "corners", "complaint"),
    [
        (
            [4, 2, -3, 4],
            [4.0, 2.0, 1.0, 6.0],
            "has x1 <= x0. Boxes are xyxy pixels of the image as given; "
            "convert COCO boxes with xywh_to_xyxy first.",
        ),
        (
            [4, 2, 3, 0],
            [4.0, 2.0, 7.0, 2.0],
            "has y1 <= y0. Boxes are xyxy pixels of the image as given; "
            "convert COCO boxes with xywh_to_xyxy first.",
        ),
        (
            [20, 2, 3, 4],
            [20.0, 2.0, 23.0, 6.0],
            "lies wholly outside its image of 20 x 10 pixels (width x height). "
            "Boxes are xyxy pixels of the image as given, before any resizing; leave this one out.",
        ),
        (
            [1, 2, float("nan"), 4],
            [1.0, 2.0, float("nan"), 6.0],
            "is not finite. Boxes are four numbers, xyxy pixels; leave this one out.",
        ),
        (
            [1, 2, float("inf"), 4],
            [1.0, 2.0, float("inf"), 6.0],
            "is not finite. Boxes are four numbers, xyxy pixels; leave this one out.",
        ),
    ],
    ids=["negative width", "no height", "wholly outside", "not a number", "endless"],
)
def test_a_box_that_is_none_is_refused(read, coco, bbox, corners, complaint):
    coco["annotations"][1]["bbox"] = bbox
    with refuses(f"{read.path}: annotation 2: bbox {bbox} as xyxy[0] = {corners} {complaint}"):
        read(coco)


@pytest.mark.parametrize("bbox", [[1, 2, 3], [1, 2, 3, 4, 5], [], [1, 2, 3, "4"], None, 5])
def test_a_bbox_that_is_not_four_numbers_is_refused(read, coco, bbox):
    coco["annotations"][1]["bbox"] = bbox
    with refuses(
        f"{read.path}: annotation 2: bbox is {bbox!r}; a COCO box is four numbers, x, y, width and height."
    ):
        read(coco)


def test_cut_json_is_refused(read, coco):
    text = json.dumps(coco)[:50]
    with pytest.raises(json.JSONDecodeError) as cause:
        json.loads(text)
    with refuses(f"{read.path} cannot be read as JSON ({cause.value}). Give a COCO annotation file."):
        read(text)


def test_a_missing_annotation_file_is_refused(tmp_path):
    path = tmp_path / "none.json"
    with refuses(
        f"{path} cannot be read as JSON ([Errno 2] No such file or directory: '{path}'). "
        "Give a COCO annotation file."
    ):
        from_coco(path, tmp_path)


@pytest.mark.parametrize(
    ("content", "found"),
    [([], "list"), ("3", "int"), ({"images": [], "info": {}}, "['images', 'info']")],
    ids=["list", "number", "other keys"],
)
def test_json_that_is_no_coco_file_is_refused(read, content, found):
    with refuses(
        f"{read.path} has {found}, but a COCO file has ['annotations', 'categories', 'images']. "
        "Give a detection file."
    ):
        read(content)


@pytest.mark.parametrize(
    ("key", "field", "left"),
    [
        ("images", "height", "['file_name', 'id', 'width']"),
        ("annotations", "bbox", "['category_id', 'id', 'image_id']"),
        ("categories", "name", "['id']"),
    ],
)
def test_an_entry_that_lacks_a_field_is_refused(read, coco, key, field, left):
    del coco[key][0][field]
    with refuses(f"{read.path}: {key}[0] lacks ['{field}']; it has {left}."):
        read(coco)


@pytest.mark.parametrize(
    ("key", "field", "ids"), [("images", "id", [7]), ("annotations", "id", [1]), ("categories", "id", [2])]
)
def test_repeated_ids_are_refused(read, coco, key, field, ids):
    coco[key].append(coco[key][0])
    with refuses(f"{read.path}: {key} repeats the ids {ids}. Give every entry an id of its own."):
        read(coco)


# Rows of any source


def test_a_row_comes_back_as_it_went_in(toy_rows, rows):
    for drawn, stored in zip(toy_rows, rows, strict=True):
        assert list(stored["image"].convert("RGB").tobytes()) == list(drawn["image"].tobytes())
        for name in FEATURES.keys() - {"image"}:
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
        "hard_negatives": [],
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
        "'boxes', 'quads', 'phrases', 'concepts', 'hard_negatives']."
    ):
        build_rows([MINIMAL | {"labels": [], "bbox": []}])


@pytest.mark.parametrize("name", ["quads", "phrases", "concepts", "hard_negatives"])
def test_lists_of_different_lengths_are_refused(name):
    quad = [[0, 0], [1, 0], [1, 1], [0, 1]]
    row = MINIMAL | {"boxes": [[0, 0, 1, 1]] * 2, "phrases": ["a ship"] * 2, "concepts": ["ship"] * 2}
    row |= {"quads": [quad] * 2, "hard_negatives": [[], []]}
    with refuses(f"row 1 has 2 boxes, but 1 {name}. Give one entry per region, in the same order."):
        build_rows([row, row | {name: row[name][:1]}])


def test_no_rows_are_refused():
    with refuses("there are no rows. Give at least one."):
        build_rows([])


def test_a_dataset_without_the_columns_of_a_row_is_refused(rows):
    check_columns(rows)
    with refuses(
        "the dataset lacks the columns ['boxes', 'phrases']; it has ['captions', 'concepts', 'description', "
        "'hard_negatives', 'image', 'quads']. "
        "Rename them, or build rows with geoalign_hf.rows.from_coco or build_rows."
    ):
        check_columns(rows.remove_columns(["boxes", "phrases"]))


def test_the_concepts_of_rows_are_listed_once_each_by_alphabet(rows):
    assert list_concepts(rows) == ["airplane", "road", "ship", "storage tank", "tennis court"]


# Words


@pytest.mark.parametrize(
    ("concepts", "words"),
    [
        (["ship"], "a ship"),
        (["oil tank", "oil tank"], "2 oil tanks"),
        (["ship", "bridge", "ship"], "2 ships and a bridge"),
        (["bridge", "airport", "ship"], "an airport, a bridge and a ship"),
        (["bus", "bus", "bus", "ferry", "ferry", "quay", "quay", "bench", "bench"],
         "3 buses, 2 benches, 2 ferries and 2 quays"),
    ],
)  # fmt: skip
def test_concepts_are_counted_the_commonest_first(concepts, words):
    assert count_concepts(concepts) == words


def test_only_a_vowel_takes_the_article_an():
    found = {concept: add_article(concept) for concept in ("Airport", "oil tank", "ship", "Bridge")}
    assert found == {
        "Airport": "an Airport", "oil tank": "an oil tank", "ship": "a ship", "Bridge": "a Bridge",
    }  # fmt: skip
