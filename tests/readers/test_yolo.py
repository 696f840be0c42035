"""Laws of the YOLO reader: fractions become pixels, and labels are found wherever they lie."""

import pytest
from listed import read_yolo
from refusals import refuses

from geoalign_hf.readers.skipped import SkipReport
from geoalign_hf.readers.yolo import read_names

NAMES = ["plane", "ship"]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "labels" / "a.txt"
    path.parent.mkdir()
    path.write_text("1 0.5 0.5 0.2 0.4\n0 0.1 0.1 0.3 0.1 0.3 0.5 0.1 0.5\n")
    (tmp_path / "data.yaml").write_text("names:\n  0: plane\n  1: small_vehicle\n")
    return path


def test_fractions_become_pixels(path, images, tmp_path):
    row, empty = read_yolo(path.parent, images, tmp_path / "data.yaml")
    assert row["concepts"] == ["small vehicle", "plane"]
    assert row["boxes"][0] == pytest.approx([8, 3, 12, 7])
    assert row["quads"][1] == [pytest.approx(corner) for corner in ([2, 1], [6, 1], [6, 5], [2, 5])]
    assert empty["source"] == "b.png" and empty["boxes"] == []


@pytest.mark.parametrize(
    ("line", "box"),
    [("0 0.1 0.1 0.5 0.1 0.5 0.5", [2, 1, 10, 5]),
     ("0 0.1 0.1 0.5 0.1 0.5 0.5 0.3 0.6 0.1 0.5", [2, 1, 10, 6]),
     ("0.0 0.5 0.5 0.2 0.2", [8, 4, 12, 6]), ("1e0 0.5 0.5 0.2 0.2", [8, 4, 12, 6])],
)  # fmt: skip
def test_segments_and_classes_with_decimals_are_read(path, images, line, box):
    path.write_text(line)
    (row, _) = read_yolo(path.parent, images, NAMES)
    assert row["boxes"] == [pytest.approx(box)] and row["quads"] == []


@pytest.mark.parametrize(
    "line",
    ["1 0.5 0.5 0.2", "1 0.5 0.5 0.2 0.4 0.9", "1.5 0.5 0.5 0.2 0.4", "-1 0.5 0.5 0.2 0.4", "1 a b c d",
     "ship 0 0 1 1",
     "nan 0.5 0.5 0.2 0.4", "1 0.1 0.1 0.5 0.1 0.5 0.5 0.3", "1 0.1 0.1 0.5", "1 8 3 4 4",
     "1 0.5 0.5 1e300 0.4"],
)  # fmt: skip
def test_a_line_of_another_form_is_refused(path, images, line):
    path.write_text(f"1 0.5 0.5 0.2 0.4\n{line}\n")
    with refuses(f"{path} line 2", repr(line)):
        read_yolo(path.parent, images, NAMES)


def test_a_class_without_a_name_and_a_box_without_area_are_refused(path, images):
    with refuses(f"{path} line 1", "class 1", "1 names"):
        read_yolo(path.parent, images, ["plane"])
    path.write_text("0 0.5 0.5 -0.2 0.4\n")
    with refuses(f"{path} line 1", "x1 <= x0"):
        read_yolo(path.parent, images, NAMES)


@pytest.mark.parametrize(
    ("labels", "pictures"),
    [("labels/train", "images/train"), ("train/labels", "train/images"), ("deep/er", ""), ("", "deep/er"),
     ("labels/train", "other/train")],
)  # fmt: skip
def test_labels_are_found_wherever_they_lie(tmp_path, draw, labels, pictures):
    root = tmp_path / "set"
    draw(root / "pictures" / pictures / "a.png")
    draw(root / "pictures" / pictures / "background.png")
    (root / "text" / labels).mkdir(parents=True)
    (root / "text" / labels / "a.TXT").write_text("1 0.5 0.5 0.2 0.4")
    (root / "text" / "classes.txt").write_text("plane\nship")
    (root / "text" / "README.roboflow.txt").write_text("hello")
    rows = read_yolo(root / "text", root / "pictures", NAMES)
    assert [row["concepts"] for row in rows] == [["ship"], []]


def test_labels_and_images_of_one_tree_are_told_apart_by_their_splits(tmp_path, draw):
    for i, split in enumerate(("train", "val")):
        draw(tmp_path / "images" / split / "a.png")
        (tmp_path / "labels" / split).mkdir(parents=True)
        (tmp_path / "labels" / split / "a.txt").write_text(f"{i} 0.5 0.5 0.2 0.4")
    rows = read_yolo(tmp_path, tmp_path, NAMES)
    assert [(row["source"], row["concepts"]) for row in rows] == [
        ("images/train/a.png", ["plane"]), ("images/val/a.png", ["ship"])
    ]  # fmt: skip
    (tmp_path / "images" / "val" / "a.png").unlink()
    with refuses("val/a.txt", "no image"):  # not the label of train/a.png
        read_yolo(tmp_path, tmp_path, NAMES)
    (tmp_path / "labels" / "train" / "a.txt").unlink()
    with refuses("val/a.txt"):  # the only label and the only image, but of two splits
        read_yolo(tmp_path, tmp_path, NAMES)


def test_a_folder_of_images_without_any_label_is_refused(path, images, draw):
    draw(images / "test" / "c.png")
    with refuses(str(images / "test"), "1 images"):
        read_yolo(path.parent, images, NAMES)
    report = SkipReport(on_error="skip")
    assert len(read_yolo(path.parent, images, NAMES, report)) == 2
    assert report.count_kinds() == {"no labels": 1}


# Names


def test_names_come_from_yaml_lists_and_lines(tmp_path):
    (tmp_path / "a.yaml").write_text("names: [plane, ship]\n")
    (tmp_path / "b.YML").write_text("names: {0: plane, '1': ship}\nnc: 2\ntrain: ../x\n")
    (tmp_path / "classes.txt").write_text("plane\nship\n\n")
    for name in ("a.yaml", "b.YML", "classes.txt"):
        assert read_names(tmp_path / name) == NAMES


def test_a_name_is_read_as_it_is_written(tmp_path):
    (tmp_path / "a.yaml").write_text("names: [ship, 7, 012]\n")
    assert read_names(tmp_path / "a.yaml") == ["ship", "7", "012"]


@pytest.mark.parametrize("names", ["null", "no", "' _'", "1.5", "2020-01-01", "[a]", "{a: b}"])
def test_names_that_are_no_words_are_refused(tmp_path, names):
    path = tmp_path / "data.yaml"
    path.write_text(f"names: [ship, {names}]\n")
    with refuses(str(path), "names[1]"):
        read_names(path)


@pytest.mark.parametrize(
    "text",
    [
        "names: {0: plane, 2: ship}",
        "names: []",
        "a: b",
        "[1, 2]",
        "{",
        "? [a]\n: b",
        "",
        "names: {0: a, 0: b}",
        "names: [a]\nnames: [b]",
    ],
)
def test_a_file_without_names_is_refused(tmp_path, text):
    (tmp_path / "data.yaml").write_text(text)
    with refuses(str(tmp_path / "data.yaml")):
        read_names(tmp_path / "data.yaml")


@pytest.mark.parametrize("use", ["names: *z", "names: {<<: *z}"])
def test_aliases_that_multiply_are_refused_at_once(tmp_path, use):
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefghi", "bcdefghiz", strict=True)
    ]
    (tmp_path / "data.yaml").write_text("\n".join([*lines, use]))
    with refuses(str(tmp_path / "data.yaml"), "alias"):
        read_names(tmp_path / "data.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "plane\n\nship\n",
        "# names\nplane\nship\n",
        "0 plane\n1 ship",
        "1: plane\n2: ship",
        "0,plane\n1,ship\n",
    ],
)
def test_a_list_whose_lines_are_not_the_names_by_number_is_refused(tmp_path, text):
    path = tmp_path / "classes.txt"
    path.write_text(text)
    with refuses("classes.txt"):
        read_names(path)


def test_a_list_of_names_may_hold_numbers_and_end_with_blank_lines(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("737\r\n747\r\n2 cars\r\n\r\n\r\n")
    assert read_names(path) == ["737", "747", "2 cars"]


def test_the_names_of_a_set_with_key_points_are_refused(tmp_path):
    path = tmp_path / "data.yaml"
    path.write_text("kpt_shape: [3, 2]\nnames: [plane]\n")
    with refuses("data.yaml", "kpt_shape"):
        read_names(path)
