"""The pipeline `zero-shot-object-detection`: ours on our model, and transformers' own on all others."""

import copy

import numpy as np
import pytest
import torch
from datasets import Dataset
from refusals import refuses
from transformers import OwlViTConfig, OwlViTForObjectDetection, OwlViTImageProcessorPil, pipeline
from transformers.pipelines.zero_shot_object_detection import ZeroShotObjectDetectionPipeline

from geoalign_hf import ConceptBank, Embedder, GeoAlignCLIPDetectionPipeline
from geoalign_hf.model.detection_geoalign_clip import build_vocabulary, list_windows, score_labels
from geoalign_hf.model.processing_geoalign_clip import CONCEPT_TEMPLATES

TASK = "zero-shot-object-detection"
LABELS = ["airplane", "ship"]


@pytest.fixture(scope="module")
def detect(folder):
    return pipeline(TASK, model=str(folder))


@pytest.fixture(params=["image", "window"])
def detect_in(request, built):
    """The pipeline for a model of either view."""
    model = copy.deepcopy(built[0])
    model.config.region_view = request.param
    return GeoAlignCLIPDetectionPipeline(model=model, processor=built[1])


def test_the_task_gives_our_pipeline_for_our_model(detect):
    assert type(detect) is GeoAlignCLIPDetectionPipeline and detect.task == TASK


def test_the_answer_has_the_form_of_transformers_own(detect, toy_rows):
    answer = detect(toy_rows[0]["image"], candidate_labels=LABELS, top_k=4, threshold=0.0)
    assert len(answer) == 4
    for entry in answer:
        assert entry.keys() == {"score", "label", "box"} and entry["label"] in LABELS
        assert list(entry["box"]) == ["xmin", "ymin", "xmax", "ymax"]
        assert all(type(number) is int for number in entry["box"].values())
    scores = [entry["score"] for entry in answer]
    assert scores == sorted(scores, reverse=True) and 0 < scores[-1] <= scores[0] < 1


def test_scores_are_objectness_times_the_probability_of_the_label(detect_in, toy_rows):
    row, model = toy_rows[0], detect_in.model
    objectness = [0.5 + 0.4 / (r + 1) for r in range(len(row["boxes"]))]
    options = {"synonyms": {"ship": ["boat"]}, "background_labels": ["road"], "temperature": 1.5}
    answer = detect_in(
        row["image"], LABELS, boxes=row["boxes"], objectness=objectness, threshold=0, max_iou=1, **options
    )
    embedder, vocabulary = (
        Embedder(model, detect_in.processor),
        build_vocabulary(LABELS, {"ship": ["boat"]}, ["road"]),
    )
    words = embedder.embed_concepts(vocabulary.words, CONCEPT_TEMPLATES)
    logits = embedder.embed_regions([row]) @ words.T * model.region_scale().detach()
    expected = score_labels(logits, vocabulary, temperature=1.5) * torch.tensor(objectness)[:, None]
    assert len(answer) == expected.numel()
    found = sorted(entry["score"] for entry in answer)
    assert found == pytest.approx(sorted(expected.flatten().tolist()), abs=1e-5)
    best = divmod(int(expected.argmax()), len(LABELS))
    assert answer[0]["label"] == LABELS[best[1]]
    assert list(answer[0]["box"].values()) == [int(number) for number in row["boxes"][best[0]]]


def test_without_proposals_the_windows_of_a_grid_are_named(detect, toy_rows):
    image = toy_rows[0]["image"]
    windows = list_windows(image.size, [80], 0.25)
    options = {"candidate_labels": LABELS, "threshold": 0, "max_iou": 1}
    answer = detect(image, sides=[80], overlap=0.25, **options)
    assert answer == detect(image, boxes=windows.tolist(), **options)
    assert len(answer) == len(windows) * len(LABELS)


def test_one_image_lists_batches_and_streams_answer_alike(detect_in, toy_rows):
    images, boxes = [row["image"] for row in toy_rows[:3]], [row["boxes"] for row in toy_rows[:2]] + [[]]
    options = {"candidate_labels": LABELS, "threshold": 0.05}
    alone = [detect_in(image, boxes=part, **options) for image, part in zip(images, boxes, strict=True)]
    assert [len(answer) > 0 for answer in alone] == [True, True, False]
    entries = [{"image": image, "boxes": part} for image, part in zip(images, boxes, strict=True)]
    ways = {
        "list": detect_in(images, boxes=boxes, **options),
        "batches": detect_in(images, boxes=boxes, batch_size=2, **options),
        "dictionaries": detect_in(entries, **options),
        "stream": list(detect_in((entry for entry in entries), batch_size=2, **options)),
        "own labels": detect_in(images, boxes=boxes, threshold=0.05, candidate_labels=[LABELS] * 3),
        "dictionaries with labels": detect_in(
            [entry | {"candidate_labels": LABELS} for entry in entries], threshold=0.05
        ),
    }
    for way, answers in ways.items():
        assert answers == alone, way


def test_datasets_iterators_columns_and_other_iterables_are_taken(detect, toy_rows):
    rows = [
        {"image": row["image"], "boxes": row["boxes"], "candidate_labels": LABELS} for row in toy_rows[:3]
    ]
    few = Dataset.from_list(rows)
    images, boxes, options = few["image"][:], few["boxes"][:], {"threshold": 0.05}
    expected = detect(images, LABELS, boxes=boxes, **options)
    assert detect(few["image"], LABELS, boxes=few["boxes"], **options) == expected
    assert detect(tuple(images), candidate_labels=few["candidate_labels"], boxes=boxes, **options) == expected
    for stream in (few, iter(rows), map(dict, rows), few.to_iterable_dataset()):
        answers = detect(stream, **options)
        assert not isinstance(answers, list) and list(answers) == expected
    for labels in (np.array(LABELS), iter(LABELS), dict.fromkeys(LABELS).keys(), tuple(LABELS)):
        assert detect(images, labels, boxes=boxes, **options) == expected
        assert detect([rows[0] | {"candidate_labels": tuple(LABELS)}], **options) == expected[:1]
    windows = detect(images, LABELS)
    assert list(detect(iter(images), candidate_labels=LABELS)) == windows
    assert list(detect(few["image"], candidate_labels=LABELS)) == windows
    assert detect([], LABELS) == detect([], LABELS, boxes=[]) == []
    with refuses("generator", "boxes"):
        detect((image for image in images), LABELS, boxes=boxes)
    with refuses("candidate_labels is a ConceptBank"):
        detect(images[0], ConceptBank(LABELS, torch.ones(2, 32)))


def test_a_threshold_and_top_k_keep_the_best(detect, toy_rows):
    row = toy_rows[1]
    every = detect(row["image"], LABELS, boxes=row["boxes"], threshold=0)
    middle = every[len(every) // 2]["score"]
    above = detect(row["image"], LABELS, boxes=row["boxes"], threshold=middle)
    assert above == [entry for entry in every if entry["score"] >= middle]
    assert detect(row["image"], LABELS, boxes=row["boxes"], threshold=0, top_k=2) == every[:2]


def test_labels_in_one_string_and_a_template_of_transformers_are_taken(detect, toy_rows):
    row = toy_rows[0]
    options = {"boxes": row["boxes"], "threshold": 0}
    ours = detect(row["image"], LABELS, templates=["a photo of a {}."], **options)
    theirs = detect(
        images=row["image"],
        candidate_labels="airplane, ship",
        hypothesis_template="a photo of a {}.",
        **options,
    )
    assert ours == theirs


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ({"candidate_labels": None}, ["candidate_labels"]),
        ({"nms": 1}, ["'nms'", "max_iou", "background_labels"]),
        ({"templates": ["{}"], "hypothesis_template": "{}"}, ["hypothesis_template", "templates"]),
        ({"boxes": [[5, 5, 5, 9]]}, ["boxes[0]", "x1 <= x0"]),
        ({"boxes": [[0, 0, 9, 9]], "objectness": [0.5, 0.5]}, ["objectness", "1 boxes"]),
        ({"boxes": [[0, 0, 9, 9]], "objectness": [1.5]}, ["objectness", "0 to 1"]),
        ({"image": None}, ["image="]),
        ({"sides": [0]}, ["sides"]),
    ],
)
def test_a_call_that_cannot_be_answered_is_refused(detect, toy_rows, arguments, facts):
    with refuses(*facts):
        detect(**{"image": toy_rows[0]["image"], "candidate_labels": LABELS} | arguments)


def test_boxes_for_another_number_of_images_are_refused(detect, toy_rows):
    with refuses("boxes", "1 entries", "2 images"):
        detect([row["image"] for row in toy_rows[:2]], LABELS, boxes=[[]])


def test_a_model_whose_weights_are_nan_gives_no_scores(model, processor, toy_rows):
    torch.nn.init.constant_(model.visual_projection.weight, float("nan"))
    detect = GeoAlignCLIPDetectionPipeline(model=model, processor=processor)
    with refuses("NaN"):
        detect(toy_rows[0]["image"], LABELS, boxes=toy_rows[0]["boxes"])


def test_a_model_of_another_kind_gets_the_pipeline_of_transformers(built, toy_rows, tmp_path):
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = OwlViTConfig(
        text_config=tower | {"vocab_size": 4000}, vision_config=tower | {"image_size": 32, "patch_size": 16},
        projection_dim=16,
    )  # fmt: skip
    OwlViTForObjectDetection(config).save_pretrained(tmp_path)
    OwlViTImageProcessorPil(
        size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(tmp_path)
    built[1].tokenizer.save_pretrained(tmp_path)
    detect = pipeline(TASK, model=str(tmp_path))
    assert type(detect) is ZeroShotObjectDetectionPipeline
    answer = detect(toy_rows[0]["image"], candidate_labels=["a ship"], threshold=0.0)
    assert answer and answer[0].keys() == {"score", "label", "box"}
