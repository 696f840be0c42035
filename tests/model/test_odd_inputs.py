"""Arrays, tensors and options of unusual kinds: read as they are meant, or refused by their name."""

import numpy as np
import pytest
import torch

from geoalign_hf.images import ImageOptions, read_image

PIXELS = (np.arange(10 * 12 * 3) % 250).reshape(10, 12, 3).astype(np.uint8)


class OnADevice:
    """An array that refuses to leave its device, as those of CuPy do."""

    def __array__(self, *arguments, **options):
        raise TypeError("implicit conversion")


def make_views(tensor):
    """Return a tensor in the kinds that numpy cannot hold."""
    return {
        "sparse": tensor.to_sparse(),
        "meta": tensor.to("meta"),
        "8-bit floats": tensor.to(torch.float8_e4m3fn),
        "quantized": torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.quint8),
    }


def negate_lazily(tensor):
    """Return the same numbers as a view whose sign torch has not applied yet."""
    return torch.view_as_complex(torch.stack([tensor, -tensor], -1)).conj().imag


@pytest.mark.parametrize("kind", ["sparse", "meta", "8-bit floats", "quantized"])
def test_tensors_that_are_no_arrays_are_refused(processor, kind):
    image = make_views(torch.rand(10, 12, 3))[kind]
    with pytest.raises(ValueError, match="image 0"):
        processor(images=[image], return_tensors="pt")
    for form, regions in (("masks", torch.ones(1, 10, 12)), ("boxes", torch.tensor([[1.0, 2, 8, 8]]))):
        odd = make_views(regions)[kind]
        if form == "boxes" and kind == "8-bit floats":
            continue  # these are converted on the way
        with pytest.raises(ValueError, match=rf"{form}\[0\]"):
            processor(images=PIXELS, **{form: [odd]}, return_tensors="pt")


def test_views_with_a_pending_sign_are_read(processor):
    image = torch.rand(10, 12, 3)
    expected = processor(images=image, return_tensors="pt")["pixel_values"]
    assert torch.equal(processor(images=negate_lazily(image), return_tensors="pt")["pixel_values"], expected)
    mask = (torch.rand(1, 10, 12) > 0.5).float()
    expected = processor(images=PIXELS, masks=[mask], return_tensors="pt")["region_coverage"]
    found = processor(images=PIXELS, masks=[negate_lazily(mask)], return_tensors="pt")["region_coverage"]
    assert torch.equal(found, expected)


def test_arrays_that_cannot_be_converted_are_refused(processor):
    with pytest.raises(ValueError, match="image 1.*implicit conversion"):
        processor(images=[PIXELS, OnADevice()], return_tensors="pt")


def test_masked_pixels_of_an_array_have_no_data():
    array = np.where(PIXELS > 99, PIXELS, -9999).astype(np.float32)
    masked = np.ma.masked_less(array, 0)
    valid = (array > 0).all(axis=-1)
    found = np.asarray(read_image(masked, ImageOptions(stretch=(0, 100))))
    low, high = array[valid].min(), array[valid].max()
    assert (found[~valid] == 0).all()
    assert abs(found[valid] - (array[valid] - low) / (high - low) * 255).max() <= 1
    moved = np.ma.masked_less(array.transpose(2, 0, 1), 0)
    assert np.array_equal(read_image(moved, ImageOptions(stretch=(0, 100))), found)
    one = np.asarray(read_image(masked, ImageOptions(stretch=(0, 100), bands=(2,))))
    assert ((one == 0).all(axis=-1) == (array[..., 1] <= array[array[..., 1] > 0, 1].min())).all()


def test_masked_numbers_are_no_box(processor):
    boxes = np.ma.masked_array([[1.0, 2, 8, 8]], mask=[[0, 0, 0, 1]])
    with pytest.raises(ValueError, match=r"boxes\[0\].*masked"):
        processor(images=PIXELS, boxes=[boxes], return_tensors="pt")


def test_bands_of_other_colours_are_those_of_its_rgb():
    from PIL import Image

    image = Image.fromarray(PIXELS)
    for mode in ("CMYK", "YCbCr", "HSV"):
        other = image.convert(mode)
        chosen = np.asarray(read_image(other, ImageOptions(bands=(3, 2, 1))))
        assert np.array_equal(chosen, np.asarray(other.convert("RGB"))[..., ::-1])


def test_a_sample_without_an_image_is_refused():
    for sample in ({"bytes": b""}, {"boxes": []}):
        with pytest.raises(ValueError, match="no image"):
            read_image(sample)


@pytest.mark.parametrize(
    "option",
    [{"size": []}, {"resample": []}, {"resample": "bicubic"}, {"image_mean": float("nan")},
     {"image_std": [1, float("inf"), 1]}, {"rescale_factor": float("nan")}, {"max_length": -1},
     {"max_length": "x"}, {"max_length": 0}],
)  # fmt: skip
def test_options_of_a_wrong_kind_are_refused_by_name(processor, option):
    with pytest.raises(ValueError, match=next(iter(option))):
        processor(images=PIXELS, text="a ship", return_tensors="pt", **option)
