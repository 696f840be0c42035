"""Mistakes that several verbs could turn into a traceback, or into results other than those asked for."""

import geopandas
import pytest
import shapely
from generated_scenes import UTM, draw, write_scene

BANDS = ["--bands", "1,2,3"]


@pytest.fixture
def files(coco_folder, tmp_path):
    """A scene, a point in it, and the toy rows in `coco`."""
    write_scene(tmp_path / "scene.tif", draw(bands=4), nodata=0, photometric="MINISBLACK")
    points = geopandas.GeoDataFrame(geometry=[shapely.Point(500040, 5299960)], crs=UTM)
    points.to_file(tmp_path / "points.geojson", driver="GeoJSON")


@pytest.mark.parametrize(
    "words",
    [
        ["adapt", "--dataset", "coco/rows.json", "--images", "coco", "--concepts", "ship"],
        ["export"],
        ["scene", "score", "scene.tif", "a ship", *BANDS],
        ["scene", "classify", "scene.tif", "points.geojson", "--buffer", 5, "--concepts", "ship", *BANDS],
        ["evaluate", "regions", "--dataset", "coco/rows.json", "--images", "coco"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_verb_that_needs_a_geoalign_clip_refuses_a_stock_clip(words, files, clip_folder, geoalign_refuses):
    line = geoalign_refuses(*words, "--model", clip_folder)
    assert "CLIP" in line and "onvert" in line and "GeoAlignCLIP" in line


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["search", "a ship", "--top_k", 0], ["--top_k is 0"]),
        (["scene", "search", "a ship", "--top_k", -1], ["--top_k is -1"]),
        (["build", "--coco", "coco/rows.json", "--max_negatives", -1], ["--max_negatives is -1"]),
        (["build", "--coco", "coco/rows.json", "--sheet_rows", -1], ["--sheet_rows is -1"]),
        (["build", "--coco", "coco/rows.json", "--seed", -1], ["--seed is -1"]),
        (["build", "--coco", "coco/rows.json", "--split", "my split"], ["--split is 'my split'"]),
        (
            ["scene", "classify", "scene.tif", "points.geojson", "--buffer", -3, "--concepts", "a", *BANDS],
            ["buffer is -3.0", "metres"],
        ),
    ],
)
def test_a_number_or_name_without_a_meaning_is_refused(words, facts, files, folder, geoalign_refuses):
    model = [] if words[0] == "build" else ["--model", folder]
    line = geoalign_refuses(*words, *model)
    assert [fact for fact in facts if fact not in line] == []


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (
            ["evaluate", "localization", "--image", "coco/0.png", "--phrases", "a", "--queries", "q.json"],
            ["--image --phrases --queries"],
        ),
        (
            ["evaluate", "retrieval", "--captions", "c.json", "--images", "coco", "--dataset", "rows"],
            ["c.json", "--dataset"],
        ),
        (
            ["scene", "detect", "scene.tif", "--labels", "ship", "--sides", 64, "--buffer", 5, *BANDS],
            ["--buffer", "--proposals"],
        ),
        (["scene", "embed", "scene.tif", "--buffer", 5, *BANDS], ["--buffer", "--regions"]),
    ],
)
def test_an_option_without_effect_is_refused(words, facts, files, folder, geoalign_refuses):
    line = geoalign_refuses(*words, "--model", folder)
    assert [fact for fact in facts if fact not in line] == []


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["detect", "coco/0.png", "--labels", "ship", "--output", "coco"], ["coco is a folder", "file"]),
        (["embed", "coco/0.png", "--model", "coco"], ["coco has no config.json"]),
        (["convert", "empty.pt", "out"], ["empty.pt cannot be read as weights"]),
        (["build", "--coco", "empty.json", "--images", "coco"], ["empty.json has no images", "lists none"]),
        (
            ["evaluate", "regions", "--dataset", "coco/rows.json", "--images", "coco", "--split", "all"],
            ["split is 'all'", "no splits"],
        ),
        (
            ["evaluate", "regions", "--dataset", "coco/rows.json", "--images", "coco", "--context", 2,
             "--region_sources", "image"],
            ["--context needs windows"],
        ),
        (["push", "coco", "no name!"], ["no name!"]),
    ],
    ids=lambda words: " ".join(map(str, words[:2])),
)  # fmt: skip
def test_what_cannot_be_used_is_refused_with_what_to_do(
    words, facts, files, folder, tmp_path, geoalign_refuses
):
    (tmp_path / "empty.pt").touch()
    (tmp_path / "empty.json").write_text('{"images": [], "annotations": [], "categories": []}')
    if words[0] in ("detect", "evaluate"):
        words = [*words, "--model", folder]
    elif words[0] == "push":
        words = [words[0], folder, *words[2:]]
    line = geoalign_refuses(*words)
    assert [fact for fact in facts if fact not in line] == []
