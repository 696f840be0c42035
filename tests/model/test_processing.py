"""GeoAlignCLIPProcessor: images, regions and words to tensors."""

import re
import socket

import httpx
import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPImageProcessorPil

from geoalign_hf import GeoAlignCLIPProcessor
from geoalign_hf.model import images_geoalign_clip
from geoalign_hf.model.images_geoalign_clip import load_images
from geoalign_hf.model.masks_geoalign_clip import weigh_masks

PIL_FILTERS_DOWN_FIRST = int(PIL.__version__.split(".")[0]) >= 13  # pictures that are much too tall


def draw_image(width: int = 150, height: int = 100, seed: int = 0) -> Image.Image:
    """Smooth noise: what resizing does to it shows."""
    noise = np.random.default_rng(seed).integers(0, 255, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.BICUBIC)


def refuses(message: str):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


# Regions


def test_boxes_become_shares_of_a_non_square_image(processor):
    batch = processor(images=draw_image(200, 100), boxes=[[[20, 30, 120, 80]]], return_tensors="pt")
    torch.testing.assert_close(batch["region_boxes"], torch.tensor([[[0.1, 0.3, 0.6, 0.8]]]))


def test_image_and_boxes_scaled_together_give_the_same_region_boxes(processor):
    box = np.array([12.5, 7.25, 60.0, 44.0])
    small = processor(images=draw_image(), boxes=[[box]], return_tensors="pt")
    large = processor(images=draw_image(300, 200), boxes=[[2 * box]], return_tensors="pt")
    torch.testing.assert_close(small["region_boxes"], large["region_boxes"])


def test_a_batch_is_padded_to_its_largest_count_or_to_max_regions(processor):
    images = [draw_image(), draw_image(80, 90), draw_image(64, 64)]
    boxes = [[[0, 0, 50, 50]], [], [[1, 1, 9, 9], [2, 2, 30, 30]]]
    batch = processor(images=images, boxes=boxes, return_tensors="pt")
    assert batch["region_mask"].tolist() == [[True, False], [False, False], [True, True]]
    assert batch["region_boxes"][1].tolist() == [[0, 0, 1, 1]] * 2
    fixed = processor(images=images, boxes=boxes, max_regions=5, return_tensors="pt")
    assert fixed["region_mask"].sum(dim=1).tolist() == [1, 0, 2]
    assert fixed["region_boxes"].shape == (3, 5, 4)


def test_no_regions_at_all_give_tensors_with_no_regions(processor):
    batch = processor(images=[draw_image()] * 2, boxes=[[], []], return_tensors="pt")
    assert batch["region_boxes"].shape == (2, 0, 4)
    assert batch["region_mask"].shape == (2, 0)


def test_a_box_partly_outside_is_cut_at_the_edge_unless_that_is_forbidden(processor):
    inputs = {"images": draw_image(), "boxes": [[[-30, 50, 75, 130]]], "return_tensors": "pt"}
    torch.testing.assert_close(processor(**inputs)["region_boxes"], torch.tensor([[[0, 0.5, 0.5, 1.0]]]))
    with refuses(
        "boxes[0][0] = [-30.0, 50.0, 75.0, 130.0] reaches outside its image of 150 x 100 pixels "
        "(width x height). Cut it, or allow cutting with clip_boxes=True."
    ):
        processor(**inputs, clip_boxes=False)


def test_quads_become_shares_of_the_image(processor):
    quads = [[[[15, 0], [30, 10], [15, 20], [0, 10]]]]
    batch = processor(images=draw_image(), quads=quads, return_tensors="pt")
    expected = torch.tensor([[[[0.1, 0.0], [0.2, 0.1], [0.1, 0.2], [0.0, 0.1]]]])
    torch.testing.assert_close(batch["region_quads"], expected)


def test_masks_become_the_share_of_each_pixel_that_they_cover(processor):
    masks = np.zeros((1, 100, 150), dtype=bool)
    masks[:, :, :75] = True
    batch = processor(images=draw_image(), masks=[masks], return_tensors="pt")
    by_patch = torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(1, 1, 4, 4)
    torch.testing.assert_close(batch["region_coverage"], by_patch, atol=1e-6, rtol=0)
    by_pixel = GeoAlignCLIPProcessor(processor.image_processor, processor.tokenizer)
    coverage = by_pixel(images=draw_image(), masks=[masks], return_tensors="pt")["region_coverage"]
    assert coverage.shape == (1, 1, 64, 64)
    torch.testing.assert_close(weigh_masks(coverage, (4, 4)), weigh_masks(batch["region_coverage"], (4, 4)))


@pytest.mark.parametrize(
    "change",
    [
        {"do_center_crop": True},
        {"images_kwargs": {"do_center_crop": True}},
        {"images_kwargs": {"size": {"shortest_edge": 64}}},
        {"do_pad": True, "pad_size": {"height": 300, "width": 300}},
        {"size": {"shortest_edge": 64}},
        {"do_resize": False},
    ],
)
def test_settings_that_move_the_frame_are_refused_with_regions_however_they_arrive(processor, change):
    with pytest.raises(ValueError, match="regions would point at other pixels"):
        processor(images=draw_image(), boxes=[[[0, 0, 9, 9]]], return_tensors="pt", **change)
    saved = GeoAlignCLIPProcessor(CLIPImageProcessor(), processor.tokenizer)  # which crops
    with pytest.raises(ValueError, match="do_center_crop"):
        saved(images=draw_image(), boxes=[[[0, 0, 9, 9]]], return_tensors="pt")


@pytest.mark.parametrize("change", [{"size": 96}, {"images_kwargs": {"size": 96}}])
def test_a_size_of_one_number_is_a_square(processor, change):
    batch = processor(images=draw_image(), boxes=[[[0, 0, 75, 50]]], return_tensors="pt", **change)
    assert batch["pixel_values"].shape == (1, 3, 96, 96)
    assert batch["region_boxes"].flatten().tolist() == [0, 0, 0.5, 0.5]


@pytest.mark.parametrize("value", [0.5, float("nan"), 7])
def test_soft_masks_are_refused(processor, value):
    hard, mask = np.ones((100, 150)), np.full((100, 150), float(value))
    with pytest.raises(ValueError, match=r"masks\[0\]\[1\] holds"):
        processor(images=draw_image(), masks=[[hard, mask]], return_tensors="pt")


@pytest.mark.parametrize(
    "inputs, fact",
    [
        ({"boxes": [[[0, 0, 5, 5]], None], "images": [draw_image()] * 2}, r"boxes\[1\] is None"),
        ({"text": []}, "text is empty"),
        ({"text": ["a", 3]}, r"text\[1\] is 3"),
        ({"input_boxes": []}, "input_boxes"),
        ({"annotations": []}, "annotations"),
        ({"images_kwargs": {"croop": 1}}, "croop"),
        ({"quads": [[[[0, 0], [1e200, 0], [1e200, 9], [0, 9]]]]}, r"quads\[0\]\[0\]"),
    ],
)
def test_inputs_of_the_wrong_kind_are_named(processor, inputs, fact):
    with pytest.raises(ValueError, match=fact):
        processor(**{"images": draw_image(), "return_tensors": "pt"} | inputs)


def test_without_return_tensors_everything_is_lists_of_arrays(processor):
    batch = processor(images=draw_image(), boxes=[[[0, 0, 75, 50]]])
    for key in ("pixel_values", "region_boxes", "region_mask"):
        assert isinstance(batch[key], list) and isinstance(batch[key][0], np.ndarray), key


def test_boxes_may_be_given_as_arrays_and_tensors(processor):
    boxes = [[10, 20, 60, 70], [0, 0, 5, 5]]
    by_list = processor(images=draw_image(), boxes=[boxes], return_tensors="pt")
    for given in (np.array([boxes]), torch.tensor([boxes]), [np.array(boxes)], [torch.tensor(boxes).float()]):
        batch = processor(images=draw_image(), boxes=given, return_tensors="pt")
        torch.testing.assert_close(batch["region_boxes"], by_list["region_boxes"])


# Images


@pytest.mark.parametrize("backend", [CLIPImageProcessor, CLIPImageProcessorPil])
@pytest.mark.parametrize("resample", [Image.BICUBIC, Image.BILINEAR])
@pytest.mark.parametrize("size", [(150, 100), (64, 64), (31, 500), (640, 427), (100, 250)])
def test_the_fast_way_equals_the_stock_way_within_one_of_255(processor, size, resample, backend):
    image_processor = backend(size={"height": 64, "width": 64}, do_center_crop=False, resample=resample)
    ours = GeoAlignCLIPProcessor(image_processor, processor.tokenizer)
    random = np.random.default_rng(9)
    harsh = [(75, 90), (80, 90), (90, 75), (300, 70), (90, 40)][: None if PIL_FILTERS_DOWN_FIRST else 2]
    images = [draw_image(*size, seed=seed) for seed in range(3)]
    images += [Image.fromarray(random.integers(0, 255, (*shape, 3), dtype=np.uint8)) for shape in harsh]
    fast = ours(images=images, return_tensors="pt")["pixel_values"]
    stock = image_processor(images=images, return_tensors="pt")["pixel_values"]
    levels = (fast - stock) * torch.tensor(image_processor.image_std).view(3, 1, 1) * 255
    assert levels.abs().max() < 2.01
    assert (levels.abs() > 1.01).double().mean() < 1e-4


def test_an_rgb_image_is_read_without_a_copy():
    image = draw_image()
    assert load_images(image)[0] is image


# A tag of 6 turns a picture by a quarter, so that its width is the height of its file.
@pytest.mark.parametrize(("orientation", "size"), [(1, (600, 400)), (6, (400, 600))])
def test_a_jpeg_draft_of_a_smooth_picture_is_within_5_of_255_and_its_boxes_are_those_of_the_file(
    processor, tmp_path, orientation, size
):
    exif = Image.Exif()
    exif[274] = orientation
    draw_image(600, 400).save(tmp_path / "image.jpg", quality=95, exif=exif)
    inputs = {"images": tmp_path / "image.jpg", "boxes": [[[0, 0, size[0] / 2, size[1] / 4]]]}
    inputs["return_tensors"] = "pt"
    full, draft = (processor(**inputs, draft_jpeg=is_draft) for is_draft in (False, True))
    assert draft["region_boxes"].tolist() == full["region_boxes"].tolist() == [[[0, 0, 0.5, 0.25]]]
    levels = (draft["pixel_values"] - full["pixel_values"]).abs().max() * 0.28 * 255
    assert 0 < levels <= 5


def test_a_jpeg_draft_keeps_the_frame_of_masks(processor, tmp_path):
    draw_image(600, 400).save(tmp_path / "image.jpg")
    mask = np.zeros((1, 400, 600), dtype=bool)
    mask[:, :200, :300] = True
    inputs = {"images": tmp_path / "image.jpg", "masks": [mask], "return_tensors": "pt"}
    full, draft = (processor(**inputs, draft_jpeg=is_draft) for is_draft in (False, True))
    torch.testing.assert_close(draft["region_coverage"], full["region_coverage"], rtol=0, atol=0)


def test_a_jpeg_draft_needs_a_size_to_resize_to(processor):
    with pytest.raises(ValueError, match="draft_jpeg=True"):
        processor(images=draw_image(), draft_jpeg=True, do_resize=False, return_tensors="pt")


def test_settings_that_the_fast_way_does_not_know_take_the_stock_way(processor):
    image = draw_image()
    for settings in ({"do_rescale": False, "do_normalize": False}, {"resample": Image.LANCZOS}):
        ours = processor(images=image, return_tensors="pt", **settings)["pixel_values"]
        stock = processor.image_processor(images=image, return_tensors="pt", **settings)["pixel_values"]
        torch.testing.assert_close(ours, stock, rtol=0, atol=0)


def test_every_way_to_give_an_image_gives_the_same_pixels(processor, tmp_path):
    image = draw_image()
    array = np.array(image)
    image.save(tmp_path / "image.png")
    expected = processor(images=image, return_tensors="pt")["pixel_values"]
    ways = [
        array,
        array.transpose(2, 0, 1),
        torch.tensor(array),
        torch.tensor(array).permute(2, 0, 1),
        array[None],
        [array],
        tmp_path / "image.png",
        str(tmp_path / "image.png"),
        image.convert("RGBA"),
    ]
    for way in ways:
        pixels = processor(images=way, boxes=[[[0, 0, 75, 50]]], return_tensors="pt")
        torch.testing.assert_close(pixels["pixel_values"], expected, rtol=0, atol=0)
        torch.testing.assert_close(pixels["region_boxes"], torch.tensor([[[0.0, 0.0, 0.5, 0.5]]]))


def test_images_of_several_sizes_keep_their_order(processor):
    images = [draw_image(150, 100, 1), draw_image(64, 90, 2), draw_image(150, 100, 3), draw_image(64, 64, 4)]
    together = processor(images=images, return_tensors="pt")["pixel_values"]
    for image, pixels in zip(images, together, strict=True):
        alone = processor(images=image, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(pixels, alone, rtol=0, atol=0)


def test_another_size_may_be_asked_for(processor):
    size = {"height": 128, "width": 128}
    batch = processor(images=draw_image(), boxes=[[[0, 0, 75, 50]]], size=size, return_tensors="pt")
    assert batch["pixel_values"].shape == (1, 3, 128, 128)
    stock = processor.image_processor(images=draw_image(), size=size, return_tensors="pt")["pixel_values"]
    assert (batch["pixel_values"] - stock).abs().max() < 0.02


# Words


def test_concepts_are_worded_by_every_template(processor):
    tokens = processor.tokenize_concepts(["ship", "tennis court"], ["a {}", "{} from above", "two {}s"])
    assert tokens["input_ids"].shape[:2] == (2, 3)
    words = processor.tokenizer.batch_decode(tokens["input_ids"][1], skip_special_tokens=True)
    assert words == ["a tennis court", "tennis court from above", "two tennis courts"]


def test_a_saved_processor_prepares_the_same(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = GeoAlignCLIPProcessor.from_pretrained(tmp_path)
    inputs = {"images": draw_image(), "boxes": [[[0, 0, 9, 9]]], "text": ["a ship"], "return_tensors": "pt"}
    ours, theirs = processor(**inputs), loaded(**inputs)
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert torch.equal(ours[key], theirs[key]), key


# Refusals


@pytest.mark.parametrize(
    "inputs, message",
    [
        (
            {"boxes": [[[5, 5, 3, 9]]]},
            "boxes[0][0] = [5.0, 5.0, 3.0, 9.0] has x1 <= x0. Boxes are xyxy pixels of the image as given; "
            "convert COCO boxes with xywh_to_xyxy first.",
        ),
        (
            {"boxes": [[[0, 0, 3, 9], [5, 9, 8, 9]]]},
            "boxes[0][1] = [5.0, 9.0, 8.0, 9.0] has y1 <= y0. Boxes are xyxy pixels of the image as given; "
            "convert COCO boxes with xywh_to_xyxy first.",
        ),
        (
            {"boxes": [[[150, 0, 180, 50]]]},
            "boxes[0][0] = [150.0, 0.0, 180.0, 50.0] is completely outside its image of 150 x 100 pixels "
            "(width x height). Boxes are xyxy pixels of the image as given, before any resizing; "
            "remove this one.",
        ),
        (
            {"boxes": [[[0, 0, float("nan"), 50]]]},
            "boxes[0][0] = [0.0, 0.0, nan, 50.0] is not finite. Boxes are four numbers, xyxy pixels; "
            "remove this one.",
        ),
        (
            {"boxes": [[[0, 0, float("inf"), 50]]]},
            "boxes[0][0] = [0.0, 0.0, inf, 50.0] is not finite. Boxes are four numbers, xyxy pixels; "
            "remove this one.",
        ),
        (
            {"boxes": [[], [], []], "images": [draw_image(), draw_image()]},
            "boxes are given for 3 images, but there are 2 images. "
            "Give one list per image, an empty one where there are no regions.",
        ),
        (
            {"images": [draw_image(), [draw_image(), b"x"]]},
            "image 1[1] cannot be read as an image (it begins as no format that PIL knows). Replace it.",
        ),
        (
            {"boxes": [[[0, 0, 5, 5]] * 3], "max_regions": 2},
            "image 0 has 3 boxes, but max_regions is 2. Raise max_regions, or choose the regions to keep.",
        ),
        (
            {"boxes": [[[0, 0, 5]]]},
            "boxes[0] has the shape [1, 3]; expected [R, 4]. "
            "Give a list per image, and in it one entry per region.",
        ),
        (
            {"boxes": [[[0, 0, 5, 5], [0, 0, 5]]]},
            "boxes[0] holds regions that are not numbers, or not of the same shape; each must be [4].",
        ),
        (
            {"boxes": [[[0, 0, 5, 5]]], "quads": [[[[0, 0], [5, 0], [5, 5], [0, 5]]]]},
            "regions are given as boxes and quads. Give one form in a call.",
        ),
        (
            {"masks": [np.zeros((1, 100, 150), dtype=bool)]},
            "masks[0][0] covers no pixel. Leave this region out.",
        ),
        (
            {"masks": [np.ones((1, 150, 100), dtype=bool)]},
            "masks[0] has the shape [1, 150, 100]; expected [R, 100, 150]. "
            "Give a list per image, and in it one entry per region.",
        ),
        (
            {"text": ["a ship", " "]},
            "text[1] is empty. Every text needs at least one word; remove this one.",
        ),
        (
            {"images": np.zeros((0, 10, 3), dtype=np.uint8)},
            "image 0 has 10 x 0 pixels (width x height). Remove it.",
        ),
        (
            {"images": []},
            "images is empty. Give at least one image.",
        ),
        (
            {"images": None, "boxes": [[[0, 0, 5, 5]]]},
            "boxes are given without images. Pass the images that they lie in.",
        ),
        (
            {"boxes": [[[0, 0, 5, 5]]], "do_center_crop": True},
            "the image processor has do_center_crop=True, so that regions would point at other pixels. "
            "Regions need images that are resized as a whole: do_resize=True, do_center_crop=False, "
            'do_pad=False and size={"height": S, "width": S}.',
        ),
    ],
)
def test_what_cannot_be_prepared_is_refused(processor, inputs, message):
    with refuses(message):
        processor(**{"images": draw_image(), "return_tensors": "pt"} | inputs)


def test_an_image_of_no_pixels_is_refused(processor):
    with refuses("image 1 has 0 x 5 pixels (width x height). Remove it."):
        processor(images=[draw_image(), Image.new("RGB", (0, 5))], return_tensors="pt")


def test_an_unreadable_file_is_refused_by_its_path(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    for name in ("broken.png", "missing.png"):
        path = tmp_path / name
        with pytest.raises(ValueError, match=re.escape(f"image 1 ({str(path)!r}) cannot be read")):
            load_images([draw_image(), path])


def test_a_server_that_does_not_answer_is_not_waited_for_without_end(monkeypatch):
    monkeypatch.setattr(images_geoalign_clip, "LONGEST_SILENCE", 0.2)
    monkeypatch.setattr(images_geoalign_clip, "get_session", httpx.Client)  # the Hub's is offline in tests
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a.png"
        with pytest.raises(ValueError, match=r"image 0 .* cannot be fetched \(.*timed out"):
            load_images(url)


@pytest.mark.parametrize(
    "concepts, templates, message",
    [
        ([], ["a {}"], "concepts is []; it must be a list of at least one string."),
        ("ship", ["a {}"], "concepts is 'ship'; it must be a list of at least one string."),
        (
            ["ship", ""],
            ["a {}"],
            "concepts[1] is empty. Every text needs at least one word; remove this one.",
        ),
        (["ship"], [], "templates is []; it must be a list of at least one string."),
        (["ship"], ["a {}", "a"], "templates[1] = 'a' must have one {} for the concept. Write one into it."),
    ],
)
def test_concepts_that_cannot_be_worded_are_refused(processor, concepts, templates, message):
    with refuses(message):
        processor.tokenize_concepts(concepts, templates)
