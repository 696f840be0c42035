"""Opening images of every depth, number of bands and kind of file: right, or refused with the name."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from geoalign_hf.images import (
    ImageOptions,
    check_image_list,
    has_natural_colour,
    read_image,
    read_size,
    sample_to_row,
)
from geoalign_hf.model.images_geoalign_clip import scale_to_8_bits

RAMP = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (48, 1))  # 48 x 64


def write_bands(path, bands, **options):
    rasterio = pytest.importorskip("rasterio")
    height, width = bands[0].shape
    profile = {"height": height, "width": width, "count": len(bands), "dtype": bands[0].dtype.name} | options
    with rasterio.open(path, "w", driver="GTiff", **profile) as file:
        file.write(np.stack(bands))


def refuses(*facts):
    return pytest.raises(ValueError, match="(?s)" + ".*".join(facts))


# Depth


@pytest.mark.parametrize(
    "array",
    [
        RAMP.astype(np.uint16) * 12,
        RAMP.astype(np.int32) * 1000,
        RAMP.astype(np.float32) * 7 - 300,
    ],
    ids=lambda array: array.dtype.name,
)
def test_a_grey_file_of_more_than_8_bits_is_refused_until_a_rule_scales_it(tmp_path, array):
    path = tmp_path / "wide.tif"
    Image.fromarray(array).save(path)
    with refuses("wide.tif", str(array.max()), "stretch"):
        read_image(path)
    stretched = np.asarray(read_image(path, ImageOptions(stretch=(0, 100))))
    limited = read_image(path, ImageOptions(limits=(float(array.min()), float(array.max()))))
    expected = (RAMP / RAMP.max() * 255).round()
    assert abs(stretched[..., 0] - expected).max() <= 1
    assert np.array_equal(stretched, np.asarray(limited))


def test_percentiles_map_to_black_and_white():
    array = np.arange(101, dtype=np.uint16).reshape(1, 101, 1)
    scaled = scale_to_8_bits(array, "image", stretch=(10, 90))[0, :, 0]
    assert scaled[10] == 0 and scaled[90] == 255 and scaled[50] == 128
    assert (scaled[:10] == 0).all() and (scaled[90:] == 255).all()


def test_pictures_of_8_bits_pass_unchanged_with_every_option(tmp_path):
    image = Image.fromarray(np.dstack([RAMP, RAMP[::-1], 255 - RAMP]))
    image.save(tmp_path / "a.png")
    for options in (ImageOptions(), ImageOptions(stretch=(2, 98)), ImageOptions(limits=(0, 9))):
        assert np.array_equal(read_image(tmp_path / "a.png", options), image)


def test_floats_from_0_to_1_give_the_pixels_of_their_8_bit_original(processor):
    pixels = np.dstack([RAMP, RAMP[::-1], 255 - RAMP])
    expected = processor(images=pixels, return_tensors="pt")["pixel_values"]
    for image in (
        pixels / 255,
        (pixels / 255).astype(np.float32),
        torch.tensor(pixels / 255).permute(2, 0, 1),
    ):
        assert torch.equal(processor(images=image, return_tensors="pt")["pixel_values"], expected)


@pytest.mark.parametrize("value", [-0.1, 1.5, 255.0, float("nan"), float("inf")])
def test_floats_outside_of_0_to_1_are_refused_with_the_index_of_their_image(processor, value):
    array = np.full((8, 9, 3), 0.5)
    array[2, 3, 1] = value
    with refuses("image 1", "float64", "stretch"):
        processor(images=[RAMP, array], return_tensors="pt")


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV"]
)
def test_every_mode_of_8_bits_becomes_what_pil_converts_it_to(mode):
    base = {"PA": "P", "La": "LA", "RGBa": "RGBA"}.get(mode, mode)
    image = Image.fromarray(np.dstack([RAMP, RAMP[::-1], 255 - RAMP])).convert(base)
    given = image.convert(mode) if base != mode else image
    assert read_image(given).mode == "RGB"
    if base == mode:
        assert np.array_equal(read_image(given), image.convert("RGB"))


def test_a_mode_without_a_conversion_is_refused():
    with refuses("LAB"):
        read_image(Image.new("LAB", (4, 5)))


# Bands


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_of_many_bands_three_are_chosen_or_the_file_is_refused(tmp_path, dtype, interleave):
    bands = [(RAMP // (b + 1)).astype(dtype) for b in range(6)]
    write_bands(tmp_path / "many.tif", bands, interleave=interleave)
    with refuses("many.tif", "6 bands", "bands="):
        read_image(tmp_path / "many.tif", ImageOptions(stretch=(0, 100)))
    options = ImageOptions(bands=(3, 2, 1), limits=None if dtype == "uint8" else (0, 255))
    image = np.asarray(read_image(tmp_path / "many.tif", options))
    for channel, b in enumerate((2, 1, 0)):
        assert np.array_equal(image[..., channel], (RAMP // (b + 1)))


def test_colours_of_16_bits_keep_their_depth(tmp_path, processor):
    bands = [RAMP.astype(np.uint16) + shift for shift in (0, 3, 6)]  # of which the upper 8 bits are 0 or 1
    write_bands(tmp_path / "deep.tif", bands, photometric="RGB")
    with refuses("deep.tif", "16 bits"):
        processor(images=str(tmp_path / "deep.tif"), return_tensors="pt")
    image = np.asarray(read_image(tmp_path / "deep.tif", ImageOptions(limits=(0, 258))))
    assert np.unique(image[..., 0]).size == 64


def test_arrays_name_their_bands_or_are_refused(processor):
    five = np.stack([RAMP] * 4 + [255 - RAMP])
    with refuses("image 0", "5, 48, 64", "bands="):
        processor(images=five, return_tensors="pt")
    chosen = processor(images=five, bands=(5, 1, 1), return_tensors="pt")["pixel_values"]
    expected = processor(images=np.dstack([255 - RAMP, RAMP, RAMP]), return_tensors="pt")["pixel_values"]
    assert torch.equal(chosen, expected)
    with refuses("image 0", r"\(3, 20, 3\)", "input_data_format"):
        processor(images=np.zeros((3, 20, 3), np.uint8), return_tensors="pt")
    box = {"boxes": [[[0, 0, 10, 1.5]]], "input_data_format": "channels_last", "return_tensors": "pt"}
    found = processor(images=np.zeros((3, 20, 3), np.uint8), **box)["region_boxes"]
    assert found.flatten().tolist() == [0, 0, 0.5, 0.5]


def test_chosen_bands_and_grey_pictures_have_no_natural_colour(tmp_path):
    colours = Image.fromarray(np.dstack([RAMP, RAMP[::-1], 255 - RAMP]))
    assert has_natural_colour(read_image(colours))
    assert not has_natural_colour(read_image(Image.fromarray(RAMP)))
    assert not has_natural_colour(read_image(colours, ImageOptions(bands=(3, 2, 1))))
    deep = np.dstack([RAMP, RAMP[::-1], 255 - RAMP]).astype(np.uint16)
    assert not has_natural_colour(read_image(deep, ImageOptions(limits=(0, 255))))


@pytest.mark.parametrize("rule", [{"limits": [0, 0.3]}, {"limits": [-0.5, 1]}, {"stretch": [2, 98]}])
@pytest.mark.parametrize("brightest", [0.25, 1.0, 1.2])
def test_the_scale_of_a_model_holds_for_floats_whether_or_not_they_could_be_read_without(rule, brightest):
    array = (RAMP / 252 * brightest).astype(np.float32)  # also from 0 to 1
    expected = read_image(array, ImageOptions(**{name: tuple(pair) for name, pair in rule.items()}))
    found = read_image(array, ImageOptions().with_fallback(rule))
    assert np.array_equal(np.asarray(found), np.asarray(expected))
    assert not has_natural_colour(found)


def test_limits_in_another_unit_do_not_blacken_floats_from_0_to_1_and_nothing_changes_8_bits():
    options = ImageOptions().with_fallback({"limits": [0, 3000]})
    assert np.array_equal(np.asarray(read_image((RAMP / 255).astype(np.float32), options))[..., 0], RAMP)
    for rule in ({"limits": [0, 0.3]}, {"stretch": [2, 98]}, {"limits": [0, 3000]}):
        options = ImageOptions().with_fallback(rule)
        assert np.array_equal(np.asarray(read_image(RAMP, options))[..., 0], RAMP)


def test_an_image_in_the_place_of_a_list_is_refused():
    image = Image.fromarray(RAMP)
    singles = (
        image,
        RAMP,
        np.dstack([RAMP] * 3),
        torch.zeros(3, 8, 8),
        "a.png",
        Path("a.png"),
        b"a",
        bytearray(b"a"),
        {"image": 1},
    )
    for single in singles:
        with refuses("list of images"):
            check_image_list(single)
    for many in ([image], iter([image]), np.zeros((2, 8, 8, 3)), np.array(["a.png"]), (image,)):
        check_image_list(many)


def test_a_sample_with_an_image_that_is_no_tensor_keeps_it():
    image = Image.fromarray(RAMP)
    assert sample_to_row({"image": image, "label": 3}) == {"image": image, "label": 3, "boxes": []}


# Files


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_in_the_header_is_that_of_the_pixels(tmp_path, suffix, orientation):
    image = Image.new("RGB", (30, 20))
    exif = image.getexif()
    exif[274] = orientation
    path = tmp_path / f"a.{suffix}"
    image.save(path, exif=exif)
    expected = (20, 30) if orientation >= 5 else (30, 20)
    assert read_size(path) == read_image(path).size == expected


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_opened_image_is_turned_upright_as_its_file_is(tmp_path, suffix, orientation):
    image = Image.fromarray(np.dstack([RAMP, RAMP[::-1] // 2, np.full_like(RAMP, 9)]))
    image.putpixel((0, 0), (255, 255, 255))  # no turn leaves the picture as it is
    exif = image.getexif()
    exif[274] = orientation
    path = tmp_path / f"a.{suffix}"
    image.save(path, exif=exif)
    opened, loaded = Image.open(path), Image.open(path)
    loaded.load()
    expected = np.asarray(read_image(path))
    for other in (opened, loaded, path.read_bytes()):
        assert np.array_equal(np.asarray(read_image(other)), expected)
    upright = read_image(loaded)
    assert np.array_equal(np.asarray(read_image(upright)), expected)  # and not turned twice


def test_jpeg_2000_is_read(tmp_path):
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.jp2")
    assert read_image(tmp_path / "a.jp2").size == read_size(tmp_path / "a.jp2") == (30, 20)


def test_more_pixels_than_allowed_need_an_option_and_never_change_the_process(
    tmp_path, monkeypatch, processor
):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    Image.new("L", (50, 40)).save(tmp_path / "big.png")
    path = tmp_path / "big.png"
    assert read_size(path) == (50, 40)  # without decoding anything
    for read in (read_image, lambda path: processor(images=path, return_tensors="pt")):
        with refuses("big.png", "2,000 pixels", "max_pixels=2000"):
            read(path)
    assert read_image(path, ImageOptions(max_pixels=2000)).size == (50, 40)
    assert processor(images=path, max_pixels=2000, return_tensors="pt")["pixel_values"].shape == (
        1,
        3,
        64,
        64,
    )
    assert Image.MAX_IMAGE_PIXELS == 500


def test_what_is_not_a_regular_file_is_refused_without_opening_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "folder.png", "missing.png", "/dev/null"):
        for read in (read_image, read_size):
            with refuses(name):
                read(tmp_path / name)


def test_a_tiff_of_several_pages_is_refused(tmp_path):
    pages = [Image.new("L", (8, 9), value) for value in (0, 9)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    with refuses("pages.tif", "2 pages"):
        read_image(tmp_path / "pages.tif")


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "jp2", "webp"])
def test_damaged_files_are_read_or_refused_by_name(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.dstack([RAMP] * 3)).save(path)
    content, generator = path.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(content[: generator.integers(1, len(content) + 1)])
        damaged[generator.integers(0, min(len(damaged), 200))] = generator.integers(0, 256)
        path.write_bytes(damaged)
        try:
            assert read_image(path).mode == "RGB"
        except ValueError as error:
            assert path.name in str(error)


@pytest.mark.parametrize(
    "options",
    [{"stretch": (98, 2)}, {"stretch": (2, 101)}, {"limits": (1, 1)}, {"bands": (1, 2)}, {"bands": (0, 1, 2)},
     {"stretch": (2, 98), "limits": (0, 9)}, {"max_pixels": 0}],
)  # fmt: skip
def test_options_that_cannot_be_used_are_refused(options):
    with refuses(next(iter(options))):
        ImageOptions(**options)
