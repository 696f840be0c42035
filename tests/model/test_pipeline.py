"""The pipelines: ours for regions, and the stock ones on our model."""

import re

import numpy as np
import pytest
import torch
from datasets import Dataset
from refusals import refuses
from transformers import AutoModel, AutoProcessor, CLIPModel, CLIPProcessor, pipeline

from geoalign_hf import GeoAlignCLIPDetectionPipeline
from geoalign_hf.embedding.concept_bank import ConceptBank
from geoalign_hf.embedding.embedder import Embedder
from geoalign_hf.model import pipeline_geoalign_clip
from geoalign_hf.model.processing_geoalign_clip import CONCEPT_TEMPLATES
from geoalign_hf.model.regions_geoalign_clip import check_boxes, xyxy_to_quads

TASK = "zero-shot-region-classification"
CONCEPTS = ["airplane", "ship", "storage tank"]


@pytest.fixture(scope="module")
def classify(folder):
    """The region pipeline, loaded from the saved folder."""
    return pipeline(TASK, model=str(folder))


def test_scores_are_those_of_the_model_sorted_and_summing_to_one(classify, built, toy_rows):
    model, processor = built
    row = toy_rows[0]
    answers = classify(row["image"], boxes=row["boxes"], candidate_concepts=CONCEPTS)
    batch = processor(images=row["image"], boxes=[row["boxes"]], return_tensors="pt")
    with torch.no_grad():
        concept_embeds = model.embed_concepts(**processor.tokenize_concepts(CONCEPTS))
        cosines = model.embed_regions(**batch)[0] @ concept_embeds.T
        expected = (cosines * model.region_scale()).softmax(dim=-1)
    assert [answer[0]["box"] for answer in answers] == row["boxes"]
    for answer, scores in zip(answers, expected, strict=True):
        assert {entry["label"] for entry in answer} == set(CONCEPTS)
        found = {entry["label"]: entry["score"] for entry in answer}
        assert [found[concept] for concept in CONCEPTS] == pytest.approx(scores.tolist(), abs=1e-6)
        assert [entry["score"] for entry in answer] == sorted(found.values(), reverse=True)
        assert sum(found.values()) == pytest.approx(1)


def test_a_model_of_windows_is_given_the_window_around_each_box(built, toy_rows, tmp_path):
    model, processor = built
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    windows = AutoModel.from_pretrained(tmp_path, region_view="window", region_context=1.5)
    classify = pipeline(TASK, model=windows, processor=processor)
    images, boxes = [row["image"] for row in toy_rows[:3]], [row["boxes"] for row in toy_rows[:2]] + [[]]
    answers = classify(images, boxes=boxes, candidate_concepts=CONCEPTS)
    batched = classify(images, boxes=boxes, candidate_concepts=CONCEPTS, batch_size=2)
    views = [{"image": image, "boxes": regions} for image, regions in zip(images, boxes, strict=True)]
    embedder = Embedder(model, processor)
    embeds = embedder.embed_regions(views, "window", 1.5)
    cosines = embeds @ embedder.embed_concepts(CONCEPTS, CONCEPT_TEMPLATES).T
    expected = (cosines * model.region_scale()).softmax(dim=-1).tolist()
    for results in (answers, batched):
        assert [len(result) for result in results] == list(map(len, boxes))
        found = [
            {entry["label"]: entry["score"] for entry in region} for image in results for region in image
        ]
        for scores, wanted in zip(found, expected, strict=True):
            assert [scores[concept] for concept in CONCEPTS] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("view", ["image", "window"])
@pytest.mark.parametrize("form", ["boxes", "quads"])
def test_a_region_that_reaches_outside_has_one_score_everywhere(model, processor, toy_rows, view, form):
    """The region pipeline, the detection pipeline and the embedder; the part inside has the same score."""
    model.config.region_view = view
    image, boxes = toy_rows[0]["image"], [[-300.0, 10.0, 30.0, 40.0], [40.0, 40.0, 500.0, 500.0]]
    inside = check_boxes(torch.tensor(boxes), *image.size)
    named = {"boxes": boxes, "quads": xyxy_to_quads(torch.tensor(boxes)).tolist()}
    cut = {"boxes": inside.tolist(), "quads": xyxy_to_quads(inside).tolist()}
    classify = pipeline(TASK, model=model, processor=processor)
    answers = {
        "as given": classify(image, **{form: named[form]}, candidate_labels=CONCEPTS),
        "inside": classify(image, **{form: cut[form]}, candidate_labels=CONCEPTS),
    }
    found = {
        name: [{entry["label"]: entry["score"] for entry in region} for region in answer]
        for name, answer in answers.items()
    }
    detect = GeoAlignCLIPDetectionPipeline(model=model, processor=processor)
    options = {"background_labels": [], "threshold": 0, "max_iou": 1, "candidate_labels": CONCEPTS}
    if form == "boxes":
        found["detection"] = [
            {entry["label"]: entry["score"] for entry in detect(image, boxes=[box], **options)}
            for box in boxes
        ]
    embedder = Embedder(model, processor)
    cosines = (
        embedder.embed_regions([{"image": image} | named], form=form)
        @ embedder.embed_concepts(CONCEPTS, CONCEPT_TEMPLATES).T
    )
    scores = (cosines * model.region_scale().detach()).softmax(dim=-1).tolist()
    found["embedder"] = [dict(zip(CONCEPTS, region, strict=True)) for region in scores]
    for name, regions in found.items():
        for region, expected in zip(regions, found["inside"], strict=True):
            assert region == pytest.approx(expected, abs=1e-5), name


def test_no_more_windows_are_held_than_one_pass_takes(built, toy_rows, tmp_path, monkeypatch):
    model, processor = built
    model.save_pretrained(tmp_path)
    windows = AutoModel.from_pretrained(tmp_path, region_view="window")
    classify = pipeline(TASK, model=windows, processor=processor)
    cut, numbers = pipeline_geoalign_clip.cut_windows, []

    def count(image, regions, *others):
        numbers.append(len(regions))
        return cut(image, regions, *others)

    monkeypatch.setattr(pipeline_geoalign_clip, "cut_windows", count)
    boxes = [[8 * (i % 10), 8 * (i // 10), 8 * (i % 10) + 20, 8 * (i // 10) + 20] for i in range(70)]
    answers = classify(toy_rows[0]["image"], boxes=boxes, candidate_labels=["ship", "road"])
    assert numbers == [64, 6]
    (last,) = classify(toy_rows[0]["image"], boxes=boxes[-1:], candidate_labels=["ship", "road"])
    assert {a["label"]: pytest.approx(a["score"], abs=1e-5) for a in answers[-1]} == {
        a["label"]: a["score"] for a in last
    }


def test_one_image_many_images_batches_and_streams_answer_alike(classify, toy_rows):
    images = [row["image"] for row in toy_rows[:5]]
    boxes = [row["boxes"] for row in toy_rows[:4]] + [[]]
    alone = [
        classify(image, boxes=image_boxes, candidate_concepts=CONCEPTS)
        for image, image_boxes in zip(images, boxes, strict=True)
    ]
    stream = (
        {"image": image, "boxes": image_boxes} for image, image_boxes in zip(images, boxes, strict=True)
    )
    ways = {
        "list": classify(images, boxes=boxes, candidate_concepts=CONCEPTS),
        "batches": classify(images, boxes=boxes, candidate_concepts=CONCEPTS, batch_size=2),
        "stream": list(classify(stream, candidate_concepts=CONCEPTS, batch_size=3)),
    }
    for way, answers in ways.items():
        assert [len(answer) for answer in answers] == [len(image_boxes) for image_boxes in boxes], way
        for answer, expected in zip(answers, alone, strict=True):
            for entries, wanted in zip(answer, expected, strict=True):
                assert [entry["box"] for entry in entries] == [entry["box"] for entry in wanted]
                found = {entry["label"]: entry["score"] for entry in entries}
                assert found == pytest.approx({entry["label"]: entry["score"] for entry in wanted}, abs=1e-5)


@pytest.fixture(scope="module")
def few(toy_rows):
    """A dataset of three images and their boxes, with an empty column of quads."""
    rows = [{"image": row["image"], "boxes": row["boxes"], "quads": None} for row in toy_rows[:3]]
    return Dataset.from_list(rows)


def test_columns_and_arrays_are_read_as_lists_and_datasets_and_iterators_as_streams(classify, few):
    options = {"candidate_labels": CONCEPTS}
    images, boxes = few["image"][:], few["boxes"][:]
    expected = classify(images, boxes=boxes, **options)
    rows = [{"image": image, "boxes": part} for image, part in zip(images, boxes, strict=True)]
    array = np.empty(3, dtype=object)
    array[:] = images
    for name, lists in {
        "columns": (few["image"], few["boxes"]),
        "a tuple": (tuple(images), tuple(boxes)),
        "an array of objects, and a generator of boxes": (array, (part for part in boxes)),
    }.items():
        answers = classify(lists[0], boxes=lists[1], **options)
        assert isinstance(answers, list) and answers == expected, name
    for name, stream in {
        "an iterator": iter(rows),
        "a map": map(dict, rows),
        "a dataset": few,
        "an iterable dataset": few.to_iterable_dataset(),
    }.items():
        answers = classify(stream, **options)
        assert not isinstance(answers, list) and list(answers) == expected, name
    assert classify(tuple(rows), **options) == expected
    assert [classify(few[0], **options)] == [classify(few.select([0])[0], **options)] == expected[:1]
    stack = np.stack([np.asarray(image.resize((64, 64))) for image in images])
    found = classify(stack, boxes=[[[0, 0, 30, 30]]] * 3, **options)
    assert found == classify(list(stack), boxes=[[[0, 0, 30, 30]]] * 3, **options)


def test_no_images_give_no_answers(classify):
    for nothing in ([], (), np.zeros((0, 8, 8, 3))):
        assert classify(nothing, boxes=[], candidate_labels=CONCEPTS) == []
    assert classify([], candidate_labels=CONCEPTS) == []
    assert list(classify(iter([]), candidate_labels=CONCEPTS)) == []


def test_boxes_apart_from_a_stream_of_images_are_refused(classify, toy_rows):
    images = (row["image"] for row in toy_rows[:2])
    with refuses("generator", "boxes", "list of images", '{"image": ...'):
        classify(images, boxes=[[], []], candidate_labels=CONCEPTS)


@pytest.mark.parametrize(
    "make", [tuple, np.array, iter, dict.fromkeys, lambda names: dict.fromkeys(names).keys(), ",".join]
)
def test_labels_are_any_iterable(classify, toy_rows, make):
    row = toy_rows[0]
    expected = classify(row["image"], boxes=row["boxes"], candidate_labels=CONCEPTS)
    assert classify(row["image"], boxes=row["boxes"], candidate_labels=make(CONCEPTS)) == expected
    made_once = pipeline(
        TASK, model=classify.model, processor=classify.processor, candidate_labels=make(CONCEPTS)
    )
    for _ in range(2):
        assert made_once(row["image"], boxes=row["boxes"]) == expected


def test_labels_that_are_no_words_are_refused(classify, toy_rows):
    with refuses("candidate_labels is a int", "list of words"):
        classify(toy_rows[0]["image"], boxes=[], candidate_labels=3)


def test_top_k_keeps_the_best(classify, toy_rows):
    row = toy_rows[1]
    inputs = {"boxes": row["boxes"], "candidate_concepts": CONCEPTS}
    every = classify(row["image"], **inputs)
    assert classify(row["image"], **inputs, top_k=2) == [answer[:2] for answer in every]


def test_templates_change_the_scores(classify, toy_rows):
    row = toy_rows[0]
    inputs = {"boxes": row["boxes"][:1], "candidate_concepts": CONCEPTS}
    usual = classify(row["image"], **inputs)[0]
    other = classify(row["image"], **inputs, templates=["{}"])[0]
    assert {entry["score"] for entry in usual} != {entry["score"] for entry in other}


def test_labels_and_templates_go_by_the_names_of_transformers_too(classify, toy_rows):
    row = toy_rows[0]
    ours = classify(
        row["image"], boxes=row["boxes"], candidate_concepts=CONCEPTS, templates=["a photo of a {}."]
    )
    theirs = {"candidate_labels": "airplane, ship,storage tank", "hypothesis_template": "a photo of a {}."}
    assert classify(image=row["image"], boxes=row["boxes"], **theirs) == ours
    assert classify(row["image"], row["boxes"], CONCEPTS, templates=["a photo of a {}."]) == ours


def test_images_are_given_once(classify, toy_rows):
    for images in ({}, {"images": toy_rows[0]["image"], "image": toy_rows[0]["image"]}):
        with pytest.raises(ValueError, match="give the images once"):
            classify(**images, boxes=[], candidate_labels=CONCEPTS)


@pytest.mark.parametrize("view", ["image", "window"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_quads_and_masks_are_classified_as_the_boxes_that_they_equal(built, toy_rows, view, batch_size):
    import copy

    model, processor = copy.deepcopy(built[0]), built[1]
    model.config.region_view = view
    classify = pipeline(TASK, model=model, processor=processor)
    images, boxes = [row["image"] for row in toy_rows[:3]], [row["boxes"][:2] for row in toy_rows[:3]]
    boxes = [[[float(round(number)) for number in box] for box in part] for part in boxes]
    quads = [xyxy_to_quads(torch.tensor(part)).tolist() for part in boxes]
    masks = [[draw_mask(box, image.size) for box in part] for part, image in zip(boxes, images, strict=True)]
    options = {"candidate_labels": CONCEPTS, "batch_size": batch_size}
    by_quad = classify(images, quads=quads, **options)
    by_mask = classify(images, masks=masks, **options)
    for i in range(3):
        for r in range(len(boxes[i])):
            assert by_quad[i][r][0]["quad"] == quads[i][r]
            assert by_mask[i][r][0]["mask"] is masks[i][r]
            scores = {entry["label"]: entry["score"] for entry in by_quad[i][r]}
            found = {entry["label"]: entry["score"] for entry in by_mask[i][r]}
            assert found == pytest.approx(scores, abs=2e-3)


def draw_mask(box: list[float], size: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size[::-1], dtype=bool)
    x0, y0, x1, y1 = map(int, box)
    mask[y0:y1, x0:x1] = True
    return mask


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_model_whose_weights_are_zero_or_nan_gives_no_scores(model, processor, toy_rows, value):
    torch.nn.init.constant_(model.visual_projection.weight, value)
    classify = pipeline(TASK, model=model, processor=processor)
    with pytest.raises(ValueError, match="zero, NaN or infinite"):
        classify(toy_rows[0]["image"], boxes=toy_rows[0]["boxes"], candidate_labels=CONCEPTS)


def test_the_task_of_a_saved_model_is_inferred_as_without_the_package(folder):
    assert pipeline(model=str(folder)).task == TASK


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({}, "no candidate_labels are given. Pass a list of at least one concept."),
        (
            {"candidate_concepts": CONCEPTS, "threshold": 1},
            "unknown arguments ['threshold']. This pipeline takes boxes, quads or masks, candidate_labels, "
            "hypothesis_template, templates, top_k, batch_size, bands, limits, max_pixels, stretch, timeout.",
        ),
        (
            {"candidate_concepts": CONCEPTS, "candidate_labels": CONCEPTS},
            "candidate_labels and candidate_concepts are the same. Give one of them.",
        ),
        (
            {"candidate_labels": CONCEPTS, "templates": ["{}"], "hypothesis_template": "{}"},
            "hypothesis_template and templates are both given. Give one of them.",
        ),
        (
            {"candidate_labels": CONCEPTS, "quads": []},
            "regions are given as boxes and quads. Give one form in a call.",
        ),
    ],
)
def test_a_call_that_cannot_be_answered_is_refused(classify, toy_rows, inputs, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        classify(toy_rows[0]["image"], boxes=toy_rows[0]["boxes"], **inputs)


def test_boxes_for_another_number_of_images_are_refused(classify, toy_rows):
    message = (
        "boxes has 1 entries, but there are 2 images. "
        "Give one list for each image, an empty one where there are no regions."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        classify([toy_rows[0]["image"]] * 2, boxes=[[]], candidate_concepts=CONCEPTS)


def test_an_image_without_boxes_is_refused(classify, toy_rows):
    message = (
        "expected an image with its boxes, quads or masks, found Image. "
        'Pass boxes=..., or images as {"image": ..., "boxes": [...]}.'
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        classify(toy_rows[0]["image"], candidate_concepts=CONCEPTS)


def test_the_stock_zero_shot_pipeline_answers_as_for_clip(folder, built, toy_rows, tmp_path):
    CLIPModel.from_pretrained(folder).save_pretrained(tmp_path)
    CLIPProcessor(built[1].image_processor, built[1].tokenizer).save_pretrained(tmp_path)
    images, labels = [row["image"] for row in toy_rows[:3]], ["airplane", "ship", "road"]
    ours = pipeline("zero-shot-image-classification", model=str(folder))(images, candidate_labels=labels)
    clips = pipeline("zero-shot-image-classification", model=str(tmp_path))(images, candidate_labels=labels)
    for our_answer, clip_answer in zip(ours, clips, strict=True):
        found = {entry["label"]: entry["score"] for entry in our_answer}
        assert found == pytest.approx({entry["label"]: entry["score"] for entry in clip_answer}, abs=1e-5)


def test_a_bank_gives_the_scores_of_its_concepts_without_encoding_a_text(
    classify, built, toy_rows, monkeypatch
):
    row = toy_rows[0]
    bank = ConceptBank.build(*built, CONCEPTS)
    expected = classify(row["image"], boxes=row["boxes"], candidate_labels=CONCEPTS)
    monkeypatch.setattr(classify.model, "embed_concepts", None)
    found = classify(row["image"], boxes=row["boxes"], candidate_labels=bank)
    for ours, theirs in zip(found, expected, strict=True):
        scores = {entry["label"]: entry["score"] for entry in theirs}
        assert {entry["label"]: entry["score"] for entry in ours} == pytest.approx(scores, abs=1e-5)


def test_a_bank_of_another_width_or_with_templates_is_refused(classify, toy_rows):
    inputs = {"images": toy_rows[0]["image"], "boxes": toy_rows[0]["boxes"]}
    width = classify.model.config.projection_dim
    with pytest.raises(ValueError, match=rf"\(3, {width + 1}\).*{width} numbers"):
        classify(**inputs, candidate_labels=ConceptBank(CONCEPTS, torch.ones(3, width + 1)))
    with pytest.raises(ValueError, match="templates"):
        classify(**inputs, candidate_labels=ConceptBank(CONCEPTS, torch.ones(3, width)), templates=["{}"])


def test_labels_of_a_call_replace_those_of_the_construction_whatever_their_kind(built, toy_rows):
    """Words or a bank, with or without templates."""
    row, model, processor = toy_rows[0], *built
    words, template = ["road", "pier"], {"templates": ["a photo of a {}."]}
    bank, other_bank = (ConceptBank.build(model, processor, names) for names in (CONCEPTS, words))
    plain = pipeline(TASK, model=model, processor=processor)

    def classify(construction: dict, **call):
        pipe = pipeline(TASK, model=model, processor=processor, **construction)
        return pipe(row["image"], boxes=row["boxes"], **call)

    for labels in (bank, CONCEPTS):
        for call in (
            {"candidate_labels": words},
            {"candidate_labels": words, **template},
            {"candidate_concepts": other_bank},
        ):
            expected = plain(row["image"], boxes=row["boxes"], **call)
            assert classify({"candidate_labels": labels}, **call) == expected
    # Templates of the construction are for words; those of a call need words.
    expected = plain(row["image"], boxes=row["boxes"], candidate_labels=bank)
    assert classify({"candidate_labels": bank}) == expected
    assert classify(template, candidate_labels=bank) == expected
    assert classify(template | {"candidate_labels": words}, candidate_labels=bank) == expected
    expected = plain(row["image"], boxes=row["boxes"], candidate_labels=CONCEPTS, **template)
    assert classify(template, candidate_labels=CONCEPTS) == expected
    assert classify({"candidate_labels": CONCEPTS}, **template) == expected
    with refuses("bank", "templates"):
        classify({"candidate_labels": bank}, **template)
    with refuses("no candidate_labels"):
        classify({"candidate_labels": bank}, candidate_labels=[])


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_stock_feature_pipeline_gives_image_embeddings(folder, built, toy_rows, batch_size):
    model, processor = built
    images = [row["image"] for row in toy_rows[:3]]
    extract = pipeline("image-feature-extraction", model=str(folder), batch_size=batch_size)
    with torch.no_grad():
        stock = processor.image_processor(images=images, return_tensors="pt")
        features = model.get_image_features(**stock).pooler_output
    embeds = torch.nn.functional.normalize(features, dim=-1)
    torch.testing.assert_close(torch.tensor(extract(images)).squeeze(1), embeds, atol=1e-6, rtol=1e-5)
    pooled = torch.tensor(extract(images, pool=True)).squeeze(1)
    torch.testing.assert_close(pooled, features, atol=1e-6, rtol=1e-5)


def test_auto_classes_give_our_classes(folder):
    assert type(AutoModel.from_pretrained(folder)).__module__.startswith("geoalign_hf.")
    assert type(AutoProcessor.from_pretrained(folder)).__module__.startswith("geoalign_hf.")
