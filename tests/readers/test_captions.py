"""Laws of caption files: sentences stay with their image, and a file of another form is refused."""

import json

import pytest
from listed import read_captions
from refusals import refuses

from geoalign_hf.data.schema import build_rows
from geoalign_hf.readers.captions import list_captions
from geoalign_hf.readers.skipped import SkipReport


@pytest.fixture
def content():
    """A file in the form of RSICD."""
    return {
        "dataset": "tiny",
        "images": [
            {
                "filename": "a.png",
                "split": "train",
                "sentences": [{"raw": "a red square ."}, {"raw": "red ."}],
            },
            {"filename": "b.png", "split": "test", "sentences": [{"raw": "a blue square ."}]},
        ],
    }


@pytest.fixture
def path(tmp_path, content):
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    return tmp_path / "dataset.json"


def test_captions_are_read_with_their_images(path, images):
    rows = read_captions(path, images)
    assert [row["captions"] for row in rows] == [["a red square .", "red ."], ["a blue square ."]]
    assert build_rows(rows)[1]["image"].getpixel((0, 0)) == (0, 0, 255)


def test_a_split_can_be_chosen_and_must_be_there(path, images):
    assert [row["source"] for row in read_captions(path, images, "test")] == ["b.png"]
    with refuses(str(path), "'val'", "['test', 'train']"):
        read_captions(path, images, "val")


def test_json_lines_of_captions_are_read_too(tmp_path):
    lines = [{"filename": "a.png", "split": "train", "captions": ["one", "two"]}]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert list_captions(tmp_path / "c.jsonl") == lines


def test_nwpu_captions_are_read_class_by_class(tmp_path, images, draw):
    draw(images / "airport" / "airport_001.jpg")
    entries = {"filename": "airport_001.jpg", "imgid": 0, "split": "val", "raw": "one .", "raw_1": "two ."}
    content = {"airport": [entries | {"raw_2": "three .", "raw_3": "four .", "raw_4": "five ."}], "beach": []}
    path = tmp_path / "dataset_nwpu.json"
    path.write_text(json.dumps(content))
    (row,) = read_captions(path, images, "val")
    assert row["captions"] == ["one .", "two .", "three .", "four .", "five ."]
    assert row["source"] == "airport/airport_001.jpg"


def test_a_repeated_image_is_refused(path, images, content):
    content["images"].append(content["images"][0])
    path.write_text(json.dumps(content))
    with refuses(str(path), "['a.png']"):
        read_captions(path, images)


@pytest.mark.parametrize(
    "entry",
    [{"filename": "c.png"}, {"filename": "c.png", "sentences": [{"tokens": ["a"]}]}, "c.png", None,
     {"filename": 3, "sentences": ["a"]}, {"filename": "c.png", "sentences": [" "]},
     {"filename": "c.png", "sentences": ["\ud800"]},
     {"filename": "c.png", "sentences": ["a"], "split": ["x"]}],
)  # fmt: skip
def test_an_entry_without_a_name_or_sentences_is_refused_and_costs_only_itself(path, images, content, entry):
    content["images"].insert(0, entry)
    path.write_text(json.dumps(content))
    with refuses(f"{path}: images[0]"):
        read_captions(path, images)
    report = SkipReport(on_error="skip")
    assert [row["source"] for row in read_captions(path, images, report=report)] == ["a.png", "b.png"]
    assert report.count_kinds() == {"bad entry": 1}


def test_a_line_that_is_not_json_costs_only_itself(tmp_path, images):
    path = tmp_path / "c.jsonl"
    path.write_text('{"filename": \n{"filename": "a.png", "captions": ["one"]}\n')
    with refuses(f"{path} line 1", "JSON"):
        list_captions(path)
    report = SkipReport(on_error="skip")
    assert [row["captions"] for row in read_captions(path, images, report=report)] == [["one"]]


@pytest.mark.parametrize("content", [[], {}, {"images": {}}, {"images": []}, {"a": 1}, {"a": []}, 3])
def test_a_file_of_another_form_is_refused(path, content):
    path.write_text(json.dumps(content))
    with refuses(str(path), "images"):
        list_captions(path)


@pytest.mark.parametrize("name", ["a" * 500, "../b.png", "/b.png", "c.png"])
def test_an_image_that_is_missing_or_elsewhere_is_refused(path, images, name):
    path.write_text(path.read_text().replace("a.png", name))
    with refuses(f"{path}: images[0]", repr(name)):
        read_captions(path, images)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c"])
def test_line_separators_of_unicode_do_not_end_a_line_of_json(tmp_path, images, separator):
    path = tmp_path / "lines.jsonl"
    entries = [{"filename": name, "captions": [f"a{separator}ship"]} for name in ("a.png", "b.png")]
    text = "\r\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    if separator < "\x20":
        text = text.replace(separator, f"\\u{ord(separator):04x}")
    path.write_bytes(text.encode())
    assert [row["captions"] for row in read_captions(path, images)] == [[f"a{separator}ship"]] * 2


@pytest.mark.parametrize("caption", ["...", "\u200b", "-", "a\x00ship"])
def test_a_caption_without_words_is_refused(path, images, content, caption):
    content["images"][1]["sentences"] = [{"raw": caption}]
    path.write_text(json.dumps(content))
    with refuses("dataset.json", "images[1]", "words"):
        read_captions(path, images)
