"""Laws of the overlap of oriented boxes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geoalign_hf.detection.overlap import measure_quad_ious
from geoalign_hf.model.detection_geoalign_clip import measure_box_ious, suppress_overlaps
from geoalign_hf.model.regions_geoalign_clip import xyxy_to_quads
from geoalign_hf.readers.base import turn_box

center, side = st.floats(-40, 40), st.floats(1, 60)
quad = st.builds(turn_box, center, center, side, side, st.floats(0, math.pi))
quads = st.lists(quad, min_size=1, max_size=6).map(
    lambda values: torch.tensor(values, dtype=torch.float64).view(-1, 4, 2)
)
boxes = st.lists(st.tuples(center, center, side, side), min_size=1, max_size=6).map(
    lambda values: torch.tensor([[x, y, x + w, y + h] for x, y, w, h in values], dtype=torch.float64)
)


@given(quads, quads, st.floats(0, math.pi))
@settings(max_examples=25)
def test_overlaps_are_symmetric_in_the_unit_range_and_the_same_in_a_turned_picture(first, second, angle):
    ious = measure_quad_ious(first, second)
    assert ((ious >= 0) & (ious <= 1 + 1e-9)).all()
    torch.testing.assert_close(ious, measure_quad_ious(second, first).T)
    torch.testing.assert_close(measure_quad_ious(first, first).diagonal(), torch.ones(len(first)).double())
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]).double()
    torch.testing.assert_close(measure_quad_ious(first @ turn, second @ turn), ious, atol=1e-6, rtol=0)


@given(boxes, boxes)
@settings(max_examples=25)
def test_upright_quads_overlap_as_boxes(first, second):
    ious = measure_quad_ious(xyxy_to_quads(first), xyxy_to_quads(second))
    torch.testing.assert_close(ious, measure_box_ious(first, second), atol=1e-9, rtol=0)


def test_a_square_and_itself_turned_by_45_degrees_share_an_octagon():
    square, turned = (torch.tensor(turn_box(0, 0, 1, 1, angle)).view(1, 4, 2) for angle in (0, math.pi / 4))
    octagon = 2 * (math.sqrt(2) - 1)
    assert measure_quad_ious(square, turned).item() == pytest.approx(octagon / (2 - octagon))


def test_crossed_oriented_boxes_are_both_kept_although_the_boxes_around_them_are_equal():
    crossed = [turn_box(20, 20, 40, 4, angle) for angle in (math.pi / 4, 3 * math.pi / 4)]
    regions = torch.tensor([*crossed, turn_box(21, 21, 40, 4, math.pi / 4)], dtype=torch.float64).view(
        -1, 4, 2
    )
    chosen = suppress_overlaps(regions, torch.tensor([0.9, 0.8, 0.7]), 0.5, measure_quad_ious)
    assert chosen.tolist() == [0, 1]
