"""`geoalign-hf detect` and `geoalign-hf evaluate detection`: files in, files in COCO's format out."""

import contextlib
import io
import json

import pytest
from pycocotools.coco import COCO

from geoalign_hf.data.schema import build_rows

LABELS = ("ship", "airplane", "no such thing")


def read(path):
    return json.loads(path.read_text())


def list_proposals(coco_folder, oriented: bool = False) -> list[dict]:
    entries = read(coco_folder / "rows.json")["annotations"]
    results = [{"image_id": entry["image_id"], "bbox": entry["bbox"], "score": 0.8} for entry in entries]
    for result in results if oriented else ():
        x, y, w, h = result["bbox"]
        result["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    return results


def test_detections_of_given_proposals_are_results_of_coco(geoalign, folder, coco_folder, tmp_path):
    (tmp_path / "proposals.json").write_text(json.dumps(list_proposals(coco_folder)))
    (tmp_path / "words.json").write_text(json.dumps({"ship": ["vessel"]}))
    printed = geoalign(
        "detect", coco_folder, "--coco", coco_folder / "rows.json", "--proposals", "proposals.json",
        "--labels", *LABELS, "--synonyms", "words.json", "--threshold", "0", "--max_iou", "1",
        "--model", folder,
    )  # fmt: skip
    results = read(tmp_path / "outputs/detect/detections.json")
    coco = read(coco_folder / "rows.json")
    assert f"{len(results)} detections in 8 images" in printed and "wrote outputs/detect/" in printed
    assert len(results) == 3 * len(coco["annotations"])
    categories = {entry["name"]: entry["id"] for entry in coco["categories"]}
    unknown = max(categories.values()) + 1
    for result in results:
        assert result["category_id"] == categories.get(result["label"], unknown)
        assert 0 <= result["score"] <= 0.8
    known = [result for result in results if result["label"] != LABELS[2]]
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = COCO(str(coco_folder / "rows.json")).loadRes(known)
    assert len(loaded.anns) == len(known)


def test_without_proposals_a_grid_of_windows_is_named_in_every_image_of_a_folder(
    geoalign, folder, coco_folder
):
    output = coco_folder / "found.json"
    options = ("--labels", "ship", "--sides", 60, "--threshold", 0.01, "--model", folder)
    geoalign("detect", coco_folder, *options, "--output", output)
    results = read(output)
    assert {result["image_id"] for result in results} == {f"{i}.png" for i in range(8)}
    assert {result["category_id"] for result in results} == {1}
    assert all(max(result["bbox"][2:]) <= 60 for result in results)
    geoalign("detect", coco_folder / "3.png", *options, "--output", output)
    assert read(output) == [result for result in results if result["image_id"] == "3.png"]


def test_oriented_proposals_give_oriented_detections(geoalign, folder, coco_folder, tmp_path):
    (tmp_path / "proposals.json").write_text(json.dumps(list_proposals(coco_folder, oriented=True)))
    geoalign(
        "detect", coco_folder, "--coco", coco_folder / "rows.json", "--proposals", "proposals.json",
        "--oriented", "--labels", "ship", "--threshold", "0", "--model", folder, "--output", "found.json",
    )  # fmt: skip
    results = read(tmp_path / "found.json")
    assert results and all(len(result["segmentation"][0]) == 8 for result in results)


@pytest.mark.parametrize("by_name", [True, False])
def test_detections_are_scored_and_calibrated(geoalign, folder, coco_folder, tmp_path, by_name):
    (tmp_path / "proposals.json").write_text(json.dumps(list_proposals(coco_folder)))
    rows = ("--dataset", coco_folder / "rows.json", "--images", coco_folder, "--model", folder)
    if by_name:
        printed = geoalign("evaluate", "detection", "--proposals", "proposals.json", "--novel", "ship", *rows)
        scores = read(tmp_path / "outputs/evaluate_detection/metrics.json")["detection"]
        assert scores["num_images"] == 8 and "AP50_novel" in printed and "AP50_novel" in scores
        assert scores["protocol"]["proposals"] == "proposals.json"
    else:
        printed = geoalign("evaluate", "detection", "--calibrate", "--proposals", "proposals.json", *rows)
        words = printed.split()
        assert words[0] == "--temperature" and float(words[1]) > 0 and words[2] == "--background_bias"


@pytest.fixture
def refuse_proposals(geoalign_refuses, folder, tmp_path):
    """Score a proposal of one image on rows for which it cannot be used; returns the message."""

    def run(image_id: int | str, dataset, *options) -> str:
        (tmp_path / "proposals.json").write_text(json.dumps([{"image_id": image_id, "bbox": [1, 2, 30, 40]}]))
        rows = ("--dataset", dataset, *options, "--model", folder)
        return geoalign_refuses("evaluate", "detection", "--proposals", "proposals.json", *rows)

    return run


def test_proposals_of_whole_images_are_not_taken_for_those_of_tiles(geoalign, refuse_proposals, coco_folder):
    geoalign("build", "--coco", coco_folder / "rows.json", "--tile", 60, "--overlap", 20)
    line = refuse_proposals("0.png", "outputs/rows")
    assert all(fact in line for fact in ("row 0 is the window [", ".png'", "--tile", "--proposals")), line


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"source": ["a.png", "b.png", "c.png", "b.png"]}, "rows 1 and 3 have the same source 'b.png'"),
        ({"source": ["a.png", "b.png", None, "c.png"]}, "row 2 has no source"),
        ({}, "row 0 has no source"),
    ],
)
def test_proposals_need_rows_with_different_sources(refuse_proposals, toy_rows, tmp_path, columns, message):
    rows = build_rows(toy_rows[:4]).remove_columns("source")
    for name, values in columns.items():
        rows = rows.add_column(name, values)
    (tmp_path / "rows").mkdir()
    rows.to_parquet(tmp_path / "rows" / "test.parquet")
    line = refuse_proposals("b.png", "rows")
    assert message in line and "proposals" in line


def test_two_images_of_one_id_are_refused(geoalign_refuses, folder, coco_folder):
    content = read(coco_folder / "rows.json")
    content["images"][5]["id"] = 2
    (coco_folder / "twice.json").write_text(json.dumps(content))
    coco = ("--coco", coco_folder / "twice.json", "--labels", "ship")
    line = geoalign_refuses("detect", coco_folder, *coco, "--model", folder)
    assert "twice.json gives the id 2 to '2.png' and to '5.png'" in line


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["detect", "images"], ["--labels"]),
        (["detect", "images", "--labels", "ship", "--oriented"], ["--oriented", "--proposals"]),
        (["detect", "nowhere", "--labels", "ship"], ["nowhere"]),
        (["detect", "nowhere", "--labels", "ship", "--top_k", "0"], ["top_k 0"]),
        (["detect", "images", "--labels", "ship", "--coco", "rows.json"], ["rows.json", "file_name"]),
        (["evaluate", "detection", "--dataset", "boxes.json"], ["boxes.json", "--images"]),
    ],
)
def test_a_mistake_is_one_line(geoalign_refuses, tmp_path, words, facts):
    (tmp_path / "rows.json").write_text('{"images": [{"id": 1}]}')
    (tmp_path / "images").mkdir()
    line = geoalign_refuses(*words)
    assert all(fact in line for fact in facts), line
