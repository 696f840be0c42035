"""The detector on painted pictures: painted boxes are found and named, whatever proposes them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from painted import ColourModel, paint
from refusals import refuses
from transformers import CLIPModel, CLIPProcessor

from geoalign_hf.detection.calibration import fit_calibration, match_proposals
from geoalign_hf.detection.detector import DetectionOptions, Detector
from geoalign_hf.detection.peaks import find_boxes
from geoalign_hf.detection.proposals import Proposals
from geoalign_hf.embedding.embedder import Embedder
from geoalign_hf.model.detection_geoalign_clip import build_vocabulary, score_labels
from geoalign_hf.readers.base import turn_box

SIZE = (128, 128)
RED, GREEN = (16, 16, 48, 48), (72, 80, 104, 112)
# The logits of painted squares are about 13, those of the grey ground below 9, and those of the word grey 0.
OPTIONS = DetectionOptions(background_labels=["grey"], background_bias=10.8, threshold=0.5)


class ScaledColourModel(ColourModel):
    """A colour model with the scale of CLIP."""

    def region_scale(self):
        return torch.tensor(20.0)


@pytest.fixture(scope="module")
def embedder(processor):
    return Embedder(ScaledColourModel(processor), processor)


@pytest.fixture(scope="module")
def picture():
    return paint(SIZE, (RED, "red"), (GREEN, "green"))


def name(detections, labels) -> list[str]:
    return [labels[number] for number in detections.labels.tolist()]


def test_proposals_are_named_and_the_background_is_left_out(embedder, picture):
    detector = Detector(embedder, ["red", "green"], OPTIONS)
    given = Proposals([RED, GREEN, (0, 60, 30, 90)], [0.9, 1.0, 1.0])
    detections = detector(picture, given)
    assert name(detections, ["red", "green"]) == ["green", "red"]
    assert detections.boxes.tolist() == [list(GREEN), list(RED)]
    assert detections.quads is None


def test_the_score_is_a_power_of_the_objectness_times_the_probability(embedder, picture):
    given = Proposals([RED], [0.25])
    scores = {}
    for weight in (0.0, 0.5, 1.0):
        options = replace(OPTIONS, objectness_weight=weight, threshold=0.0)
        scores[weight] = Detector(embedder, ["red"], options)(picture, given).scores.item()
    detector = Detector(embedder, ["red"], OPTIONS)
    probability = score_labels(detector.compare(picture, given), detector.vocabulary, background_bias=10.8)
    assert scores[0.0] == pytest.approx(probability.item())
    assert scores[0.5] == pytest.approx(scores[0.0] * 0.5) and scores[1.0] == pytest.approx(
        scores[0.0] * 0.25
    )


def test_a_synonym_finds_what_its_label_does_not_name(embedder, picture):
    given = Proposals([RED])
    assert not len(Detector(embedder, ["ship"], OPTIONS)(picture, given).labels)
    detections = Detector(embedder, ["ship"], OPTIONS, {"ship": ["red vessel"]})(picture, given)
    assert name(detections, ["ship"]) == ["ship"]


@pytest.mark.parametrize("proposer", ["grid", "peaks", "both"])
def test_without_proposals_painted_squares_are_found(embedder, picture, proposer):
    options = replace(OPTIONS, proposer=proposer, sides=[32], overlap=0.75, max_iou=0.2, top_k=10)
    detections = Detector(embedder, ["red", "green"], options)(picture)
    centers = (detections.boxes[:, :2] + detections.boxes[:, 2:]) / 2
    for label, (x0, y0, x1, y1) in enumerate((RED, GREEN)):  # the toy model sees the centre of a box alone
        found = centers[detections.labels == label]
        assert len(found)
        assert ((found >= torch.tensor([x0, y0])) & (found <= torch.tensor([x1, y1]))).all(), (label, found)


def test_oriented_proposals_give_oriented_detections(built):
    embedder, row = Embedder(*built), paint((200, 200), ((20, 20, 150, 150), "red"))
    quads = torch.tensor([turn_box(80, 80, 90, 20, angle) for angle in (0.3, 0.3, 1.8)]).view(-1, 4, 2)
    around = torch.cat([quads.amin(dim=1), quads.amax(dim=1)], dim=1)
    detector = Detector(embedder, ["ship"], DetectionOptions(threshold=0.0))
    detections = detector(row, Proposals(around, quads=quads))
    assert len(detections.quads) == 2  # the first two are equal, and the third crosses them
    upright = detector.compare(row, Proposals(around))
    assert not torch.allclose(detector.compare(row, Proposals(around, quads=quads)), upright)


@pytest.mark.parametrize("view", ["image", "window"])
def test_quads_that_are_upright_are_compared_as_boxes(built, toy_rows, view):
    import copy

    model = copy.deepcopy(built[0])
    model.config.region_view = view
    detector, row = Detector(Embedder(model, built[1]), ["ship", "road"]), toy_rows[0]
    boxes = torch.tensor(row["boxes"]).round()
    quads = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].view(-1, 4, 2)
    found = detector.compare(row["image"], Proposals(boxes, quads=quads))
    torch.testing.assert_close(
        found, detector.compare(row["image"], Proposals(boxes)), atol=1.5, rtol=0
    )  # of 14


def test_a_stock_clip_names_crops(folder, built, toy_rows, tmp_path):
    clip = CLIPModel.from_pretrained(folder)
    embedder = Embedder(clip, CLIPProcessor(built[1].image_processor, built[1].tokenizer))
    row, options = toy_rows[0], DetectionOptions(threshold=0.0, max_iou=1.0)
    detector = Detector(embedder, ["ship"], options)
    assert detector.scale == pytest.approx(clip.logit_scale.exp().item())
    assert len(detector(row["image"], Proposals(row["boxes"])).scores) == len(row["boxes"])


def test_an_image_without_proposals_has_no_detections(embedder, picture):
    detections = Detector(embedder, ["red"], OPTIONS)(picture, Proposals([]))
    assert len(detections.boxes) == len(detections.scores) == 0


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"temperature": 0}, ["temperature is 0"]),
        ({"objectness_weight": -1}, ["objectness_weight -1"]),
        ({"top_k": 0}, ["top_k 0"]),
        ({"threshold": 1.5}, ["threshold is 1.5"]),
        ({"max_iou": -0.1}, ["max_iou -0.1"]),
        ({"templates": "none"}, ["'none'"]),
    ],
)
def test_impossible_options_are_refused(options, facts):
    with refuses(*facts):
        DetectionOptions(**options)


# Peaks


def test_a_peak_gives_boxes_of_the_connected_area_above_shares_of_it():
    values = np.zeros((6, 8))
    values[1:4, 1:4], values[2, 2] = 0.6, 1.0
    values[2, 6] = 0.9  # another peak, not connected
    assert find_boxes(values, least=0.95, most=5) == {(1, 1, 4, 4), (2, 2, 3, 3)}
    assert find_boxes(values, least=0.5, most=1) == {(1, 1, 4, 4), (2, 2, 3, 3)}
    assert find_boxes(values, least=0.5, most=2) == {(1, 1, 4, 4), (2, 2, 3, 3), (6, 2, 7, 3)}
    assert find_boxes(values, least=2.0, most=2) == set()


# Calibration


def test_a_calibration_finds_the_temperature_and_the_bias_that_made_the_targets():
    vocabulary = build_vocabulary(["a", "b", "c"], background_labels=["none"])
    generator = torch.Generator().manual_seed(0)
    logits = 6 * torch.randn(6000, 4, generator=generator)
    scores = score_labels(logits, vocabulary, temperature=2.5, background_bias=1.5)
    scores = torch.cat([scores, 1 - scores.sum(dim=1, keepdim=True)], dim=1).clamp(min=0)
    targets = torch.multinomial(scores, 1, generator=generator)[:, 0]
    targets[::10] = -100  # these tell nothing
    fitted = fit_calibration([(logits[:100], targets[:100]), (logits[100:], targets[100:])], vocabulary)
    assert fitted["temperature"] == pytest.approx(2.5, rel=0.06)
    assert fitted["background_bias"] == pytest.approx(1.5, abs=0.15)


def test_without_a_background_only_objects_are_fitted():
    vocabulary = build_vocabulary(["a", "b"], background_labels=[])
    logits = torch.tensor([[2.0, 0.0]] * 10)
    targets = torch.tensor([0] * 6 + [1] * 2 + [2] * 2)  # the last two are background
    fitted = fit_calibration([(logits, targets)], vocabulary)
    assert fitted["temperature"] == pytest.approx(2 / math.log(3), rel=1e-3)  # 3 of 4 are right
    with refuses("nothing to fit"):
        fit_calibration([(logits[8:], targets[8:])], vocabulary)


def test_proposals_are_matched_by_their_overlap():
    given = Proposals([[0, 0, 10, 10], [0, 0, 10, 6], [0, 0, 10, 4], [20, 20, 30, 30]])
    boxes, labels = torch.tensor([[0, 0, 10, 10], [40, 40, 50, 50]]), torch.tensor([1, 0])
    assert match_proposals(given, boxes, labels, 2).tolist() == [1, 1, -100, 2]
    assert match_proposals(given, boxes[:0], labels[:0], 2).tolist() == [2] * 4
