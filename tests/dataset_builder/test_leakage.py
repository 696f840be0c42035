"""Laws of the leakage check: copies are found however they were saved or oriented, other images are not."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from toy_rows import draw_rows

from geoalign_hf.data.duplicates import hash_appearance, list_orientations
from geoalign_hf.data.schema import write_rows
from geoalign_hf.dataset_builder.leakage import (
    collect_set,
    collect_sets,
    find_overlaps,
    write_table,
)


def save_again(image: Image.Image, scale: float, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.resize([round(side * scale) for side in image.size]).save(file, "JPEG", quality=quality)
    return Image.open(file)


@pytest.fixture(scope="module")
def images():
    return [row["image"] for row in draw_rows(60, seed=3)]


@pytest.fixture(scope="module")
def evaluation(images):
    named = [(f"{i}.png", image) for i, image in enumerate(images[:30])]
    return collect_set("eval", named, [("0.png", "A ship, at a pier ."), ("1.png", "two tanks")])


def test_the_same_pixels_are_the_same_image_whatever_their_file(images, evaluation):
    for i, image in enumerate(images[:30]):
        assert evaluation.find_image(image.convert("RGBA")) == ("same image", f"{i}.png")


def test_a_copy_is_found_resized_compressed_rotated_and_mirrored(images, evaluation):
    for i, image in enumerate(images[:30]):
        oriented = list_orientations(image)[i % 8]
        assert evaluation.find_image(save_again(oriented, 0.6, 40)) == ("similar image", f"{i}.png")


def test_other_images_are_not_found(images, evaluation):
    assert [evaluation.find_image(image) for image in images[30:]] == [None] * 30


def test_an_image_has_eight_orientations():
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20)
    assert len({(oriented.size, oriented.tobytes()) for oriented in list_orientations(image)}) == 8


def test_an_image_without_contrast_is_similar_to_no_other():
    assert hash_appearance(Image.new("RGB", (50, 50), (30, 60, 90))) is None
    flat = collect_set("flat", [("a.png", Image.new("RGB", (50, 50)))])
    assert flat.find_image(Image.new("RGB", (50, 50))) == ("same image", "a.png")
    assert flat.find_image(Image.new("RGB", (50, 51))) is None


def test_captions_are_compared_by_their_words(images, evaluation):
    assert evaluation.find_caption("a SHIP at a pier") == ("same caption", "0.png")
    assert evaluation.find_caption("a ship at the pier") is None
    row = {"image": images[40], "captions": ["Two tanks.", "one tank"]}
    assert find_overlaps(row, [evaluation]) == [
        {"set": "eval", "kind": "same caption", "found": "1.png", "caption": "Two tanks."}
    ]


def test_the_table_counts_each_kind(images, evaluation):
    row = {"image": images[0], "captions": ["two tanks"]}
    assert write_table(find_overlaps(row, [evaluation]), [evaluation]).splitlines() == [
        "| evaluation set | images | captions | same image | similar image | same caption |",
        "| --- | --- | --- | --- | --- | --- |",
        "| eval | 30 | 2 | 1 | 0 | 1 |",
    ]


@pytest.mark.slow
def test_the_command_prints_the_table_and_writes_the_list(images, tmp_path, geoalign):
    (tmp_path / "eval").mkdir()
    images[0].save(tmp_path / "eval" / "a.png")
    captions = {"images": [{"filename": "x.png", "sentences": [{"raw": "a SHIP ."}]}]}
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    rows = []
    for image in images[:2]:
        file = io.BytesIO()
        image.save(file, "PNG")
        row = {
            "image": {"bytes": file.getvalue(), "path": "i.png"},
            "boxes": [],
            "phrases": [],
            "concepts": [],
        }
        rows.append(row | {"captions": ["a ship"], "source": "i.png"})
    (tmp_path / "rows").mkdir()
    write_rows(rows, tmp_path / "rows" / "train.parquet")
    sets = ["--eval_captions", tmp_path / "captions.json", "--eval_images", tmp_path / "eval"]
    printed = geoalign("check-leakage", "--dataset", tmp_path / "rows", "--output", "found.json", *sets)
    assert printed.endswith("wrote found.json\n")
    assert printed.splitlines()[2:-1] == [
        f"| {tmp_path / 'captions.json'} | 0 | 1 | 0 | 0 | 2 |",
        f"| {tmp_path / 'eval'} | 1 | 0 | 1 | 0 | 0 |",
    ]
    found = json.loads((tmp_path / "found.json").read_text())
    assert sorted(entry["kind"] for entry in found) == ["same caption", "same caption", "same image"]


def test_sets_are_made_of_files_and_folders(images, tmp_path):
    images[0].save(tmp_path / "a.png")
    width, height = images[0].size
    coco = {"images": [{"id": 1, "file_name": "a.png", "width": width, "height": height}]}
    (tmp_path / "coco.json").write_text(json.dumps(coco | {"annotations": [], "categories": []}))
    for made in collect_sets(eval_coco=[tmp_path / "coco.json"], eval_images=[tmp_path]):
        assert made.find_image(images[0])[0] == "same image"
