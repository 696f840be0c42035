"""An archive of scenes: complete parts, in any number of processes, that other tools can read."""

import re

import geopandas
import numpy as np
import pytest
import shapely
import torch
from generated_scenes import UTM, draw, write_scene
from pyarrow import parquet
from rasterio.warp import transform as warp

from geoalign_hf.embedding.embedder import Embedder
from geoalign_hf.scenes.archive import SceneJob, list_windows
from geoalign_hf.scenes.reader import Scene
from geoalign_hf.scenes.search import check_model, read_description, search_archive


@pytest.fixture(scope="module")
def embedder(built):
    return Embedder(*built, batch_size=4)


@pytest.fixture
def scenes(tmp_path):
    """Two scenes of 12 and 9 tiles of 64 pixels; the first two tiles of the second are nodata."""
    pixels = [draw(192, 256, seed=1) // 2 + 1, draw(192, 192, seed=2) // 2 + 1]
    pixels[1][:, :64, :128] = 0
    return [
        write_scene(tmp_path / f"{name}.tif", of_scene, photometric="RGB", nodata=0)
        for name, of_scene in zip("ab", pixels, strict=True)
    ]


def read(archive):
    files = [archive / name for name in read_description(archive)["parts"]]
    return [geopandas.read_parquet(file) for file in files]


def test_an_archive_is_readable_by_geopandas_and_search_returns_places(embedder, scenes, tmp_path):
    job = SceneJob(scenes, tmp_path / "archive", tile_side=64, part_size=5)
    assert job.run(embedder, "tiny") == (5, 2)  # files of 5, 5, 2; 5, 4 tiles; two tiles are nodata
    frames = read(tmp_path / "archive")
    assert [len(frame) for frame in frames] == [5, 5, 2, 3, 4]
    assert all(frame.crs == "EPSG:4326" and frame["scene"].isin(map(str, scenes)).all() for frame in frames)
    # The seventh tile of the first scene by hand: row 1, column 2 of tiles.
    tile = frames[1].iloc[1]
    assert list_windows(Scene(scenes[0]), 64)[6] == (128, 64, 192, 128)
    (west, east), (north, south) = (500000 + 64, 500000 + 96), (5300000 - 32, 5300000 - 64)
    longitudes, latitudes = warp(UTM, "EPSG:4326", [west, east, east, west], [south, south, north, north])
    expected = shapely.Polygon(zip(longitudes, latitudes, strict=True))
    assert tile.geometry.symmetric_difference(expected).area < 1e-9 * expected.area + 1e-15
    image = Scene(scenes[0]).read((128, 64, 192, 128), (64, 64)).image
    np.testing.assert_allclose(tile["embed"], embedder.embed_images([image])[0].numpy(), atol=1e-6)

    found = search_archive(tmp_path / "archive", torch.tensor(tile["embed"]), top_k=3)
    assert found["cosine"][0] == pytest.approx(1, abs=1e-5) and found.geometry[0].equals(tile.geometry)
    assert found["cosine"].is_monotonic_decreasing and len(found) == 3 and found.crs == "EPSG:4326"
    every = np.concatenate([np.stack(frame["embed"]) for frame in frames]) @ tile["embed"]
    np.testing.assert_allclose(found["cosine"], np.sort(every)[::-1][:3], atol=1e-6)
    with pytest.raises(ValueError, match="nothing of the kind 'region'"):
        search_archive(tmp_path / "archive", torch.tensor(tile["embed"]), kind="region")


def test_parts_have_one_schema_also_without_rows(embedder, scenes, tmp_path):
    SceneJob(scenes[1:], tmp_path / "archive", tile_side=64, part_size=2).run(embedder, "tiny")
    files = [tmp_path / "archive" / name for name in read_description(tmp_path / "archive")["parts"]]
    counts = [parquet.read_metadata(file).num_rows for file in files]
    assert counts == [0, 2, 2, 2, 1]
    assert all(parquet.read_schema(file).equals(parquet.read_schema(files[-1])) for file in files)
    assert parquet.read_schema(files[0]).field("embed").type.list_size == 32
    assert geopandas.read_parquet(files[0]).crs == "EPSG:4326"


def test_an_archive_continues_grows_and_refuses_another_run(embedder, scenes, tmp_path):
    archive, options = tmp_path / "archive", {"tile_side": 64, "part_size": 5}
    SceneJob(scenes[:1], archive, **options).run(embedder, "tiny")
    files = [archive / name for name in read_description(archive)["parts"]]
    before = [file.read_bytes() for file in files]
    files[1].unlink()
    (archive / f".{files[1].name}.partial").write_text("half")
    with pytest.raises(ValueError, match=rf"lacks 1 of 3 files; the first one is {files[1].name}"):
        search_archive(archive, torch.zeros(32))
    assert SceneJob(scenes[:1], archive, **options).run(embedder, "tiny") == (1, 0)
    assert [file.read_bytes() for file in files] == before and not list(archive.glob(".*.partial"))
    assert SceneJob(scenes, archive, **options).run(embedder, "other name") == (2, 2)
    assert len(read(archive)) == 5
    for changed in ({"tile_side": 32}, {"overlap": 0.5}, {"stretch": (1, 99)}, {"part_size": 4}):
        with pytest.raises(ValueError, match=re.escape(f"{list(changed)} differ")):
            SceneJob(scenes, archive, **options | changed).run(embedder, "tiny")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="notes.txt"):
        SceneJob(scenes, tmp_path / "other", **options).run(embedder, "tiny")
    for wrong in ({"tile_side": 0}, {"overlap": 1.0}, {"part_size": 0}):
        with pytest.raises(ValueError, match="expected sides and sizes of at least 1"):
            SceneJob(scenes, archive, **options | wrong)
    with pytest.raises(ValueError, match="Give each once"):
        SceneJob([scenes[0], scenes[0]], archive, **options)


def test_processes_share_the_parts_and_write_what_one_process_writes(embedder, scenes, tmp_path):
    options = {"tile_side": 64, "part_size": 2}
    SceneJob(scenes, tmp_path / "one", **options).run(embedder, "tiny")
    job = SceneJob(scenes, tmp_path / "three", **options)
    job.prepare(embedder, "tiny")
    counts = [job.write(embedder, rank, 3)[0] for rank in (2, 0, 1)]
    assert counts == [4, 3, 4]
    for name in read_description(tmp_path / "one")["parts"]:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "three" / name).read_bytes()


def test_regions_lie_in_the_archive_under_their_number(embedder, scenes, tmp_path):
    boxes = [(500010, 5299910, 500030, 5299930), (500001, 5299990, 500009, 5299998), (400000, 0, 400009, 9)]
    regions = geopandas.GeoDataFrame(geometry=[shapely.box(*box) for box in boxes], crs=UTM)
    regions.to_crs(4326).to_file(tmp_path / "r.geojson", driver="GeoJSON")
    job = SceneJob(scenes[1:], tmp_path / "archive", tile_side=64, regions=tmp_path / "r.geojson")
    assert job.run(embedder, "tiny") == (2, 3)  # two tiles and the second region are nodata; the third is far
    (place,) = search_archive(tmp_path / "archive", torch.ones(32), kind="region").itertuples()
    assert place.region == 0 and place.valid_ground == 1
    expected = shapely.Point(*(c[0] for c in warp(UTM, "EPSG:4326", [500020], [5299920])))
    assert place.geometry.centroid.distance(expected) < 1e-7


def test_an_archive_is_searched_only_by_the_model_that_made_it(embedder, model, scenes, tmp_path):
    SceneJob(scenes[:1], tmp_path / "archive", tile_side=64).run(embedder, "you/harbors")
    check_model(tmp_path / "archive", model)
    with torch.no_grad():
        model.logit_scale += 1
    with pytest.raises(ValueError, match="you/harbors, whose weights differ"):
        check_model(tmp_path / "archive", model)
    with pytest.raises(ValueError, match=r"has no scenes.json"):
        read_description(tmp_path)
