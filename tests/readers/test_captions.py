"""Laws of caption files: sentences stay with their image, and a file of another form is refused."""

import json
import re

import pytest
from PIL import Image

from geoalign_hf.data.schema import build_rows
from geoalign_hf.readers.captions import list_captions, read_captions
from geoalign_hf.readers.skipped import SkipReport


def refuses(message: str):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name, colour in (("a.png", (255, 0, 0)), ("b.png", (0, 0, 255))):
        Image.new("RGB", (20, 10), colour).save(folder / name)
    return folder


@pytest.fixture
def karpathy(tmp_path):
    content = {
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
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    return tmp_path / "dataset.json"


def test_captions_are_read_with_their_images(karpathy, images):
    rows = read_captions(karpathy, images)
    assert [row["captions"] for row in rows] == [["a red square .", "red ."], ["a blue square ."]]
    assert build_rows(rows)[1]["image"].getpixel((0, 0)) == (0, 0, 255)


def test_a_split_can_be_chosen_and_must_be_there(karpathy, images):
    assert [row["source"] for row in read_captions(karpathy, images, "test")] == ["b.png"]
    with refuses(f"{karpathy} has no split 'val'; it has ['test', 'train']. Choose one of them."):
        read_captions(karpathy, images, "val")


def test_json_lines_of_captions_are_read_too(tmp_path):
    lines = [{"filename": "a.png", "split": "train", "captions": ["one", "two"]}]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert list_captions(tmp_path / "c.jsonl") == lines


def test_a_repeated_image_is_refused(karpathy, images):
    content = json.loads(karpathy.read_text())
    content["images"].append(content["images"][0])
    karpathy.write_text(json.dumps(content))
    with refuses(f"{karpathy} repeats the images ['a.png']. Give every image one entry."):
        read_captions(karpathy, images)


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ({"filename": "c.png"}, "has ['filename']; it needs a `filename` and a list of `sentences`."),
        (
            {"filename": "c.png", "sentences": [{"tokens": ["a"]}]},
            "has a sentence without words. Give each its `raw` words.",
        ),
    ],
)
def test_an_entry_without_sentences_is_refused(karpathy, images, entry, complaint):
    content = json.loads(karpathy.read_text())
    content["images"].append(entry)
    karpathy.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"^{re.escape(f'{karpathy}: images[2] {complaint}')}"):
        read_captions(karpathy, images)


def test_an_entry_without_words_is_left_out_alone_where_that_is_asked_for(karpathy, images, tmp_path):
    content = json.loads(karpathy.read_text())
    content["images"][:0] = [{"filename": "c.png", "sentences": [" "]}, {"filename": "d.png"}]
    karpathy.write_text(json.dumps(content))
    report = SkipReport(on_error="skip")
    assert [row["source"] for row in read_captions(karpathy, images, report=report)] == ["a.png", "b.png"]
    assert [entry["message"] for entry in report.entries] == [
        f"{karpathy}: images[0] has a sentence without words. Give each its `raw` words.",
        f"{karpathy}: images[1] has ['filename']; it needs a `filename` and a list of `sentences`. "
        "Give a caption file in the form of RSICD.",
    ]
    path = tmp_path / "c.jsonl"
    path.write_text('{"filename": \n{"filename": "a.png", "captions": ["one"]}\n')
    report = SkipReport(on_error="skip")
    assert [row["captions"] for row in read_captions(path, images, report=report)] == [["one"]]
    assert report.count_kinds() == {"bad entry": 1}


def test_a_file_name_too_long_for_the_disk_is_an_image_that_is_missing(karpathy, images):
    name = "a" * 500
    karpathy.write_text(karpathy.read_text().replace("a.png", name))
    with refuses(f"{karpathy}: images[0] is missing at {images / name}. Give the folder it lies in."):
        read_captions(karpathy, images)
