"""Vector files as people have them: crossing sides, layers, the antimeridian, names of columns."""

import geopandas
import numpy as np
import pandas
import pyogrio
import pyproj
import pytest
import rasterio
import shapely
from generated_scenes import UTM, draw, write_scene
from refusals import refuses

from geoalign_hf.detection.detector import DetectionOptions, Detector
from geoalign_hf.embedding.embedder import Embedder
from geoalign_hf.scenes.archive import SceneJob
from geoalign_hf.scenes.detect import detect_in_scene
from geoalign_hf.scenes.reader import Scene
from geoalign_hf.scenes.regions import (
    check_columns,
    embed_scene_regions,
    find_center,
    read_regions,
    to_wgs84,
    write_regions,
)

BOW_TIES = [  # lobes of equal and of different size
    [(500010, 5299990), (500050, 5299950), (500050, 5299990), (500010, 5299950)],
    [(500010, 5299990), (500050, 5299950), (500050, 5299980), (500010, 5299950)],
]


@pytest.fixture
def scene(tmp_path):
    return Scene(write_scene(tmp_path / "a.tif", draw(), photometric="RGB"))


@pytest.mark.parametrize("corners", BOW_TIES)
@pytest.mark.parametrize("crs", [UTM, "EPSG:4326"])
def test_polygons_whose_sides_cross_are_named_and_detected(corners, crs, built, scene, tmp_path):
    frame = geopandas.GeoDataFrame(geometry=[shapely.Polygon(corners)] * 2, crs=UTM).to_crs(crs)
    frame.to_file(tmp_path / "a.gpkg")
    regions = read_regions(tmp_path / "a.gpkg", scene)
    assert regions.is_valid.all() and (regions.area > 700).all()
    assert (embed_scene_regions(Embedder(*built), scene, regions.geometry)[1] > 0.99).all()
    detector = Detector(Embedder(*built), ["ship"], DetectionOptions(threshold=0))
    assert len(detect_in_scene(detector, scene, regions)) == 1  # two that are equal


def test_a_file_of_several_layers_is_refused_and_tables_beside_the_regions_are_not(scene, tmp_path):
    square = shapely.box(500010, 5299950, 500050, 5299990)
    frame = geopandas.GeoDataFrame({"id": [7]}, geometry=[square], crs=UTM)
    frame.to_file(tmp_path / "a.gpkg", layer="roofs")
    styles = pandas.DataFrame({"style": ["red"]})
    pyogrio.write_dataframe(styles, tmp_path / "a.gpkg", layer="layer_styles")
    assert read_regions(tmp_path / "a.gpkg", scene)["id"].tolist() == [7]
    frame.to_file(tmp_path / "a.gpkg", layer="roads")
    with refuses("a.gpkg", "'roofs', 'roads'"):
        read_regions(tmp_path / "a.gpkg", scene)


FIJI = "EPSG:3832"  # metres around 150 degrees east; it reaches beyond the antimeridian


def test_what_lies_across_the_antimeridian_is_cut_there(tmp_path):
    x, y = pyproj.Transformer.from_crs(4326, FIJI, always_xy=True).transform(180, -17)
    boxes = [shapely.box(x - 3000, y, x + 1000, y + 500), shapely.box(x - 3000, y, x - 10, y + 500)]
    frame = geopandas.GeoDataFrame(geometry=boxes, crs=FIJI)
    placed = to_wgs84(frame)
    assert placed.geom_type.tolist() == ["MultiPolygon", "Polygon"] and placed.is_valid.all()
    np.testing.assert_allclose(placed.to_crs(FIJI).area, frame.area, rtol=1e-6)
    west, east = placed.geometry[0].bounds[::2]
    assert west == -180 and east == 180
    assert 179.96 < find_center(placed.geometry[0]).x < 180
    write_regions(frame, tmp_path / "a.geojson")
    assert geopandas.read_file(tmp_path / "a.geojson").geometry[0].area < 0.001  # square degrees


def test_a_polygon_wider_than_half_of_the_world_stays_as_it_is():
    wide = geopandas.GeoDataFrame(geometry=[shapely.box(-170, -60, 170, 60)], crs=4326)
    for crs in (4326, 3857):
        assert to_wgs84(wide.to_crs(crs)).geometry[0].equals_exact(wide.geometry[0], 1e-6)


def test_tiles_across_the_antimeridian_are_small_in_an_archive(built, tmp_path):
    x, y = pyproj.Transformer.from_crs(4326, FIJI, always_xy=True).transform(180, -17)
    transform = rasterio.transform.from_origin(x - 1000, y, 20, 20)
    write_scene(tmp_path / "a.tif", draw(), FIJI, transform, photometric="RGB")
    job = SceneJob([tmp_path / "a.tif"], tmp_path / "archive", tile_side=64)
    job.run(Embedder(*built), "tiny")
    tiles = geopandas.read_parquet(tmp_path / "archive" / job.parts[0].name)
    assert len(tiles) == 9 and tiles.area.max() < 0.001


def test_columns_that_a_geopackage_cannot_hold_are_refused_and_its_own_names_are_kept(tmp_path):
    for columns in (["Score", "score"], ["score: Ship", "score: ship"]):
        with refuses("a.gpkg", *map(repr, columns), ".geojson"):
            check_columns(tmp_path / "a.gpkg", columns)
        check_columns(tmp_path / "a.geojson", columns)
    values = {"fid": [3, 3], "geom": ["a", "b"], "FID_": [1, 2]}
    boxes = [shapely.box(500010, 5299950, 500050, 5299990)] * 2
    write_regions(geopandas.GeoDataFrame(values, geometry=boxes, crs=UTM), tmp_path / "a.gpkg")
    found = geopandas.read_file(tmp_path / "a.gpkg")
    assert {name: found[name].tolist() for name in values} == values and len(found.columns) == 4
