"""Laws of detection: windows cover the image, labels share probability, overlaps are suppressed by label."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask
from refusals import refuses

from geoalign_hf.model.detection_geoalign_clip import (
    BACKGROUND,
    build_vocabulary,
    choose_detections,
    list_windows,
    measure_box_ious,
    score_labels,
    suppress_overlaps,
)

corner = st.floats(-50, 50, width=32)
side = st.floats(0.5, 60, width=32)
box = st.tuples(corner, corner, side, side).map(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]])
boxes = st.lists(box, min_size=1, max_size=8)


def as_boxes(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Windows


@given(st.integers(1, 90), st.integers(1, 90), st.floats(1, 120), st.sampled_from([0, 0.3, 0.5, 0.75]))
@settings(max_examples=60)
def test_windows_cover_the_image_lie_inside_it_and_overlap_as_asked(width, height, side, overlap):
    windows = list_windows((width, height), [side], overlap)
    extents = [min(side, width), min(side, height)]
    assert windows.min() >= 0 and (windows <= torch.tensor([width, height] * 2)).all()
    torch.testing.assert_close(
        windows[:, 2:] - windows[:, :2], torch.tensor([extents]).expand(len(windows), 2).double()
    )
    for axis, length in ((0, width), (1, height)):
        starts = windows[:, axis].unique()
        assert starts[0] == 0 and starts[-1] + extents[axis] == pytest.approx(length)
        if len(starts) > 1:
            assert (starts.diff() <= extents[axis] * (1 - overlap) + 1e-6).all()


def test_windows_are_by_default_of_four_sizes_that_follow_the_image():
    windows = list_windows((320, 160))
    assert (windows[:, 2] - windows[:, 0]).unique().tolist() == [20, 40, 80, 160]
    assert (list_windows((3, 2))[:, 2:] == torch.tensor([3, 2])).all()


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"sides": []}, ["sides", "[]"]),
        ({"sides": [20, -1]}, ["sides", "-1"]),
        ({"sides": [math.nan]}, ["sides", "nan"]),
        ({"overlap": 1}, ["overlap", "1"]),
    ],
)
def test_impossible_windows_are_refused(options, facts):
    with refuses(*facts):
        list_windows((40, 40), **options)


# Scores


def test_the_words_of_labels_and_background_are_listed_with_their_owners():
    vocabulary = build_vocabulary(["ship", "water"], {"ship": ["vessel"]})
    assert vocabulary.words == ["ship", "vessel", "water", *(word for word in BACKGROUND if word != "water")]
    assert vocabulary.owners == [0, 0, 1, 2, 2, 2, 2]
    assert build_vocabulary(["ship"], background_labels=[]).words == ["ship"]


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (([],), ["candidate_labels"]),
        (("ship",), ["candidate_labels", "'ship'"]),
        ((["ship", " "],), ["candidate_labels", "' '"]),
        ((["ship", "ship"],), ["'ship'"]),
        ((["ship"], {"car": ["auto"]}), ["'car'", "'ship'"]),
        ((["ship"], {"ship": "vessel"}), ["synonyms", "'vessel'"]),
        ((["ship", "boat"], {"ship": ["boat"]}), ["'boat'"]),
        ((["ship"], None, ["ship"]), ["'ship'"]),
    ],
)
def test_words_that_cannot_be_told_apart_are_refused(arguments, facts):
    with refuses(*facts):
        build_vocabulary(*arguments)


def test_a_probability_is_worked_by_hand():
    vocabulary = build_vocabulary(["ship", "car"], {"ship": ["vessel"]}, ["sea", "land"])
    logits = torch.log(torch.tensor([[1.0, 4.0, 2.0, 3.0, 1.0]]))  # ship, vessel, car, sea, land
    torch.testing.assert_close(score_labels(logits, vocabulary), torch.tensor([[4 / 9, 2 / 9]]))
    even = score_labels(logits, vocabulary, temperature=2.0)
    total = 2 + math.sqrt(2) + math.sqrt(3)
    torch.testing.assert_close(even, torch.tensor([[2 / total, math.sqrt(2) / total]]))
    dark = score_labels(logits, vocabulary, background_bias=math.log(2))
    torch.testing.assert_close(dark, torch.tensor([[4 / 12, 2 / 12]]))
    alone = score_labels(logits[:, :3], build_vocabulary(["ship", "car"], {"ship": ["vessel"]}, []))
    torch.testing.assert_close(alone, torch.tensor([[4 / 6, 2 / 6]]))
    with refuses("temperature", "0"):
        score_labels(logits, vocabulary, temperature=0.0)


# Overlaps


@given(boxes, boxes)
@settings(max_examples=60)
def test_ious_are_symmetric_in_the_unit_range_and_those_of_pycocotools(first, second):
    first, second = as_boxes(first), as_boxes(second)
    ious = measure_box_ious(first, second)
    torch.testing.assert_close(ious, measure_box_ious(second, first).T)
    assert ((ious >= 0) & (ious <= 1 + 1e-12)).all()
    torch.testing.assert_close(measure_box_ious(first, first).diagonal(), torch.ones(len(first)).double())
    xywh = [torch.cat([part[:, :2], part[:, 2:] - part[:, :2]], dim=1).numpy() for part in (first, second)]
    expected = mask.iou(*xywh, np.zeros(len(second), dtype=np.uint8))
    np.testing.assert_allclose(ious.numpy(), expected, atol=1e-9)


@given(boxes, st.data())
@settings(max_examples=60)
def test_chosen_regions_do_not_overlap_and_every_other_one_overlaps_a_better_one(values, data):
    regions = as_boxes(values)
    scores = torch.tensor(
        data.draw(st.lists(st.sampled_from([0.1, 0.5, 0.9]), min_size=len(values), max_size=len(values)))
    )
    chosen = suppress_overlaps(regions, scores, 0.4)
    ious = measure_box_ious(regions, regions)
    assert (scores[chosen].diff() <= 0).all()
    assert (ious[chosen][:, chosen] - torch.eye(len(chosen)).double() <= 0.4).all()
    for r in set(range(len(values))) - set(chosen.tolist()):
        assert any(ious[r, c] > 0.4 and scores[c] >= scores[r] for c in chosen)
    assert torch.equal(suppress_overlaps(regions[chosen], scores[chosen], 0.4), torch.arange(len(chosen)))


def test_detections_of_different_labels_may_overlap_and_the_best_are_kept():
    regions = as_boxes([[0, 0, 10, 10], [0, 0, 10, 11], [50, 50, 60, 60]])
    scores = torch.tensor([[0.6, 0.3], [0.5, 0.4], [0.05, 0.9]])
    found, labels = choose_detections(regions, scores, threshold=0.1, max_iou=0.5)
    assert list(zip(found.tolist(), labels.tolist(), strict=True)) == [(2, 1), (0, 0), (1, 1)]
    found, labels = choose_detections(regions, scores, threshold=0.1, max_iou=0.5, top_k=1)
    assert found.tolist() == [2]
    found, labels = choose_detections(regions, scores, threshold=0.95, max_iou=0.5)
    assert len(found) == len(labels) == 0
