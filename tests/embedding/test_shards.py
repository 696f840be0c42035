"""Laws of embedding shards: the same rows from any number of processes, resumable, and complete."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import load_dataset
from PIL import Image
from refusals import refuses

from geoalign_hf.embedding.embedder import Embedder
from geoalign_hf.embedding.shards import (
    EmbeddingJob,
    check_model,
    fingerprint_model,
    prepare_folder,
    read_description,
    read_embeds,
    run_job,
    write_shards,
)
from geoalign_hf.storage import LOCK_NAME, name_partial


@pytest.fixture
def tiles(coco_folder):
    """The eight toy images, three of them in a folder deeper, with their COCO file."""
    coco = json.loads((coco_folder / "rows.json").read_text())
    (coco_folder / "deeper").mkdir()
    for entry in coco["images"][5:]:
        (coco_folder / entry["file_name"]).rename(coco_folder / "deeper" / entry["file_name"])
        entry["file_name"] = f"deeper/{entry['file_name']}"
    (coco_folder / "rows.json").write_text(json.dumps(coco))
    return coco_folder


@pytest.fixture
def embedder(built):
    return Embedder(*built, batch_size=2)


def make(tiles, output, embedder, num_processes=1, ranks=None, **options) -> EmbeddingJob:
    """Run what each process would run, one after the other."""
    job = EmbeddingJob(tiles, output, **{"coco": tiles / "rows.json", "shard_size": 3} | options)
    prepare_folder(job, job.describe(embedder, "tiny"))
    for rank in range(num_processes) if ranks is None else ranks:
        list(write_shards(job, embedder, rank, num_processes))
    return job


def list_names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def check_same_rows(found, expected) -> None:
    """The same files, and in them the same rows; embeddings may differ as memory is aligned, by rounding."""
    assert list_names(found) == list_names(expected)
    found, expected = read_embeds(found), read_embeds(expected)
    np.testing.assert_allclose(np.array(found["embed"]), np.array(expected["embed"]), rtol=0, atol=1e-6)
    assert found.remove_columns("embed").to_list() == expected.remove_columns("embed").to_list()


def test_shards_hold_every_image_and_region_with_the_embedding_of_each(tiles, tmp_path, embedder, toy_rows):
    make(tiles, tmp_path / "out", embedder)
    found = read_embeds(tmp_path / "out")
    shards = [f"embeds-0000{index}-of-00003.parquet" for index in range(3)]
    assert list_names(tmp_path / "out") == [*shards, "embeds.json"]
    images = embedder.embed_images([row["image"] for row in toy_rows])
    regions = embedder.embed_regions(toy_rows)
    expected, first = [], 0
    for i, row in enumerate(toy_rows):
        path = f"deeper/{i}.png" if i >= 5 else f"{i}.png"
        expected.append((path, "image", None, None, images[i]))
        for r, (box, concept) in enumerate(zip(row["boxes"], row["concepts"], strict=True)):
            expected.append((path, "region", box, concept, regions[first + r]))
        first += len(row["boxes"])
    assert len(found) == len(expected)
    for row, (path, kind, box, concept, embed) in zip(found, expected, strict=True):
        assert (row["path"], row["kind"], row["concept"]) == (path, kind, concept)
        assert row["box"] == (None if box is None else pytest.approx(box))
        assert (row["width"], row["height"]) == toy_rows[int(path[-5])]["image"].size
        assert row["embed"] == pytest.approx(embed.tolist(), abs=1e-5)


@pytest.mark.parametrize("suffix", [".jp2", ".J2K", ".TIF", ".bmp", ".webp"])
def test_images_of_every_suffix_that_is_read_are_embedded_and_found_by_coco(tmp_path, suffix):
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", f"b{suffix}"):
        Image.new("RGB", (40, 30)).save(tmp_path / "images" / name)
    entry = {"id": 1, "file_name": f"b{suffix}", "width": 40, "height": 30}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20]}
    content = {"images": [entry], "annotations": [box], "categories": [{"id": 1, "name": "ship"}]}
    (tmp_path / "coco.json").write_text(json.dumps(content))
    job = EmbeddingJob(tmp_path / "images", tmp_path / "out", coco=tmp_path / "coco.json")
    found = {row["image"].name: row["concepts"] for row in job.rows}
    assert found == {"a.jpg": [], f"b{suffix}": ["ship"]}


@pytest.mark.parametrize("num_processes", [2, 3, 5])
def test_any_number_of_processes_writes_the_same_shards(tiles, tmp_path, embedder, num_processes):
    make(tiles, tmp_path / "one", embedder)
    make(tiles, tmp_path / "many", embedder, num_processes)
    check_same_rows(tmp_path / "many", tmp_path / "one")


def test_float16_shards_hold_rounded_embeddings_and_are_read_as_float32(tiles, tmp_path, embedder):
    make(tiles, tmp_path / "full", embedder)
    make(tiles, tmp_path / "half", embedder, dtype="float16")
    full, half = (np.array(read_embeds(tmp_path / name)["embed"]) for name in ("full", "half"))
    assert abs(full - half).max() < 2**-11  # half a step of numbers below 1
    plain = load_dataset("parquet", data_files=str(tmp_path / "half" / "*.parquet"), split="train")
    assert plain.features["embed"].feature.dtype == "float16"


def test_every_image_is_encoded_once_and_its_regions_are_pooled_from_the_same_pass(
    tiles, tmp_path, model, processor, embedder
):
    sizes = []
    model.vision_model.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    make(tiles, tmp_path / "once", Embedder(model, processor, batch_size=2))
    assert sum(sizes) == 8 and len(sizes) == 5  # shards of 3, 3 and 2 images in batches of 2
    make(tiles, tmp_path / "apart", embedder, num_processes=2)
    check_same_rows(tmp_path / "once", tmp_path / "apart")


# A process that holds a lock as `lock_folder` does, without the imports.
HOLD = """
import fcntl, os, sys
with open(sys.argv[1], "a+") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    file.write(str(os.getpid()))
    file.flush()
    print(os.getpid(), flush=True)
    sys.stdin.read()
"""


def test_a_second_job_in_a_folder_is_refused_with_the_process_id_of_the_first(tiles, tmp_path, embedder):
    job = EmbeddingJob(tiles, tmp_path / "out", shard_size=3)
    job.output.mkdir()
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, job.output / LOCK_NAME], stdin=-1, stdout=-1, text=True
    )
    pid = other.stdout.readline().strip()
    with refuses(str(job.output), f"process {pid}", kind=RuntimeError):
        run_job(job, embedder, "tiny")
    other.communicate("")
    assert run_job(job, embedder, "tiny") == (3, 0) and run_job(job, embedder, "tiny") == (0, 0)
    assert len(read_embeds(job.output)) == 8


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_shards", 10**12), ("num_shards", "3"), ("num_shards", -1), ("shard_size", 0),
        ("num_images", 1.5), ("num_images", None), ("weights", 3), ("protocol", []),
    ],
)  # fmt: skip
def test_a_wrong_description_is_refused_at_once(tiles, tmp_path, embedder, name, value):
    make(tiles, tmp_path / "out", embedder)
    description = json.loads((tmp_path / "out" / "embeds.json").read_text())
    for wrong in ({name: value}, {"num_images": 10**13, "num_shards": 10**13, "shard_size": 1}):
        (tmp_path / "out" / "embeds.json").write_text(json.dumps(description | wrong))
        with refuses(str(tmp_path / "out"), str(next(iter(wrong.values())))):
            read_embeds(tmp_path / "out")


def test_a_damaged_shard_is_named(tiles, tmp_path, embedder):
    job = make(tiles, tmp_path / "out", embedder)
    job.locate_shard(1).write_bytes(job.locate_shard(1).read_bytes()[:-50])
    with refuses(str(job.locate_shard(1)), "damaged"):
        read_embeds(tmp_path / "out")


def test_an_interrupted_run_continues_with_the_missing_shards(tiles, tmp_path, embedder):
    make(tiles, tmp_path / "whole", embedder)
    job = make(tiles, tmp_path / "out", embedder, num_processes=2, ranks=[0])  # process 1 was killed
    assert not job.locate_shard(1).exists()
    with refuses(str(tmp_path / "out"), "2 of 3 shards", "embeds-00001-of-00003.parquet"):
        read_embeds(tmp_path / "out")
    name_partial(job.locate_shard(1)).write_text("half")
    before = job.locate_shard(0).stat().st_mtime_ns
    make(tiles, tmp_path / "out", embedder)
    assert job.locate_shard(0).stat().st_mtime_ns == before
    check_same_rows(tmp_path / "out", tmp_path / "whole")


def test_a_folder_of_another_run_is_refused(tiles, tmp_path, embedder, model, processor):
    make(tiles, tmp_path / "out", embedder)
    with torch.no_grad():
        model.visual_projection.weight[0, 0] += 1
    for changed, again in {
        "['weights']": lambda: make(tiles, tmp_path / "out", Embedder(model, processor)),
        "['num_shards', 'shard_size']": lambda: make(tiles, tmp_path / "out", embedder, shard_size=4),
        "['source']": lambda: make(tiles, tmp_path / "out", embedder, coco=None),
        "['protocol']": lambda: make(tiles, tmp_path / "out", embedder, region_source="crop"),
    }.items():
        with refuses(str(tmp_path / "out"), changed, "--output_dir"):
            again()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with refuses(str(tmp_path / "mine"), "thesis.tex", "--output_dir"):
        make(tiles, tmp_path / "mine", embedder)


def test_embeddings_of_another_model_are_not_compared(tiles, tmp_path, embedder, model):
    make(tiles, tmp_path / "out", embedder)
    check_model(tmp_path / "out", model)  # equal weights
    with torch.no_grad():
        model.visual_projection.weight[0, 0] += 1
    with refuses(str(tmp_path / "out"), "tiny", "weights"):
        check_model(tmp_path / "out", model)
    with refuses(str(tmp_path), "embeds.json"):
        read_description(tmp_path)


def test_the_fingerprint_depends_on_every_bit_of_the_weights(model):
    before = fingerprint_model(model)
    assert fingerprint_model(model.bfloat16()) != before
    assert len(before) == 64


def test_a_corrupt_image_stops_the_run_with_its_name_and_leaves_complete_shards(tiles, tmp_path, embedder):
    (tiles / "4.png").write_bytes((tiles / "4.png").read_bytes()[:300])
    with refuses(str(tiles / "4.png")):
        make(tiles, tmp_path / "out", embedder)
    assert list_names(tmp_path / "out") == ["embeds-00000-of-00003.parquet", "embeds.json"]


def test_a_corrupt_image_is_skipped_and_reported_on_request(tiles, tmp_path, embedder):
    for name in ("3.png", "4.png", "deeper/5.png"):  # a whole shard
        shutil.copy(tiles / "rows.json", tiles / name)
    job = make(tiles, tmp_path / "out", embedder, coco=None, on_error="skip")
    assert read_embeds(tmp_path / "out")["path"] == [
        "0.png",
        "1.png",
        "2.png",
        "deeper/6.png",
        "deeper/7.png",
    ]
    reported = [
        json.loads(line) for line in job.locate_shard(1).with_suffix(".jsonl").read_text().splitlines()
    ]
    assert [entry["kind"] for entry in reported] == ["bad image"] * 3
    assert str(tiles / "deeper" / "5.png") in reported[2]["message"]


def test_a_wrong_box_is_reported_too(tiles, tmp_path, embedder):
    coco = json.loads((tiles / "rows.json").read_text())
    coco["annotations"][0]["bbox"] = [0, 0, -5, 5]
    (tiles / "rows.json").write_text(json.dumps(coco))
    with refuses("annotation 0: bbox"):
        make(tiles, tmp_path / "out", embedder)
    make(tiles, tmp_path / "out", embedder, on_error="skip")
    (entry,) = map(json.loads, (tmp_path / "out" / "annotations.jsonl").read_text().splitlines())
    assert "annotation 0: bbox" in entry["message"]
    assert len(read_embeds(tmp_path / "out")) == 8 + len(coco["annotations"]) - 1


def test_wrong_options_are_refused(tiles, tmp_path):
    coco = json.loads((tiles / "rows.json").read_text())
    coco["images"].append(coco["images"][0] | {"id": 99, "file_name": "./0.png"})
    (tmp_path / "twice.json").write_text(json.dumps(coco))
    for options, facts in (
        ({"dtype": "int8"}, ["'int8'", "'float32'", "'float16'"]),
        ({"shard_size": 0}, ["shard_size is 0"]),
        ({"coco": tmp_path / "twice.json"}, ["twice.json", "0.png"]),
    ):
        with refuses(*facts):
            EmbeddingJob(tiles, tmp_path / "out", **options)
