"""Laws of the scores of detection: worked by hand, those of pycocotools, and oriented as upright boxes."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from refusals import refuses

from geoalign_hf import DetectionEvaluator, Embedder, build_rows
from geoalign_hf.detection.detector import DetectionOptions
from geoalign_hf.detection.proposals import Proposals
from geoalign_hf.evaluation.metrics.detection import score_detections
from geoalign_hf.model.regions_geoalign_clip import xyxy_to_quads
from geoalign_hf.readers.base import turn_box


def truth_of(boxes, labels, ignored=None) -> dict:
    return {"boxes": boxes, "labels": labels, "ignored": ignored or [False] * len(labels)}


def found_of(boxes, labels, scores) -> dict:
    return {"boxes": boxes, "labels": labels, "scores": scores}


def orient(images: list[dict]) -> list[dict]:
    """The same boxes as quads."""
    return [
        image
        | {"quads": xyxy_to_quads(torch.tensor(image["boxes"], dtype=torch.float64).view(-1, 4)).tolist()}
        for image in images
    ]


def draw_images(seed: int) -> tuple[list[dict], list[dict]]:
    """Random boxes of three concepts in six images, and detections: moved copies and others."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for _ in range(6):
        number = rng.integers(0, 7)
        corners = rng.uniform(0, 60, (number, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(5, 40, (number, 2))], axis=1)
        labels = rng.integers(0, 3, number)
        ignored = (rng.random(number) < 0.2).tolist()
        moved = boxes + rng.normal(0, 2, boxes.shape)
        others = np.tile(rng.uniform(0, 50, (4, 2)), 2) + [0, 0, 20, 20]
        names = np.concatenate([np.where(rng.random(number) < 0.8, labels, 0), rng.integers(0, 3, 4)])
        every = np.concatenate([moved, others])
        truth.append(truth_of(boxes.tolist(), labels.tolist(), ignored))
        scores = rng.choice([0.1, 0.2, 0.5, 0.7, 0.9], len(every))  # with ties
        found.append(found_of(every.tolist(), names.tolist(), scores.tolist()))
    return truth, found


def score_by_coco_files(truth, found, path, most: int) -> dict[str, float]:
    """Score through files, as one uses pycocotools."""
    annotations = []
    for i, image in enumerate(truth):
        for (x0, y0, x1, y1), label, ignored in zip(
            *(image[k] for k in ("boxes", "labels", "ignored")), strict=True
        ):
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": int(ignored)}
            annotations.append(box | {"id": len(annotations) + 1, "image_id": i, "category_id": label})
    results = [
        {"image_id": i, "category_id": label, "bbox": [x0, y0, x1 - x0, y1 - y0], "score": score}
        for i, image in enumerate(found)
        for (x0, y0, x1, y1), label, score in zip(
            *(image[k] for k in ("boxes", "labels", "scores")), strict=True
        )
    ]
    images, categories = [{"id": i} for i in range(len(truth))], [{"id": c} for c in range(3)]
    path.write_text(json.dumps({"images": images, "categories": categories, "annotations": annotations}))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.params.maxDets = [1, most]
        evaluation.evaluate()
        evaluation.accumulate()
    precision, recall = evaluation.eval["precision"][..., 0, -1], evaluation.eval["recall"][..., 0, -1]
    return {
        "mAP": precision[precision > -1].mean(),
        "AP50": precision[0][precision[0] > -1].mean(),
        "AP75": precision[5][precision[5] > -1].mean(),
        "AR": recall[recall > -1].mean(),
    }


def test_average_precision_is_worked_by_hand():
    # Two ships. The detections by score: right, wrong, right. Precision is 1 up to a recall of 0.5, and 2/3
    # up to 1. Of COCO's 101 recalls, 51 are at most 0.5.
    truth = [truth_of([[0, 0, 10, 10], [50, 50, 60, 60]], [0, 0])]
    found = [found_of([[0, 0, 10, 10], [20, 20, 30, 30], [50, 50, 60, 60]], [0, 0, 0], [0.9, 0.8, 0.7])]
    scores = score_detections(truth, found, ["ship"])
    assert scores["AP50"] == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)
    assert scores["mAP"] == pytest.approx(scores["AP50"]) and scores["AR"] == 1
    assert scores["per_concept"] == {"ship": scores["AP50"]} and scores["num_per_concept"] == {"ship": 2}


def test_a_loose_box_counts_up_to_its_overlap():
    truth, found = [truth_of([[0, 0, 10, 10]], [0])], [found_of([[0, 0, 10, 7.2]], [0], [0.5])]
    scores = score_detections(truth, found, ["ship"])  # an overlap of 0.72: 5 of 10 thresholds
    assert scores["AP50"] == pytest.approx(1) and scores["AP75"] == 0
    assert scores["mAP"] == pytest.approx(0.5)
    assert score_detections(orient(truth), orient(found), ["ship"], oriented=True)["mAP"] == pytest.approx(
        0.5
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("most", [2, 100])
def test_scores_are_those_of_pycocotools_and_upright_quads_score_as_boxes(seed, most, tmp_path):
    truth, found = draw_images(seed)
    scores = score_detections(truth, found, ["a", "b", "c"], max_detections=most)
    expected = score_by_coco_files(truth, found, tmp_path / "truth.json", most)
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    turned = score_detections(
        orient(truth), orient(found), ["a", "b", "c"], oriented=True, max_detections=most
    )
    assert {name: turned[name] for name in expected} == pytest.approx(expected, abs=1e-9)


def test_oriented_boxes_are_told_apart_where_the_boxes_around_them_are_equal():
    right, wrong = (
        torch.tensor(turn_box(20, 20, 40, 6, angle)).view(1, 4, 2).tolist()
        for angle in (np.pi / 4, -np.pi / 4)
    )
    truth = [{"quads": right, "labels": [0], "ignored": [False]}]
    for quads, expected in ((right, 1.0), (wrong, 0.0)):
        found = [{"quads": quads, "labels": [0], "scores": [0.5]}]
        assert score_detections(truth, found, ["ship"], oriented=True)["AP50"] == pytest.approx(expected)


def test_base_and_novel_concepts_are_scored_apart_and_absent_ones_not():
    truth = [truth_of([[0, 0, 10, 10], [20, 20, 30, 30]], [0, 1])]
    found = [found_of([[0, 0, 10, 10]], [0], [0.5])]
    scores = score_detections(truth, found, ["ship", "car", "plane"], novel=["car"])
    found = [scores[name] for name in ("AP50_base", "AP50_novel", "AP50")]
    assert found == pytest.approx([1, 0, 0.5])
    assert scores["per_concept"] == pytest.approx({"ship": 1, "car": 0})
    assert scores["num_boxes"] == 2 and scores["num_detections"] == 1 and scores["num_images"] == 1


def test_an_ignored_box_is_neither_found_nor_missed():
    truth = [truth_of([[0, 0, 10, 10], [50, 50, 60, 60]], [0, 0], [False, True])]
    every = found_of([[50, 50, 60, 60], [0, 0, 10, 10]], [0, 0], [0.9, 0.5])
    for found in (every, found_of([[0, 0, 10, 10]], [0], [0.5])):
        assert score_detections(truth, [found], ["ship"])["mAP"] == pytest.approx(1)


def test_what_cannot_be_scored_is_refused():
    one = truth_of([[0, 0, 1, 1]], [0])
    with refuses("1 images", "found those of 0"):
        score_detections([one], [], ["ship"])
    with refuses("no boxes"):
        score_detections([one | {"ignored": [True]}], [found_of([], [], [])], ["ship"])
    with refuses("'car'", "'ship'"):
        score_detections([one], [found_of([], [], [])], ["ship"], novel=["car"])


# The evaluator


@pytest.fixture(scope="module")
def some_rows(toy_rows) -> Dataset:
    return build_rows([row | {"quads": []} for row in toy_rows[:3]])


def test_an_evaluator_scores_the_detections_that_it_saves(built, some_rows, tmp_path):
    evaluator = DetectionEvaluator(some_rows, arrays_path=tmp_path / "boxes.npz")
    evaluator.proposals = [Proposals(row["boxes"]) for row in some_rows]
    scores = evaluator(Embedder(*built))
    saved = np.load(tmp_path / "boxes.npz")
    assert len(saved["boxes"]) == len(saved["images"]) == scores["num_detections"] > 0
    assert scores["num_proposals"] == sum(map(len, some_rows["boxes"])) == scores["num_boxes"]
    concepts = scores["protocol"]["concepts"]
    truth = [
        truth_of(row["boxes"], [concepts.index(concept) for concept in row["concepts"]]) for row in some_rows
    ]
    found = [
        {name: saved[name][saved["images"] == i] for name in ("boxes", "labels", "scores")} for i in range(3)
    ]
    again = score_detections(truth, found, concepts)
    assert {name: scores[name] for name in ("mAP", "AP50", "AR")} == {
        name: again[name] for name in ("mAP", "AP50", "AR")
    }
    assert 0 <= scores[evaluator.primary_metric] <= 1
    protocol = scores["protocol"]
    assert protocol["proposals"] == "given" and protocol["options"]["threshold"] == 0.01
    assert protocol["region_source"] == "image" and protocol["versions"]["geoalign_hf"]


def test_difficult_regions_are_ignored(built, some_rows):
    marks = [[True] + [False] * (len(boxes) - 1) for boxes in some_rows["boxes"]]
    marked = build_rows(
        row | {"difficult": mark, "quads": []} for row, mark in zip(some_rows, marks, strict=True)
    )
    scores = DetectionEvaluator(marked, [Proposals([])] * 3)(*built)
    assert scores["num_boxes"] == sum(map(len, some_rows["boxes"])) - 3 and scores["AP50"] == 0


def test_an_evaluator_scores_oriented_boxes(built, toy_rows):
    quads = [xyxy_to_quads(torch.tensor(row["boxes"], dtype=torch.float64)) for row in toy_rows[:2]]
    oriented = build_rows(row | {"quads": part.tolist()} for row, part in zip(toy_rows, quads, strict=False))
    given = [Proposals(row["boxes"], quads=part) for row, part in zip(toy_rows, quads, strict=False)]
    scores = DetectionEvaluator(oriented, given, oriented=True)(*built)
    assert scores["protocol"]["oriented"] and scores["AR"] > 0
    with refuses("oriented", "proposals with quads"):
        DetectionEvaluator(oriented, [Proposals(row["boxes"]) for row in toy_rows[:2]], oriented=True)
    with refuses("oriented", "quads", "[0, 1]"):
        DetectionEvaluator(build_rows(row | {"quads": []} for row in toy_rows[:2]), given, oriented=True)


def test_a_calibration_makes_the_targets_more_probable(built, some_rows):
    from geoalign_hf.detection.calibration import match_proposals
    from geoalign_hf.detection.detector import Detector
    from geoalign_hf.model.detection_geoalign_clip import score_labels

    embedder = Embedder(*built)
    evaluator = DetectionEvaluator(some_rows, options=DetectionOptions(sides=[30]))
    fitted = evaluator.calibrate(embedder)
    detector = Detector(embedder, evaluator.concepts, evaluator.options)

    def measure(**calibration) -> float:
        total = 0.0
        for row in some_rows:
            given = detector.propose(row["image"])
            labels = torch.tensor([evaluator.concepts.index(concept) for concept in row["concepts"]])
            targets = match_proposals(given, torch.tensor(row["boxes"]), labels, len(evaluator.concepts))
            scores = score_labels(detector.compare(row["image"], given), detector.vocabulary, **calibration)
            scores = torch.cat([scores, 1 - scores.sum(dim=1, keepdim=True)], dim=1)
            used = targets != -100
            total += scores[used, targets[used]].clamp(min=1e-12).log().sum().item()
        return total

    assert measure(**fitted) > measure()


def test_wrong_arguments_are_refused(some_rows):
    with refuses("3 rows", "found 1"):
        DetectionEvaluator(some_rows, [Proposals([])])
    with refuses("'nothing'"):
        DetectionEvaluator(some_rows, novel=["nothing"])
    with refuses("['ship']"):
        DetectionEvaluator(some_rows, concepts=["ship"])
