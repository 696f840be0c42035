"""Laws of rows: what is refused, and what comes back as it was."""

import io
import re

import pytest
from datasets import Dataset, load_from_disk
from PIL import Image
from refusals import refuses

from geoalign_hf.data.collator import RowCollator
from geoalign_hf.data.loading import load_rows, remove_concepts
from geoalign_hf.data.schema import (
    FEATURES,
    REGION_COLUMNS,
    build_rows,
    check_columns,
    list_concepts,
    write_rows,
)

MINIMAL = {"image": Image.new("RGB", (8, 6)), "boxes": [], "phrases": [], "concepts": []}


# Rows of any source


def test_a_row_comes_back_as_it_went_in(toy_rows, rows):
    for drawn, stored in zip(toy_rows, rows, strict=True):
        assert list(stored["image"].convert("RGB").tobytes()) == list(drawn["image"].tobytes())
        for name in drawn.keys() - {"image"}:
            assert stored[name] == drawn[name], name


def test_rows_are_the_same_after_saving_and_loading(rows, tmp_path):
    rows.save_to_disk(str(tmp_path / "rows"))
    loaded = load_from_disk(str(tmp_path / "rows"))
    assert loaded.features == FEATURES
    for before, after in zip(rows, loaded, strict=True):
        assert before.pop("image").tobytes() == after.pop("image").tobytes()
        assert before == after


def test_columns_that_may_be_missing_are_empty(tmp_path):
    Image.new("RGB", (8, 6), (1, 2, 3)).save(tmp_path / "a.png")
    row = build_rows([MINIMAL | {"image": tmp_path / "a.png", "quads": None}])[0]
    assert row.pop("image").getpixel((7, 5)) == (1, 2, 3)
    assert row == {
        "captions": [], "description": None, "boxes": [], "quads": [], "phrases": [], "concepts": [],
        "ambiguous": [], "hard_negatives": [], "negative_kinds": [], "difficult": [], "unboxed": [],
        "source": None, "window": [], "dataset": None, "license": None,
    }  # fmt: skip


def test_a_row_that_lacks_a_column_is_refused():
    with refuses("row 1", "['phrases', 'concepts']", "['boxes', 'image']"):
        build_rows([MINIMAL, {name: MINIMAL[name] for name in ("image", "boxes")}])


@pytest.mark.parametrize("name", ["image", "boxes", "phrases", "concepts"])
def test_a_row_whose_required_column_is_none_is_refused_as_if_it_lacked_it(name):
    left = sorted(MINIMAL.keys() - {name})
    with refuses("row 0", f"['{name}']", str(left)):
        build_rows([MINIMAL | {name: None}])


def test_unknown_columns_are_refused():
    with refuses("row 0", "['bbox', 'labels']", str(list(FEATURES))):
        build_rows([MINIMAL | {"labels": [], "bbox": []}])


@pytest.mark.parametrize("name", [name for name in REGION_COLUMNS if name != "boxes"])
def test_lists_of_different_lengths_are_refused(name):
    quad = [[0, 0], [1, 0], [1, 1], [0, 1]]
    row = MINIMAL | {"boxes": [[0, 0, 1, 1]] * 2, "phrases": ["a ship"] * 2, "concepts": ["ship"] * 2}
    row |= {"quads": [quad] * 2, "hard_negatives": [[], []], "negative_kinds": [[], []]}
    row |= {"difficult": [True, False], "ambiguous": [True, False]}
    with refuses("row 1", "2 boxes", f"1 {name}"):
        build_rows([row, row | {name: row[name][:1]}])


def test_no_rows_are_refused():
    with refuses("no rows"):
        build_rows([])


def test_a_dataset_without_the_columns_of_a_row_is_refused(rows):
    check_columns(rows)
    with refuses("['boxes', 'phrases']", "'captions', 'concepts', 'dataset'", "build_rows"):
        check_columns(rows.remove_columns(["boxes", "phrases"]))


def test_the_concepts_of_rows_are_listed_once_each_by_alphabet(rows):
    assert list_concepts(rows) == ["airplane", "road", "ship", "storage tank", "tennis court"]


# Loading


def encode(image: Image.Image, name: str) -> dict:
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"bytes": file.getvalue(), "path": name}


@pytest.fixture
def folder(toy_rows, tmp_path):
    """Two shards of four rows each; the sixth row's image is cut."""
    rows = [row | {"image": encode(row["image"], f"{i}.png")} for i, row in enumerate(toy_rows)]
    rows[5]["image"]["bytes"] = rows[5]["image"]["bytes"][:3000]
    (tmp_path / "rows" / "data").mkdir(parents=True)
    for i in range(2):
        write_rows(rows[4 * i : 4 * i + 4], tmp_path / "rows" / "data" / f"train-0000{i}-of-00002.parquet")
    return tmp_path / "rows"


CUT = r"the image of row '5.png' cannot be read as an image"


@pytest.mark.parametrize("streaming", [False, True])
def test_a_row_is_loaded_as_it_was_written(folder, toy_rows, streaming):
    rows = iter(load_rows(folder, streaming=streaming))
    for written in toy_rows[:5]:
        row = next(rows)
        assert row["image"].tobytes() == written["image"].tobytes()
        assert {name: row[name] for name in written if name != "image"} == {
            name: value for name, value in written.items() if name != "image"
        }
    with pytest.raises(ValueError, match=CUT):
        next(rows)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_bad_image_can_be_skipped_and_is_counted(folder, toy_rows, streaming, caplog):
    rows = list(load_rows(folder, streaming=streaming, on_bad_image="skip"))
    assert [row["description"] for row in rows] == [
        row["description"] for i, row in enumerate(toy_rows) if i != 5
    ]
    assert rows[5]["image"].tobytes() == toy_rows[6]["image"].tobytes()
    assert re.match(
        r"^skipped 1 rows .*the image of row '5.png' cannot be read as an image", caplog.messages[-1]
    )


@pytest.mark.parametrize("streaming", [False, True])
def test_every_row_goes_to_one_process(folder, toy_rows, streaming):
    parts = [
        [row["description"] for row in load_rows(
            folder, streaming=streaming, on_bad_image="skip", rank=rank, num_processes=2)]
        for rank in range(2)
    ]  # fmt: skip
    assert sorted(parts[0] + parts[1]) == sorted(
        row["description"] for i, row in enumerate(toy_rows) if i != 5
    )
    assert all(parts)


def test_images_are_decoded_when_their_row_is_read_and_once(folder, monkeypatch):
    opened = []
    monkeypatch.setattr(Image, "open", lambda file, open=Image.open: opened.append(file) or open(file))
    rows = load_rows(folder)
    assert list_concepts(rows) and len(rows["phrases"][:]) == 8
    assert opened == []
    assert rows[0]["image"].size and len(opened) == 1


def test_another_way_with_bad_images_is_refused(folder):
    with refuses("'ignore'", "'stop'", "'skip'"):
        load_rows(folder, on_bad_image="ignore")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_without_rows_is_refused_on_loading(tmp_path, streaming):
    Dataset.from_dict({"image": [1], "bbox": [2]}).to_parquet(tmp_path / "train.parquet")
    with refuses("['boxes', 'phrases', 'concepts']", "['bbox', 'image']"):
        load_rows(tmp_path, streaming=streaming)


def test_rows_are_written_with_the_same_bytes_whole_and_alone(toy_rows, tmp_path):
    rows = [row | {"image": encode(row["image"], "a.png")} for row in toy_rows[:2]]
    for name in ("a.parquet", "b.parquet"):
        write_rows(rows, tmp_path / name)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]


def test_a_written_image_is_in_the_file_also_where_its_name_is_a_file_here(toy_rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    toy_rows[0]["image"].save("a.png")
    write_rows([toy_rows[0] | {"image": encode(toy_rows[0]["image"], "a.png")}], tmp_path / "train.parquet")
    (tmp_path / "a.png").unlink()
    assert load_rows(tmp_path)[0]["image"].tobytes() == toy_rows[0]["image"].tobytes()


def test_rows_without_a_kind_for_each_negative_are_refused():
    row = MINIMAL | {"boxes": [[0, 0, 1, 1]], "phrases": ["a ship"], "concepts": ["ship"]}
    with refuses("row 0", "region 0", "2 hard_negatives", "1 negative_kinds"):
        build_rows([row | {"hard_negatives": [["a car", "a bus"]], "negative_kinds": [["concept"]]}])


def test_training_takes_rows_as_they_are_loaded(folder, processor):
    rows = load_rows(folder, on_bad_image="skip")
    batch = RowCollator(processor, max_regions=6)([rows[0], rows[1]])
    assert batch["region_mask"].sum() == len(rows[0]["boxes"]) + len(rows[1]["boxes"])


# Removing concepts


def test_a_removed_concept_is_mentioned_nowhere_and_all_else_stays():
    image = Image.new("RGB", (8, 6), (1, 2, 3))
    rows = build_rows(
        [
            MINIMAL
            | {
                "image": image,
                "captions": ["two Ships and a bridge", "water"],
                "description": "A ship.",
                "boxes": [[0, 0, 4, 4], [1, 1, 3, 3], [2, 2, 4, 4]],
                "phrases": ["a ship", "a bridge", "a car next to a ship"],
                "concepts": ["ship", "bridge", "car"],
                "hard_negatives": [["a bridge"], ["a ship", "a car"], []],
                "negative_kinds": [["concept"], ["concept", "concept"], []],
                "unboxed": ["ship", "pier"],
            },
            MINIMAL | {"image": image, "boxes": [[0, 0, 4, 4]], "phrases": ["x"], "concepts": ["ship"]},
            MINIMAL | {"image": image, "captions": ["a shipyard"], "description": "Of another kind."},
        ]
    )
    left = remove_concepts(rows, ["ship"])
    assert left.features == rows.cast_column("image", left.features["image"]).features
    assert left[0]["image"].getpixel((7, 5)) == (1, 2, 3)
    first, second = left.remove_columns("image")
    assert first == dict(rows.remove_columns("image")[0]) | {
        "captions": ["water"],
        "description": None,
        "boxes": [[1, 1, 3, 3]],
        "phrases": ["a bridge"],
        "concepts": ["bridge"],
        "hard_negatives": [["a car"]],
        "negative_kinds": [["concept"]],
        "unboxed": ["pier"],
    }
    assert second == rows.remove_columns("image")[2]


def test_removing_what_is_not_there_or_all_that_is_there_is_refused(rows):
    concepts = list_concepts(rows)
    with refuses("['boat']", str(concepts)):
        remove_concepts(rows, ["boat", concepts[0]])
    bare = rows.remove_columns(["captions", "description"])
    bare = bare.add_column("captions", [[]] * len(rows)).add_column("description", [None] * len(rows))
    with refuses(str(concepts)):
        remove_concepts(bare, concepts)
