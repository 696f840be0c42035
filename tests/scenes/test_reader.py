"""Which pixels of a raster are ground, and which rasters are no scenes."""

import warnings

import numpy as np
import pytest
import rasterio
from generated_scenes import draw, write_scene
from refusals import refuses

from geoalign_hf.scenes.reader import Scene


@pytest.mark.parametrize(("dtype", "nodata"), [(np.uint8, 0), (np.uint8, 255), (np.uint16, 0)])
def test_a_colour_whose_one_band_has_the_value_of_nodata_is_ground(dtype, nodata, tmp_path):
    pixels = np.full((3, 64, 64), 100, dtype)
    pixels[2, :32] = nodata  # yellow or blue roofs
    pixels[:, :, :16] = nodata
    scene = Scene(write_scene(tmp_path / "a.tif", pixels, photometric="RGB", nodata=nodata), limits=(0, 255))
    valid = scene.read((0, 0, 64, 64), (64, 64)).valid
    assert not valid[:, :16].any() and valid[:, 16:].all()


@pytest.mark.parametrize(("dtype", "nodata"), [(np.int16, -9999), (np.float32, -9999), (np.float32, np.nan)])
def test_a_value_that_no_colour_has_is_nodata_also_in_one_band(dtype, nodata, tmp_path):
    pixels = np.full((3, 64, 64), 100, dtype)
    pixels[2, :32] = nodata
    scene = Scene(write_scene(tmp_path / "a.tif", pixels, photometric="RGB", nodata=nodata), limits=(0, 255))
    valid = scene.read((0, 0, 64, 64), (64, 64)).valid
    assert not valid[:32].any() and valid[32:].all()


def test_numbers_that_are_no_brightness_are_refused(tmp_path):
    path = write_scene(tmp_path / "a.tif", draw(bands=1) // 32, photometric="PALETTE")
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {n: (30 * n, 255 - 30 * n, 77, 255) for n in range(8)})
    with refuses("band 1", "a.tif", "colour table"):
        Scene(path)
    path = write_scene(tmp_path / "b.tif", draw().astype(np.complex64), photometric="RGB")
    with refuses("band 1", "b.tif", "complex"):
        Scene(path)


def test_a_scene_without_a_place_in_its_reference_system_is_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        path = write_scene(
            tmp_path / "a.tif", draw(), transform=rasterio.Affine.identity(), photometric="RGB"
        )
        with refuses("a.tif", "transform"):
            Scene(path)
