"""Scenes keep their coordinates, nodata takes no part, and tiles leave no seams."""

import re
import subprocess
import sys

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import torch
from generated_scenes import NORTH_UP, UTM, draw, write_scene
from PIL import Image
from rasterio.warp import transform as warp
from transformers import CLIPModel, CLIPProcessor

from geoalign_hf.embedding.embedder import Embedder
from geoalign_hf.scenes.classify import classify_scene_regions
from geoalign_hf.scenes.reader import Scene
from geoalign_hf.scenes.regions import (
    embed_scene_regions,
    read_regions,
    write_regions,
)
from geoalign_hf.scenes.score import draw_score_map, score_scene, write_score_maps


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
    assert scene.describe() == {"bands": [3, 2, 1], "stretch": [2.0, 98.0], "limits": None}
    whole = np.asarray(scene.read((0, 0, 192, 160), (192, 160)).image)
    part = np.asarray(scene.read((64, 64, 128, 128), (64, 64)).image)
    assert (whole[64:128, 64:128] == part).all()
    low, high = np.percentile(pixels[:3], (2, 98))
    expected = np.clip((pixels[2] - low) / (high - low), 0, 1) * 255
    assert np.abs(whole[..., 0] - expected).max() <= 0.51
    for wrong in ((0, 1, 2), (1, 2), (1, 2, 5)):
        with pytest.raises(ValueError, match=re.escape(f"bands is {wrong}")):
            Scene(path, bands=wrong)
    with pytest.raises(ValueError, match="percentiles"):
        Scene(path, (1,), (98, 2))


def test_the_rule_of_a_model_reads_what_is_not_8_bit_rgb_and_options_come_first(tmp_path):
    pixels, rule = draw(bands=4, dtype=np.uint16, high=3000), {"limits": [0, 3000], "bands": [3, 2, 1]}
    path = write_scene(tmp_path / "a.tif", pixels)
    by_rule, by_hand = Scene(path, rule=rule), Scene(path, (3, 2, 1), limits=(0, 3000))
    assert (
        by_rule.describe() == by_hand.describe() == {"bands": [3, 2, 1], "stretch": None, "limits": [0, 3000]}
    )
    image = np.asarray(by_rule.read((0, 0, 192, 160), (192, 160)).image)
    assert np.abs(image - (pixels[2::-1] / 3000 * 255).transpose(1, 2, 0)).max() <= 0.51
    assert Scene(path, (1,), (2, 98), rule=rule).describe()["bands"] == [1, 1, 1]
    plain = write_scene(tmp_path / "b.tif", draw(), photometric="RGB")
    assert Scene(plain, rule=rule).describe() == {"bands": [1, 2, 3], "stretch": None, "limits": None}


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


def measure_shift(embedder, tmp_path, shift, overlap):
    """Score a scene and its shifted copy; return the largest difference, and the spread of the scores."""
    pixels, maps = draw(192, 256, seed=3), []
    for name, moved in (("a", pixels), ("b", np.roll(pixels, (shift, shift), axis=(1, 2)))):
        scene = Scene(write_scene(tmp_path / f"{name}.tif", moved, photometric="RGB"))
        maps.append(score_scene(embedder, scene, ["a ship"], overlap=overlap)[0])
    cells = shift // 16  # no tile that reaches over an edge contains a cell 4 cells away from it
    inner = maps[0][4 : -4 - cells, 4 : -4 - cells], maps[1][4 + cells : -4, 4 + cells : -4]
    return np.abs(inner[0] - inner[1]).max(), np.std(maps[0]), maps[0]


def test_a_score_map_of_a_scene_that_is_shifted_by_half_a_tile_is_the_shifted_map(embedder, tmp_path):
    """Tiles of 4 cells advance by 2 or 1 cells, so a shift by half a tile puts cells on the same places."""
    for overlap in (0.5, 0.75):
        difference, spread, scores = measure_shift(embedder, tmp_path, 32, overlap)
        assert difference < 1e-6 * spread
    # By one cell, tiles lie elsewhere on the ground, so that patches see other surroundings.
    difference, spread, _ = measure_shift(embedder, tmp_path, 16, 0.5)
    assert difference < 0.2 * spread
    jumps = [np.abs(np.diff(scores, axis=axis)).mean(axis=1 - axis) for axis in (0, 1)]
    assert all(of_axis.max() < 4 * np.median(of_axis) for of_axis in jumps)


@pytest.mark.parametrize("shape", [(300, 1), (1, 300)])
def test_the_picture_of_a_long_strip_has_a_bounded_size(shape):
    figure = draw_score_map(
        Image.new("RGB", shape[::-1]), shape[::-1], np.zeros(shape), (0, 1), "cosine", "a"
    )
    assert max(figure.get_size_inches()) < 16


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


@pytest.mark.parametrize("trained", [None, 2.0])
def test_a_region_is_embedded_as_its_box_is_in_the_view_of_the_model(model, processor, tmp_path, trained):
    """Also at the edge of the scene. Pooling by a mask differs a little from pooling by a box."""
    if trained:
        model.config.region_view, model.config.region_context = "window", trained
    embedder = Embedder(model, processor)
    pixels = draw()
    scene = Scene(write_scene(tmp_path / "a.tif", pixels, photometric="RGB"))
    boxes = [[64, 96, 96, 128], [0, 3, 20, 31], [150, 100, 192, 112], [90, 20, 98, 30]]
    embeds, valid_ground = embed_scene_regions(
        embedder, scene, [scene.to_ground(shapely.box(*box)) for box in boxes]
    )
    image = Image.fromarray(pixels.transpose(1, 2, 0))
    source = None if trained else "window"
    expected = embedder.embed_regions([{"image": image, "boxes": boxes}], source)
    other = embedder.embed_regions([{"image": image, "boxes": boxes}], "window", context=1.2)
    assert valid_ground.tolist() == [1.0] * 4
    cosines = torch.cosine_similarity(embeds, expected)
    assert cosines.min() > 0.98 and (cosines > torch.cosine_similarity(embeds, other)).all()


def test_a_region_partly_outside_the_scene_or_on_nodata_says_how_much_of_it_was_seen(embedder, tmp_path):
    pixels = draw() // 2 + 1
    pixels[:, :64, :64] = 0
    scene = Scene(write_scene(tmp_path / "a.tif", pixels, nodata=0, photometric="RGB"))
    boxes = [
        (-30, 80, 10, 120),
        (40, 20, 80, 40),
        (100, 200, 120, 220),
        (100, 100, 100.01, 140),
        (0, 0, 9, 9),
    ]
    geometries = [scene.to_ground(shapely.box(*box)) for box in boxes]
    embeds, valid_ground = embed_scene_regions(embedder, scene, geometries)
    np.testing.assert_allclose(valid_ground, [0.25, 0.4, 0, 1, 0], atol=0.02)
    np.testing.assert_allclose(embeds.norm(dim=1).numpy(), valid_ground > 0, atol=1e-5)


def test_what_lies_on_nodata_does_not_change_a_region(embedder, tmp_path):
    """The values below a mask are arbitrary, and take no part."""
    box = shapely.box(40, 20, 80, 60)
    embeds = []
    for below in (0, 255):
        pixels = draw() // 2 + 1
        pixels[:, :64, :64] = below
        path = write_scene(tmp_path / f"{below}.tif", pixels, photometric="RGB")
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
            mask = np.ones(pixels.shape[1:], dtype=bool)
            mask[:64, :64] = False
            file.write_mask(mask)
        scene = Scene(path)
        embeds.append(embed_scene_regions(embedder, scene, [scene.to_ground(box)])[0])
    np.testing.assert_allclose(embeds[0], embeds[1], atol=1e-6)


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


def test_a_stock_clip_is_refused_with_what_to_do(clip_folder, tmp_path):
    stock = Embedder(CLIPModel.from_pretrained(clip_folder), CLIPProcessor.from_pretrained(clip_folder))
    scene = Scene(write_scene(tmp_path / "a.tif", draw(), photometric="RGB"))
    points = geopandas.GeoDataFrame(geometry=[shapely.Point(500040, 5299960).buffer(5)], crs=UTM)
    for call in (
        lambda: score_scene(stock, scene, ["a ship"]),
        lambda: classify_scene_regions(stock, scene, points, ["ship"], ["{}"]),
    ):
        with pytest.raises(ValueError, match="CLIPModel has no .*convert_clip"):
            call()


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
