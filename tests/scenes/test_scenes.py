"""Scenes keep their coordinates, nodata takes no part, and tiles leave no seams."""

import subprocess
import sys

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import torch
from generated_scenes import NORTH_UP, UTM, draw, write_scene
from rasterio.warp import transform as warp

from geoalign_hf.embedding.embedder import Embedder
from geoalign_hf.scenes.reader import Scene
from geoalign_hf.scenes.regions import (
    classify_scene_regions,
    embed_scene_regions,
    read_regions,
    write_regions,
)
from geoalign_hf.scenes.score import score_scene, write_score_maps


@pytest.fixture(scope="module")
def embedder(built):
    return Embedder(*built, batch_size=4)


def test_windows_hold_the_pixels_of_the_file_and_the_outside_is_not_valid(tmp_path):
    pixels = draw()
    scene = Scene(write_scene(tmp_path / "a.tif", pixels, photometric="RGB"))
    ground = scene.read((32, 16, 96, 80), (64, 64))
    assert (
        ground.valid.all() and (np.asarray(ground.image).transpose(2, 0, 1) == pixels[:, 16:80, 32:96]).all()
    )
    outside = scene.read((-32, 128, 32, 192), (64, 64))
    assert outside.valid.sum() == 32 * 32 and outside.valid[:32, 32:].all()


def test_16_bit_bands_share_one_stretch_over_all_windows(tmp_path):
    pixels = draw(bands=4, dtype=np.uint16, high=3000)
    path = write_scene(tmp_path / "a.tif", pixels)
    with pytest.raises(ValueError, match=r"a.tif has 4 bands and does not declare"):
        Scene(path)
    scene = Scene(path, bands=(3, 2, 1))
    assert scene.describe() == {"bands": [3, 2, 1], "stretch": [2.0, 98.0]}
    whole = np.asarray(scene.read((0, 0, 192, 160), (192, 160)).image)
    part = np.asarray(scene.read((64, 64, 128, 128), (64, 64)).image)
    assert (whole[64:128, 64:128] == part).all()
    low, high = np.percentile(pixels[2], (2, 98))
    expected = np.clip((pixels[2] - low) / (high - low), 0, 1) * 255
    assert np.abs(whole[..., 0] - expected).max() <= 0.51
    for wrong in ((0, 1, 2), (1, 2), (1, 2, 5)):
        with pytest.raises(ValueError, match="bands 1 to 4"):
            Scene(path, bands=wrong)
    with pytest.raises(ValueError, match="percentiles"):
        Scene(path, (1,), (98, 2))


def test_files_without_coordinates_or_that_are_no_rasters_are_named(tmp_path):
    (tmp_path / "b.tif").write_text("no raster")
    with pytest.raises(ValueError, match=r"b.tif cannot be opened as a raster"):
        Scene(tmp_path / "b.tif")
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        write_scene(tmp_path / "c.tif", draw(), crs=None, transform=rasterio.Affine.identity())
        with pytest.raises(ValueError, match="c.tif has no coordinate reference system"):
            Scene(tmp_path / "c.tif")


@pytest.mark.parametrize(
    "transform", [NORTH_UP, NORTH_UP * rasterio.Affine.rotation(30)], ids=["north up", "rotated"]
)
def test_a_score_map_lies_where_its_scene_lies_and_nodata_has_no_score(embedder, tmp_path, transform):
    pixels = draw() // 2 + 1
    pixels[:, :64, :64] = 0
    scene = Scene(write_scene(tmp_path / "a.tif", pixels, transform=transform, nodata=0, photometric="RGB"))
    maps = score_scene(embedder, scene, ["a ship", "a bridge"])
    assert maps.shape == (2, 10, 12)  # patches of 16 pixels
    assert (
        np.isnan(maps[:, :4, :4]).all() and np.isfinite(maps[:, 4:]).all() and np.abs(maps[:, 4:]).max() <= 1
    )
    paths = write_score_maps(maps, ["a ship", "a bridge"], scene, 16, tmp_path / "maps")
    with rasterio.open(paths[1]) as written:
        assert written.crs == scene.crs and written.dtypes == ("float32",) and np.isnan(written.nodata)
        np.testing.assert_array_equal(written.read(1), maps[1])
        for corner in ((0, 0), (12, 10)):
            expected = scene.transform * (16 * corner[0], 16 * corner[1])
            np.testing.assert_allclose(written.transform * corner, expected)
    assert paths[1].name == "01_a_bridge.tif" and paths[1].with_suffix(".png").exists()


def test_nodata_changes_no_score_of_ground_whose_tiles_do_not_reach_it(embedder, tmp_path):
    pixels = draw(64, 256) // 2 + 1
    whole = score_scene(
        embedder, Scene(write_scene(tmp_path / "a.tif", pixels, nodata=0, photometric="RGB")), ["a ship"]
    )
    pixels[:, :, :64] = 0
    cut = score_scene(
        embedder, Scene(write_scene(tmp_path / "b.tif", pixels, nodata=0, photometric="RGB")), ["a ship"]
    )
    np.testing.assert_allclose(cut[:, :, 8:], whole[:, :, 8:], atol=1e-5)


def test_a_score_map_has_no_seams(embedder, tmp_path):
    """The maps of a scene and of its copy shifted by half a tile differ by under a tenth of their spread."""
    pixels = draw(128, 256, seed=3)
    shifted = np.roll(pixels, 32, axis=2)
    maps = [
        score_scene(
            embedder,
            Scene(write_scene(tmp_path / f"{name}.tif", p, photometric="RGB")),
            ["a ship"],
            overlap=0.75,
        )
        for name, p in (("a", pixels), ("b", shifted))
    ]
    inner = maps[0][0, 2:-2, 4:-6], maps[1][0, 2:-2, 6:-4]
    spread = np.nanstd(maps[0])
    assert np.abs(inner[0] - inner[1]).max() < 0.1 * spread
    jumps = np.abs(np.diff(maps[0][0], axis=1)).mean(axis=0)
    assert jumps.max() < 4 * np.median(jumps)


def to_wgs84(x, y):
    (lon,), (lat,) = warp(UTM, "EPSG:4326", [x], [y])
    return lon, lat


def test_regions_of_any_reference_system_are_found_on_their_ground(embedder, tmp_path):
    scene = Scene(write_scene(tmp_path / "a.tif", draw() // 2 + 1, nodata=0, photometric="RGB"))
    square = shapely.box(500016, 5299952, 500032, 5299968)  # metres: pixels 32 to 64 across, 64 to 96 down
    frame = geopandas.GeoDataFrame({"name": ["a"]}, geometry=[square], crs=UTM)
    frame.to_crs(4326).to_file(tmp_path / "r.geojson", driver="GeoJSON")
    frame.to_crs(3857).to_file(tmp_path / "r.gpkg", driver="GPKG")
    for name in ("r.geojson", "r.gpkg"):
        regions = read_regions(tmp_path / name, scene)
        assert regions.crs == scene.crs
        bounds = scene.to_pixels(regions.geometry[0]).bounds
        np.testing.assert_allclose(bounds, [32, 64, 64, 96], atol=0.05)
    named = classify_scene_regions(embedder, scene, regions, ["ship", "bridge"], ["a photo of a {}."])
    assert named["name"].tolist() == ["a"] and named["concept"][0] in ("ship", "bridge")
    assert named["score"][0] == pytest.approx(max(named["score: ship"][0], named["score: bridge"][0]))
    write_regions(named, tmp_path / "out.geojson")
    back = geopandas.read_file(tmp_path / "out.geojson")
    assert back.crs == "EPSG:4326"
    np.testing.assert_allclose(back.geometry[0].centroid.coords[0], to_wgs84(500024, 5299960), atol=1e-6)


def test_a_region_pools_the_same_ground_as_its_box_in_its_window(embedder, tmp_path):
    pixels = draw()
    scene = Scene(write_scene(tmp_path / "a.tif", pixels, photometric="RGB"))
    square = shapely.box(*scene.transform * (64, 96), *scene.transform * (96, 64))
    embeds, valid_ground = embed_scene_regions(embedder, scene, [square], context=2.0)
    window = scene.read((48, 48, 112, 112), (64, 64)).image
    inputs = embedder.processor(images=window, boxes=[[[16, 16, 48, 48]]], return_tensors="pt")
    with torch.no_grad():
        expected = embedder.model.embed_regions(inputs["pixel_values"], inputs["region_boxes"])[0]
    assert valid_ground.tolist() == [1.0]
    assert (
        torch.cosine_similarity(embeds, expected).item() > 0.99
    )  # a mask's coverage against a box's integral


def test_regions_on_nodata_are_reported_and_not_scored(embedder, tmp_path):
    pixels = draw() // 2 + 1
    pixels[:, :64, :64] = 0
    scene = Scene(write_scene(tmp_path / "a.tif", pixels, nodata=0, photometric="RGB"))
    boxes = [(500002, 5299990, 500020, 5299998), (500050, 5299940, 500070, 5299960)]
    regions = geopandas.GeoDataFrame(geometry=[shapely.box(*box) for box in boxes], crs=UTM)
    named = classify_scene_regions(embedder, scene, regions, ["ship", "bridge"], ["a {}"])
    assert named["concept"].isna().tolist() == [True, False] and named["score"].isna().tolist() == [
        True,
        False,
    ]
    assert named["valid_ground"].tolist() == [0.0, 1.0]


def test_points_need_a_buffer_in_metres(tmp_path):
    scene = Scene(write_scene(tmp_path / "a.tif", draw(), photometric="RGB"))
    points = geopandas.GeoDataFrame(geometry=[shapely.Point(500040, 5299960)], crs=UTM)
    points.to_crs(4326).to_file(tmp_path / "p.geojson", driver="GeoJSON")
    with pytest.raises(ValueError, match="need a buffer in metres"):
        read_regions(tmp_path / "p.geojson", scene)
    (disc,) = read_regions(tmp_path / "p.geojson", scene, buffer=5).geometry
    assert disc.area == pytest.approx(np.pi * 25, rel=0.02)


MEASURE = """
import re, sys
from pathlib import Path
import torch
import geoalign_hf
from transformers import AutoModel, AutoProcessor
from geoalign_hf.embedding.embedder import Embedder
from geoalign_hf.scenes.reader import Scene
from geoalign_hf.scenes.score import score_scene

folder, path = sys.argv[1:]
embedder = Embedder(AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder))
def read_peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

before = read_peak()
maps = score_scene(embedder, Scene(path, stretch=(2, 98)), ["a ship", "a bridge"], scale=4.0, overlap=0.0)
print(maps.shape, before, read_peak())
"""


@pytest.mark.slow
def test_a_scene_of_10_000_pixels_a_side_needs_less_than_a_gigabyte(folder, tmp_path):
    profile = {
        "driver": "GTiff",
        "count": 3,
        "width": 10_000,
        "height": 10_000,
        "dtype": "uint16",
        "nodata": 0,
    }
    tiling = {
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "compress": "deflate",
        "photometric": "RGB",
    }
    strip = draw(500, 10_000, dtype=np.uint16, high=4000) + 1
    with rasterio.open(tmp_path / "a.tif", "w", crs=UTM, transform=NORTH_UP, **profile, **tiling) as file:
        for row in range(0, 10_000, 500):
            file.write(strip, window=rasterio.windows.Window(0, row, 10_000, 500))
    command = [sys.executable, "-c", MEASURE, str(folder), str(tmp_path / "a.tif")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    shape, (before, after) = result.stdout.split(") ")[0], map(int, result.stdout.split(") ")[1].split())
    assert shape == "(2, 157, 157"
    assert after < 1024**2, (before, after)  # kilobytes, the interpreter and torch included
