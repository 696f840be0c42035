"""Laws of the COCO reader: what annotations become, what changes the meaning of a box, what is refused."""

import json
import logging

import numpy as np
import pytest
from call_counts import count_calls
from listed import read_coco
from PIL import Image
from refusals import refuses

from geoalign_hf.data.loading import from_coco
from geoalign_hf.data.schema import FEATURES
from geoalign_hf.readers.skipped import SkipReport


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
def path(tmp_path):
    return tmp_path / "coco.json"


@pytest.fixture
def read(path, images):
    """Write content to `path` and read it as plain rows; with `skip` errors are collected."""

    def write_and_read(content, skip: SkipReport | None = None, **options):
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return read_coco(path, images, report=skip, **options)

    return write_and_read


@pytest.fixture
def read_one(read, coco):
    """Read the first row of a file whose only annotation has these fields."""

    def read_annotation(skip: SkipReport | None = None, **fields):
        bbox = {} if "bbox" in fields or "segmentation" in fields else {"bbox": [2, 2, 8, 4]}
        coco["annotations"] = [{"id": 1, "image_id": 7, "category_id": 2} | bbox | fields]
        return read(coco, skip)[0]

    return read_annotation


def test_boxes_become_corners_and_categories_become_words(read, coco):
    row = read(coco)[0]
    assert row["boxes"] == [[1.0, 2.0, 4.0, 6.0], [0.5, 1.5, 10.5, 3.75], [15.0, 5.0, 20.0, 10.0]]
    assert row["concepts"] == ["ship", "airport", "ship"]
    assert row["phrases"] == ["a ship", "an airport", "a ship"]
    assert row["captions"] == ["an aerial image with two ships and an airport"]
    assert row["quads"] == row["difficult"] == row["unboxed"] == []


def test_rows_keep_the_order_of_the_file_and_each_its_own_image(read, coco, path, images):
    read(coco)
    rows = from_coco(path, images)
    assert [row["image"].getpixel((0, 0)) for row in rows] == [(255, 0, 0), (0, 0, 255)]
    assert list(rows.features) == list(FEATURES)


def test_an_image_without_boxes_has_no_regions_and_no_caption(read, coco):
    row = read(coco)[1]
    assert row["boxes"] == row["phrases"] == row["concepts"] == row["captions"] == []


def test_a_reader_logs_what_it_found(read, coco, caplog, path):
    with caplog.at_level(logging.INFO):
        read(coco)
    assert caplog.messages == [f"{path}: 2 images, 3 regions of 2 concepts"]


def test_a_folder_of_files_is_read_in_order(read, coco, images, path):
    read(coco)
    text = path.read_text().replace('"ship"', '"boat"')
    for name in "ab":
        text = text.replace(f"{name}.png", f"other_{name}.png")
        (images / f"{name}.png").rename(images / f"other_{name}.png")
        Image.new("RGB", (20, 10)).save(images / f"{name}.png")
    (path.parent / "d.JSON").write_text(text)
    rows = read_coco(path.parent, images)
    assert [row["concepts"][:1] for row in rows] == [["ship"], [], ["boat"], []]


def test_a_folder_is_read_without_its_bad_files_where_errors_are_skipped(read, coco, images, path):
    read(coco)
    bad = path.with_name("e.json")
    bad.write_text(json.dumps(coco)[:50])
    with refuses(str(bad), "JSON"):
        read_coco(path.parent, images)
    report = SkipReport(on_error="skip")
    assert len(read_coco(path.parent, images, report=report)) == 2
    assert report.count_kinds() == {"bad file": 1}


@pytest.mark.parametrize(
    ("content", "found"),
    [([], "'['"), ("3", "'3'"), ({"images": [], "info": {}}, "['images', 'info']"),
     ({"images": {}, "annotations": [], "categories": []}, "images is {}")],
)  # fmt: skip
def test_json_that_is_not_a_coco_file_is_refused(read, path, content, found):
    with refuses(str(path), found):
        read(content)


def test_cut_missing_and_endlessly_nested_files_are_refused(read, coco, path, tmp_path):
    for text in (json.dumps(coco)[:50], "[" * 200_000):
        with refuses(str(path), "JSON"):
            read(text)
    with refuses(str(tmp_path / "none.json"), "No such file"):
        read_coco(tmp_path / "none.json", tmp_path)


# Boxes


def test_a_box_partly_outside_its_image_is_a_region(read_one):
    assert read_one(bbox=[-5, 2, 10, 4])["boxes"] == [[-5.0, 2.0, 5.0, 6.0]]


@pytest.mark.parametrize(
    ("bbox", "fact"),
    [([4, 2, -3, 4], "x1 <= x0"), ([4, 2, 3, 0], "y1 <= y0"), ([20, 2, 3, 4], "outside its image of 20 x 10"),
     ([1, 2, float("nan"), 4], "not finite"), ([1, 2, float("inf"), 4], "not finite"),
     ([1, 2, 10**400, 4], "not finite"), ([-1e160, 2, 2e160, 4], "beyond"), ([1, 2, 1e-200, 4], "x1 <= x0"),
     ([0, 0, 1e-200, 4], "pixels along x"), ([19.99999, 2, 5, 4], "pixels along x"),
     ([0.1, 0.2, 0.5, 0.4], "fractions")],
)  # fmt: skip
def test_a_box_that_is_not_a_region_of_its_image_is_refused_with_its_place(read_one, path, bbox, fact):
    with refuses(str(path), "annotation 1", fact):
        read_one(bbox=bbox)


@pytest.mark.parametrize("bbox", [[1, 2, 3], [1, 2, 3, 4, 5], [], [1, 2, 3, "4"], None, 5, [True, 1, 2, 3]])
def test_a_bbox_that_is_not_four_numbers_is_refused(read_one, path, bbox):
    with refuses(str(path), "annotation 1", repr(bbox), "width and height"):
        read_one(bbox=bbox)


@pytest.mark.parametrize(
    ("mode", "bbox"),
    [(0, [2, 2, 10, 6]), (1, [2, 2, 8, 4]), ("XYXY_ABS", [2, 2, 10, 6]), ("BoxMode.XYWH_ABS", [2, 2, 8, 4]),
     (2, [0.1, 0.2, 0.5, 0.6]), (3, [0.1, 0.2, 0.4, 0.4])],
)  # fmt: skip
def test_the_mode_of_a_box_is_obeyed(read_one, mode, bbox):
    assert read_one(bbox=bbox, bbox_mode=mode)["boxes"][0] == pytest.approx([2, 2, 10, 6])


@pytest.mark.parametrize("mode", [4, True, "center", None, [1]])
def test_an_unknown_mode_of_a_box_is_refused(read_one, mode):
    with refuses("annotation 1", "bbox_mode", repr(mode)):
        read_one(bbox_mode=mode)


def test_a_rotation_of_cvat_turns_the_box_clockwise_about_its_center(read_one):
    row = read_one(bbox=[4, 3, 8, 4], attributes={"rotation": 90.0, "occluded": False})
    assert row["quads"][0] == [pytest.approx(p) for p in ([10, 1], [10, 9], [6, 9], [6, 1])]
    assert read_one(attributes={"rotation": 0.0})["quads"] == []


@pytest.mark.parametrize(
    "fields",
    [{"rotation": 30}, {"angle": 0.3}, {"attributes": {"theta": "12"}}, {"attributes": {"rotation": 1e9}}],
)
def test_an_angle_of_unknown_meaning_is_refused(read_one, fields):
    with refuses("annotation 1", "turns its box"):
        read_one(**fields)


@pytest.mark.parametrize("flag", [1, "1", True, "true"])
@pytest.mark.parametrize("name", ["iscrowd", "ignore", "isgroup", "IsGroupOf", "is_crowd", "Ignored"])
def test_what_is_no_single_region_is_skipped_and_stays_known(read_one, name, flag):
    report = SkipReport()
    row = read_one(report, **{name: flag})
    assert row["boxes"] == [] and row["unboxed"] == ["ship"]
    assert len(report.entries) == 1 and name in report.entries[0]["message"]


@pytest.mark.parametrize("flag", [0, "0", False, "false", None])
def test_a_flag_that_is_not_set_changes_nothing(read_one, flag):
    assert len(read_one(iscrowd=flag, ignore=flag, attributes={"ignore": flag})["boxes"]) == 1


def test_a_flag_that_is_neither_set_nor_not_is_refused(read_one):
    with refuses("annotation 1", "iscrowd", "'maybe'"):
        read_one(iscrowd="maybe")


def test_occluded_regions_are_difficult_and_can_be_dropped(read, coco):
    coco["annotations"][0]["attributes"] = {"occluded": True}
    assert read(coco)[0]["difficult"] == [True, False, False]
    row = read(coco, drop_difficult=True)[0]
    assert row["concepts"] == ["airport", "ship"] and row["unboxed"] == ["ship"]


def test_concepts_that_are_not_annotated_exhaustively_stay_known(read, coco):
    coco["images"][1]["not_exhaustive_category_ids"] = [5, 99]
    assert read(coco)[1]["unboxed"] == ["airport"]


# Segmentations


def test_without_a_bbox_the_box_round_the_polygons_is_taken(read_one):
    polygons = [[4, 1, 9, 1, 9, 3.5], [2, 2, 5, 2, 5, 8, 2, 8]]
    assert read_one(segmentation=polygons)["boxes"] == [[2.0, 1.0, 9.0, 8.0]]
    assert read_one(segmentation=polygons, bbox=[])["boxes"] == [[2.0, 1.0, 9.0, 8.0]]
    assert read_one(segmentation=polygons, bbox=[1, 1, 2, 2])["boxes"] == [[1.0, 1.0, 3.0, 3.0]]


def pack_counts(counts: list[int]) -> str:
    """Pack run lengths as pycocotools does (rleToString)."""
    text = ""
    for i, count in enumerate(counts):
        value, more = count - (counts[i - 2] if i > 2 else 0), True
        while more:
            code = value & 31
            value >>= 5
            more = not (value == -1 if code & 16 else value == 0)
            text += chr((code | 32 if more else code) + 48)
    return text


@pytest.mark.parametrize("seed", range(20))
def test_the_box_round_a_run_length_mask_is_that_of_its_pixels(read_one, seed):
    rng = np.random.default_rng(seed)
    mask = np.zeros((10, 20), dtype=int)
    for _ in range(int(rng.integers(1, 4))):
        y, x = rng.integers(0, 10), rng.integers(0, 20)
        mask[y : y + rng.integers(1, 6), x : x + rng.integers(1, 9)] = 1
    flat = mask.T.flatten()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat])))
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    ys, xs = np.nonzero(mask)
    box = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    for form in (counts, pack_counts(counts)):
        assert read_one(segmentation={"size": [10, 20], "counts": form})["boxes"] == [box]


@pytest.mark.parametrize(
    "segmentation",
    [[[1, 2, 3, 4, 5]], [[1, 2, 3, 4]], [[1, 2, "3", 4, 5, 6]], [5], "x", {"counts": [200]},
     {"size": [10**9, 10**9], "counts": [10**18]}, {"size": [10, 20], "counts": [100]},
     {"size": [10, 20], "counts": [200]}, {"size": [10, 20], "counts": "\x00"},
     {"size": [10, 20], "counts": "o" * 50}, {"size": [10, 20], "counts": [-1, 201]}],
)  # fmt: skip
def test_a_segmentation_that_is_not_one_is_refused(read_one, segmentation):
    with refuses("annotation 1", "has"):
        read_one(segmentation=segmentation)


# Names of images and concepts


def test_images_without_a_size_are_read_for_it(read, coco):
    del coco["images"][0]["width"], coco["images"][0]["height"]
    coco["images"][1] |= {"width": 0, "height": None}
    assert [len(row["boxes"]) for row in read(coco)] == [3, 0]


@pytest.mark.parametrize(("field", "value"), [("width", 40), ("height", -10), ("width", 10**400)])
def test_an_image_of_another_size_than_stated_is_refused(read, coco, images, field, value):
    coco["images"][0][field] = value
    with refuses("image 7", str(images / "a.png"), "20 x 10"):
        read(coco)


def test_the_size_of_an_image_is_the_one_it_is_seen_in(images, read, coco):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new("RGB", (10, 20)).save(images / "a.png", exif=exif)
    assert len(read(coco)[0]["boxes"]) == 3


@pytest.mark.parametrize(
    ("name", "stored"),
    [("sub/a.png", "sub/a.png"), ("sub\\a.png", "sub/a.png"), ("elsewhere/a.png", "sub/a.png"),
     ("my%20ship%2B1.png", "my ship+1.png"), ("cafe\u0301.png", "caf\u00e9.png"),
     ("caf\u00e9.png", "cafe\u0301.png"), ("SUB/A.PNG", "sub/a.png"), ("a%20b.png", "a%20b.png"),
     ("./sub//a.png", "sub/a.png"), ("https://host/x/sea.png", "deep/er/sea.png")],
)  # fmt: skip
def test_a_file_name_of_another_system_is_found(read, coco, images, draw, name, stored):
    (images / "a.png").unlink()
    draw(images / stored)
    coco["images"][0]["file_name"] = name
    row = read(coco)[0]
    assert row["image"] == str(images / stored) and row["source"] == stored


def test_two_entries_never_share_a_file(read, coco, images):
    for names in (
        ("train/a.png", "val/a.png"),
        ("a.png", "val/a.png"),
        ("a.png", "a.png"),
        ("a.png", "A.png"),
    ):
        for entry, name in zip(coco["images"], names, strict=True):
            entry["file_name"] = name
        with refuses("a.png"):
            read(coco)


def test_a_name_that_fits_two_files_is_refused(read, coco, images, draw):
    (images / "a.png").rename(draw(images / "train" / "a.png"))
    draw(images / "val" / "a.png")
    with refuses("image 7", "train/a.png", "val/a.png"):
        read(coco)


@pytest.mark.parametrize(
    "name",
    ["../a.png", "/etc/a.png", "x/../../a.png", "..\\a.png", "C:\\a.png", "\\\\host\\a.png", "c:/a.png"],
)
def test_a_file_name_that_leads_out_of_the_folder_is_refused(read, coco, images, name, draw):
    draw(images.parent / "a.png")
    coco["images"][0]["file_name"] = name
    with refuses("image 7", repr(name), str(images)):
        read(coco)


@pytest.mark.parametrize("name", ["deep/c.png", "b" * 500, "", "\x00", "\ud800.png", "%2e%2e/x.png"])
def test_a_missing_image_is_refused(read, coco, images, name):
    coco["images"][0]["file_name"] = name
    with refuses("image 7", repr(name), str(images)):
        read(coco)


def test_a_folder_without_any_image_is_a_missing_image(path, coco, tmp_path):
    path.write_text(json.dumps(coco))
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "none"):
        with refuses("image 7", "'a.png'", str(folder)):
            read_coco(path, folder)


def test_the_same_box_under_two_spellings_is_one_region(read, coco):
    coco["categories"] += [
        {"id": 6, "name": "Air_Port"},
        {"id": 8, "name": "SHIP"},
        {"id": 9, "name": "air-port"},
    ]
    coco["annotations"] += [
        coco["annotations"][0] | {"id": 9, "category_id": 8},
        coco["annotations"][1] | {"id": 10, "category_id": 6},
        coco["annotations"][1] | {"id": 11, "category_id": 9},
    ]
    report = SkipReport()
    assert read(coco, report)[0]["concepts"] == ["ship", "airport", "ship", "air port"]
    assert report.count_kinds() == {"repeated region": 2}


@pytest.mark.parametrize("name", ["", "  _ ", "!?", "a\x00b", "\ud800"])
def test_a_category_without_words_is_refused_and_the_others_stay(read, coco, name):
    coco["categories"][1]["name"] = name
    with refuses("categories[1]", repr(name)):
        read(coco)
    report = SkipReport(on_error="skip")
    assert read(coco, report)[0]["concepts"] == ["ship", "ship"]
    assert report.count_kinds() == {"unknown concept": 2}  # the category, and the box that names it


# Wrong entries


@pytest.mark.parametrize(
    ("key", "field", "value"),
    [("images", "id", [7]), ("images", "id", True), ("images", "width", "20"), ("images", "file_name", None),
     ("annotations", "image_id", None), ("categories", "name", 3), ("annotations", "id", {})],
)  # fmt: skip
def test_a_field_of_another_type_is_refused(read, coco, path, key, field, value):
    coco[key][0][field] = value
    with refuses(f"{path}: {key}[0]", field, repr(value), type(value).__name__):
        read(coco)


@pytest.mark.parametrize(("key", "field"), [("images", "file_name"), ("annotations", "image_id"),
                                            ("categories", "name")])  # fmt: skip
def test_an_entry_that_lacks_a_field_is_refused(read, coco, path, key, field):
    del coco[key][0][field]
    with refuses(f"{path}: {key}[0]", "lacks", field):
        read(coco)


@pytest.mark.parametrize(("key", "id"), [("images", 7), ("annotations", 1), ("categories", 2)])
def test_repeated_ids_are_refused(read, coco, path, key, id):
    coco[key].append(coco[key][0])
    with refuses(f"{path}: {key}[0]", str(id)):
        read(coco)


def test_annotations_of_unknown_images_and_categories_are_refused(read, coco):
    coco["annotations"][1]["image_id"] = 99
    with refuses("annotation 2", "image 99"):
        read(coco)
    coco["annotations"][1] |= {"image_id": 7, "category_id": 1}
    with refuses("annotation 2", "category 1", "[2, 5]"):
        read(coco)


def test_a_wrong_entry_costs_only_itself_where_errors_are_skipped(read, coco):
    coco["annotations"][0]["bbox"] = [4, 2, -3, 4]
    coco["annotations"][1]["category_id"] = 9
    coco["annotations"] += [7, {"id": 8}, {"image_id": 7, "category_id": 2, "bbox": [5, 5, 2, 2]}]
    coco["images"] += ["x", {"id": 4, "file_name": "none.png"}]
    coco["categories"] += [None]
    report = SkipReport(on_error="skip")
    first, second = read(coco, report)
    assert first["boxes"] == [[15.0, 5.0, 20.0, 10.0], [5.0, 5.0, 7.0, 7.0]]
    assert first["unboxed"] == ["ship"]  # one of them is there without a box
    assert report.count_kinds() == {"bad entry": 4, "unknown concept": 1, "bad region": 1, "no image": 1}


def test_ten_times_the_boxes_of_an_image_take_about_ten_times_the_calls(read, coco, counted_keys):
    counts = []
    for number in (300, 3_000):
        coco["annotations"] = [
            {"id": i, "image_id": 7, "category_id": 2, "bbox": [i % 1000 / 100, i // 1000 / 20, 1, 1]}
            for i in range(number)
        ]
        rows = []
        counts.append(count_calls(lambda rows=rows: rows.extend(read(coco))))
        assert len(rows[0]["boxes"]) == number
    assert 5 * counts[0] < counts[1] < 11 * counts[0]  # a quadratic reader makes 100 times as many


@pytest.mark.parametrize("field", ["bbox_mode", "box_mode", "bbox_format", "box_format", "bbox_type"])
def test_a_field_that_says_how_a_box_is_written_is_obeyed_or_refused(read_one, field):
    for mode, box in (("xywh", [2, 2, 10, 6]), ("COCO", [2, 2, 10, 6]), ("xyxy", [2, 2, 8, 4])):
        assert read_one(**{field: mode})["boxes"] == [box]
    for mode in ("cxcywh", "yolo", "", 9, True, []):
        with refuses("coco.json", "annotation 1", field):
            read_one(**{field: mode})


def test_fields_that_contradict_each_other_are_refused(read_one):
    assert read_one(bbox_mode=0, bbox_format="xyxy")["boxes"] == [[2, 2, 8, 4]]
    with refuses("annotation 1", "bbox_mode", "bbox_format"):
        read_one(bbox_mode=1, bbox_format="xyxy")


@pytest.mark.parametrize("value", ["45,5", "4 5", float("nan"), [45], True])
def test_a_rotation_that_is_no_number_is_refused(read_one, value):
    with refuses("annotation 1", "rotation"):
        read_one(attributes={"rotation": value})


def test_a_text_that_is_named_like_an_angle_is_no_rotation(read_one):
    for value in ("frontal", "", None):
        assert read_one(attributes={"angle": value})["boxes"] == [[2, 2, 10, 6]]


@pytest.mark.parametrize("place", range(8))
def test_a_polygon_with_nan_anywhere_is_refused(read_one, place):
    points = [2, 2, 9, 2, 9, 8, 2, 8]
    assert read_one(segmentation=[points])["boxes"] == [[2, 2, 9, 8]]
    points[place] = float("nan")
    with refuses("annotation 1", "not finite"):
        read_one(segmentation=[points])


def test_a_file_of_another_encoding_is_refused_with_the_remedy(path, images, coco):
    for encoding in ("utf-16", "utf-32"):
        path.write_text(json.dumps(coco), encoding=encoding)
        with refuses("coco.json", "UTF-8"):
            read_coco(path, images)
