"""Laws of caption files: sentences stay with their image, and a file of another form is refused."""

import json
import re

import pytest
from PIL import Image

from geoalign_hf.captions import list_captions, read_captions
from geoalign_hf.rows import build_rows


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
