"""The law of readers under generated input: rows that can be used, or a ValueError that names the file."""

import json
import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from listed import read_captions, read_coco, read_dota, read_voc, read_yolo
from PIL import Image

from geoalign_hf.data.schema import build_rows
from geoalign_hf.readers.skipped import SkipReport
from geoalign_hf.readers.yolo import read_names

WIDTH, HEIGHT = 20, 10
NUMBERS = st.one_of(
    st.integers(-5, 30),
    st.floats(),
    st.floats(0, 1),
    st.sampled_from(
        [10**400, -(10**30), 1e-320, 1e155, -1e308, True, None, "3", "0", "1e2", "0x1", "\u0663"]
    ),
)
NAMES = st.sampled_from(
    ["a.png", "b.png", "A.PNG", "sub\\a.png", "../a.png", "/etc/passwd", "c:\\a.png", "a%2Epng",
     "\ud800", "\x00", "", ".", "images", "ship", "Ship", "s_h/i-p", "true", "1", "ignore", "2"]
)  # fmt: skip
JUNK = st.recursive(
    st.one_of(NUMBERS, NAMES, st.text(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=6), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["iscrowd", "ignore", "bbox_mode", "segmentation", "bbox", "attributes", "rotation", "occluded",
     "difficult", "width", "height", "id", "image_id", "category_id", "file_name", "angle",
     "not_exhaustive_category_ids"]
)  # fmt: skip


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "images" / "images").mkdir(parents=True)
        for image in ("a.png", "b.png", "images/c.png"):
            Image.new("RGB", (WIDTH, HEIGHT)).save(Path(name) / "images" / image)
        yield Path(name)


def obey(read, path: Path) -> None:
    """Read a file twice, stopping at errors and skipping them, and check what comes out."""
    try:
        strict = read(SkipReport())
    except ValueError as error:
        assert str(path.parent) in str(error), error
        strict = None
    report = SkipReport(on_error="skip")
    try:
        rows = read(report)
    except ValueError as error:  # nothing is left
        assert strict is None and str(path.parent) in str(error), error
        return
    if strict is not None:
        assert rows == strict
    assert all(str(path.parent) in entry["message"] for entry in report.entries), report.entries
    for row in rows:
        assert Path(row["image"]).is_file() and str(path.parent) in row["image"]
        for x0, y0, x1, y1 in row["boxes"]:
            assert all(map(math.isfinite, (x0, y0, x1, y1)))
            assert max(x0, 0) < min(x1, WIDTH) and max(y0, 0) < min(y1, HEIGHT)
        assert len(row["quads"]) in (0, len(row["boxes"]))
    build_rows(rows)
    json.dumps(report.entries).encode()


def draw_change(data, value, depth: int = 0):
    """Replace one part of a value, at any depth, by junk; or drop it, double it, or add a field."""
    if isinstance(value, (list, dict)) and value and depth < 5 and data.draw(st.integers(0, 5)):
        key = data.draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
        value = value.copy()
        action = data.draw(st.sampled_from(["change", "change", "change", "drop", "add"]))
        if action == "change":
            value[key] = draw_change(data, value[key], depth + 1)
        elif action == "drop":
            del value[key]
        elif isinstance(value, dict):
            value[data.draw(FIELDS)] = data.draw(JUNK)
        else:
            value.insert(key, value[key])
        return value
    return data.draw(JUNK)


COCO = {
    "images": [
        {"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT},
        {"id": "2", "file_name": "b.png"},
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 2, "bbox": [2, 2, 8, 4], "attributes": {"rotation": 30.0}},
        {"id": 3, "image_id": "2", "category_id": 1, "segmentation": [[1, 1, 5, 1, 5, 5]]},
        {
            "id": 4,
            "image_id": "2",
            "category_id": 1,
            "segmentation": {"size": [10, 20], "counts": [5, 9, 186]},
        },
        {"id": 5, "image_id": "2", "category_id": 2, "bbox": [0.1, 0.1, 0.5, 0.5], "bbox_mode": 3},
    ],
    "categories": [{"id": 1, "name": "ship"}, {"id": 2, "name": "SmallVehicle"}],
}
SIZES = [60, pytest.param(2_000, marks=pytest.mark.slow)]


@pytest.mark.parametrize("num_examples", SIZES)
def test_coco_files(folder, num_examples):
    def law(data):
        content = COCO
        for _ in range(data.draw(st.integers(1, 3))):
            content = draw_change(data, content)
        text = json.dumps(content)
        if data.draw(st.integers(0, 9)) == 0:
            text = text[: data.draw(st.integers(0, len(text)))]
        (folder / "a.json").write_text(text)
        obey(lambda report: read_coco(folder / "a.json", folder / "images", report=report), folder / "a.json")

    settings(max_examples=num_examples)(given(st.data())(law))()


RSICD = {"images": [{"filename": "a.png", "split": "train", "sentences": [{"raw": "a ship"}, {"raw": "two"}]},
                    {"filename": "b.png", "split": "test", "sentences": [{"raw": "a car"}]}]}  # fmt: skip
NWPU = {"airport": [{"filename": "a.png", "split": "train", "raw": "one", "raw_1": "two"}], "beach": [
    {"filename": "b.png", "split": "val", "raw": "three", "raw_1": "four"}]}  # fmt: skip


@pytest.mark.parametrize("num_examples", SIZES)
def test_caption_files(folder, num_examples):
    def law(data):
        content = draw_change(data, data.draw(st.sampled_from([RSICD, NWPU])))
        (folder / "a.json").write_text(json.dumps(content))
        split = data.draw(st.sampled_from([None, "train"]))
        obey(
            lambda report: read_captions(folder / "a.json", folder / "images", split, report),
            folder / "a.json",
        )

    settings(max_examples=num_examples)(given(st.data())(law))()


TOKENS = st.one_of(
    st.integers(-5, 30).map(str),
    st.floats().map(str),
    st.sampled_from(
        ["ship", "_", "0", "1", "0.5", "0.25", "1.0", "nan", "1e400", "1e200", "-0.2", "1_0", "\u0663", ""]
    ),
)


@pytest.mark.parametrize("num_examples", SIZES)
def test_dota_and_yolo_lines(folder, num_examples):
    def law(data):
        lines = ["1 2 4 2 4 6 1 6 ship 0"] if data.draw(st.booleans()) else ["0 0.5 0.5 0.2 0.4"]
        for _ in range(data.draw(st.integers(1, 3))):
            count = data.draw(st.sampled_from([5, 7, 9, 9, 10, 10, 11, 3]))
            lines.append(" ".join(data.draw(st.lists(TOKENS, min_size=count, max_size=count))))
        lines += data.draw(st.lists(st.text(max_size=8), max_size=1))
        text = "\n".join(lines).encode("utf-8", "surrogatepass")
        (folder / "a.txt").write_bytes(text)
        drop = data.draw(st.booleans())
        images = folder / "images"
        obey(lambda report: read_dota(folder / "a.txt", images, drop, report=report), folder / "a.txt")
        obey(lambda report: read_yolo(folder / "a.txt", images, ["ship", "car"], report), folder / "a.txt")

    settings(max_examples=num_examples)(given(st.data())(law))()


TAGS = st.sampled_from(
    ["object", "objects", "name", "bndbox", "robndbox", "xmin", "ymin", "xmax", "ymax", "difficult", "size",
     "width", "height", "points", "point", "possibleresult", "cx", "cy", "w", "h", "angle", "part", "deleted",
     "annotation", "polygon", "pt", "x", "y", "x1", "y1", "HRSC_Object", "Annotated", "coordinate"]
)  # fmt: skip
BOX = [("xmin", "1"), ("ymin", "2"), ("xmax", "8"), ("ymax", "6")]
TURNED = [("cx", "8"), ("cy", "5"), ("w", "4"), ("h", "2"), ("angle", "0.4")]
POINTS = [("point", "5,1"), ("point", "7,3"), ("point", "5,5"), ("point", "3,3"), ("point", "5,1")]
HRSC = [("box_xmin", "1"), ("box_ymin", "2"), ("box_xmax", "9"), ("box_ymax", "8"), ("difficult", "0")]
TREES = [
    ("annotation", [("size", [("width", "20"), ("height", "10")]),
                    ("object", [("name", "ship"), ("difficult", "1"), ("bndbox", BOX)]),
                    ("object", [("name", "Golf_Course"), ("robndbox", TURNED)])]),
    ("annotation", [("objects", [("object", [("possibleresult", [("name", "ship")]), ("points", POINTS)])])]),
    ("HRSC_Image", [("Img_SizeWidth", "20"), ("Img_SizeHeight", "10"), ("Annotated", "1"),
                    ("HRSC_Objects", [("HRSC_Object", HRSC)])]),
]  # fmt: skip
XML_TEXTS = st.one_of(
    st.integers(-5, 30).map(str),
    st.floats().map(str),
    st.sampled_from(
        ["", "ship", "1,2", "true", "nan", "1e200", "&lt;", "&bad;", "1_0", "2", "\x01", "5,5,5"]
    ),
)


def change_tree(data, tree, depth: int = 0):
    """Change the tag, the text or the children of one element."""
    tag, content = tree
    if isinstance(content, list) and content and depth < 5 and data.draw(st.integers(0, 5)):
        content = content.copy()
        k = data.draw(st.integers(0, len(content) - 1))
        action = data.draw(st.sampled_from(["change", "change", "change", "drop", "double", "add", "move"]))
        if action == "change":
            content[k] = change_tree(data, content[k], depth + 1)
        elif action == "drop":
            del content[k]
        elif action == "double":
            content.insert(k, content[k])
        elif action == "add":
            content.insert(k, (data.draw(TAGS), data.draw(XML_TEXTS)))
        else:
            content[k] = (data.draw(TAGS), [content[k]])
        return tag, content
    if data.draw(st.booleans()):
        return data.draw(TAGS), content
    return tag, data.draw(XML_TEXTS)


def write_tree(tree) -> str:
    tag, content = tree
    return f"<{tag}>{content if isinstance(content, str) else ''.join(map(write_tree, content))}</{tag}>"


@pytest.mark.parametrize("num_examples", SIZES)
def test_xml_files(folder, num_examples):
    def law(data):
        tree = data.draw(st.sampled_from(TREES))
        for _ in range(data.draw(st.integers(1, 3))):
            tree = change_tree(data, tree)
        text = write_tree(tree)
        if data.draw(st.integers(0, 9)) == 0:
            text = text[: data.draw(st.integers(0, len(text)))]
        (folder / "a.xml").write_text(text)
        options = {"drop_difficult": data.draw(st.booleans()), "counts_from_one": data.draw(st.booleans())}
        images = folder / "images"
        obey(lambda report: read_voc(folder / "a.xml", images, **options, report=report), folder / "a.xml")

    settings(max_examples=num_examples)(given(st.data())(law))()


@pytest.mark.parametrize("num_examples", SIZES)
def test_files_of_names(folder, num_examples):
    def law(data):
        words = ["names:", "0:", "1:", "- ship", "[a, b]", "{0: a}", "&a", "*a", "<<: *a", "\n", "\n  ",
                 "null", "2020-13-45", "'x", "!!python/object:os.system", "? ", "012", "1.5", "ship", "\t",
                 "%", "\x00", "\ufeff", "#"]  # fmt: skip
        text = " ".join(data.draw(st.lists(st.sampled_from(words), max_size=9)))
        path = folder / data.draw(st.sampled_from(["data.yaml", "classes.txt"]))
        path.write_text(data.draw(st.sampled_from(["names: ", "names:\n  0: a\n  ", ""])) + text)
        try:
            names = read_names(path)
        except ValueError as error:
            assert str(path) in str(error), error
        else:
            assert names and all(isinstance(name, str) and name.strip() for name in names)

    settings(max_examples=num_examples)(given(st.data())(law))()
