"""Laws of the figures: they show the data that they were drawn from."""

import numpy as np
from PIL import Image

from geoalign_hf.evaluation.figures import draw_confusion, draw_score_map


def read(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def count_blue(pixels: np.ndarray) -> int:
    """Count the pixels with the blue that marks the fraction 1."""
    return int((np.abs(pixels - (8, 48, 107)).max(axis=-1) < 6).sum())


def test_a_concept_that_is_always_correct_is_dark_and_one_that_never_occurs_is_light(tmp_path):
    draw_confusion([[5, 0], [0, 7]], ["ship", "bridge"], tmp_path / "new" / "both.png")
    draw_confusion([[5, 0], [0, 0]], ["ship", "bridge"], tmp_path / "one.png")
    both, one = count_blue(read(tmp_path / "new" / "both.png")), count_blue(read(tmp_path / "one.png"))
    assert one > 1000 and 1.8 < both / one < 2.2


def test_more_concepts_make_a_larger_figure(tmp_path):
    for C in (3, 40):
        draw_confusion(np.eye(C, dtype=int).tolist(), [f"c{c}" for c in range(C)], tmp_path / f"{C}.png")
    assert Image.open(tmp_path / "40.png").width > 2 * Image.open(tmp_path / "3.png").width


def test_the_map_is_drawn_over_its_picture(tmp_path):
    image = Image.new("RGB", (400, 200), "white")
    values = np.zeros((20, 40))
    values[:, 20:] = 1
    truth = [[[20, 20], [180, 20], [180, 180], [20, 180]]]
    draw_score_map(image, values, "a ship", tmp_path / "map.png", truth)
    pixels = read(tmp_path / "map.png")
    height, width = pixels.shape[:2]
    low, high = pixels[height // 2, width // 3], pixels[height // 2, 3 * width // 4]
    assert low[2] > low[0] and high[0] > high[2]  # blue where nothing is, red where the phrase is true
    draw_score_map(image, values, "a ship", tmp_path / "bare.png")
    assert (read(tmp_path / "bare.png") != pixels).any()
