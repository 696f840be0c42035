"""Every storage that an image file can have gives the pixels that were written, or is refused by name."""

import struct

import numpy as np
import pytest
from PIL import Image
from refusals import refuses
from tiff_files import write_tiff

from geoalign_hf.images import ImageOptions, read_image, read_size

DTYPES = ["uint8", "uint16", "int16", "uint32", "int32", "float32", "float64"]
GENERATOR = np.random.default_rng(0)
LIMITS = ImageOptions(limits=(0, 100))
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def draw(*shape, dtype="uint8", top=99):
    return (GENERATOR.random(shape) * top + 1).astype(dtype)


def scale(array):
    """Scale as the limits 0 and 100 do."""
    return array if array.dtype == np.uint8 else (array.astype(float).clip(0, 100) * 2.55).round()


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"]
)
@pytest.mark.parametrize("num_bands", [1, 3, 4])
def test_turned_tiffs_of_every_type_and_byte_order_are_read_upright(tmp_path, dtype, num_bands):
    pytest.importorskip("rasterio")
    for orientation, turn in UPRIGHT.items():
        for order in "<>":
            array = draw(6, 9, num_bands, dtype=dtype)
            tags = {274: [orientation]} | ({338: [2]} if num_bands == 4 else {})
            path = write_tiff(tmp_path / "turned.tif", (array, tags), order=order)
            options = ImageOptions(limits=(0, 100), bands=(1,))
            expected = turn(scale(array[..., :1]).repeat(3, axis=-1))
            image = read_image(path, options)
            assert image.size == read_size(path) == expected.shape[1::-1], (orientation, order)
            assert abs(np.asarray(image) - expected.astype(float)).max() <= 1, (orientation, order)


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_turned_tiff_opened_by_pil_has_the_pixels_of_the_file(tmp_path, orientation):
    array = draw(6, 9, 1)
    path = write_tiff(tmp_path / "turned.tif", (array, {274: [orientation]}))
    found = read_image(Image.open(path))
    assert np.array_equal(found, UPRIGHT[orientation](array.repeat(3, axis=-1)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compress", ["NONE", "LZW", "DEFLATE", "PACKBITS", "LERC"])
@pytest.mark.parametrize("endianness", ["LITTLE", "BIG"])
def test_grey_tiffs_of_every_byte_order_and_compression_are_read(tmp_path, dtype, compress, endianness):
    rasterio = pytest.importorskip("rasterio")
    array, path = draw(1, 6, 9, dtype=dtype), tmp_path / "grey.tif"
    profile = {"driver": "GTiff", "width": 9, "height": 6, "count": 1, "dtype": dtype}
    with rasterio.open(path, "w", **profile, compress=compress, endianness=endianness) as file:
        file.write(array)
    for source in (path, path.read_bytes()):
        assert abs(np.asarray(read_image(source, LIMITS))[..., 0] - scale(array)[0]).max() <= 1


def test_bands_of_fewer_than_8_bits_are_scaled_by_their_range(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    for bits in (1, 2, 4):
        array = GENERATOR.integers(0, 2**bits, (5, 6, 8)).astype(np.uint8)
        path = tmp_path / f"{bits}.tif"
        profile = {"driver": "GTiff", "width": 8, "height": 6, "count": 5, "dtype": "uint8", "nbits": bits}
        with rasterio.open(path, "w", **profile) as file:
            file.write(array)
        found = np.asarray(read_image(path, ImageOptions(bands=(5, 1, 2))))
        assert np.array_equal(found[..., 0], array[4] * (255 // (2**bits - 1)))


def test_pixels_without_data_are_black_and_percentiles_ignore_them(tmp_path):
    for dtype in ("int16", "float32"):
        array = draw(12, 9, 1, dtype=dtype)
        expected = read_image(array[6:], ImageOptions(stretch=(0, 100)))
        array[:6] = -9999
        path = write_tiff(tmp_path / "dem.tif", (array, {42113: "-9999"}))
        for source in (path, Image.open(path)):
            found = np.asarray(read_image(source, ImageOptions(stretch=(0, 100))))
            assert (found[:6] == 0).all() and np.array_equal(found[6:], expected)


def test_the_mask_of_a_deep_tiff_is_used(tmp_path):
    pytest.importorskip("rasterio")
    array, mask = draw(6, 8, 1, dtype="uint16"), np.full((6, 1, 1), 0xF0, np.uint8)  # the left half is valid
    tags = {254: [4], 256: [8], 258: [1], 262: [4]}
    path = write_tiff(tmp_path / "masked.tif", (array, {}), (mask, tags))
    found = np.asarray(read_image(path, LIMITS))[..., 0]
    assert (found[:, 4:] == 0).all() and abs(found[:, :4] - scale(array)[:, :4, 0]).max() <= 1


@pytest.mark.parametrize(
    "tags",
    [{262: [6]}, {262: [8]}, {262: [9]}, {262: [34892]}, {262: [5], 338: [2]}, {277: [1]}],
    ids=["YCbCr", "CIELab", "ICCLab", "LinearRaw", "CMYK", "bands and bits differ"],
)
def test_colours_that_are_not_rgb_are_never_taken_for_it(tmp_path, tags):
    array = draw(6, 9, 5 if 338 in tags else 3)
    path = write_tiff(tmp_path / "colours.tif", (array, tags))
    for options in (ImageOptions(), ImageOptions(bands=(1, 2, 3))):
        with refuses("colours.tif", "8-bit RGB"):
            read_image(path, options)


def test_a_tiff_that_begins_with_its_thumbnail_is_refused(tmp_path):
    pages = [(draw(3, 4, 1), {254: [1]}), (draw(6, 9, 1), {})]
    path = write_tiff(tmp_path / "photo.tif", *pages)
    with refuses("photo.tif", "thumbnail"):
        read_image(path)
    write_tiff(path, *pages[::-1])
    assert read_image(path).size == read_size(path) == (9, 6)


@pytest.mark.parametrize("suffix", ["png", "gif", "webp"])
def test_an_animation_is_refused_and_a_single_frame_is_read(tmp_path, suffix):
    frames = [Image.fromarray(draw(6, 9, 3)) for _ in range(2)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    with refuses(f"a.{suffix}", "frames"):
        read_image(tmp_path / f"a.{suffix}")
    frames[0].save(tmp_path / f"b.{suffix}")
    assert read_image(tmp_path / f"b.{suffix}").size == (9, 6)


@pytest.mark.parametrize("comment", [b"", b"# " + b"x" * 200 + b"\n"])
@pytest.mark.parametrize("highest", [1, 100, 255, 4095, 65535])
@pytest.mark.parametrize("num_bands", [1, 3])
def test_values_of_a_pnm_file_are_not_changed(tmp_path, highest, num_bands, comment):
    array = GENERATOR.integers(0, highest + 1, (6, 9, num_bands))
    head = {1: b"P5\n", 3: b"P6\n"}[num_bands] + comment + b"9 6\n%d\n" % highest
    path = tmp_path / "a.pnm"
    path.write_bytes(head + array.astype(">u2" if highest > 255 else "u1").tobytes())
    expected = np.broadcast_to(array * (255 / highest), (6, 9, 3))
    options = ImageOptions(limits=(0, highest)) if highest > 255 else ImageOptions()
    for source in (path, Image.open(path)):
        try:
            found = read_image(source, options)
        except ValueError as error:  # PIL has changed the values, and the file is not known
            assert highest > 255 and str(highest) in str(error)
        else:
            assert abs(np.asarray(found) - expected).max() <= 1


def test_an_sgi_file_of_16_bits_is_refused(tmp_path):
    head = struct.pack(">HBBHHHHII", 474, 0, 2, 2, 9, 6, 1, 0, 65535).ljust(512, b"\0")
    (tmp_path / "a.sgi").write_bytes(head + bytes(2 * 54))
    with refuses("a.sgi"):
        read_image(tmp_path / "a.sgi")


def test_a_program_that_draws_is_never_run(tmp_path):
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 6\n%%EndComments\n{} loop\n"
    (tmp_path / "a.png").write_bytes(content)
    with refuses("a.png", "EPS"):
        read_image(tmp_path / "a.png")
