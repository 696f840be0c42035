"""Detection in scenes: painted squares are found where they lie, and nothing is found on nodata."""

from dataclasses import replace

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import torch
from generated_scenes import UTM, write_scene
from geopandas.testing import assert_geodataframe_equal
from painted import ColourModel, paint
from refusals import refuses

from geoalign_hf.detection.detector import DetectionOptions, Detector
from geoalign_hf.embedding.embedder import Embedder
from geoalign_hf.scenes.detect import detect_in_scene
from geoalign_hf.scenes.reader import Scene
from geoalign_hf.scenes.regions import read_regions

RED, GREEN = (16, 16, 48, 48), (112, 80, 144, 112)  # pixels, xyxy
LABELS = ["red", "green"]
OPTIONS = DetectionOptions(
    background_labels=["grey"], background_bias=10.8, threshold=0.5, sides=[32], overlap=0.75, max_iou=0.2
)


class MaskColourModel(ColourModel):
    """Embeds a region given as a mask as the colour at the centre of the mask."""

    def region_scale(self):
        return torch.tensor(20.0)

    def embed_regions(self, pixel_values, region_coverage, **kwargs):
        points = (region_coverage[:, 0] > 0).nonzero().split((region_coverage > 0).sum((1, 2, 3)).tolist())
        centers = torch.stack([part[:, [2, 1]].float().mean(dim=0) for part in points]) + 0.5
        boxes = (centers / region_coverage.shape[-1]).repeat(1, 2)[:, None]
        return super().embed_regions(pixel_values, boxes)


@pytest.fixture(scope="module")
def detector(processor):
    return Detector(Embedder(MaskColourModel(processor), processor), LABELS, OPTIONS)


@pytest.fixture
def scene(tmp_path):
    pixels = np.asarray(paint((192, 160), (RED, "red"), (GREEN, "green"))).transpose(2, 0, 1)
    mask = np.ones((160, 192), dtype=bool)
    mask[:, 96:] = False  # the green square lies where there is no ground
    with rasterio.open(write_scene(tmp_path / "scene.tif", pixels, photometric="RGB"), "r+") as file:
        file.write_mask(mask)
    return Scene(tmp_path / "scene.tif")


def place(scene, *boxes):
    return geopandas.GeoDataFrame(geometry=[scene.to_ground(shapely.box(*box)) for box in boxes], crs=UTM)


def test_a_grid_finds_what_lies_on_valid_ground(detector, scene):
    found = detect_in_scene(detector, scene)
    assert found.crs == UTM and (found["label"] == "red").all() and len(found)
    assert (found.centroid.distance(place(scene, RED).geometry[0]) < 0.1).all()
    assert found["score"].is_monotonic_decreasing and (found["valid_ground"] == 1).all()


def test_proposals_keep_their_columns_and_their_objectness_counts(detector, scene, tmp_path):
    proposals = place(scene, GREEN, RED, (18, 18, 50, 50), (60, 60, 90, 90))
    proposals = proposals.assign(objectness=[1.0, 0.9, 0.8, 1.0], id=["green", "red", "near", "grey"])
    proposals.to_crs(4326).to_file(tmp_path / "proposals.gpkg")
    given = read_regions(tmp_path / "proposals.gpkg", scene)
    found = detect_in_scene(detector, scene, given)
    assert found["id"].tolist() == ["red"] and found["label"].tolist() == ["red"]
    without = detect_in_scene(detector, scene, given.drop(columns="objectness"))
    assert found["score"].item() == pytest.approx(0.9 * without["score"].iloc[0], rel=1e-4)


def test_crossed_polygons_are_both_detected_although_the_boxes_around_them_are_equal(detector, scene):
    crossed = [shapely.LineString(line).buffer(2) for line in ([(18, 18), (46, 46)], [(18, 46), (46, 18)])]
    proposals = geopandas.GeoDataFrame(geometry=[scene.to_ground(line) for line in crossed], crs=UTM)
    assert len(detect_in_scene(detector, scene, proposals)) == 2


def test_parts_of_the_proposals_give_the_same_detections(detector, scene, monkeypatch):
    whole = detect_in_scene(detector, scene)
    monkeypatch.setattr("geoalign_hf.scenes.detect.CHUNK", 7)
    assert_geodataframe_equal(detect_in_scene(detector, scene), whole)


def test_a_scene_without_objects_gives_an_empty_result(detector, scene):
    found = detect_in_scene(detector, scene, place(scene, (60, 60, 90, 90)))
    assert len(found) == 0 and {"label", "score", "valid_ground"} <= set(found.columns)


def test_no_proposals_give_an_empty_result(detector, scene):
    none = geopandas.GeoDataFrame({"name": []}, geometry=[], crs=scene.crs)
    found = detect_in_scene(detector, scene, none)
    assert len(found) == 0 and list(found.columns) == ["name", "geometry", "label", "score", "valid_ground"]


def test_what_a_scene_cannot_do_is_refused(detector, scene):
    for options, facts in (
        (replace(OPTIONS, proposer="peaks"), "'peaks'"),
        (replace(OPTIONS, sides=None), "--sides"),
    ):
        with refuses(facts):
            detect_in_scene(Detector(detector.embedder, LABELS, options), scene)
    for value in (2, float("nan"), "high", None):
        with refuses("the feature 1", "from 0 to 1"):
            detect_in_scene(detector, scene, place(scene, RED, RED).assign(objectness=[1, value]))
