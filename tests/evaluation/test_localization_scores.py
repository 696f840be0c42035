"""Laws of the scores of localisation: hand-worked maps, and plain loops as the second implementation."""

import numpy as np
import pytest
from refusals import refuses
from scipy import ndimage

from geoalign_hf.evaluation.metrics.localization import (
    Truth,
    filter_median,
    find_peaks,
    masks_to_truth,
    normalize_map,
    polygons_to_truth,
    score_localization,
)


def make_truth(shape, *centers, radius=20.0, half=5) -> Truth:
    """Squares of 2 * half cells around centers x, y."""
    mask = np.zeros(shape, dtype=bool)
    for x, y in centers:
        mask[y - half : y + half, x - half : x + half] = True
    return Truth(mask, np.array(centers, dtype=float), np.full(len(centers), radius))


# Filters


@pytest.mark.parametrize("shape", [(1, 1), (5, 40), (37, 23)])
@pytest.mark.parametrize("side", [1, 3, 9, 31])
def test_medians_are_those_of_scipy(shape, side):
    values = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    assert (filter_median(values, side) == ndimage.median_filter(values, side, mode="nearest")).all()


# Maps


def test_a_map_is_stretched_to_0_to_1_in_256_steps():
    ramp = np.linspace(-0.3, 0.2, 1024).reshape(32, 32)
    stretched = normalize_map(ramp, stride=251)  # a median of one cell
    assert stretched.min() == 0 and stretched.max() == 1
    np.testing.assert_allclose(stretched, (ramp + 0.3) / 0.5, atol=0.5 / 255 + 1e-9)
    assert len(np.unique(stretched)) == 256
    assert (normalize_map(np.full((4, 4), 0.7)) == 0).all()


def test_the_median_removes_small_details():
    scores = np.zeros((40, 40))
    scores[:20], scores[30, 30] = 0.5, 1.0
    values = normalize_map(scores, stride=50)  # a median of 5 x 5 cells
    assert values[30, 30] == 0 and values[5, 5] == pytest.approx(0.5, abs=0.01)


def test_jpeg_changes_a_map_little():
    scores = ndimage.gaussian_filter(np.random.default_rng(0).random((64, 64)), 6)
    plain, lossy = normalize_map(scores, 251), normalize_map(scores, 251, through_jpeg=True)
    assert 0 < np.abs(plain - lossy).max() < 0.05


def test_peaks_are_at_the_hills_and_low_hills_are_not_peaks():
    y, x = np.mgrid[:120, :200] + 0.5
    hills = [(40, 30, 1.0), (150, 80, 0.8), (90, 100, 0.3)]
    values = sum(height * np.exp(-((x - a) ** 2 + (y - b) ** 2) / 200) for a, b, height in hills)
    peaks = find_peaks(values, stride=25)  # means over 2 x 2 cells, maxima over 40 x 40
    # Five means over 2 x 2 cells move a hill by half a cell each.
    np.testing.assert_allclose(peaks, [(42.5, 32.5), (152.5, 82.5)], atol=1)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("stride", [16, 10])
def test_peaks_are_those_of_plain_loops(seed, stride):
    """Means over squares of cells, mirrored at the edge; maxima over larger squares, cut at the edge."""
    values = np.random.default_rng(seed).random((30, 90))
    smooth, side = values, round(50 / stride)
    for _ in range(5):
        padded = np.pad(smooth, (side // 2, side - 1 - side // 2), mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side))
        smooth = windows.mean(axis=(2, 3))
    reach, peaks = round(1000 / stride), set()
    for y, x in np.ndindex(smooth.shape):
        top, left = max(0, y - reach // 2), max(0, x - reach // 2)
        square = smooth[top : y - reach // 2 + reach, left : x - reach // 2 + reach]
        if smooth[y, x] == square.max() and values[y, x] >= 0.5:
            peaks.add((x + 0.5, y + 0.5))
    assert {tuple(peak) for peak in find_peaks(values, stride).tolist()} == peaks


def test_a_plateau_is_one_peak_in_the_middle_of_its_box():
    values = np.zeros((40, 60))
    values[10:25, 20:50] = 1.0
    values[10:15, 20:30] = 0.9  # smoothed, what is at least 10 cells inside still has the full height
    (peak,) = find_peaks(values, stride=10).tolist()
    assert 30 <= peak[0] <= 45 and 14 <= peak[1] <= 22


def test_an_empty_map_has_no_peaks():
    assert find_peaks(np.zeros((20, 20)), stride=10).shape == (0, 2)


# Truth


def test_a_polygon_covers_the_cells_whose_centers_it_contains():
    truth = polygons_to_truth([[[1, 1], [4, 1], [4, 3], [1, 3]]], (5, 6))
    expected = np.zeros((5, 6), dtype=bool)
    expected[1:3, 1:4] = True
    assert (truth.mask == expected).all()
    assert truth.centers.tolist() == [[2.5, 2.0]]
    assert truth.radii[0] == pytest.approx(1.5 * np.hypot(1.5, 1))


def test_polygons_and_their_masks_agree():
    boxes = [[[0, 0], [6, 0], [6, 8], [0, 8]], [[10, 2], [16, 2], [16, 4], [10, 4]]]
    drawn = polygons_to_truth(boxes, (12, 20))
    masks = np.stack([polygons_to_truth([box], (12, 20)).mask for box in boxes])
    masked = masks_to_truth(masks)
    for one, other in zip(drawn, masked, strict=True):
        np.testing.assert_allclose(one, other)


def test_a_triangle_covers_half_and_parts_outside_the_picture_are_cut():
    triangle = polygons_to_truth([[[0, 0], [200, 0], [0, 100]]], (100, 200))
    assert triangle.mask.mean() == pytest.approx(0.5, abs=0.01)
    outside = polygons_to_truth(
        [[[-50, -50], [100, -50], [100, 50], [-50, 50]], [[-9, -9], [-1, -9], [-1, -1]]], (100, 200)
    )
    assert outside.mask[:50, :100].all() and outside.mask.sum() == 5000


def test_a_stride_scales_the_truth():
    polygon = [[[8, 8], [40, 8], [40, 24], [8, 24]]]
    fine, coarse = polygons_to_truth(polygon, (64, 64)), polygons_to_truth(polygon, (8, 8), stride=8)
    assert (fine.mask[4::8, 4::8] == coarse.mask).all()
    np.testing.assert_allclose(fine.radii, 8 * coarse.radii)


# Figures, on maps of 100 x 100 cells with a stride at which filters reach one or 20 cells.


def test_rsu_equals_the_value_worked_out_by_hand():
    truth = make_truth((100, 100), (50, 50))
    even = np.full((100, 100), 0.25)  # 25 inside, 2475 outside, and 99 times as much room outside
    assert score_localization(even, truth, 50)["rsu"] == pytest.approx(1 - np.exp(-0.707))
    inside = np.where(truth.mask, 0.5, 0.0)
    assert score_localization(inside, truth, 50)["rsu"] == 1.0
    assert score_localization(np.where(truth.mask, 0.0, 0.5), truth, 50)["rsu"] == 0.0


def test_one_peak_at_the_center_scores_best_and_no_peak_scores_worst():
    truth = make_truth((100, 100), (50, 50))
    values = np.where(truth.mask, 1.0, 0.0)
    assert score_localization(values, truth, 50) == {"rsu": 1.0, "ras": 0.0, "rda": 1.0, "rmi": 1.0}
    nothing = score_localization(np.zeros((100, 100)), truth, 50)
    assert nothing == {"rsu": 0.0, "ras": 1.0, "rda": 0.0, "rmi": 0.0}


def test_a_peak_away_from_the_center_costs_by_its_distance():
    truth = make_truth((100, 100), (50, 50))
    values = np.zeros((100, 100))
    values[49:51, 59:61] = 1.0  # its middle is 10 of a radius of 20 away
    figures = score_localization(values, truth, 50)
    assert figures["ras"] == pytest.approx((np.exp(1.5) - 1) / (np.exp(3) - 1))
    assert figures["rda"] == 1.0


def test_two_peaks_divide_the_attention():
    truth = make_truth((100, 100), (50, 50))
    values = np.zeros((100, 100))
    values[49:51, 37:39] = values[49:51, 61:63] = 1.0  # 12 to either side, and 24 apart
    figures = score_localization(values, truth, stride=50)
    assert figures["ras"] == pytest.approx((np.exp(3 * 12 / 20) - 1) / (np.exp(3) - 1))
    assert figures["rda"] == pytest.approx(0.5 * (1 - 12 / 20) + np.exp(-2))


def test_a_missed_place_counts_half_of_two_and_distant_peaks_cost_nothing():
    truth = make_truth((100, 100), (20, 20), (80, 80), radius=15.0)
    values = np.zeros((100, 100))
    values[19:21, 19:21] = values[19:21, 79:81] = 1.0
    figures = score_localization(values, truth, 50)
    assert figures["rda"] == 0.5
    assert figures["ras"] == pytest.approx((np.exp(1.5) - 1) / (np.exp(3) - 1))
    rmi = 0.4 * figures["rsu"] + 0.35 * (1 - figures["ras"]) + 0.25 * 0.5
    assert figures["rmi"] == pytest.approx(rmi)


def test_a_coarser_stride_gives_nearly_the_same_figures():
    y, x = np.mgrid[:800, :800] + 0.5
    scores = np.exp(-((x - 300) ** 2 + (y - 420) ** 2) / 20000)
    polygon = [[[220, 300], [420, 300], [420, 500], [220, 500]]]

    def measure(stride: int) -> dict:
        values = normalize_map(scores[stride // 2 :: stride, stride // 2 :: stride], stride)
        return score_localization(values, polygons_to_truth(polygon, values.shape, stride), stride)

    fine, coarse = measure(2), measure(8)
    for name, figure in fine.items():
        assert coarse[name] == pytest.approx(figure, abs=0.02), name


# Refusals


def test_an_unusable_truth_is_refused():
    with refuses("polygons[1]", "(2, 2)", "three"):
        polygons_to_truth([[[0, 0], [1, 0], [1, 1]], [[0, 0], [1, 0]]], (5, 5))
    with refuses("masks[0] covers nothing"):
        masks_to_truth(np.zeros((1, 4, 4), dtype=bool))
    with refuses("covers 0 of 25 cells"):
        polygons_to_truth([], (5, 5))
    with refuses("covers 25 of 25 cells"):
        polygons_to_truth([[[0, 0], [5, 0], [5, 5], [0, 5]]], (5, 5))


def test_a_map_of_another_shape_is_refused():
    with refuses("(4, 5)", "(5, 5)", "stride"):
        score_localization(np.zeros((4, 5)), polygons_to_truth([[[0, 0], [2, 0], [2, 2]]], (5, 5)))
