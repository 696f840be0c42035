"""Laws of the evaluation: scores worked out by hand, windows that hold their boxes, true protocols."""

import re
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from geoalign_hf.concepts import ConceptBank
from geoalign_hf.evaluation import _find_window, classify_regions
from geoalign_hf.metrics import score_regions
from geoalign_hf.model.processing_geoalign_clip import CONCEPT_TEMPLATES
from geoalign_hf.rows import build_rows

# Each concept is a colour, and a box is painted in the colour of what the toy model shall say.
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class ColourModel(torch.nn.Module):
    """Knows three concepts and embeds a region as the colour at its centre: its answers are painted."""

    def __init__(self, size: int = 64):
        super().__init__()
        vision = SimpleNamespace(image_size=size)
        self.config = SimpleNamespace(vision_config=vision, dense_mode="last")
        self.device = torch.device("cpu")
        self.shapes = []

    def embed_concepts(self, input_ids, attention_mask=None):
        return torch.eye(3)[: len(input_ids)]

    def forward(self, pixel_values, region_boxes, region_mask, **kwargs):
        self.shapes.append((tuple(pixel_values.shape), kwargs))
        centers = (region_boxes[..., :2] + region_boxes[..., 2:]) / 2  # (B, R, 2)
        columns, rows = (centers * pixel_values.shape[-1]).long().unbind(-1)
        images = torch.arange(len(pixel_values)).unsqueeze(-1)
        return SimpleNamespace(region_embeds=pixel_values.permute(0, 2, 3, 1)[images, rows, columns])


def paint_row(size, regions) -> dict:
    """Regions are (box, concept, colour painted)."""
    image = Image.new("RGB", size, (128, 128, 128))
    for box, _, colour in regions:
        image.paste(COLOURS[colour], tuple(box))
    concepts = [concept for _, concept, _ in regions]
    boxes = [list(map(float, box)) for box, _, _ in regions]
    return {"image": image, "boxes": boxes, "phrases": concepts, "concepts": concepts}


def paint_rows():
    return build_rows(
        [
            paint_row((300, 200), [((10, 10, 30, 30), "red", "red"), ((100, 50, 150, 100), "red", "green"),
                                   ((180, 20, 290, 190), "green", "green")]),
            paint_row((300, 200), []),
            paint_row((100, 160), [((40, 60, 60, 80), "red", "red"), ((0, 100, 90, 160), "blue", "red")]),
        ]
    )  # fmt: skip


def refuses(message: str):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


# Scores


@pytest.mark.parametrize("region_source", ["image", "window"])
def test_painted_answers_score_as_worked_out_by_hand(processor, region_source):
    scores = classify_regions(
        ColourModel(), processor, paint_rows(), ["red", "green", "blue"], region_source=region_source
    )
    scores.pop("protocol")
    assert scores == {
        "top1_micro": 3 / 5,
        "top1_macro": pytest.approx((2 / 3 + 1 + 0) / 3),
        "num_regions": 5,
        "per_concept": {"red": pytest.approx(2 / 3), "green": 1.0, "blue": 0.0},
        "num_per_concept": {"red": 3, "green": 1, "blue": 1},
        # Areas: 400 and 400; 2500 and 5400; 18700.
        "by_size": {"small": 1.0, "medium": 0.0, "large": 1.0},
        "num_by_size": {"small": 2, "medium": 2, "large": 1},
    }


def test_concepts_left_out_are_those_of_the_rows_by_alphabet(model, processor, rows):
    scores = classify_regions(model, processor, rows)
    concepts = ["airplane", "road", "ship", "storage tank", "tennis court"]
    assert scores["protocol"]["concepts"] == concepts
    assert scores == classify_regions(model, processor, rows, concepts)


def test_the_best_concept_is_the_one_with_the_highest_cosine(model, processor, toy_rows, rows):
    concepts = ["airplane", "road", "ship", "storage tank", "tennis court"]
    bank = ConceptBank.build(model, processor, concepts)
    predictions, references, areas = [], [], []
    for row in toy_rows:
        for box, concept in zip(row["boxes"], row["concepts"], strict=True):
            batch = processor(images=row["image"], boxes=[[box]], return_tensors="pt")
            with torch.no_grad():
                embed = model.embed_regions(**batch)[0, 0]
            predictions.append(int((bank.embeds @ embed).argmax()))
            references.append(concepts.index(concept))
            areas.append((box[2] - box[0]) * (box[3] - box[1]))
    scores = classify_regions(model, processor, rows, concepts)
    scores.pop("protocol")
    assert scores == score_regions(predictions, references, concepts, torch.tensor(areas).numpy())


@pytest.mark.parametrize("region_source", ["image", "window"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_scores_do_not_depend_on_the_batch(model, processor, rows, region_source, batch_size):
    options = {"region_source": region_source, "templates": ("a {}",)}
    whole = classify_regions(model, processor, rows, batch_size=100, **options)
    assert classify_regions(model, processor, rows, batch_size=batch_size, **options) == whole


@pytest.mark.parametrize("region_source", ["image", "window"])
def test_a_box_partly_outside_its_image_is_scored(processor, region_source):
    row = paint_row((100, 80), [((0, 10, 20, 30), "red", "red")])
    row["boxes"] = [[-60.0, 10.0, 20.0, 30.0]]
    scores = classify_regions(
        ColourModel(), processor, build_rows([row]), ["red", "green"], region_source=region_source
    )
    assert scores["top1_micro"] == 1.0 and scores["num_regions"] == 1


# Windows


@pytest.mark.parametrize("size", [(300, 200), (31, 400), (17, 13)])
@pytest.mark.parametrize("context", [1.0, 1.5, 3.0, 50.0])
def test_the_window_holds_the_box_and_lies_inside_the_image(size, context):
    generator = torch.Generator().manual_seed(0)
    limit = torch.tensor(size, dtype=torch.float64)
    for _ in range(200):
        corners = torch.rand(2, 2, generator=generator, dtype=torch.float64).sort(dim=0).values * limit
        box = corners.flatten().tolist()
        left, top, right, bottom = _find_window(box, size, context)
        assert 0 <= left <= box[0] and box[2] <= right <= size[0]
        assert 0 <= top <= box[1] and box[3] <= bottom <= size[1]
        side = context * max(box[2] - box[0], box[3] - box[1])
        # Rounding outward adds less than a pixel at either end.
        assert min(side, size[0]) <= right - left < min(side, size[0]) + 2
        assert min(side, size[1]) <= bottom - top < min(side, size[1]) + 2


def test_windows_are_those_worked_out_by_hand():
    assert _find_window([100, 60, 120, 70], (300, 200), 3.0) == (80, 35, 140, 95)
    assert _find_window([0, 0, 20, 10], (300, 200), 3.0) == (0, 0, 60, 60)  # moved inside
    assert _find_window([280, 195, 300, 200], (300, 200), 3.0) == (240, 140, 300, 200)
    assert _find_window([10, 10, 110, 60], (300, 200), 3.0) == (0, 0, 300, 200)  # cut to the image


def test_the_window_of_each_region_is_what_is_encoded(processor):
    row = paint_row((300, 200), [((100, 60, 120, 70), "red", "red"), ((10, 10, 110, 60), "green", "green")])
    model = ColourModel()
    seen = []
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    classify_regions(
        model, processor, build_rows([row]), ["red", "green"], region_source="window", batch_size=1
    )
    assert len(seen) == 2
    expected = torch.tensor([20 / 60, 25 / 60, 40 / 60, 35 / 60])
    torch.testing.assert_close(seen[0]["region_boxes"][0, 0], expected)
    torch.testing.assert_close(
        seen[1]["region_boxes"][0, 0], torch.tensor([10 / 300, 10 / 200, 110 / 300, 60 / 200])
    )


# Protocol


def test_the_protocol_says_how_the_scores_were_made(model, processor, rows):
    scores = classify_regions(model, processor, rows, region_source="window", context=2.0)
    assert scores["protocol"] == {
        "task": "region classification from ground-truth boxes",
        "region_source": "window",
        "context": 2.0,
        "image_size": 64,
        "dense_mode": "last",
        "templates": list(CONCEPT_TEMPLATES),
        "concepts": ["airplane", "road", "ship", "storage tank", "tennis court"],
        "num_images": 8,
    }
    assert classify_regions(model, processor, rows)["protocol"]["context"] is None


@pytest.mark.parametrize("region_source", ["image", "window"])
@pytest.mark.parametrize("image_size", [None, 64, 96])
def test_images_are_encoded_at_the_size_that_the_protocol_names(
    model, processor, rows, region_source, image_size
):
    sizes = set()
    model.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.add(tuple(kwargs["pixel_values"].shape[-2:])), with_kwargs=True
    )
    scores = classify_regions(model, processor, rows, region_source=region_source, image_size=image_size)
    size = image_size or 64
    assert scores["protocol"]["image_size"] == size and sizes == {(size, size)}


# State and refusals


@pytest.mark.parametrize("was_training", [True, False])
def test_the_model_is_in_evaluation_mode_and_then_as_it_was(model, processor, rows, was_training):
    model.train(was_training)
    modes = []
    model.register_forward_pre_hook(lambda module, args: modes.append(module.training))
    classify_regions(model, processor, rows)
    assert modes and not any(modes) and model.training == was_training


def test_a_refusal_leaves_the_model_as_it_was(model, processor, rows):
    model.train()
    with pytest.raises(ValueError, match="^the rows hold the concepts"):
        classify_regions(model, processor, rows, ["ship"])
    assert model.training


def test_an_unknown_region_source_is_refused(model, processor, rows):
    with refuses("region_source is 'crop'; it must be one of ('image', 'window')."):
        classify_regions(model, processor, rows, region_source="crop")


def test_a_concept_that_is_not_among_those_asked_for_is_refused(processor):
    with refuses("the rows hold the concepts ['blue', 'green'], which are not among ['red']."):
        classify_regions(ColourModel(), processor, paint_rows(), ["red"])


@pytest.mark.parametrize("region_source", ["image", "window"])
def test_rows_without_regions_are_refused(processor, region_source):
    empty = build_rows([paint_row((100, 80), [])])
    with refuses("there are no regions to score. Give rows that have boxes."):
        classify_regions(ColourModel(), processor, empty, ["red"], region_source=region_source)
