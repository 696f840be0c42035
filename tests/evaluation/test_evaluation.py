"""Laws of the evaluators: scores worked out by hand on painted answers, protocols, saved embeddings."""

import json

import numpy as np
import pytest
import torch
from painted import COLOURS, ColourModel, paint, paint_row
from refusals import refuses
from sklearn.metrics import confusion_matrix

from geoalign_hf.data.schema import build_rows
from geoalign_hf.embedding.concept_bank import ConceptBank
from geoalign_hf.embedding.embedder import Embedder
from geoalign_hf.embedding.templates import TEMPLATE_SETS
from geoalign_hf.evaluation.choice import StatementChoiceEvaluator
from geoalign_hf.evaluation.classification import (
    RegionClassificationEvaluator,
    SceneClassificationEvaluator,
)
from geoalign_hf.evaluation.drift import EmbeddingDriftEvaluator
from geoalign_hf.evaluation.evaluator import Evaluator
from geoalign_hf.evaluation.hard_negatives import HardNegativeEvaluator, score_pairs
from geoalign_hf.evaluation.localization import LocalizationEvaluator
from geoalign_hf.evaluation.metrics.classification import score_regions
from geoalign_hf.evaluation.results import write_metrics
from geoalign_hf.evaluation.retrieval import CaptionRetrievalEvaluator, PhraseRetrievalEvaluator
from geoalign_hf.model.processing_geoalign_clip import CONCEPT_TEMPLATES

SOURCES = ["image", "window", "crop", "both"]


@pytest.fixture
def painter(processor):
    return ColourModel(processor), processor


def paint_rows():
    return build_rows(
        [
            paint_row((300, 200), [((10, 10, 30, 30), "red", "red"), ((100, 50, 150, 100), "red", "green"),
                                   ((180, 20, 290, 190), "green", "green")]),
            paint_row((300, 200), []),
            paint_row((100, 160), [((40, 60, 60, 80), "red", "red"), ((0, 100, 90, 160), "blue", "red")]),
        ]
    )  # fmt: skip


def drop_protocol(scores: dict) -> dict:
    return {name: value for name, value in scores.items() if name != "protocol"}


# All evaluators


def build_evaluators(rows) -> list[Evaluator]:
    image, polygon = rows[0]["image"], [[[0, 0], [40, 0], [40, 40]]]
    question = {"image": image, "options": ["a ship", "a road"], "answer": 1, "subject": "x"}
    query = {"image": image, "phrase": "a ship", "polygons": polygon}
    return [
        RegionClassificationEvaluator(rows),
        SceneClassificationEvaluator([image, image], ["ship", "road"]),
        CaptionRetrievalEvaluator(rows),
        PhraseRetrievalEvaluator(rows),
        HardNegativeEvaluator(rows),
        StatementChoiceEvaluator([question]),
        LocalizationEvaluator([query], tile_sides=[200], stride=16),
        EmbeddingDriftEvaluator([image]),
    ]


def test_every_evaluator_gives_its_primary_metric_and_its_protocol_by_either_call(built, rows):
    evaluators = build_evaluators(rows)
    assert len({evaluator.name for evaluator in evaluators}) == 8
    for evaluator in evaluators:
        scores = evaluator(Embedder(*built))
        assert isinstance(scores[evaluator.primary_metric], float) and evaluator.greater_is_better
        assert scores["protocol"]["task"] == evaluator.task
        assert scores["protocol"]["versions"]["geoalign_hf"]
        assert evaluator(*built) == scores
        with refuses("Embedder", "processor", kind=TypeError):
            evaluator(built[0])


def test_a_model_of_nan_gets_no_scores(model, processor, rows):
    with torch.no_grad():
        model.visual_projection.weight[0, 0] = float("nan")
    for evaluator in build_evaluators(rows):
        with refuses("NaN"):
            evaluator(model, processor)


def test_truncated_texts_are_counted_per_evaluation_even_with_a_shared_embedder(built, toy_rows):
    embedder = Embedder(*built)
    long = build_rows([row | {"captions": ["ship " * 100]} for row in toy_rows])
    for evaluator, num_cut in ((CaptionRetrievalEvaluator(long), 1), (PhraseRetrievalEvaluator(long), 0)):
        assert evaluator(embedder)["protocol"]["num_cut_texts"] == num_cut


def test_options_are_checked_when_the_evaluator_is_built(rows):
    for options, facts in (
        ({"region_source": "roi"}, ["'roi'", "window"]),
        ({"context": 0.5}, ["0.5"]),
        ({"views": [2.0, 0.5]}, ["0.5"]),
        ({"views": [2.0], "context": 3.0}, ["3.0", "[2.0]"]),
    ):
        with refuses(*facts):
            PhraseRetrievalEvaluator(rows, **options)
    with refuses("names is the string 'ab'"):
        SceneClassificationEvaluator(list(rows["image"])[:2], "ab")
    with refuses("captions"):
        CaptionRetrievalEvaluator(rows.remove_columns("captions"))
    with refuses("arrays_path", "start"):
        EmbeddingDriftEvaluator([rows[0]["image"]], arrays_path="drift.npz")


# Concepts of regions


@pytest.mark.parametrize("region_source", ["image", "window"])
def test_painted_regions_score_as_worked_out_by_hand(painter, region_source):
    scores = RegionClassificationEvaluator(
        paint_rows(), ["red", "green", "blue"], region_source=region_source
    )(*painter)
    assert drop_protocol(scores) == {
        "top1_micro": 3 / 5,
        "top1_macro": pytest.approx((2 / 3 + 1 + 0) / 3),
        "num_regions": 5,
        "per_concept": {"red": pytest.approx(2 / 3), "green": 1.0, "blue": 0.0},
        "num_per_concept": {"red": 3, "green": 1, "blue": 1},
        # Areas: 400 and 400; 2500 and 5400; 18700.
        "by_size": {"small": 1.0, "medium": 0.0, "large": 1.0},
        "num_by_size": {"small": 2, "medium": 2, "large": 1},
        "confusion": [[2, 1, 0], [0, 1, 0], [1, 0, 0]],
    }


def test_a_crop_is_centered_on_its_box(painter):
    row = paint_row((300, 200), [((100, 50, 150, 100), "green", "green"), ((10, 10, 40, 40), "red", "blue")])
    scores = RegionClassificationEvaluator(build_rows([row]), list(COLOURS), region_source="crop", context=1)(
        *painter
    )
    assert scores["per_concept"] == {"red": 0.0, "green": 1.0}
    assert scores["confusion"] == [[0, 0, 1], [0, 1, 0], [0, 0, 0]]


def test_the_default_concepts_are_those_of_the_rows_in_alphabetical_order(model, processor, rows):
    scores = RegionClassificationEvaluator(rows)(model, processor)
    concepts = ["airplane", "road", "ship", "storage tank", "tennis court"]
    assert scores["protocol"]["concepts"] == concepts
    assert scores == RegionClassificationEvaluator(rows, concepts)(model, processor)


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
    scores = drop_protocol(RegionClassificationEvaluator(rows, concepts)(model, processor))
    assert scores.pop("confusion") == confusion_matrix(references, predictions, labels=range(5)).tolist()
    assert scores == score_regions(predictions, references, concepts, areas)


@pytest.mark.parametrize("region_source", SOURCES)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_scores_do_not_depend_on_the_batch(model, processor, rows, region_source, batch_size):
    options = {"region_source": region_source, "templates": ("a {}",)}
    whole = RegionClassificationEvaluator(rows, **options)(Embedder(model, processor, batch_size=100))
    assert (
        RegionClassificationEvaluator(rows, **options)(Embedder(model, processor, batch_size=batch_size))
        == whole
    )


@pytest.mark.parametrize("region_source", SOURCES)
def test_the_protocol_says_how_the_scores_were_made(model, processor, rows, region_source):
    protocol = RegionClassificationEvaluator(rows, region_source=region_source)(model, processor)["protocol"]
    assert set(protocol.pop("versions")) == {"geoalign_hf", "torch", "transformers", "numpy", "python"}
    assert protocol == {
        "task": "region classification from ground-truth boxes",
        "region_source": region_source,
        "context": {"image": None, "window": 3.0, "crop": 1.5, "both": 1.5}[region_source],
        "image_size": 64,
        "resize": "square",
        "dense_mode": "last",
        "activation": "gelu",
        "text_length": 77,
        "num_cut_texts": 0,
        "seed": None,
        "image_options": None,
        "image_rule": None,
        "templates": list(CONCEPT_TEMPLATES),
        "concepts": ["airplane", "road", "ship", "storage tank", "tennis court"],
        "num_images": 8,
    }


def test_a_template_set_given_by_name_equals_its_templates(model, processor, rows):
    by_name = RegionClassificationEvaluator(rows, templates="skyscript")(model, processor)
    given = RegionClassificationEvaluator(rows, templates=TEMPLATE_SETS["skyscript"])(model, processor)
    assert by_name == given
    assert by_name["protocol"]["templates"] == ["a satellite photo of {}.", "a satellite image of {}"]


@pytest.mark.parametrize("region_source", SOURCES)
@pytest.mark.parametrize("image_size", [None, 96])
def test_images_are_encoded_at_the_size_that_the_protocol_names(
    model, processor, rows, region_source, image_size
):
    sizes = set()
    model.vision_model.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.add(tuple(kwargs["pixel_values"].shape[-2:])), with_kwargs=True
    )
    scores = RegionClassificationEvaluator(rows, region_source=region_source)(
        Embedder(model, processor, image_size=image_size)
    )
    size = image_size or 64
    assert scores["protocol"]["image_size"] == size and sizes == {(size, size)}


def test_a_refusal_does_not_change_the_mode_of_the_model(model, processor, rows):
    model.train()
    with refuses("the rows hold the concepts"):
        RegionClassificationEvaluator(rows, ["ship"])(model, processor)
    assert model.training


def test_rows_with_a_concept_that_is_not_a_choice_are_refused(painter):
    with refuses("['blue', 'green']", "['red']"):
        RegionClassificationEvaluator(paint_rows(), ["red"])(*painter)


@pytest.mark.parametrize("region_source", SOURCES)
def test_rows_without_regions_are_refused(painter, region_source):
    empty = build_rows([paint_row((100, 80), [])])
    with refuses("none of the 1 rows has a box"):
        RegionClassificationEvaluator(empty, ["red"], region_source=region_source)(*painter)


# Scenes


def test_painted_scenes_score_as_worked_out_by_hand(painter):
    images = [paint((90, 60), ((20, 10, 70, 50), colour)) for colour in ("red", "red", "green", "red")]
    scores = SceneClassificationEvaluator(images, ["Red", "Red", "Green", "Blue_sea"], templates="clip")(
        *painter
    )
    protocol = scores.pop("protocol")
    assert scores == {
        "top1_micro": 3 / 4,
        "top1_macro": pytest.approx(2 / 3),
        "num_scenes": 4,
        "per_concept": {"blue sea": 0.0, "green": 1.0, "red": 1.0},
        "num_per_concept": {"blue sea": 1, "green": 1, "red": 2},
        "confusion": [[0, 0, 1], [0, 1, 0], [0, 0, 2]],
    }
    assert protocol["templates"] == ["This is a photo of {}."]
    assert protocol["concepts"] == ["blue sea", "green", "red"]
    assert protocol["renamed"] == {"Blue_sea": "blue sea", "Green": "green", "Red": "red"}


def test_a_renamed_concept_is_embedded_by_its_other_name(painter):
    images = [paint((64, 64), ((0, 0, 64, 64), colour)) for colour in ("red", "blue")]
    scores = SceneClassificationEvaluator(
        images, ["Mars", "Ocean"], renamed={"Mars": "red", "Ocean": "blue"}
    )(*painter)
    assert scores["top1_micro"] == 1.0 and scores["protocol"]["concepts"] == ["red", "blue"]


def test_different_numbers_of_images_and_names_and_unknown_names_are_refused(painter):
    image = paint((64, 64))
    with refuses("1 images", "2 names"):
        SceneClassificationEvaluator([image], ["red", "blue"])(*painter)
    with refuses("['blue']", "['red']"):
        SceneClassificationEvaluator([image], ["blue"], ["red"])(*painter)


# Hard negatives


def paint_negatives(**columns):
    return build_rows(
        [
            paint_row((200, 100), [((10, 10, 30, 30), "red", "red"), ((50, 10, 90, 50), "red", "blue")],
                      hard_negatives=[["blue", "green"], ["blue"]]),
            paint_row((200, 100), [((10, 10, 30, 30), "green", "green")]),
            paint_row((200, 100), [((10, 10, 30, 30), "green", "green"), ((50, 10, 90, 50), "red", "red")],
                      hard_negatives=[["green"], []]),
        ]
    )  # fmt: skip


def test_painted_hard_negatives_score_as_worked_out_by_hand(painter):
    rows = paint_negatives()
    kinds = [[["colour", "shade"], ["colour"]], [], [["same"], []]]
    rows = rows.remove_columns("negative_kinds").add_column("negative_kinds", kinds)
    scores = HardNegativeEvaluator(rows)(*painter)
    assert scores.pop("protocol")["task"] == "a phrase against its hard negatives"
    # These have tests of their own.
    for name in ("blind_accuracy", "blind_per_kind", "text_only_accuracy", "text_only_per_kind"):
        scores.pop(name, None)
    assert scores == {
        "accuracy": pytest.approx(1 / 3),  # one is beaten by blue, one ties with itself
        "chance": pytest.approx((1 / 3 + 1 / 2 + 1 / 2) / 3),
        "num_regions": 3,
        "num_negatives": 4,
        "per_kind": {"colour": 0.5, "same": 0.0, "shade": 1.0},
        "chance_per_kind": {"colour": 0.5, "same": 0.5, "shade": 0.5},
        "num_per_kind": {"colour": 2, "same": 1, "shade": 1},
        "by_number": {"1": 0.0, "2": 1.0},
        "num_by_number": {"1": 2, "2": 1},
    }


def test_a_pair_is_right_only_if_both_of_its_regions_are():
    rows = [
        {"phrases": ["a ship", "a car"], "hard_negatives": [["a car", "a bus"], ["a ship"]]},
        {"phrases": ["a car"], "hard_negatives": [["a ship"]]},
        {"phrases": ["a ship"], "hard_negatives": [["a car"]]},
    ]
    bounds = np.array([4, 6, 7, 8, 9])  # of the negatives of the four regions
    for right, wrong, pair_accuracy, group_accuracy in (
        ([0.9] * 4, [0.1] * 5, 1.0, 1.0),
        ([0.5] * 4, [0.5] * 5, 0.0, 0.0),  # ties
        ([0.9, 0.1, 0.1, 0.9], [0.5] * 5, 0.5, 0.0),  # always "a ship", as text alone would have it
        ([0.9, 0.9, 0.1, 0.1], [0.5] * 5, 0.5, None),  # it depends on how the equal ones are paired
    ):
        scores = score_pairs(rows, np.array([*right, *wrong]), bounds)
        assert scores["num_pairs"] == 2 and scores["pair_accuracy"] == pair_accuracy
        assert group_accuracy in (None, scores["group_accuracy"])
    assert score_pairs([rows[2]], np.array([0.9, 0.1]), np.array([1, 2])) == {}


def test_the_blind_accuracy_is_that_of_the_mean_region(model, processor, rows, tmp_path):
    scores = HardNegativeEvaluator(rows, arrays_path=tmp_path / "embeds.npz")(model, processor)
    saved = np.load(tmp_path / "embeds.npz")
    mean = saved["regions"].mean(axis=0)
    cosines = saved["texts"] @ (mean / np.linalg.norm(mean))
    right = []
    for r, own in enumerate(cosines[: len(saved["regions"])]):
        of_region = cosines[len(saved["regions"]) :][saved["region_ids"][len(saved["regions"]) :] == r]
        right.append(own > of_region.max() + 1e-6)
    assert scores["blind_accuracy"] == pytest.approx(np.mean(right))


def test_negatives_without_kinds_have_the_kind_unknown(painter):
    rows = paint_negatives()
    assert HardNegativeEvaluator(rows)(*painter)["num_per_kind"] == {"unknown": 3}
    assert HardNegativeEvaluator(rows.remove_columns("negative_kinds"))(*painter) == HardNegativeEvaluator(
        rows
    )(*painter)


def test_hard_negatives_score_as_in_a_plain_loop(model, processor, toy_rows, rows):
    right, num_negatives = [], 0
    for row in toy_rows:
        batch = processor(images=row["image"], boxes=[row["boxes"]], return_tensors="pt")
        for r, (phrase, negatives) in enumerate(zip(row["phrases"], row["hard_negatives"], strict=True)):
            with torch.no_grad():
                region = model.embed_regions(**batch)[0, r]
                cosines = [
                    float(model.embed_text(**processor(text=text, return_tensors="pt"))[0] @ region)
                    for text in [phrase, *negatives]
                ]
            right.append(cosines[0] > max(cosines[1:]))
            num_negatives += len(negatives)
    scores = HardNegativeEvaluator(rows)(model, processor)
    assert scores["accuracy"] == pytest.approx(np.mean(right))
    assert (scores["num_regions"], scores["num_negatives"]) == (len(right), num_negatives)


def test_rows_without_hard_negatives_are_refused(painter):
    with refuses("no region has one", "hard_negatives"):
        HardNegativeEvaluator(paint_rows())(*painter)


# Statements


def test_painted_questions_score_as_worked_out_by_hand(painter):
    image = paint((64, 64), ((0, 0, 64, 64), "green"))
    questions = [
        {"image": image, "options": ["a red field", "a green field"], "answer": 1, "subject": "colour"},
        {"image": image, "options": ["green", "red", "blue"], "answer": 2, "subject": "colour"},
        {"image": image, "options": ["green", "all green", "red"], "answer": 0, "subject": "tie"},
    ]
    scores = StatementChoiceEvaluator(questions)(*painter)
    assert scores.pop("protocol")["task"] == "multiple choice over statements"
    assert scores == {
        "accuracy": pytest.approx(1 / 3),
        "chance": pytest.approx((1 / 2 + 1 / 3 + 1 / 3) / 3),
        "num_questions": 3,
        "per_subject": {"colour": 0.5, "tie": 0.0},
        "chance_per_subject": {"colour": pytest.approx(5 / 12), "tie": pytest.approx(1 / 3)},
        "num_per_subject": {"colour": 2, "tie": 1},
    }


def test_no_questions_are_refused(painter):
    with refuses("at least one question"):
        StatementChoiceEvaluator([])(*painter)


# Drift and coherence


def test_drift_is_zero_for_the_same_model_and_full_for_mirrored_embeddings(model, built, processor, rows):
    same = EmbeddingDriftEvaluator(rows["image"], ["a ship"], start=built[0])(model, processor)
    for kind in ("image", "text"):
        assert same[f"{kind}_lowest_cosine_to_start"] == pytest.approx(1, abs=1e-6)
    with torch.no_grad():
        model.visual_projection.weight.mul_(-1)
    moved = EmbeddingDriftEvaluator(rows["image"], ["a ship"], start=built[0])(model, processor)
    assert moved["image_cosine_to_start"] == pytest.approx(-1, abs=1e-6)
    assert moved["text_cosine_to_start"] == pytest.approx(1, abs=1e-6)
    assert moved["coherence"] == pytest.approx(same["coherence"], abs=1e-6)  # angles between patches stay
    assert (moved["num_images"], moved["num_texts"]) == (8, 1)


def test_coherence_does_not_depend_on_the_batch_and_needs_no_start(built, rows):
    whole = EmbeddingDriftEvaluator(rows["image"])(*built)
    parts = EmbeddingDriftEvaluator(rows["image"])(Embedder(*built, batch_size=3))
    assert {name for name, value in whole.items() if isinstance(value, float)} == {
        "neighbour_cosine", "any_cosine", "coherence"
    }  # fmt: skip
    for name in ("neighbour_cosine", "any_cosine", "coherence"):
        assert parts[name] == pytest.approx(whole[name], abs=1e-6)


def test_no_images_are_refused(built):
    with refuses("at least one image"):
        EmbeddingDriftEvaluator([])(*built)


# Files


def test_scores_can_be_recomputed_from_the_saved_embeddings(built, rows, tmp_path):
    scores = RegionClassificationEvaluator(rows, arrays_path=tmp_path / "deep" / "regions.npz")(*built)
    saved = np.load(tmp_path / "deep" / "regions.npz")
    best = (saved["regions"] @ saved["concepts"].T).argmax(axis=1)
    assert scores["top1_micro"] == (best == saved["references"]).mean()

    scores = HardNegativeEvaluator(rows, arrays_path=tmp_path / "phrases.npz")(*built)
    saved = np.load(tmp_path / "phrases.npz")
    cosines = (saved["regions"][saved["region_ids"]] * saved["texts"]).sum(axis=1)
    N = len(saved["regions"])
    right = [(cosines[:N][i] > cosines[N:][saved["region_ids"][N:] == i]).all() for i in range(N)]
    assert scores["accuracy"] == pytest.approx(np.mean(right))


def test_metrics_survive_a_round_trip_through_their_file(built, rows, tmp_path):
    metrics = {
        "regions": RegionClassificationEvaluator(rows)(*built),
        "phrases": HardNegativeEvaluator(rows)(*built),
    }
    write_metrics(tmp_path / "new" / "metrics.json", metrics)
    assert json.loads((tmp_path / "new" / "metrics.json").read_text()) == metrics


def test_a_result_without_protocol_and_nan_are_not_written(tmp_path):
    with refuses("['b']", "no protocol"):
        write_metrics(tmp_path / "metrics.json", {"a": {"protocol": {}}, "b": {"top1_micro": 1.0}})
    with refuses("Out of range float values"):
        write_metrics(tmp_path / "metrics.json", {"a": {"protocol": {}, "top1_micro": float("nan")}})
    assert not (tmp_path / "metrics.json").exists()
