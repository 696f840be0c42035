"""Images that are not 8-bit RGB, through every command: read by one rule, or one line that names the file."""

import json

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image
from transformers import AutoProcessor

from geoalign_hf.captioning.attributes import COLOURS
from geoalign_hf.cli import OptionParser
from geoalign_hf.commands.embed import embed
from geoalign_hf.data.loading import load_rows
from geoalign_hf.embedding.shards import read_embeds
from geoalign_hf.images import ImageOptions, read_image

SMALL = ["--image_size", 64, "--width", 64, "--depth", 1, "--num_train_epochs", 1, "--preset", "clip"]
SMALL += ["--per_device_train_batch_size", 4]


def write_deep(path, pixels: np.ndarray, bands: int):
    """Write pixels as 16 bits per band, in the upper part of a range of 3000, with further bands of noise."""
    rasterio = pytest.importorskip("rasterio")
    deep = pixels.astype(np.uint16).transpose(2, 0, 1) * 12
    noise = np.random.default_rng(0).integers(0, 3000, (bands - 3, *deep.shape[1:]), dtype=np.uint16)
    deep = np.concatenate([deep[::-1], noise])  # blue, green, red, others
    height, width = deep.shape[1:]
    profile = {"width": width, "height": height, "count": bands, "dtype": "uint16", "driver": "GTiff"}
    with rasterio.open(path, "w", transform=rasterio.transform.from_origin(0, 0, 1, 1), **profile) as file:
        file.write(deep)


@pytest.fixture
def deep_folder(toy_rows, coco_folder):
    """The images of `coco_folder` with four bands of 16 bits: blue, green, red and noise."""
    content = json.loads((coco_folder / "rows.json").read_text())
    for image, row in zip(content["images"], toy_rows, strict=True):
        (coco_folder / image["file_name"]).unlink()
        image["file_name"] = f"{image['id']}.tif"
        write_deep(coco_folder / image["file_name"], np.asarray(row["image"].convert("RGB")), 4)
    (coco_folder / "rows.json").write_text(json.dumps(content))
    return coco_folder


def test_satellite_files_go_through_every_command_by_one_rule(
    deep_folder, geoalign, geoalign_refuses, tmp_path
):
    coco = ["--coco", deep_folder / "rows.json"]
    assert "0.tif" in (line := geoalign_refuses("build", *coco)) and "--bands" in line
    assert "0.tif" in (line := geoalign_refuses("build", *coco, "--bands", "3,2,1")) and "--stretch" in line
    rule = ["--bands", "3,2,1", "--limits", "0,3060"]
    geoalign("build", *coco, *rule)
    assert json.loads((tmp_path / "outputs/rows/build.json").read_text())["image_rule"] == {
        "limits": [0.0, 3060.0],
        "bands": [3, 2, 1],
    }
    # Everyone reads the same 8-bit pixels from the rows, without a rule.
    stored = load_dataset(str(tmp_path / "outputs/rows"), split="train")["image"]
    for i, image in enumerate(load_rows(tmp_path / "outputs/rows")["image"]):
        expected = read_image(deep_folder / f"{i}.tif", ImageOptions(bands=(3, 2, 1), limits=(0, 3060)))
        assert np.array_equal(image, expected) and np.array_equal(stored[i], expected)

    # What is trained on these rows keeps their rule, and later commands need no option.
    geoalign("train", *SMALL, "--eval_dataset", deep_folder / "rows.json", "--images", deep_folder)
    model = tmp_path / "outputs/train/final"
    expected = {"limits": [0.0, 3060.0], "bands": [3, 2, 1]}
    assert AutoProcessor.from_pretrained(model).image_rule == expected
    assert "3060" in (model / "README.md").read_text()
    rows = ["--dataset", deep_folder / "rows.json", "--images", deep_folder]
    geoalign("evaluate", "regions", *rows)
    metrics = json.loads((tmp_path / "outputs/evaluate_regions/metrics.json").read_text())
    assert all(scores["protocol"]["image_rule"] == expected for scores in metrics.values())
    geoalign("embed", deep_folder, *coco)
    (tmp_path / "rows_8_bit").mkdir()
    for i, image in enumerate(stored):
        image.save(tmp_path / "rows_8_bit" / f"{i}.png")
    geoalign("embed", tmp_path / "rows_8_bit", "--output_dir", "embeds_8_bit")
    deep = [row["embed"] for row in read_embeds(tmp_path / "outputs/embeds") if row["kind"] == "image"]
    assert np.allclose(deep, read_embeds(tmp_path / "embeds_8_bit")["embed"], atol=1e-6)
    printed = geoalign("search", "--image", deep_folder / "3.tif", "--images", deep_folder, "--top_k", 1)
    assert "3.tif whole 1.0000" in printed

    # Another rule is another protocol.
    again = geoalign_refuses("embed", deep_folder, *coco, "--bands", "4,2,1", "--limits", "0,3060")
    assert "protocol" in again


def test_other_commands_name_the_file_that_needs_an_option(deep_folder, folder, geoalign_refuses):
    rows = ["--dataset", deep_folder / "rows.json", "--images", deep_folder]
    for command in (
        ["train", *SMALL, *rows, "--save_strategy", "no"],
        ["evaluate", "regions", *rows, "--model", folder],
        ["evaluate", "scenes", "--folder", deep_folder, "--model", folder],
        ["evaluate", "localization", "--image", deep_folder / "0.tif", "--phrases", "x", "--model", folder],
        ["adapt", *rows, "--model", folder, "--concepts", "ship", "--shots", 1, "--num_seeds", 1],
        ["embed", deep_folder, "--model", folder],
    ):
        line = geoalign_refuses(*command)
        assert ".tif" in line and "--bands" in line


@pytest.mark.parametrize(
    "words", [["--stretch", "2"], ["--stretch", "a,b"], ["--bands", "1,2"], ["--limits=9,1"]]
)
def test_an_option_that_cannot_be_used_is_refused(words, coco_folder, geoalign_refuses):
    line = geoalign_refuses("build", "--coco", coco_folder / "rows.json", *words)
    assert words[0].lstrip("-").split("=")[0] in line


def test_values_may_be_negative():
    *_, options = OptionParser("embed", embed).parse(["images", "--limits", "-300,1500.5"])
    assert options.limits == (-300.0, 1500.5)


def save_kinds(folder, pixels):
    """Save one picture in kinds of files; returns those that need a rule, and those that do not."""
    grey = Image.fromarray(pixels).convert("L")
    deep = np.asarray(grey).astype(np.uint16) * 200
    Image.fromarray(deep).save(folder / "deep.png")
    Image.fromarray(deep).save(folder / "deep.tif")
    Image.fromarray(np.asarray(grey).astype(np.float32) * 7 - 300).save(folder / "float.tif")
    Image.fromarray(pixels).quantize(64).save(folder / "palette.png")
    Image.fromarray(pixels).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(pixels).convert("CMYK").save(folder / "cmyk.tif")
    grey.convert("1").save(folder / "bilevel.tif")
    grey.convert("LA").save(folder / "alpha.png")
    return ["deep.png", "deep.tif", "float.tif"], [
        "alpha.png",
        "bilevel.tif",
        "cmyk.jpg",
        "cmyk.tif",
        "palette.png",
    ]


def test_every_kind_of_file_is_embedded_and_built_as_it_is_read(tmp_path, toy_rows, folder, geoalign):
    images = tmp_path / "images"
    images.mkdir()
    wide, plain = save_kinds(images, np.asarray(toy_rows[0]["image"].convert("RGB")))
    geoalign("embed", images, "--model", folder, "--stretch", "0,100")
    embeds = read_embeds(tmp_path / "outputs/embeds")
    found = dict(zip(embeds["path"], np.array(embeds["embed"]), strict=True))
    assert sorted(found) == sorted([*wide, *plain])
    for name in wide:  # three storages of one picture
        assert found[name] @ found["deep.tif"] > 0.999
    assert found["cmyk.tif"] @ found["palette.png"] > 0.9

    width, height = toy_rows[0]["image"].size
    entries = [
        {"id": i, "file_name": name, "width": width, "height": height} for i, name in enumerate(wide + plain)
    ]
    boxes = [
        {"id": i, "image_id": i, "bbox": [10, 10, 60, 50], "category_id": 0} for i in range(len(entries))
    ]
    content = {"images": entries, "annotations": boxes, "categories": [{"id": 0, "name": "ship"}]}
    (images / "rows.json").write_text(json.dumps(content))
    build = ["build", "--coco", images / "rows.json", "--stretch", "0,100", "--negatives", "free"]
    geoalign(*build)
    for row in load_rows(tmp_path / "outputs" / "rows"):
        expected = read_image(images / row["source"], ImageOptions(stretch=(0, 100)))
        assert np.array_equal(row["image"], expected), row["source"]


def test_chosen_or_scaled_bands_get_colours_in_words_only_if_they_are_declared(
    deep_folder, geoalign, tmp_path
):
    build = ["build", "--coco", deep_folder / "rows.json", "--bands", "3,2,1", "--limits", "0,3060"]
    build += ["--negatives", "free"]
    for folder, words in (("plain", []), ("declared", ["--natural_colour"])):
        geoalign(*build, "--output_dir", folder, *words)
        rows = load_rows(tmp_path / folder)
        texts = [text for row in rows for text in [*row["phrases"], *sum(row["hard_negatives"], [])]]
        has_colour = any(set(text.split()) & set(COLOURS) for text in texts)
        assert has_colour == (folder == "declared")
