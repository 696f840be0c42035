"""Proposals: read from COCO's format of results, and refused with their place."""

import json

import pytest
import torch
from refusals import refuses

from geoalign_hf.detection.proposals import Proposals, join_proposals, propose_grid, read_proposals

DIAMOND = [5, 0, 10, 5, 5, 10, 0, 5]


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "proposals.json"
        path.write_text(json.dumps(content))
        return path

    return write


def test_proposals_are_grouped_by_image_in_the_order_of_the_file(write):
    path = write(
        [
            {"image_id": 7, "bbox": [1, 2, 10, 20], "score": 0.5, "category_id": 1},
            {"image_id": 8, "bbox": [0, 0, 4, 4]},
            {"image_id": 7, "bbox": [3, 3, 1, 1], "score": 1},
        ]
    )
    found = read_proposals(path, [7, 8, 9])
    assert found[7].boxes.tolist() == [[1, 2, 11, 22], [3, 3, 4, 4]]
    assert found[7].objectness.tolist() == [0.5, 1] and found[8].objectness.tolist() == [1]
    assert len(found[9]) == 0 and found[7].quads is None


def test_the_annotations_of_a_coco_file_are_proposals_too(write):
    path = write(
        {"images": [], "annotations": [{"image_id": "a.png", "bbox": [0, 0, 2, 2]}], "categories": []}
    )
    assert read_proposals(path, ["a.png"])["a.png"].boxes.tolist() == [[0, 0, 2, 2]]


@pytest.mark.parametrize("polygon", [DIAMOND, [DIAMOND]])
def test_oriented_proposals_are_the_polygons_of_the_segmentation(write, polygon):
    path = write([{"image_id": 1, "bbox": [0, 0, 9, 9], "segmentation": polygon}])
    found = read_proposals(path, [1, 2], oriented=True)
    assert found[1].quads.tolist() == [[[5, 0], [10, 5], [5, 10], [0, 5]]]
    assert found[1].boxes.tolist() == [[0, 0, 10, 10]]
    assert found[2].quads.shape == (0, 4, 2)


@pytest.mark.parametrize(
    ("entry", "facts"),
    [
        ({"bbox": [0, 0, 1, 1]}, ["entry 1", "image_id"]),
        (5, ["entry 1", "image_id"]),
        ({"image_id": 3, "bbox": [0, 0, 1, 1]}, ["entry 1", "image 3", "1, 2"]),
        ({"image_id": [1], "bbox": [0, 0, 1, 1]}, ["entry 1", "image [1]"]),
        ({"image_id": 1, "bbox": [0, 0, 1]}, ["entry 1", "bbox", "4 numbers"]),
        ({"image_id": 1, "bbox": [0, 0, 1, "1"]}, ["entry 1", "bbox", "4 numbers"]),
        ({"image_id": 1, "bbox": [0, 0, 1, 1], "score": 1.5}, ["entry 1", "score 1.5", "0 to 1"]),
        ({"image_id": 1, "bbox": [0, 0, 1, 1], "score": None}, ["entry 1", "score None"]),
    ],
)
def test_an_entry_that_is_no_proposal_is_refused_with_its_place(write, entry, facts):
    path = write([{"image_id": 1, "bbox": [0, 0, 1, 1]}, entry])
    with refuses(str(path), *facts):
        read_proposals(path, [1, 2])


def test_a_file_of_another_kind_is_refused(write):
    for content in ({"images": []}, 5):
        with refuses("proposals.json", "annotations"):
            read_proposals(write(content), [1])
    with refuses("entry 0", "segmentation", "8 numbers"):
        read_proposals(write([{"image_id": 1, "bbox": [0, 0, 1, 1]}]), [1], oriented=True)


def test_proposals_have_one_objectness_each_between_0_and_1():
    with refuses("[1, 2]"):
        Proposals([[0, 0, 1, 1]], [0.5, 0.5])
    for value in (1.1, float("nan")):
        with refuses("0 to 1"):
            Proposals([[0, 0, 1, 1]], [value])


def test_two_kinds_of_proposals_are_joined():
    grid, other = propose_grid((30, 20), [20]), Proposals([[1, 1, 2, 2]], [0.5])
    joined = join_proposals(grid, other)
    assert torch.equal(joined.boxes, torch.cat([grid.boxes, other.boxes]))
    assert joined.objectness.tolist() == [1, 1, 0.5]
