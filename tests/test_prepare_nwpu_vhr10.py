"""The script that turns NWPU VHR-10 into COCO files keeps images of the same ground in one split."""

import json

import cv2
import numpy as np
import pytest
from prepare_nwpu_vhr10 import CONCEPTS, group_images, read_boxes, split_groups, write_coco


def draw_ground(seed: int) -> np.ndarray:
    """Draw a textured ground that SIFT finds features on."""
    noise = np.random.default_rng(seed).normal(size=(300, 300, 3))
    smooth = sum(cv2.GaussianBlur(noise, (0, 0), sigma) * sigma for sigma in (2, 4, 8))
    return np.uint8(128 + 40 * smooth / smooth.std()).clip(0, 255)


def test_overlapping_and_turned_copies_are_one_group_and_other_images_are_not(tmp_path):
    ground = draw_ground(0)
    turn = cv2.getRotationMatrix2D((150, 150), 30, 1.0)
    images = [
        ground[:, :220],
        draw_ground(1),
        ground[:, 80:],
        draw_ground(2),
        cv2.warpAffine(ground, turn, (300, 300)),
    ]
    paths = [tmp_path / f"{number}.png" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        cv2.imwrite(str(path), image)
    assert sorted(map(len, group_images(paths))) == [1, 1, 3]
    assert [paths[0], paths[2], paths[4]] in group_images(paths)


def test_a_group_stays_in_one_split_and_every_image_is_in_one(tmp_path):
    groups = [[tmp_path / f"{g}_{i}.jpg" for i in range(1 + g % 3)] for g in range(30)]
    boxes = {path: [(1 + g % 10, [0, 0, 5, 5])] for g, group in enumerate(groups) for path in group}
    splits = split_groups(groups, boxes, seed=0)
    assert splits == split_groups(groups[::-1], boxes, seed=0)
    assert sorted(sum(splits.values(), [])) == sorted(boxes)
    assert all(any(set(group) <= set(paths) for paths in splits.values()) for group in groups)
    assert len(splits["train"]) > len(splits["test"]) > 5


def test_boxes_are_read_as_written_and_other_lines_are_named(tmp_path):
    path = tmp_path / "001.txt"
    path.write_text("(563,478),(630,573),1 \n( 3, 4),( 9, 8), 10\n\n")
    assert read_boxes(path) == [(1, [563, 478, 630, 573]), (10, [3, 4, 9, 8])]
    cv2.imwrite(str(tmp_path / "001.jpg"), draw_ground(0))
    image = tmp_path / "001.jpg"
    write_coco([image], {image: read_boxes(path)}, tmp_path / "a.json", [[tmp_path / "000.jpg"], [image]])
    coco = json.loads((tmp_path / "a.json").read_text())
    assert [entry["bbox"] for entry in coco["annotations"]] == [[563, 478, 67, 95], [3, 4, 6, 4]]
    size = {"width": 300, "height": 300}
    assert coco["images"] == [{"id": 1, "file_name": "001.jpg", "overlap_group": 2} | size]
    assert [entry["name"] for entry in coco["categories"]] == list(CONCEPTS)
    path.write_text("(563,478),(630,573),11")
    with pytest.raises(ValueError, match="001.txt line 1 is .*11"):
        read_boxes(path)
