"""Laws of the readers: what annotations become, and how a wrong one is told."""

import json
import logging
import math
import re
import time

import pytest
from PIL import Image

from geoalign_hf.data.loading import from_coco
from geoalign_hf.data.schema import FEATURES, build_rows
from geoalign_hf.readers.coco import read_coco
from geoalign_hf.readers.dota import read_dota
from geoalign_hf.readers.skipped import SkipReport
from geoalign_hf.readers.voc import read_voc
from geoalign_hf.readers.yolo import read_names, read_yolo


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
    assert list(rows.features) == list(FEATURES)


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


def test_crowds_are_left_out_and_told(read, coco, images, caplog):
    for annotation in coco["annotations"][:2]:
        annotation["iscrowd"] = 1
    report = SkipReport()
    read(coco)
    row = read_coco(read.path, images, report)[0]
    assert row["boxes"] == [[15.0, 5.0, 20.0, 10.0]] and row["captions"] == ["an aerial image with a ship"]
    assert row["unboxed"] == ["airport", "ship"]
    assert report.entries == [
        {"kind": "crowd", "message": f"{read.path}: annotation {i} is a crowd, which is no single region."}
        for i in (1, 2)
    ]
    assert caplog.messages[-1] == (
        f"{read.path}: left out {{'crowd': 2}}. The report lists each with its place."
    )


def test_a_reader_says_what_it_found(read, coco, caplog):
    with caplog.at_level(logging.INFO):
        read(coco)
    assert caplog.messages == [f"{read.path}: 2 images, 3 regions of 2 concepts"]


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
    with refuses(
        f"{read.path}: annotation 4 names the category 1; the file has [2, 5]. Add it or drop the box."
    ):
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
        f"{path} cannot be read ([Errno 2] No such file or directory: '{path}'). Give a whole file."
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


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (
            {"images": {}, "annotations": [], "categories": []},
            "images is {}, not a list. Give a detection file.",
        ),
        (
            {"images": [], "annotations": [], "categories": ["ship"]},
            "categories[0] is 'ship'; it needs ['id', 'name']. Mend the file.",
        ),
    ],
)
def test_lists_and_entries_of_another_form_are_refused(read, content, complaint):
    with refuses(f"{read.path}: {complaint}"):
        read(content)


@pytest.mark.parametrize(
    ("key", "field", "value", "kind"),
    [("images", "id", [7], "list"), ("images", "width", "20", "str"),
     ("images", "file_name", None, "NoneType"),
     ("annotations", "image_id", None, "NoneType"), ("categories", "name", 3, "int")],
)  # fmt: skip
def test_a_field_of_another_type_is_refused(read, coco, key, field, value, kind):
    coco[key][0][field] = value
    with refuses(
        f"{read.path}: {key}[0]: {field} is {value!r}, a {kind}. "
        "Ids are numbers or strings, sizes numbers, names strings."
    ):
        read(coco)


def test_an_image_of_another_size_than_stated_is_refused(read, coco, images):
    coco["images"][0]["width"] = 40
    with refuses(
        f"{read.path}: image 7 is stated to be 40 x 10 pixels, but {images / 'a.png'} has 20 x 10, so boxes "
        "would point at other pixels. Give the image as annotated."
    ):
        read(coco)


def test_the_size_of_an_image_is_the_one_it_is_seen_in(images, read, coco):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new("RGB", (10, 20)).save(images / "a.png", exif=exif)
    row = read(coco)[0]
    assert row["image"].size == (20, 10) and len(row["boxes"]) == 3


def test_a_folder_of_files_is_read_in_their_order(read, coco, images):
    read(coco)
    text = read.path.read_text().replace('"ship"', '"boat"')
    for name in "ab":
        text = text.replace(f"{name}.png", f"other_{name}.png")
        (images / f"{name}.png").rename(images / f"other_{name}.png")
        Image.new("RGB", (20, 10)).save(images / f"{name}.png")
    (read.path.parent / "d.json").write_text(text)
    rows = read_coco(read.path.parent, images)
    assert [row["concepts"] for row in rows] == [
        ["ship", "airport", "ship"],
        [],
        ["boat", "airport", "boat"],
        [],
    ]


def test_what_is_wrong_is_left_out_and_told_where_that_is_asked_for(read, coco, images):
    coco["annotations"][0]["bbox"] = [4, 2, -3, 4]
    coco["annotations"][1]["category_id"] = 9
    coco["images"][1]["file_name"] = "none.png"
    read.path.write_text(json.dumps(coco))
    report = SkipReport(on_error="skip")
    rows = read_coco(read.path, images, report)
    assert [row["concepts"] for row in rows] == [["ship"]]
    assert report.count_kinds() == {"unknown concept": 1, "bad region": 1, "no image": 1}


def test_an_image_that_comes_twice_is_refused(read, coco):
    coco["images"][1]["file_name"] = "a.png"
    with refuses(f"{read.path} has the image a.png twice. Give every image one entry."):
        read(coco)


def test_a_region_that_is_repeated_counts_once(read, coco, images):
    coco["annotations"].append(coco["annotations"][0] | {"id": 9})
    read.path.write_text(json.dumps(coco))
    report = SkipReport()
    assert len(read_coco(read.path, images, report)[0]["boxes"]) == 3
    assert report.count_kinds() == {"repeated region": 1}


def test_a_hundred_thousand_boxes_are_read_in_seconds(read, coco, images):
    coco["annotations"] = [
        {"id": i, "image_id": 7, "category_id": 2, "bbox": [i % 1000 / 100, i // 1000 / 20, 1, 1]}
        for i in range(100_000)
    ]
    read.path.write_text(json.dumps(coco))
    start = time.process_time()
    assert len(read_coco(read.path, images)[0]["boxes"]) == 100_000
    assert time.process_time() - start < 10


@pytest.mark.parametrize("name", ["", "  _ "])
def test_a_category_without_words_is_refused_and_the_others_stay(read, coco, images, name):
    coco["categories"][1]["name"] = name
    with refuses(
        f"{read.path}: categories[1] has the name {name!r}, which holds no words. Name it or drop it."
    ):
        read(coco)
    report = SkipReport(on_error="skip")
    assert read_coco(read.path, images, report)[0]["concepts"] == ["ship", "ship"]
    assert report.count_kinds() == {"unknown concept": 2}  # the category, and the box that names it


def test_true_is_no_id(read, coco):
    coco["images"][0]["id"] = True
    with refuses(
        f"{read.path}: images[0]: id is True, a bool. "
        "Ids are numbers or strings, sizes numbers, names strings."
    ):
        read(coco)


def test_a_number_of_hundreds_of_digits_is_refused_with_its_place(read, coco, images):
    huge = 10**400
    coco["annotations"][1]["bbox"] = [1, 2, huge, 4]
    with refuses(
        f"{read.path}: annotation 2: bbox [1, 2, {huge}, 4] as xyxy[0] = [1.0, 2.0, inf, 6.0] is not finite. "
        "Boxes are four numbers, xyxy pixels; leave this one out."
    ):
        read(coco)
    coco["annotations"][1]["bbox"], coco["images"][0]["width"] = [1, 2, 3, 4], huge
    with refuses(
        f"{read.path}: image 7 is stated to be inf x 10 pixels, but {images / 'a.png'} has 20 x 10, so boxes "
        "would point at other pixels. Give the image as annotated."
    ):
        read(coco)


def test_a_file_name_too_long_for_the_disk_is_an_image_that_is_missing(read, coco, images):
    coco["images"][1]["file_name"] = name = "b" * 500
    with refuses(f"{read.path}: image 3 is missing at {images / name}. Give the folder it lies in."):
        read(coco)


def test_json_that_is_too_deep_is_refused(read):
    with pytest.raises(
        ValueError, match=rf"^{re.escape(str(read.path))} cannot be read as JSON \(.*recursion"
    ):
        read("[" * 200_000)


def test_a_folder_is_read_without_its_bad_files_where_that_is_asked_for(
    tmp_path, coco, voc, dota, yolo, images
):
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "a.json").write_text(json.dumps(coco))
    (tmp_path / "json" / "b.json").write_text(json.dumps(coco)[:50])
    (voc / "b.xml").write_text(VOC[:200])
    for folder in (dota, yolo):
        (folder / "b.txt").write_bytes(b"caf\xe9")
    for read, folder, options in (
        (read_coco, tmp_path / "json", {"images": images}),
        (read_voc, voc, {"images": images}),
        (read_dota, dota, {"images": images}),
        (read_yolo, yolo, {"images": images, "concepts": ["plane", "ship"]}),
    ):
        with pytest.raises(ValueError) as stop:
            read(folder, **options)
        report = SkipReport(on_error="skip")
        rows = read(folder, **options, report=report)
        assert "a.png" in [row["source"] for row in rows]
        assert report.entries == [{"kind": "bad file", "message": str(stop.value)}]
        assert str(next(folder.glob("b.*"))) in str(stop.value)


def test_where_nothing_is_left_the_first_reason_is_told(voc, images):
    (voc / "a.xml").write_text("")
    with refuses(
        f"{voc} has no images that can be used; left out: {{'bad file': 1}}. The first: {voc / 'a.xml'} "
        "cannot be read as xml (no element found: line 1, column 0). Give whole Pascal VOC files."
    ):
        read_voc(voc, images, report=SkipReport(on_error="skip"))


def test_a_name_without_words_is_refused_with_its_line(dota, images):
    (dota / "a.txt").write_text("1 2 4 2 4 6 1 6 _ 0\n")
    with refuses(
        f"{dota / 'a.txt'} line 1: quad has the name '_', which holds no words. "
        "Name it, or drop the annotation."
    ):
        read_dota(dota, images)


# DOTA


DOTA = """imagesource:GoogleEarth
gsd:0.26
1 2 4 2 4 6 1 6 small-vehicle 0
10 1 14 5 12 7 8 3 plane 1

1 7 3 7 3 9 1 9 plane
"""


@pytest.fixture
def dota(tmp_path, images):
    folder = tmp_path / "labelTxt"
    folder.mkdir()
    (folder / "a.txt").write_text(DOTA)
    return folder


def test_dota_lines_become_quads_with_flags(dota, images):
    (row,) = read_dota(dota, images)
    assert row["concepts"] == ["small vehicle", "plane", "plane"]
    assert row["quads"][1] == [[10.0, 1.0], [14.0, 5.0], [12.0, 7.0], [8.0, 3.0]]
    assert row["boxes"] == [[1.0, 2.0, 4.0, 6.0], [8.0, 1.0, 14.0, 7.0], [1.0, 7.0, 3.0, 9.0]]
    assert row["difficult"] == [False, True, False]
    assert build_rows([row]).features == FEATURES


def test_difficult_regions_can_be_left_out_and_stay_known(dota, images):
    report = SkipReport()
    (row,) = read_dota(dota, images, drop_difficult=True, report=report)
    assert row["concepts"] == ["small vehicle", "plane"] and row["unboxed"] == ["plane"]
    assert report.entries == [
        {"kind": "difficult", "message": f"{dota / 'a.txt'} line 4: quad is flagged as difficult."}
    ]


def test_a_dota_file_without_regions_is_an_image_without_regions(dota, images):
    (dota / "a.txt").write_text("imagesource:GoogleEarth\ngsd:0.26\n")
    (row,) = read_dota(dota / "a.txt", images)
    assert row["boxes"] == row["quads"] == row["captions"] == []


@pytest.mark.parametrize(
    "line", ["1 2 4 2 4 6 1 6", "1 2 4 2 4 6 1", "1 2 4 2 4 6 1 x ship 0", "1 2 4 2 4 6 1 nan ship 0",
             "hello", "1 2 4 2 4 6 1 6 ship 7", "1 2 4 2 4 6 1 6 large ship 0"]
)  # fmt: skip
def test_a_line_that_is_no_dota_line_is_refused(dota, images, line):
    (dota / "a.txt").write_text(f"gsd:1\n\n{line}\n")
    with refuses(
        f"{dota / 'a.txt'} line 3 is {line!r}, not `x1 y1 x2 y2 x3 y3 x4 y4 class difficult`. "
        "Mend or drop it."
    ):
        read_dota(dota, images)


def test_a_quad_that_is_none_is_refused_with_its_line(dota, images):
    (dota / "a.txt").write_text(DOTA + "1 1 5 5 5 1 1 5 ship 0\n")
    with refuses(
        f"{dota / 'a.txt'} line 7: quad[0] = [[1.0, 1.0], [5.0, 5.0], [5.0, 1.0], [1.0, 5.0]] has no area or "
        "sides that cross. Quads are four corners x, y in pixels, going round."
    ):
        read_dota(dota, images)


def test_a_name_that_is_not_allowed_is_refused_with_its_line(dota, images):
    with refuses(
        f"{dota / 'a.txt'} line 3: quad is a 'small-vehicle'; known are ['plane', 'ship']. "
        "Add the name, or drop the annotation."
    ):
        read_dota(dota, images, concepts=["ship", "plane"])


def test_another_encoding_is_refused_with_its_line(dota, images):
    (dota / "a.txt").write_bytes("gsd:1\n1 2 4 2 4 6 1 6 caf\u00e9 0\n".encode("latin-1"))
    with pytest.raises(
        ValueError, match=rf"^{re.escape(str(dota / 'a.txt'))} line 2 is not UTF-8 .* as UTF-8\.$"
    ):
        read_dota(dota, images)


def test_a_byte_order_mark_is_passed_over(dota, images):
    (dota / "a.txt").write_bytes(b"\xef\xbb\xbf" + DOTA.encode())
    assert len(read_dota(dota, images)[0]["boxes"]) == 3


def test_annotations_without_an_image_or_with_two_are_refused(dota, images):
    (dota / "a.txt").rename(dota / "c.txt")
    with refuses(f"{dota / 'c.txt'} has no image 'c' among the 2 images. Give the folder it lies in."):
        read_dota(dota, images)
    for name in ("c.png", "c.jpg"):
        Image.new("RGB", (20, 10)).save(images / name)
    both = [str(images / name) for name in ("c.jpg", "c.png")]
    with refuses(f"{dota / 'c.txt'} fits the images {both}. Leave one of them there."):
        read_dota(dota, images)


def test_an_empty_folder_is_refused(tmp_path, images):
    with refuses(f"{images} holds no .txt files. Give a file, or the folder that they lie in."):
        read_dota(images, images)
    (tmp_path / "none").mkdir()
    with refuses(
        f"{tmp_path / 'none'} holds no images (.bmp .jpeg .jpg .png .tif .tiff .webp). Give their folder."
    ):
        read_dota(images, tmp_path / "none")


def test_an_image_that_is_none_is_refused_by_name(dota, images):
    (images / "a.png").write_bytes(b"no image")
    with pytest.raises(
        ValueError, match=rf"^{re.escape(str(images / 'a.png'))} cannot be read as an image \("
    ):
        read_dota(dota, images)
    report = SkipReport(on_error="skip")
    with pytest.raises(ValueError) as none_left:
        read_dota(dota, images, report=report)
    assert str(none_left.value) == (
        f"{dota} has no images that can be used; left out: {{'bad image': 1}}. "
        f"The first: {report.entries[0]['message']}"
    )


def test_a_hundred_thousand_quads_are_read_in_seconds(dota, images):
    lines = [f"{i % 1000 / 100} {i // 1000 / 100} 19 1 19 2 1 2 ship 0" for i in range(100_000)]
    lines[70_000] = "1 1 1 1 1 1 1 1 ship 0"  # one that is wrong
    (dota / "a.txt").write_text("\n".join(lines))
    report = SkipReport(on_error="skip")
    start = time.process_time()
    assert len(read_dota(dota, images, report=report)[0]["quads"]) == 99_999
    assert report.entries[0]["message"].startswith(f"{dota / 'a.txt'} line 70001: quad[0] = [[1.0, 1.0], ")
    assert time.process_time() - start < 30


# VOC


VOC = """<annotation><filename>a.png</filename><size><width>20</width><height>10</height></size>
<object><name>ship</name><difficult>1</difficult>
  <bndbox><xmin>1</xmin><ymin>2</ymin><xmax>4</xmax><ymax>6</ymax></bndbox></object>
<object><name>Golf_Course</name>
  <bndbox><xmin>5</xmin><ymin>1</ymin><xmax>9.5</xmax><ymax>4</ymax></bndbox></object>
</annotation>"""


@pytest.fixture
def voc(tmp_path, images):
    folder = tmp_path / "xml"
    folder.mkdir()
    (folder / "a.xml").write_text(VOC)
    return folder


def test_voc_objects_become_boxes_with_flags(voc, images):
    (row,) = read_voc(voc, images)
    assert row["boxes"] == [[1.0, 2.0, 4.0, 6.0], [5.0, 1.0, 9.5, 4.0]] and row["quads"] == []
    assert row["concepts"] == ["ship", "golf course"] and row["difficult"] == [True, False]


def test_voc_boxes_that_count_from_one_start_a_pixel_earlier(voc, images):
    assert read_voc(voc, images, counts_from_one=True)[0]["boxes"][0] == [0.0, 1.0, 4.0, 6.0]


def test_a_turned_box_becomes_its_four_corners(voc, images):
    turned = "<cx>8</cx><cy>5</cy><w>4</w><h>2</h>"
    angle = f"<angle>{math.pi / 2}</angle>"
    node = f"<object><name>ship</name><robndbox>{turned}{angle}</robndbox></object></annotation>"
    (voc / "a.xml").write_text(VOC.replace("</annotation>", node))
    (row,) = read_voc(voc, images)
    assert row["quads"][2] == [pytest.approx(corner) for corner in ([9, 3], [9, 7], [7, 7], [7, 3])]
    assert row["boxes"][2] == pytest.approx([7, 3, 9, 7])
    assert row["quads"][0] == [[1.0, 2.0], [4.0, 2.0], [4.0, 6.0], [1.0, 6.0]]


def test_the_corners_of_dior_r_are_read(voc, images):
    names = ("left_top", "right_top", "right_bottom", "left_bottom")
    corners = ((5, 1), (7, 3), (5, 5), (3, 3))
    numbers = "".join(
        f"<x_{name}>{x}</x_{name}><y_{name}>{y}</y_{name}>"
        for name, (x, y) in zip(names, corners, strict=True)
    )
    node = f"<object><name>ship</name><robndbox>{numbers}</robndbox></object></annotation>"
    (voc / "a.xml").write_text(VOC.replace("</annotation>", node))
    assert read_voc(voc, images)[0]["quads"][2] == [list(corner) for corner in corners]


def test_cut_xml_is_refused(voc, images):
    (voc / "a.xml").write_text(VOC[:200])
    with pytest.raises(
        ValueError,
        match=rf"^{re.escape(str(voc / 'a.xml'))} cannot be read as xml \(.*line \d+, column \d+\)",
    ):
        read_voc(voc, images)


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ("<name>ship</name>", "", "['difficult', 'bndbox']"),
        ("<xmin>1</xmin>", "<xmin>one</xmin>", "['name', 'difficult', 'bndbox']"),
        ("<ymax>6</ymax>", "", "['name', 'difficult', 'bndbox']"),
    ],
)
def test_a_voc_object_without_name_or_box_is_refused(voc, images, before, after, found):
    (voc / "a.xml").write_text(VOC.replace(before, after))
    with refuses(
        f"{voc / 'a.xml'}: object 1 has {found}; it needs a name, and a bndbox or robndbox made of numbers. "
        "Mend or drop it."
    ):
        read_voc(voc, images)


def test_a_voc_box_of_negative_size_is_refused_by_its_object(voc, images):
    (voc / "a.xml").write_text(VOC.replace("<xmax>4</xmax>", "<xmax>0</xmax>"))
    with pytest.raises(
        ValueError, match=rf"^{re.escape(str(voc / 'a.xml'))}: object 1: box\[0\] = .* x1 <= x0"
    ):
        read_voc(voc, images)


def test_a_size_of_zero_is_taken_for_unknown(voc, images):
    (voc / "a.xml").write_text(VOC.replace("<width>20</width>", "<width>0</width>"))
    assert len(read_voc(voc, images)[0]["boxes"]) == 2


# YOLO


@pytest.fixture
def yolo(tmp_path, images):
    folder = tmp_path / "labels"
    folder.mkdir()
    (folder / "a.txt").write_text("1 0.5 0.5 0.2 0.4\n0 0.1 0.1 0.3 0.1 0.3 0.5 0.1 0.5\n")
    (tmp_path / "data.yaml").write_text("names:\n  0: plane\n  1: small_vehicle\n")
    return folder


def test_yolo_shares_become_pixels(yolo, images, tmp_path):
    row, empty = read_yolo(yolo, images, tmp_path / "data.yaml")
    assert row["concepts"] == ["small vehicle", "plane"]
    assert row["boxes"][0] == pytest.approx([8, 3, 12, 7])
    assert row["quads"][1] == [pytest.approx(corner) for corner in ([2, 1], [6, 1], [6, 5], [2, 5])]
    assert empty["source"] == "b.png" and empty["boxes"] == []


@pytest.mark.parametrize(
    "line",
    ["1 0.5 0.5 0.2", "1 0.5 0.5 0.2 0.4 0.9", "1.5 0.5 0.5 0.2 0.4", "-1 0.5 0.5 0.2 0.4", "1 a b c d"],
)
def test_a_line_that_is_no_yolo_line_is_refused(yolo, images, line):
    (yolo / "a.txt").write_text(f"1 0.5 0.5 0.2 0.4\n{line}\n")
    with refuses(
        f"{yolo / 'a.txt'} line 2 is {line!r}, not `class x y width height` or `class x1 y1 ... x4 y4`. "
        "Mend or drop it."
    ):
        read_yolo(yolo, images, ["plane", "ship"])


def test_a_yolo_number_without_a_name_is_refused(yolo, images):
    with refuses(
        f"{yolo / 'a.txt'} line 1 names the class 1; there are 1 names, from 0. Add it or drop the line."
    ):
        read_yolo(yolo, images, ["plane"])


def test_a_yolo_box_of_negative_size_is_refused_with_its_line(yolo, images):
    (yolo / "a.txt").write_text("0 0.5 0.5 -0.2 0.4\n")
    with pytest.raises(
        ValueError, match=rf"^{re.escape(str(yolo / 'a.txt'))} line 1: box\[0\] = .* x1 <= x0"
    ):
        read_yolo(yolo, images, ["plane"])


def test_names_come_from_yaml_lists_and_lines(tmp_path):
    (tmp_path / "a.yaml").write_text("names: [plane, ship]\n")
    (tmp_path / "classes.txt").write_text("plane\nship\n\n")
    assert read_names(tmp_path / "a.yaml") == read_names(tmp_path / "classes.txt") == ["plane", "ship"]
    (tmp_path / "b.yaml").write_text("names: {0: plane, 2: ship}\n")
    with refuses(
        f"{tmp_path / 'b.yaml'} has the names {{0: 'plane', 2: 'ship'}}; they are a list, or numbered "
        "from 0. Mend the file."
    ):
        read_names(tmp_path / "b.yaml")


@pytest.mark.parametrize(("listed", "found"), [("null", None), ("no", False), ("' _'", " _"), ("1.5", 1.5)])
def test_names_that_are_no_words_are_refused(tmp_path, listed, found):
    path = tmp_path / "data.yaml"
    path.write_text(f"names: [ship, {listed}]\n")
    with refuses(
        f"{path}: names[1] is {found!r}; a name is words or a whole number. "
        "Mend it; in YAML put words such as no and null in quotes."
    ):
        read_names(path)
    path.write_text("names: [ship, 7]\n")
    assert read_names(path) == ["ship", "7"]
