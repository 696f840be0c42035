"""Laws of localisation: tiles cover the picture, maps are means over tiles, painted places are found."""

import numpy as np
import pytest
import torch
from painted import ColourModel, paint
from refusals import refuses

from geoalign_hf.data.tiling import list_tiles
from geoalign_hf.embedding.embedder import Embedder
from geoalign_hf.embedding.score_maps import build_score_maps
from geoalign_hf.evaluation.localization import LocalizationEvaluator
from geoalign_hf.evaluation.metrics.localization import polygons_to_truth, score_localization

SIZE = (1400, 1000)
SQUARE = [[800, 400], [1250, 400], [1250, 850], [800, 850]]  # larger than half of the median's square


@pytest.fixture
def painter(processor):
    return ColourModel(processor), processor


@pytest.fixture(scope="module")
def picture():
    return paint(SIZE, ((0, 0, *SIZE), "green"), ((800, 400, 1250, 850), "red"))


# Tiles


@pytest.mark.parametrize("size", [(1, 1), (20, 20), (21, 47), (300, 200), (5, 400)])
@pytest.mark.parametrize("side", [1, 7, 20, 64])
def test_tiles_cover_the_picture_and_lie_inside_it(size, side):
    tiles = list_tiles(size, side)
    covered = np.zeros(size[::-1], dtype=int)
    for x0, y0, x1, y1 in tiles:
        assert 0 <= x0 < x1 <= size[0] and 0 <= y0 < y1 <= size[1]
        assert (x1 - x0, y1 - y0) == (min(side, size[0]), min(side, size[1]))
        covered[y0:y1, x0:x1] += 1
    assert covered.min() >= 1 and len(set(tiles)) == len(tiles)


def test_tiles_step_by_half_and_the_last_is_moved_inside():
    assert [x for x, *_ in list_tiles((100, 40), 40)] == [0, 20, 40, 60]
    assert [x for x, *_ in list_tiles((95, 40), 40)] == [0, 20, 40, 55]
    assert [(x, y) for x, y, *_ in list_tiles((60, 60), 40)] == [(0, 0), (20, 0), (0, 20), (20, 20)]


# Maps


@pytest.mark.parametrize("stride", [1, 4, 7])
def test_a_cell_holds_the_mean_cosine_of_the_tiles_over_it(painter, stride):
    image = paint((90, 60), ((30, 20, 60, 45), "green"))
    embedder = Embedder(*painter)
    scores = build_score_maps(embedder, image, ["a green field", "red"], tile_sides=(40, 25), stride=stride)
    assert scores.shape == (2, -(-60 // stride), -(-90 // stride))
    words = embedder.embed_text(["a green field", "red"])
    sums, counts = np.zeros(scores.shape), np.zeros(scores.shape[1:])
    for side in (40, 25):
        for x0, y0, x1, y1 in list_tiles(image.size, side):
            cosines = embedder.embed_images([image.crop((x0, y0, x1, y1))])[0] @ words.T
            for row in range(scores.shape[1]):
                for column in range(scores.shape[2]):
                    is_over = column * stride < x1 and x0 < (column + 1) * stride
                    if is_over and row * stride < y1 and y0 < (row + 1) * stride:
                        sums[:, row, column] += cosines.numpy()
                        counts[row, column] += 1
    np.testing.assert_allclose(scores, sums / counts, atol=1e-5)


def test_a_dense_map_of_one_tile_is_the_dense_map_of_the_model(model, processor, toy_rows):
    image, embedder = toy_rows[0]["image"].resize((64, 64)), Embedder(model, processor)
    scores = build_score_maps(embedder, image, ["a ship"], "dense", tile_sides=(64,), stride=16)
    with torch.no_grad():
        pixels = processor(images=image, return_tensors="pt")
        patches = torch.nn.functional.normalize(model.get_patch_features(**pixels), dim=1)[0]
    expected = torch.einsum("dhw,d->hw", patches, embedder.embed_text(["a ship"])[0])
    np.testing.assert_allclose(scores[0], expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("map_source", ["tile", "dense"])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_maps_do_not_depend_on_the_batch(model, processor, toy_rows, map_source, batch_size):
    image = toy_rows[0]["image"]
    maps = [
        build_score_maps(Embedder(model, processor, batch_size=size), image, ["a ship"], map_source, (90, 60))
        for size in (batch_size, 100)
    ]
    np.testing.assert_allclose(*maps, atol=1e-5)


# The task


@pytest.mark.parametrize("map_source", ["tile", "dense"])
def test_a_painted_place_is_found_where_it_is(painter, picture, map_source):
    sides = (200, 400) if map_source == "tile" else None
    there = {"image": picture, "phrase": "a red roof", "polygons": [SQUARE]}
    elsewhere = there | {"polygons": [[[40, 600], [440, 600], [440, 960], [40, 960]]]}
    scores = LocalizationEvaluator([there, elsewhere], map_source, tile_sides=sides)(*painter)
    found, missed = scores["queries"]
    even = 1 - np.exp(-0.707)  # rsu of an even map
    assert found["rsu"] > 0.9 and found["ras"] < 0.1 and found["rda"] == 1.0 and found["rmi"] > 0.9
    assert missed["rsu"] < even and missed["ras"] == 1.0 and missed["rda"] == 0.0
    assert missed["rmi"] == pytest.approx(0.4 * missed["rsu"])
    for name in ("rsu", "ras", "rda", "rmi"):
        assert scores[name] == pytest.approx((found[name] + missed[name]) / 2)
    assert (scores["num_queries"], scores["num_images"]) == (2, 1)


def test_queries_of_one_image_score_the_same_together_and_apart(painter, picture, tmp_path):
    picture.save(tmp_path / "a.png")
    queries = [
        {"image": tmp_path / "a.png", "phrase": phrase, "polygons": [SQUARE]} for phrase in ("red", "green")
    ]
    together = LocalizationEvaluator(queries, tile_sides=(400,))(*painter)
    apart = [LocalizationEvaluator([query], tile_sides=(400,))(*painter)["queries"][0] for query in queries]
    assert together["queries"] == apart and together["num_images"] == 1


def test_scores_can_be_recomputed_from_the_saved_maps(painter, picture, tmp_path):
    queries = [{"image": picture, "phrase": phrase, "polygons": [SQUARE]} for phrase in ("red", "green")]
    scores = LocalizationEvaluator(queries, tile_sides=(400,), arrays_path=tmp_path / "maps.npz")(*painter)
    saved = np.load(tmp_path / "maps.npz")
    for number, figures in enumerate(scores["queries"]):
        values = saved[str(number)]
        truth = polygons_to_truth([SQUARE], values.shape, stride=4)
        assert {"phrase": figures["phrase"]} | score_localization(values, truth, stride=4) == figures


def test_the_protocol_says_how_the_map_was_made(painter, picture):
    query = {"image": picture, "phrase": "red", "polygons": [SQUARE]}
    protocol = LocalizationEvaluator([query], through_jpeg=True)(*painter)["protocol"]
    shown = {name: protocol[name] for name in ("task", "map_source", "tile_sides", "stride", "through_jpeg")}
    assert shown == {
        "task": "semantic localisation",
        "map_source": "tile",
        "tile_sides": [256, 512, 768],
        "stride": 4,
        "through_jpeg": True,
    }
    assert LocalizationEvaluator([query], "dense")(*painter)["protocol"]["tile_sides"] == [512]


def test_no_queries_and_an_unknown_source_are_refused(painter, picture):
    with refuses("at least one query"):
        LocalizationEvaluator([])(*painter)
    with refuses("'patch'", "('tile', 'dense')"):
        build_score_maps(Embedder(*painter), picture, ["red"], "patch")
