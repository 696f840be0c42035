"""An archive of scenes needs nothing of ours: DuckDB, Dask and Ray Data find what our search finds."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from generated_scenes import draw, write_scene

from geoalign_hf.embedding.embedder import Embedder
from geoalign_hf.images import ImageOptions, sample_to_row
from geoalign_hf.scenes.archive import SceneJob
from geoalign_hf.scenes.search import search_archive

GUIDE = Path(__file__).parents[2] / "docs" / "scenes.md"


@pytest.fixture(scope="module")
def archive(built, tmp_path_factory):
    """An archive of three files, one of them without rows, and a query."""
    folder = tmp_path_factory.mktemp("scenes")
    pixels = draw(192, 192, seed=2) // 2 + 1
    pixels[:, :64] = 0
    write_scene(folder / "a.tif", pixels, photometric="RGB", nodata=0)
    embedder = Embedder(*built)
    SceneJob([folder / "a.tif"], folder / "archive", tile_side=64, part_size=3).run(embedder, "tiny")
    return folder / "archive", embedder.embed_text(["a ship"])[0]


@pytest.fixture(scope="module")
def cosines(archive):
    """The cosines of the best places, by our search."""
    return search_archive(*archive, top_k=3)["cosine"].to_numpy()


def run_lines(first: str, archive, **names) -> dict:
    """Run the lines of docs/scenes.md from the one that begins with `first` to the next empty one."""
    folder, query = archive
    lines = GUIDE.read_text().split(f"\n{first}")[1].split("\n\n")[0].split("\n```")[0]
    names |= {"query": query}
    exec(first + lines.replace("outputs/tiles", str(folder)), names)
    return names


def test_duckdb_searches_an_archive_by_one_query(archive, cosines, capsys):
    run_lines("search = ", archive, duckdb=pytest.importorskip("duckdb"))
    found = ast.literal_eval(capsys.readouterr().out)
    np.testing.assert_allclose([cosine for _, cosine in found], cosines, atol=1e-5)


def test_dask_reads_an_archive(archive, cosines):
    pytest.importorskip("dask.dataframe")
    found = run_lines("tiles = dask", archive, dask=pytest.importorskip("dask"))["cosines"]
    np.testing.assert_allclose(np.sort(found)[::-1][:3], cosines, atol=1e-5)


@pytest.mark.slow
def test_ray_data_reads_an_archive(archive, cosines):
    pytest.importorskip("ray.data")
    best = run_lines("tiles = ray", archive, ray=pytest.importorskip("ray"))["best"]
    np.testing.assert_allclose([row["cosine"] for row in best], cosines, atol=1e-5)


def test_a_sample_of_torchgeo_is_embedded_as_the_image_and_boxes_that_it_holds(built):
    pixels = torch.from_numpy(draw(96, 128, bands=4, dtype=np.uint16, high=3000).astype(np.float32))
    sample = {"image": pixels, "crs": "EPSG:32633", "bounds": (slice(0, 64), slice(0, 48))}
    sample["bbox_xyxy"] = torch.tensor([[8, 16, 60, 40], [70, 10, 120, 90]])
    options = ImageOptions(limits=(0, 3000), bands=(3, 2, 1))
    embedder = Embedder(*built, image_options=options)
    image = (pixels[[2, 1, 0]] / 3000 * 255).round().byte().permute(1, 2, 0).numpy()
    plain, row = Embedder(*built), {"image": image, "boxes": [[8, 16, 60, 40], [70, 10, 120, 90]]}
    torch.testing.assert_close(embedder.embed_images([sample]), plain.embed_images([image]))
    torch.testing.assert_close(embedder.embed_regions([sample]), plain.embed_regions([row]))
    by_rows = embedder.embed_rows([sample]), plain.embed_rows([row])
    torch.testing.assert_close(*by_rows)
    assert sample_to_row(sample)["bounds"] == sample["bounds"]
    with pytest.raises(ValueError, match="without a rule for their range"):
        plain.embed_images([{"image": pixels[:3]}])
    with pytest.raises(ValueError, match=r"shape \(1, 4, 96, 128\).*unbind_samples"):
        embedder.embed_images([{"image": pixels[None]}])
