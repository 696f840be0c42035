"""The build writes the same bytes every time, loses and doubles nothing, and reports what it skips."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard
from listed import read_coco
from PIL import Image
from pyarrow.parquet import ParquetFile
from toy_rows import draw_rows

from geoalign_hf.captioning.balance import find_change, list_contrasts
from geoalign_hf.data import schema
from geoalign_hf.data.loading import load_rows
from geoalign_hf.data.schema import FEATURES
from geoalign_hf.dataset_builder import plan
from geoalign_hf.dataset_builder.build import BuildConfig, build
from geoalign_hf.dataset_builder.plan import plan_shards, read_shard_rows
from geoalign_hf.images import ImageOptions
from geoalign_hf.readers.registry import FORMATS
from geoalign_hf.storage import lock_folder


def write_coco(folder: Path, rows: list[dict]) -> Path:
    """Write rows as a COCO file beside its images."""
    names = sorted({concept for row in rows for concept in row["concepts"]})
    images, annotations = [], []
    for i, row in enumerate(rows):
        row["image"].save(folder / f"{i}.png")
        images.append(
            {"id": i, "file_name": f"{i}.png", "width": row["image"].width, "height": row["image"].height}
        )
        for (x0, y0, x1, y1), concept in zip(row["boxes"], row["concepts"], strict=True):
            entry = {"id": len(annotations), "image_id": i, "bbox": [x0, y0, x1 - x0, y1 - y0]}
            annotations.append(entry | {"category_id": names.index(concept)})
    categories = [{"id": i, "name": name} for i, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "coco.json").write_text(json.dumps(content))
    return folder / "coco.json"


def refuses(message: str):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


@pytest.fixture(scope="module")
def drawn():
    return draw_rows(14, seed=1)


@pytest.fixture
def coco(drawn, tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    return write_coco(folder, drawn)


@pytest.fixture
def config(coco, tmp_path):
    return BuildConfig(output_dir=str(tmp_path / "rows"), coco=str(coco), images_per_shard=4, sheet_rows=3)


# The terms of use stand in every row.
TERMS = {"license": "other", "license_name": "toy terms", "license_link": "https://example.org"}


def read_shards(output: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(output, "data").iterdir())}


def run(config: BuildConfig) -> list[str]:
    """The command that a config stands for."""
    command = [
        sys.executable,
        "-m",
        "geoalign_hf",
        "build",
        "--output_dir",
        config.output_dir,
        "--coco",
        config.coco,
    ]
    return [
        *command,
        "--images_per_shard",
        str(config.images_per_shard),
        "--num_workers",
        str(config.num_workers),
        *(f"--{name}={getattr(config, name)}" for name in TERMS if getattr(config, name)),
    ]


# What is built


@pytest.fixture(scope="module")
def built(drawn, tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    config = BuildConfig(
        output_dir=str(folder / "rows"), coco=str(write_coco(folder, drawn)), images_per_shard=4,
        sheet_rows=3, title="toy", **TERMS,
    )  # fmt: skip
    return config, build(config)


def test_every_format_of_the_registry_is_an_option_of_the_build():
    assert set(FORMATS) <= {field.name for field in fields(BuildConfig)}


def test_every_image_becomes_a_row_with_its_boxes_and_its_own_bytes(built, drawn):
    config, _ = built
    rows = load_dataset(config.output_dir, split="train")
    assert rows.features == FEATURES and len(rows) == len(drawn)
    for i, (row, source) in enumerate(zip(rows, drawn, strict=True)):
        assert row["source"] == f"{i}.png" and row["concepts"] == source["concepts"]
        assert row["image"].tobytes() == source["image"].tobytes()
        assert [value for box in row["boxes"] for value in box] == pytest.approx(sum(source["boxes"], []))
        assert row["captions"] and row["description"]
        assert (
            len(row["phrases"])
            == len(row["hard_negatives"])
            == len(row["negative_kinds"])
            == len(row["boxes"])
        )


def test_the_statistics_are_those_of_the_rows(built):
    config, statistics = built
    rows = load_dataset(config.output_dir, split="train").remove_columns("image")
    assert statistics == json.loads(Path(config.output_dir, "statistics.json").read_text())
    concepts = Counter(concept for row in rows for concept in row["concepts"])
    kinds = Counter(kind for row in rows for kinds in row["negative_kinds"] for kind in kinds)
    assert statistics["num_rows"] == 14 and statistics["concepts"] == concepts
    assert (
        statistics["num_regions"]
        == concepts.total()
        == sum(statistics[s] for s in ("small", "medium", "large"))
    )
    assert statistics["negative_kinds"] == kinds and statistics["num_hard_negatives"] == kinds.total()
    assert statistics["num_phrases"] == len({phrase for row in rows for phrase in row["phrases"]})
    assert statistics["skipped"] == {}


def test_the_card_carries_counts_and_licence(built):
    config, statistics = built
    card = DatasetCard.load(Path(config.output_dir, "README.md"))
    assert card.data.license == "other" and card.data.license_name == "toy terms"
    assert card.data.license_link == "https://example.org" and card.data.pretty_name == "toy"
    assert f"14 rows with {statistics['num_regions']} regions" in card.text
    for name, number in statistics["concepts"].items():
        assert f"| {name} | {number} |" in card.text
    assert "toy terms (https://example.org)" in card.text
    assert Image.open(Path(config.output_dir, "contact_sheet.png")).width == 1200
    assert not Path(config.output_dir, "contact_sheet_2.png").exists()  # three rows fit on one page


def test_a_complete_build_is_not_repeated(built):
    config, statistics = built
    before = {path: path.stat().st_mtime_ns for path in Path(config.output_dir).rglob("*.parquet")}
    assert build(config) == statistics
    assert {path: path.stat().st_mtime_ns for path in Path(config.output_dir).rglob("*.parquet")} == before


def test_another_seed_gives_other_text_for_the_same_boxes(built, tmp_path):
    config, _ = built
    build(replace(config, output_dir=str(tmp_path / "rows"), seed=1))
    first, second = (
        load_dataset(path, split="train") for path in (config.output_dir, str(tmp_path / "rows"))
    )
    assert first["boxes"][:] == second["boxes"][:] and first["phrases"][:] != second["phrases"][:]


def count_contrasts(rows, key) -> Counter:
    contrasts = list_contrasts(rows.remove_columns("image").to_list())
    return Counter((contrast.kind, *key(contrast)) for contrast in contrasts)


@pytest.mark.parametrize(
    ("split", "negatives", "key"),
    [("train", "matched", lambda c: find_change(c.right, c.wrong)), ("test", "balanced", lambda c: c[-2:])],
)
def test_by_default_hard_negatives_are_exchanged_equally_often(config, split, negatives, key):
    statistics = build(replace(config, split=split, images_per_shard=14))
    pairs = count_contrasts(load_rows(config.output_dir, split), key)
    assert pairs and all(pairs[kind, wrong, right] == n for (kind, right, wrong), n in pairs.items())
    assert statistics["negatives"] == negatives
    kept = sum(counts["kept"] for counts in statistics["negative_balance"].values())
    assert kept == pairs.total() == statistics["num_hard_negatives"]
    assert split == "train" or statistics["text_only_baseline"]["accuracy"] == 0.5


def test_images_in_false_colours_get_no_words_of_colour(config):
    build(replace(config, false_colour=True))
    for row in load_rows(config.output_dir).remove_columns("image"):
        texts = [*row["captions"], row["description"], *row["phrases"], *sum(row["hard_negatives"], [])]
        assert not re.search(r"\b(white|red|green|blue|yellow)\b", " ".join(texts))


def test_large_images_become_tiles_that_name_their_window(config, drawn):
    build(replace(config, tile=128, overlap=32))
    rows = load_rows(config.output_dir)
    assert {len(row["window"]) for row in rows} == {4}
    for row in rows:
        source = drawn[int(Path(row["source"]).stem)]["image"]
        assert row["image"].tobytes() == source.crop(row["window"]).tobytes()
    report = [json.loads(line) for line in Path(config.output_dir, "report.jsonl").read_text().splitlines()]
    num_empty = sum(entry["kind"] == "no text" for entry in report)
    assert num_empty and len(rows) + num_empty > 14


def test_a_model_writes_the_text_and_its_raw_answers_are_kept(drawn, tiny_pipeline, tmp_path):
    (tmp_path / "source").mkdir()
    coco = write_coco(tmp_path / "source", [min(drawn, key=lambda row: len(row["boxes"]))])
    tiny_pipeline.model.save_pretrained(tmp_path / "model")
    tiny_pipeline.processor.save_pretrained(tmp_path / "model")
    output = tmp_path / "rows"
    statistics = build(BuildConfig(output_dir=str(output), coco=str(coco), model=str(tmp_path / "model")))
    answers = [json.loads(line) for line in (output / "answers" / "00000.jsonl").read_text().splitlines()]
    assert {entry["granularity"] for entry in answers} == {"caption", "description", "phrase"}
    assert all(entry["raw"] for entry in answers)
    last = {entry["granularity"]: entry["answer"] for entry in answers}
    (row,) = load_rows(output)
    assert (row["captions"][0] == last["caption"]) == (last["caption"] is not None)
    assert statistics["skipped"].get("no usable answer", 0) == list(last.values()).count(None)
    assert f"The model {tmp_path / 'model'} wrote" in (output / "README.md").read_text()


# Processes and kills


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_command_makes_the_same_bytes_in_other_processes_and_prints_what_it_built(
    built, config, num_workers
):
    command = run(replace(config, num_workers=num_workers, **TERMS))
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert read_shards(config.output_dir) == read_shards(built[0].output_dir)
    statistics = built[1]
    assert re.fullmatch(
        rf"14 rows, {statistics['num_regions']} regions of 5 concepts, "
        rf"{statistics['num_hard_negatives']} hard negatives; skipped: nothing; \d+ s\n"
        rf"wrote {re.escape(config.output_dir)}\n",
        result.stdout,
    )
    assert "14 images," in result.stderr


def test_an_interrupted_build_continues_and_removes_no_file_of_the_user(built, config, coco):
    """A finished shard is kept. A half-written shard and a missing shard are built."""
    alone = replace(built[0], output_dir=config.output_dir, coco=str(coco))
    build(alone)
    output = Path(config.output_dir)
    (output / "report.jsonl").unlink()
    shards = sorted((output / "data").iterdir())
    (output / ".build").mkdir()
    for i in range(4):
        (output / ".build" / f"{i:05d}.json").write_text('{"skipped": [], "overlaps": [], "balance": {}}')
    shards[1].unlink()
    (output / "data" / f".{shards[1].name}.partial").write_bytes(shards[0].read_bytes()[:100])
    (output / "notes.partial").write_text("the user's own")
    kept = shards[0].stat().st_mtime_ns
    build(alone)
    assert read_shards(config.output_dir) == read_shards(built[0].output_dir)
    assert (output / "notes.partial").read_text() == "the user's own"
    assert shards[0].stat().st_mtime_ns == kept
    assert not (output / ".build").exists()


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_build_killed_ten_times_equals_one_that_was_never_killed(num_workers, tmp_path):
    (tmp_path / "source").mkdir()
    coco = write_coco(tmp_path / "source", draw_rows(60, seed=2))
    # So many shards that the build is not done before ten kills, also where this process has to wait.
    whole = BuildConfig(output_dir=str(tmp_path / "whole"), coco=str(coco), images_per_shard=1)
    build(whole)
    killed = replace(whole, output_dir=str(tmp_path / "killed"), num_workers=num_workers)
    num_kills = 0
    for attempt in range(60):
        process = subprocess.Popen(run(killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # Kill at another moment each time: after the start, while shards appear one by one.
        wanted = len(list(tmp_path.glob("killed/data/*.parquet"))) + 1 + attempt % 2
        while process.poll() is None and len(list(tmp_path.glob("killed/data/*.parquet"))) < wanted:
            time.sleep(0.003)
        if num_kills == 10 or process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        num_kills += 1
    assert process.wait(timeout=300) == 0 and num_kills == 10
    assert read_shards(killed.output_dir) == read_shards(whole.output_dir)
    for name in ("statistics.json", "report.jsonl"):
        assert Path(killed.output_dir, name).read_bytes() == Path(whole.output_dir, name).read_bytes()
    assert not list(tmp_path.rglob("*.partial"))


# What is skipped


def test_a_corrupt_image_stops_the_build_by_name(config, coco):
    path = coco.parent / "5.png"
    path.write_bytes(path.read_bytes()[:2000])  # its header is whole
    with pytest.raises(ValueError, match=r"^the image of row '5.png' cannot be read as an image \("):
        build(config)


def test_a_corrupt_image_can_be_skipped_and_is_reported(config, coco):
    path = coco.parent / "5.png"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="'5.png' cannot be read as an image"):
        build(config)  # and then goes on
    statistics = build(replace(config, on_error="skip"))
    assert statistics["num_rows"] == 13 and statistics["skipped"] == {"bad image": 1}
    (entry,) = [json.loads(line) for line in Path(config.output_dir, "report.jsonl").read_text().splitlines()]
    assert entry["kind"] == "bad image" and "'5.png'" in entry["message"]


def test_a_build_without_rows_says_what_was_skipped(config, coco):
    """A corrupt image has a whole header, so that only its decoding fails."""
    for path in coco.parent.glob("*.png"):
        path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(
        ValueError,
        match=rf"^{re.escape(config.output_dir)}: no row remains of 14 images; skipped: {{'bad image': 14}} "
        r"\(the first: the image of row '0\.png' cannot be read as an image .*--output_dir",
    ):
        build(replace(config, on_error="skip"))
    assert not Path(config.output_dir, "README.md").exists()


def test_images_of_an_evaluation_set_are_skipped(config, drawn, tmp_path):
    (tmp_path / "eval").mkdir()
    drawn[3]["image"].transpose(Image.Transpose.ROTATE_90).save(tmp_path / "eval" / "a.jpg", quality=60)
    config = replace(config, eval_images=[str(tmp_path / "eval")])
    statistics = build(config)
    assert statistics["num_rows"] == 13 and statistics["skipped"] == {"in an evaluation set": 1}
    assert "3.png" not in list(load_rows(config.output_dir)["source"])
    assert json.loads(Path(config.output_dir, "leakage.jsonl").read_text())["row"] == "3.png"
    assert f"| {tmp_path / 'eval'} | 1 | 0 | 0 | 1 | 0 |" in Path(config.output_dir, "README.md").read_text()
    kept = build(replace(config, leaks="keep", output_dir=str(tmp_path / "kept")))
    assert kept["num_rows"] == 14 and len((tmp_path / "kept" / "leakage.jsonl").read_text().splitlines()) == 1


def test_captions_of_an_evaluation_set_are_removed_from_their_rows(drawn, tmp_path):
    for i in (0, 1):
        drawn[i]["image"].save(tmp_path / f"{i}.png")
    sentences = [["a quiet place .", "many boats"], ["A quiet place"]]
    entries = [
        {"filename": f"{i}.png", "split": "train", "sentences": [{"raw": words} for words in captions]}
        for i, captions in enumerate(sentences)
    ]
    (tmp_path / "train.json").write_text(json.dumps({"images": entries}))
    (tmp_path / "eval.json").write_text(json.dumps({"images": [entries[1]]}))
    config = BuildConfig(
        output_dir=str(tmp_path / "rows"), captions=str(tmp_path / "train.json"), images=str(tmp_path),
        eval_captions=[str(tmp_path / "eval.json")],
    )  # fmt: skip
    statistics = build(config)
    assert list(load_rows(config.output_dir)["captions"]) == [["many boats"]]
    assert statistics["skipped"] == {"in an evaluation set": 2, "no text": 1}


# What does not fit


def test_a_second_build_in_the_same_folder_is_refused_with_the_process_that_holds_it(config):
    with (
        lock_folder(config.output_dir),
        pytest.raises(RuntimeError, match=rf"{config.output_dir}.*{os.getpid()}"),
    ):
        build(config)
    build(config)


def test_a_built_test_set_is_what_evaluation_reads_by_default(config, drawn, tmp_path):
    build(replace(config, split="test"))
    assert [path.name[:5] for path in Path(config.output_dir, "data").iterdir()] == ["test-"] * 4
    for default in ("train", "test"):
        assert len(load_rows(config.output_dir, default_split=default)) == 14
    (Path(config.output_dir, "data") / "other-00000-of-00001.parquet").write_bytes(
        next(Path(config.output_dir, "data").iterdir()).read_bytes()
    )
    assert len(load_rows(config.output_dir, default_split="test")) == 14
    with pytest.raises(ValueError, match=r"no split 'train'.*'test'"):
        load_rows(config.output_dir)


def test_shards_are_limited_in_bytes_and_large_images_have_their_own(coco, tmp_path):
    rows = read_coco(coco)
    sizes = [Path(row["image"]).stat().st_size for row in rows]
    planned = plan_shards(rows, tmp_path / "plan", 100, max(sizes) - 1)
    shards = [list(read_shard_rows(tmp_path / "plan", index)) for index in range(planned.num_shards)]
    assert [row for shard in shards for _, row in shard] == rows
    assert [number for shard in shards for number, _ in shard] == list(range(len(rows)))
    for shard in shards:
        assert len(shard) == 1 or sum(sizes[number] for number, _ in shard) < max(sizes)


@pytest.mark.parametrize("options", [{"stretch": (0, 100)}, {"bands": (1, 1, 1), "stretch": (0, 100)}])
def test_shards_of_images_that_are_scaled_or_whose_bands_are_chosen_are_limited_in_bytes(tmp_path, options):
    draw = np.random.default_rng(0)
    names = [f"{i}.png" for i in range(5)]
    for name in names:  # compressed well as 16 bits, and badly when it is scaled
        dots = draw.integers(0, 256, (300, 400)).astype("uint16") * 257
        Image.fromarray(dots).save(tmp_path / name)
    images = [{"id": i, "file_name": name, "width": 400, "height": 300} for i, name in enumerate(names)]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [9, 9, 99, 99]} for i in range(5)]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "ship"}]}
    (tmp_path / "coco.json").write_text(json.dumps(content))
    output = tmp_path / "rows"
    config = BuildConfig(str(output), coco=str(tmp_path / "coco.json"), shard_megabytes=1, sheet_rows=1)
    build(config, ImageOptions(**options))
    sizes = [path.stat().st_size for path in output.glob("data/*.parquet")]
    assert len(sizes) > 1 and max(sizes) < 1_000_000
    assert len(load_rows(output)) == 5


def test_an_image_that_may_exceed_a_row_is_refused_before_the_work(coco, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "MOST_IMAGE_BYTES", 900)
    with pytest.raises(ValueError, match="0.png has .* bytes; a row holds .* --tile"):
        plan_shards(read_coco(coco), tmp_path / "plan", 100, 10**9)
    with pytest.raises(ValueError, match="0.png has .* bytes as 8-bit RGB; a row holds .* --tile"):
        plan_shards(read_coco(coco), tmp_path / "again", 100, 10**9, has_bands=True)


def test_groups_of_rows_are_limited_in_bytes_and_large_images_have_their_own(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(schema, "MOST_GROUP_BYTES", 100)
    sizes = [40, 50, 90, 10, 10, 500, 99, 2]
    rows = [drawn[0] | {"image": {"bytes": bytes(size), "path": "a.png"}} for size in sizes]
    schema.write_rows(iter(rows), tmp_path / "a.parquet")
    file = ParquetFile(tmp_path / "a.parquet")
    groups = [file.read_row_group(g).to_pylist() for g in range(file.num_row_groups)]
    found = [[len(row["image"]["bytes"]) for row in group] for group in groups]
    assert found == [[40, 50], [90, 10], [10], [500], [99], [2]]


def test_pillows_limit_is_lifted_only_for_scenes_that_are_cut_into_tiles(config, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9000)
    with pytest.raises(ValueError, match="'0.png' has .* pixels; .* max_pixels"):
        build(config)
    assert build(replace(config, output_dir=f"{config.output_dir}2", tile=128, overlap=32))["num_rows"]
    assert Image.MAX_IMAGE_PIXELS == 9000


def test_a_folder_of_another_build_is_refused(config):
    build(config)
    with refuses(
        f"{config.output_dir} holds a build with other settings: ['max_negatives', 'seed'] differ. "
        "Give another --output_dir, or delete the folder."
    ):
        build(replace(config, seed=3, max_negatives=2))


def test_a_folder_of_something_else_is_refused(config, tmp_path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "thesis.tex").write_text("")
    with refuses(f"{config.output_dir} is not empty and holds no build. Give another --output_dir."):
        build(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coco": None}, "the sources are []. Give exactly one of ['--coco', '--dota', '--voc', '--yolo', "
                         "'--captions', '--recipe']."),
        ({"dota": "x"}, "the sources are ['coco', 'dota']. Give exactly one of ['--coco', '--dota', '--voc', "
                        "'--yolo', '--captions', '--recipe']."),
        ({"coco": None, "voc": "x"}, "--voc is given without --images. Give both."),
        ({"coco": None, "yolo": "x", "images": "x"},
         "--yolo is given without --concepts. Give both."),
        ({"counts_from_one": True},
         "--counts_from_one has no effect on --coco; it goes with ['voc']. Omit it."),
        ({"tile": 100}, "overlap is 128, but tiles have 100 pixels a side. Choose 0 <= overlap < side."),
        ({"leaks": "ignore"}, "--leaks is 'ignore'. Choose skip or keep."),
        ({"num_workers": 0}, "--num_workers is 0. Give 1 or more."),
        ({"model": "some/model", "num_workers": 2},
         "--model is given with 2 workers, each of which would load it. Use 1."),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused(config, changes, message):
    with refuses(message):
        build(replace(config, **changes))
