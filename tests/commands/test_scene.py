"""`geoalign-hf scene`: every kind of raster gives the same answers, at the coordinates where they belong."""

import json
import os
import re
import subprocess
import sys
import time

import geopandas
import numpy as np
import pandas
import pytest
import rasterio
import rasterio.shutil
import shapely
from generated_scenes import NORTH_UP, UTM, draw, write_scene
from rasterio.warp import transform as warp

from geoalign_hf.embedding.embedder import Embedder
from geoalign_hf.scenes.reader import Scene
from geoalign_hf.scenes.score import score_scene

QUERIES = ["a ship", "a bridge"]
NO_GROUND = np.s_[:, :64, :64]  # of every scene


@pytest.fixture(scope="module")
def pixels():
    """160 x 192 pixels from 1 to 255; each band holds both ends."""
    pixels = np.maximum(draw(160, 192, seed=5), 1)
    pixels[:, 100, 100], pixels[:, 101, 101] = 1, 255
    pixels[NO_GROUND] = 0
    return pixels


@pytest.fixture(scope="module")
def plain(built, pixels, tmp_path_factory):
    """The file of the plain scene, and its scores without and with a stretch."""
    path = tmp_path_factory.mktemp("plain") / "plain.tif"
    write_scene(path, pixels, photometric="RGB", nodata=0)
    maps = [score_scene(Embedder(*built), Scene(path, None, way), QUERIES) for way in (None, (0, 100))]
    assert np.isnan(maps[0][:, :4, :4]).all() and np.isfinite(maps[0][:, 4:]).all()
    return path, maps


def write_south(path, pixels):
    transform = rasterio.transform.from_origin(-60.1, -20.2, 1e-5, 1e-5)
    return write_scene(path, pixels, "EPSG:4326", transform, photometric="RGB", nodata=0), []


def write_web(path, pixels):
    transform = rasterio.transform.from_origin(1.5e6, 6.1e6, 2, 2)
    return write_scene(path, pixels, "EPSG:3857", transform, photometric="RGB", nodata=0), []


def write_rotated(path, pixels):
    transform = NORTH_UP * rasterio.Affine.rotation(30)
    return write_scene(path, pixels, transform=transform, photometric="RGB", nodata=0), []


def write_16_bits(path, pixels):
    """Four bands, blue first, as satellites have them."""
    blue_first = np.concatenate([pixels[::-1], pixels[:1] // 2]).astype(np.uint16) * 13
    return write_scene(path, blue_first, nodata=0), ["--bands", "3,2,1", "--stretch", "0,100"]


def write_signed(path, pixels):
    signed = pixels.astype(np.int16) * 13 - 700
    signed[NO_GROUND] = -9999
    return write_scene(path, signed, photometric="RGB", nodata=-9999), ["--stretch", "0,100"]


def write_float(path, pixels):
    values = pixels / np.float32(3000)
    values[NO_GROUND] = np.nan
    return write_scene(path, values, photometric="RGB"), ["--stretch", "0,100"]


def write_mask(path, pixels):
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        write_scene(path, pixels, photometric="RGB")
        with rasterio.open(path, "r+") as file:
            file.write_mask(pixels[0] > 0)
    return path, []


def write_alpha(path, pixels):
    alpha = np.where(pixels[:1] > 0, 255, 0).astype(np.uint8)
    return write_scene(path, np.concatenate([pixels, alpha]), photometric="RGB", alpha="YES"), []


def write_cog(path, pixels):
    source = write_scene(path.with_suffix(".plain.tif"), pixels, photometric="RGB", nodata=0)
    rasterio.shutil.copy(source, path, driver="COG", blocksize=128, overview_count=1)
    with rasterio.open(path) as file:
        assert file.overviews(1) == [2] and file.driver == "GTiff"
    return path, []


def write_jpeg_2000(path, pixels):
    path, source = path.with_suffix(".jp2"), path.with_suffix(".plain.tif")
    with rasterio.Env() as environment:
        if "JP2OpenJPEG" not in environment.drivers():
            pytest.skip("this GDAL has no driver of JPEG 2000")
    write_scene(source, pixels, photometric="RGB", nodata=0)
    rasterio.shutil.copy(source, path, driver="JP2OpenJPEG", quality=100, reversible="YES", ycbcr420="NO")
    return path, []


KINDS = [
    write_16_bits,
    *(
        pytest.param(write, marks=pytest.mark.slow)
        for write in (
            write_south, write_web, write_rotated, write_signed, write_float, write_mask, write_alpha,
            write_cog, write_jpeg_2000,
        )
    ),
]  # fmt: skip


def to_wgs84(scene, column, row):
    """Longitude and latitude of a pixel's corner by rasterio alone."""
    with rasterio.open(scene) as file:
        x, y = file.xy(row, column, offset="ul")
        (longitude,), (latitude,) = warp(file.crs, "EPSG:4326", [x], [y])
    return longitude, latitude


@pytest.mark.parametrize("write", KINDS, ids=lambda write: write.__name__)
def test_every_kind_of_scene_gives_the_same_scores_where_it_lies(
    write, plain, pixels, folder, geoalign, tmp_path
):
    scene, options = write(tmp_path / "scene.tif", pixels)
    printed = geoalign("scene", "score", scene, "--queries", *QUERIES, "--model", folder, *options)
    assert printed.endswith("wrote outputs/scene_score\n") and "01_a_bridge.tif: a bridge" in printed
    for number, name in enumerate(("00_a_ship", "01_a_bridge")):
        with rasterio.open(tmp_path / "outputs" / "scene_score" / f"{name}.tif") as file:
            # Half a grey level is rounded up or down with the noise of a float.
            tolerance = 2e-3 if write is write_float else 1e-5
            np.testing.assert_allclose(file.read(1), plain[1][bool(options)][number], atol=tolerance)
            assert file.dtypes == ("float32",) and np.isnan(file.nodata)
            assert json.loads(file.tags()["protocol"])["model"] == str(folder)
            with rasterio.open(scene) as original:
                assert file.crs == original.crs
                for column, row in ((0, 0), (12, 0), (5, 7)):  # cells of 16 pixels
                    expected = original.xy(16 * row, 16 * column, offset="ul")
                    np.testing.assert_allclose(file.xy(row, column, offset="ul"), expected, rtol=1e-12)
        assert (tmp_path / "outputs" / "scene_score" / f"{name}.png").stat().st_size > 10_000

    # A region on the ground, and one on nodata, given in yet another reference system.
    boxes = [(70, 80, 110, 130), (10, 10, 50, 40)]
    with rasterio.open(scene) as file:
        corners = [[(x0, y0), (x1, y0), (x1, y1), (x0, y1)] for x0, y0, x1, y1 in boxes]
        outlines = [shapely.Polygon([file.xy(y, x, offset="ul") for x, y in four]) for four in corners]
        frame = geopandas.GeoDataFrame({"id": ["ground", "none"]}, geometry=outlines, crs=file.crs)
    frame.to_crs(3857).to_file(tmp_path / "regions.gpkg")
    classify = ["--concepts", "ship", "bridge", "--model", folder]
    printed = geoalign("scene", "classify", scene, tmp_path / "regions.gpkg", *classify, *options)
    assert "1 of 2 regions have no valid ground in the scene, and so no concept" in printed
    named = geopandas.read_file(tmp_path / "outputs" / "scene_classify.geojson")
    way = ["--stretch", "0,100"] if options else []
    classify += ["--output", "my regions.gpkg", *way]
    geoalign("scene", "classify", plain[0], write_plain_regions(tmp_path), *classify)
    of_plain = geopandas.read_file(tmp_path / "my regions.gpkg")
    assert named.crs == "EPSG:4326" and of_plain.crs == UTM
    assert named["concept"].isna().tolist() == [False, True] and named["id"].tolist() == ["ground", "none"]
    assert named["concept"][0] == of_plain["concept"][0] and named["valid_ground"].tolist() == [1, 0]
    np.testing.assert_allclose(named["score"], of_plain["score"], atol=0.02)  # the outline's rounding
    np.testing.assert_allclose(named.geometry[0].centroid.coords[0], to_wgs84(scene, 90, 105), atol=1e-6)

    geoalign("scene", "embed", scene, "--model", folder, *options)
    printed = geoalign("scene", "search", "a ship", "--model", folder, "--top_k", 4)
    found = geopandas.read_file(tmp_path / "outputs" / "scene_search.geojson")
    assert len(found) == 4 and found.crs == "EPSG:4326" and (found["query"] == "a ship").all()
    first = found.geometry[0].centroid
    assert f"  {first.y:.6f} {first.x:.6f} {scene} tile {found['cosine'][0]:.4f}\n" in printed
    centers = [to_wgs84(scene, x + 32, y + 32) for y in (0, 64, 96) for x in (0, 64, 128)]
    distances = [np.hypot(*np.subtract(center, (first.x, first.y))) for center in centers]
    assert min(distances) < 2e-7


def write_plain_regions(folder):
    boxes = [(70, 80, 110, 130), (10, 10, 50, 40)]
    outlines = [
        shapely.box(500000 + x0 / 2, 5300000 - y1 / 2, 500000 + x1 / 2, 5300000 - y0 / 2)
        for x0, y0, x1, y1 in boxes
    ]
    geopandas.GeoDataFrame(geometry=outlines, crs=UTM).to_file(folder / "plain.geojson", driver="GeoJSON")
    return folder / "plain.geojson"


@pytest.fixture
def places(tmp_path):
    """A scene, and points in it."""
    write_scene(tmp_path / "scene.tif", draw(bands=4), nodata=0, photometric="MINISBLACK")
    points = geopandas.GeoDataFrame(geometry=[shapely.Point(500040, 5299960)], crs=UTM)
    points.to_file(tmp_path / "points.geojson", driver="GeoJSON")
    points.translate(1e5).buffer(9).to_file(tmp_path / "far.gpkg")
    (tmp_path / "empty").mkdir()
    return tmp_path


BANDS = ["--bands", "1,2,3"]


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["score", "none.tif", "a ship"], ["none.tif cannot be opened"]),
        (["score", "scene.tif"], ["queries"]),
        (["score", "scene.tif", "a ship"], ["scene.tif has 4 bands", "--bands 3,2,1"]),
        (["score", "scene.tif", "a ship", "--bands", "red"], ["--bands", "red"]),
        (["score", "scene.tif", "a ship", "--bands", "5"], ["bands is (5,)", "1 to 4"]),
        (["score", "scene.tif", "a ship", *BANDS, "--stretch", "2"], ["stretch"]),
        (["score", "scene.tif", "a ship", *BANDS, "--stretch", "98,2"], ["two percentiles"]),
        (["score", "scene.tif", "a ship", *BANDS, "--colour_limits", "1,0"], ["limits is (1.0, 0.0)"]),
        (["score", "scene.tif", "a ship", *BANDS, "--overlap", "1"], ["overlap 1.0"]),
        (["score", "scene.tif", "a ship", *BANDS, "--scale", "0"], ["scale is 0.0"]),
        (["classify", "scene.tif", "none.gpkg", "--concepts", "ship", *BANDS], ["none.gpkg"]),
        (["classify", "scene.tif", "points.geojson", "--concepts", "ship", *BANDS], ["buffer in metres"]),
        (
            ["classify", "scene.tif", "far.gpkg", "--concepts", "ship", *BANDS],
            ["outside", "600031 to 600049"],
        ),
        (
            ["classify", "scene.tif", "far.gpkg", "--concepts", "ship", *BANDS, "--output", "a.csv"],
            ["a.csv ends in '.csv'", ".gpkg"],
        ),
        (["detect", "scene.tif", *BANDS], ["nothing to detect", "--labels"]),
        (["detect", "scene.tif", "--labels", "ship", *BANDS], ["sides is None", "--sides 30 60"]),
        (["embed", "empty"], ["empty holds no files", ".tif"]),
        (["embed", "none.tif"], ["none.tif does not exist"]),
        (["search", "a ship"], ["outputs/archive has no scenes.json", "scene embed"]),
        (["search"], ["nothing to search for", "--image"]),
    ],
)
def test_a_mistake_is_one_line_that_names_it(words, facts, places, folder, geoalign_refuses):
    line = geoalign_refuses("scene", *words, "--model", folder)
    for fact in facts:
        assert fact in line


def test_points_are_discs_and_background_texts_make_probabilities(places, folder, geoalign):
    options = ["--model", folder, *BANDS]
    geoalign(
        "scene", "classify", "scene.tif", "points.geojson", "--concepts", "ship", "--buffer", 5, *options
    )
    (disc,) = geopandas.read_file(places / "outputs" / "scene_classify.geojson").to_crs(UTM).geometry
    assert disc.area == pytest.approx(np.pi * 25, rel=0.02)
    assert disc.centroid.distance(shapely.Point(500040, 5299960)) < 1e-3
    options += ["--background", "a field", "water", "--output_dir", "maps"]
    geoalign("scene", "score", "scene.tif", "a ship", *options)
    with rasterio.open(places / "maps" / "00_a_ship.tif") as file:
        scores = file.read(1)
        assert file.tags()["scores"] == "probability"
    assert np.isfinite(scores).all() and scores.min() > 0 and scores.max() < 1 and scores.std() > 1e-3


def test_detections_of_a_grid_and_of_proposals_are_features_in_wgs84(places, folder, geoalign):
    options = ["--labels", "ship", "bridge", "--threshold", 0, "--max_iou", 1, "--model", folder, *BANDS]
    printed = geoalign("scene", "detect", "scene.tif", "--sides", 64, *options)
    assert " ship\n" in printed and printed.endswith("wrote outputs/scene_detect.geojson\n")
    found = geopandas.read_file(places / "outputs" / "scene_detect.geojson")
    assert found.crs == "EPSG:4326" and set(found["label"]) == {"ship", "bridge"}
    assert found.to_crs(UTM).area.max() == pytest.approx(32**2, rel=1e-3)  # 64 pixels of half a metre
    proposals = ["--proposals", "points.geojson", "--buffer", 5, "--output", "found.gpkg"]
    geoalign("scene", "detect", "scene.tif", *proposals, *options)
    assert len(geopandas.read_file(places / "found.gpkg")) == 2  # one disc, with each label


def test_coco_results_are_proposals_in_pixels_of_the_scene(places, folder, geoalign, geoalign_refuses):
    options = ["--labels", "ship", "--threshold", 0, "--output", "found.gpkg", "--model", folder, *BANDS]
    results = [{"image_id": "scene.tif", "bbox": [40, 20, 64, 32], "score": 0.5}]
    (places / "results.json").write_text(json.dumps(results))
    geoalign("scene", "detect", "scene.tif", "--proposals", "results.json", *options)
    found = geopandas.read_file(places / "found.gpkg")
    assert found["objectness"].tolist() == [0.5]
    with rasterio.open(places / "scene.tif") as scene:
        corners = [scene.transform @ corner for corner in ((40, 20), (104, 52))]
    sides = np.sort(np.array(corners), axis=0).flatten()
    assert found.total_bounds.tolist() == pytest.approx(sides.tolist())
    (places / "results.json").write_text(json.dumps([results[0] | {"image_id": 1}]))
    line = geoalign_refuses("scene", "detect", "scene.tif", "--proposals", "results.json", *options)
    assert "names the image 1, which is not among 'scene.tif'" in line


@pytest.mark.slow
def test_two_processes_embed_scenes_as_one_does_and_a_killed_run_goes_on(folder, geoalign, tmp_path):
    for number in range(2):
        pixels = draw(320, 384, seed=number)
        write_scene(tmp_path / f"{number}.tif", pixels, photometric="RGB")
    embed = ["scene", "embed", "0.tif", "1.tif", "--model", folder, "--part_size", 4, "--overlap", 0.5]
    geoalign(*embed, "--output_dir", "one")
    command = [sys.executable, "-m", "geoalign_hf", *embed, "--output_dir", "two"]
    killed = subprocess.Popen(list(map(str, command)), cwd=tmp_path, stderr=subprocess.DEVNULL)
    while not list((tmp_path / "two").glob("*.parquet")):
        assert killed.poll() is None
        time.sleep(0.001)
    killed.kill()
    killed.wait()
    written = len(list((tmp_path / "two").glob("*.parquet")))
    total = len(list((tmp_path / "one").glob("*.parquet")))
    assert 0 < written < total
    port = 29400 + os.getpid() % 500
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    result = subprocess.run(
        [sys.executable, *launcher, *map(str, command[1:])],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"ACCELERATE_USE_CPU": "true"},
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    counts = re.findall(r"process (\d) of 2: wrote (\d+) of", result.stdout)
    assert sorted(rank for rank, _ in counts) == ["0", "1"]
    assert sum(int(count) for _, count in counts) == total - written
    one, two = (
        pandas.concat(geopandas.read_parquet(path) for path in sorted((tmp_path / name).glob("*.parquet")))
        for name in ("one", "two")
    )
    np.testing.assert_allclose(np.stack(two["embed"]), np.stack(one["embed"]), atol=1e-6)  # but for rounding
    assert two.drop(columns="embed").equals(one.drop(columns="embed"))
    assert not list((tmp_path / "two").glob(".*.partial"))
