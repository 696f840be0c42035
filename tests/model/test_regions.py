"""Laws of the arithmetic on regions: every weight is compared with a hand-worked or an independent number."""

import math
import re

import pytest
import torch
from torch.nn import functional as F

from geoalign_hf.model.masks_geoalign_clip import _overlap_pixels, masks_to_coverage, weigh_masks
from geoalign_hf.model.regions_geoalign_clip import (
    check_boxes,
    check_quads,
    pool_regions,
    quads_to_xyxy,
    weigh_boxes,
    weigh_quads,
    xywh_to_xyxy,
    xyxy_to_quads,
)

GRIDS = [(1, 1), (1, 6), (5, 2), (7, 7), (9, 14)]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw_boxes(num: int, longest: float = 1.0, seed: int = 0) -> torch.Tensor:
    """Boxes inside [0, 1] whose sides are between 0.01 and 1 times `longest`."""
    numbers = draw(num, 4, seed=seed)
    sides = longest * (0.01 + 0.99 * numbers[:, 2:])
    starts = numbers[:, :2] * (1 - sides)
    return torch.cat([starts, starts + sides], dim=-1)


def draw_rectangles(num: int, low: float = 0.01, high: float = 0.5, seed: int = 0) -> torch.Tensor:
    """Rectangles with sides between `low` and `high`, turned by any angle, centred inside the image."""
    numbers = draw(num, 5, seed=seed)
    sides, angles = low + (high - low) * numbers[:, :2], 2 * math.pi * numbers[:, 2]
    corners = torch.tensor([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]], dtype=torch.float64)
    x, y = (sides.unsqueeze(1) * corners).unbind(-1)  # (num, 4)
    cos, sin = angles.cos().unsqueeze(-1), angles.sin().unsqueeze(-1)
    return torch.stack([x * cos - y * sin, x * sin + y * cos], dim=-1) + numbers[:, None, 3:]


def draw_arrows(num: int, seed: int = 0) -> torch.Tensor:
    """Quads with one corner pushed in past the diagonal, not convex; that corner is in the image."""
    quads = draw_rectangles(num, low=0.1, high=0.7, seed=seed)
    quads[:, 2] = 0.8 * quads[:, 0] + 0.1 * (quads[:, 1] + quads[:, 3])
    return quads + 0.6 * (0.5 - quads[:, 2:3])


def read_surface(features: torch.Tensor, y: float, x: float) -> float:
    """Read patches (h, w) at y, x in [0, 1]: bilinear between centres, constant beyond the outermost."""
    top, left = y * features.shape[0] - 0.5, x * features.shape[1] - 0.5
    total = 0.0
    for row, share_y in ((math.floor(top), 1 - top % 1), (math.floor(top) + 1, top % 1)):
        for column, share_x in ((math.floor(left), 1 - left % 1), (math.floor(left) + 1, left % 1)):
            row, column = min(max(row, 0), len(features) - 1), min(max(column, 0), features.shape[1] - 1)
            total += share_y * share_x * features[row, column].item()
    return total


def split_at_centers(start: float, stop: float, num_patches: int) -> list[tuple[float, float]]:
    """Middle and length of the pieces of [start, stop] in which the surface has no kink."""
    centers = [(i + 0.5) / num_patches for i in range(num_patches)]
    cuts = [start, *(center for center in centers if start < center < stop), stop]
    return [((low + high) / 2, high - low) for low, high in zip(cuts, cuts[1:], strict=False)]


def integrate_surface(features: torch.Tensor, box: list[float]) -> float:
    """Mean over a box: in each piece the surface is bilinear, so its middle point is the exact mean."""
    x0, y0, x1, y1 = box
    total = 0.0
    for y, height in split_at_centers(y0, y1, features.shape[0]):
        for x, width in split_at_centers(x0, x1, features.shape[1]):
            total += read_surface(features, y, x) * height * width
    return total / ((x1 - x0) * (y1 - y0))


def sample_surface(features: torch.Tensor, boxes: torch.Tensor, num_samples: int) -> torch.Tensor:
    """Mean of num_samples x num_samples points spread evenly inside each box, read by torch."""
    steps = (torch.arange(num_samples, dtype=torch.float64) + 0.5) / num_samples
    x0, y0, x1, y1 = (2 * boxes - 1).unsqueeze(-1).unbind(-2)  # (R, 1), from [0, 1] to [-1, 1]
    x, y = x0 + (x1 - x0) * steps, y0 + (y1 - y0) * steps  # (R, num_samples)
    shape = (len(boxes), num_samples, num_samples)
    points = torch.stack([x.unsqueeze(1).expand(shape), y.unsqueeze(2).expand(shape)], dim=-1)
    images = features.expand(len(boxes), 1, *features.shape)
    return F.grid_sample(images, points, padding_mode="border", align_corners=False).mean(dim=(1, 2, 3))


def cut_polygon(corners: list, axis: int, limit: float, sign: int) -> list:
    """Keep the part where sign * (coordinate - limit) >= 0 (one step of Sutherland-Hodgman)."""
    kept = []
    for here, there in zip(corners, corners[1:] + corners[:1], strict=True):
        depth_here, depth_there = sign * (here[axis] - limit), sign * (there[axis] - limit)
        if depth_here >= 0:
            kept.append(here)
        if depth_here * depth_there < 0:
            share = depth_here / (depth_here - depth_there)
            kept.append([start + share * (stop - start) for start, stop in zip(here, there, strict=True)])
    return kept


def measure_area(corners: list) -> float:
    """The shoelace formula, from the first corner so that small areas keep their digits."""
    total = 0.0
    for here, there in zip(corners[1:], corners[2:], strict=False):
        (x0, y0), (x1, y1) = ([p - q for p, q in zip(end, corners[0], strict=True)] for end in (here, there))
        total += x0 * y1 - x1 * y0
    return abs(total) / 2


def cut_and_measure(quad: list, grid: tuple[int, int]) -> torch.Tensor:
    """Each cell's share of the part of a quad inside the image: (h * w,)."""
    h, w = grid
    areas = []
    for i in range(h):
        for j in range(w):
            part = quad
            for axis, limit, sign in (
                (0, j / w, 1),
                (0, (j + 1) / w, -1),
                (1, i / h, 1),
                (1, (i + 1) / h, -1),
            ):
                part = cut_polygon(part, axis, limit, sign)
            areas.append(measure_area(part))
    return torch.tensor(areas, dtype=torch.float64) / sum(areas)


def assert_equal(found: torch.Tensor, expected, tolerance: float) -> None:
    torch.testing.assert_close(
        found.double(), torch.as_tensor(expected, dtype=torch.float64), rtol=0, atol=tolerance
    )


def refuses(message: str):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


# Boxes


def test_a_box_over_the_left_half_of_two_patches_weighs_seven_eighths_and_one_eighth():
    # Constant 1 up to the first centre at 1/4, then falling to 1/2 at the middle: (1/4 + 1/4 * 3/4) / (1/2).
    assert_equal(weigh_boxes(torch.tensor([0.0, 0.0, 0.5, 1.0]), grid=(1, 2)), [7 / 8, 1 / 8], 1e-7)


def test_a_box_between_two_centers_weighs_both_alike():
    assert_equal(weigh_boxes(torch.tensor([0.25, 0.2, 0.75, 0.9]), grid=(1, 2)), [1 / 2, 1 / 2], 1e-7)


def test_a_box_of_one_inner_patch_weighs_itself_three_quarters_and_its_neighbours_one_eighth():
    box = torch.tensor([1 / 3, 1 / 3, 2 / 3, 2 / 3])
    line = torch.tensor([1 / 8, 3 / 4, 1 / 8])
    assert_equal(weigh_boxes(box, grid=(3, 3)), torch.outer(line, line).flatten(), 1e-6)


def test_a_box_between_edge_and_outermost_centers_weighs_the_corner_patch_alone():
    assert_equal(weigh_boxes(torch.tensor([0.9, 0.0, 1.0, 0.2]), grid=(2, 3)), [0, 0, 1, 0, 0, 0], 1e-6)


@pytest.mark.parametrize("grid", GRIDS)
def test_a_box_over_the_whole_image_weighs_all_patches_alike(grid):
    weights = weigh_boxes(torch.tensor([0.0, 0.0, 1.0, 1.0]), grid)
    assert_equal(weights, torch.full_like(weights, 1 / math.prod(grid)), 1e-7)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("grid", GRIDS)
def test_the_weights_of_a_box_give_the_exact_mean_of_the_bilinear_surface(grid, dtype, tolerance):
    features = draw(*grid, seed=1)
    boxes = draw_boxes(40, seed=2).to(dtype)
    expected = [integrate_surface(features, box) for box in boxes.tolist()]
    assert_equal(weigh_boxes(boxes, grid).double() @ features.flatten(), expected, tolerance)


@pytest.mark.parametrize("grid", [(7, 7), (9, 14)])
def test_the_weights_of_a_box_agree_with_400_x_400_points_inside_it(grid):
    features, boxes = draw(*grid, seed=3), draw_boxes(6, longest=0.3, seed=4)
    found = weigh_boxes(boxes, grid) @ features.flatten()
    assert_equal(found, sample_surface(features, boxes, num_samples=400), 1e-5)


@pytest.mark.parametrize("grid", [(7, 7), (9, 14), (37, 37)])
def test_a_box_of_a_ten_thousandth_of_the_image_in_float32_reads_the_surface_at_its_place(grid):
    features = draw(*grid, seed=5)
    starts = draw(60, 2, seed=6) * (1 - 1e-4)
    edges = torch.tensor([[0.0, 0.0], [1 - 1e-4, 1 - 1e-4], [0.5 - 5e-5, 0.5 - 5e-5]], dtype=torch.float64)
    starts = torch.cat([starts, edges])
    boxes = torch.cat([starts, starts + 1e-4], dim=-1).float()
    expected = [integrate_surface(features, box) for box in boxes.tolist()]
    assert_equal(weigh_boxes(boxes, grid).double() @ features.flatten(), expected, 1e-5)


@pytest.mark.parametrize("place", [0.0, 0.3, 0.5, 1.0])
def test_a_box_whose_sides_float32_has_closed_reads_the_surface_at_that_point(place):
    features = draw(7, 9, seed=7)
    weights = weigh_boxes(torch.full((4,), place), grid=(7, 9))
    assert_equal(weights.double() @ features.flatten(), read_surface(features, place, place), 1e-5)


def test_the_weights_of_boxes_agree_with_roi_align_at_64_x_64_samples():
    ops = pytest.importorskip("torchvision").ops
    features, boxes = draw(1, 3, 9, 14, seed=8), draw_boxes(20, longest=0.3, seed=9)
    in_patches = boxes * torch.tensor([14, 9, 14, 9])
    expected = ops.roi_align(features, [in_patches], output_size=1, sampling_ratio=64, aligned=True)
    found = pool_regions(features.flatten(2).mT, weigh_boxes(boxes, (9, 14)).unsqueeze(0))
    assert_equal(found[0], expected.flatten(1), 1e-3)


# Oriented boxes


def test_a_quad_over_the_left_three_quarters_weighs_two_patches_two_thirds_and_one_third():
    quad = xyxy_to_quads(torch.tensor([0.0, 0.0, 0.75, 1.0]))
    assert_equal(weigh_quads(quad, grid=(1, 2)), [2 / 3, 1 / 3], 1e-6)


def test_a_triangle_below_the_diagonal_weighs_four_patches_1_0_2_1():
    # One corner lies on a side. Half of top left, all of bottom left, half of bottom right.
    quad = torch.tensor([[0.0, 0.0], [0.5, 0.5], [1.0, 1.0], [0.0, 1.0]])
    assert_equal(weigh_quads(quad, grid=(2, 2)), [1 / 4, 0, 1 / 2, 1 / 4], 1e-7)


def test_an_arrow_weighs_only_what_is_inside_its_notch():
    quad = torch.tensor([[0.0, 0.0], [0.5, 0.5], [1.0, 0.0], [0.5, 1.0]])
    # Left half: the triangle (0, 0), (1/2, 1/2), (1/2, 1), of area 1/8, of which 1/16 is in the top patch.
    assert_equal(weigh_quads(quad, grid=(2, 2)), [1 / 4, 1 / 4, 1 / 4, 1 / 4], 1e-7)
    assert_equal(weigh_quads(quad, grid=(4, 1)), [1 / 8, 3 / 8, 3 / 8, 1 / 8], 1e-7)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("shape", ["rectangle, often partly outside", "arrow, not convex"])
def test_the_weights_of_a_quad_are_the_areas_of_its_cuts_with_each_cell(shape, grid, dtype, tolerance):
    draw_quads = draw_arrows if shape.startswith("arrow") else draw_rectangles
    quads = draw_quads(25, seed=10).to(dtype)
    expected = torch.stack([cut_and_measure(quad, grid) for quad in quads.tolist()])
    assert_equal(weigh_quads(quads, grid), expected, tolerance)


@pytest.mark.parametrize("grid", [(7, 7), (9, 14), (37, 37)])
def test_the_weights_of_a_quad_of_a_thousandth_of_the_image_in_float32_are_good_to_four_digits(grid):
    # Corners near 1 are known to 6e-8 in float32: 6e-5 of such a side.
    quads = draw_rectangles(60, low=1e-3, high=2e-3, seed=11).float()
    quads = torch.cat(
        [quads, quads - quads.mean(dim=1, keepdim=True) + 3 / grid[1]]
    )  # these cross grid lines
    assert_equal(weigh_quads(quads, grid), weigh_quads(quads.double(), grid), 1e-4)


@pytest.mark.parametrize("grid", GRIDS)
def test_a_quad_that_equals_a_box_has_the_area_shares_of_the_box(grid):
    def overlap(start, stop, num_patches):
        low = torch.arange(num_patches) / num_patches
        inside = torch.minimum(stop[:, None], low + 1 / num_patches) - torch.maximum(start[:, None], low)
        return inside.clamp(min=0) / (stop - start)[:, None]

    boxes = draw_boxes(30, seed=12)
    x0, y0, x1, y1 = boxes.unbind(-1)
    expected = overlap(y0, y1, grid[0]).unsqueeze(-1) * overlap(x0, x1, grid[1]).unsqueeze(-2)
    assert_equal(weigh_quads(xyxy_to_quads(boxes), grid), expected.flatten(-2), 1e-6)


def test_neither_the_sense_of_rotation_nor_the_first_corner_of_a_quad_matters():
    quads = torch.cat([draw_rectangles(20, seed=13), draw_arrows(20, seed=14)])
    weights = weigh_quads(quads, grid=(6, 5))
    assert_equal(weigh_quads(quads.flip(1), grid=(6, 5)), weights, 1e-12)
    for shift in (1, 2, 3):
        assert_equal(weigh_quads(quads.roll(shift, dims=1), grid=(6, 5)), weights, 1e-12)


def test_a_quad_partly_outside_has_the_weights_of_its_part_inside():
    outside = torch.tensor([[-0.5, -3.0], [0.3, -3.0], [0.3, 0.6], [-0.5, 0.6]])
    inside = xyxy_to_quads(torch.tensor([0.0, 0.0, 0.3, 0.6]))
    assert_equal(weigh_quads(outside, grid=(5, 4)), weigh_quads(inside, grid=(5, 4)), 1e-6)


def test_a_quad_round_the_whole_image_weighs_all_patches_alike():
    diamond = torch.tensor([[0.5, -1.0], [2.0, 0.5], [0.5, 2.0], [-1.0, 0.5]])
    assert_equal(weigh_quads(diamond, grid=(3, 5)), torch.full((15,), 1 / 15), 1e-6)


@pytest.mark.parametrize("pixels_inside", [1e-3, 1e-5, 1e-9])
def test_a_quad_that_passes_the_check_by_a_sliver_at_the_edge_still_weighs_1_in_float32(pixels_inside):
    left = 1000 - pixels_inside
    quads = torch.tensor([[[left, 100], [1200, 100], [1200, 300], [left, 300]]], dtype=torch.float64)
    weights = weigh_quads((check_quads(quads, 1000, 1000) / 1000).float(), grid=(14, 14))
    assert_equal(weights.sum(dim=-1), [1.0], 1e-6)


def test_a_quad_whose_sides_float32_has_closed_still_weighs_1():
    assert_equal(weigh_quads(torch.full((4, 2), 0.3), grid=(14, 14)).sum(), 1.0, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quads_with_corners_at_almost_the_same_place_have_finite_weights_that_sum_to_1(dtype):
    generator = torch.Generator().manual_seed(3)
    tiny = [0, 1e-320, 1e-45, 1e-38, 1e-20, 1e-10, 3e-8, 1e-7, 1e-3, 1 / 9, 1 / 7, 0.5, 1 - 1e-7, 1]
    numbers = torch.tensor(tiny, dtype=dtype)
    quads = numbers[torch.randint(len(tiny), (20_000, 4, 2), generator=generator)]
    weights = weigh_quads(quads, grid=(4, 4))
    assert weights.isfinite().all() and (weights >= 0).all()
    assert_equal(weights.sum(dim=-1), torch.ones(len(quads)), 1e-4)


# What holds for every form


def weigh_all_forms(num: int, grid: tuple[int, int]) -> list[torch.Tensor]:
    masks = draw(num, 4 * grid[0], 3 * grid[1], seed=15) > 0.8
    masks[:, 0, 0] = True  # so that none is empty
    quads = torch.cat([draw_rectangles(num - num // 2, seed=16), draw_arrows(num // 2, seed=17)])
    return [
        weigh_boxes(draw_boxes(num).float(), grid),
        weigh_quads(quads.float(), grid),
        weigh_masks(masks, grid),
    ]


@pytest.mark.parametrize("grid", GRIDS)
def test_weights_are_not_negative_and_sum_to_1(grid):
    for weights in weigh_all_forms(50, grid):
        assert weights.shape == (50, math.prod(grid))
        assert weights.min() >= 0
        assert_equal(weights.sum(dim=-1), torch.ones(50), 2e-6)


def test_permuting_regions_permutes_their_weights():
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    boxes, quads, masks = draw_boxes(12), draw_rectangles(12), draw(12, 8, 6) > 0.5
    for weigh, regions in ((weigh_boxes, boxes), (weigh_quads, quads), (weigh_masks, masks)):
        assert torch.equal(weigh(regions[order], (4, 3)), weigh(regions, (4, 3))[order])


def test_regions_of_many_images_weigh_what_they_weigh_one_by_one():
    boxes, quads, masks = draw_boxes(6), draw_rectangles(6), draw(6, 8, 6) > 0.5
    for weigh, regions in ((weigh_boxes, boxes), (weigh_quads, quads), (weigh_masks, masks)):
        one_by_one = torch.stack([weigh(region, (4, 3)) for region in regions]).view(2, 3, 12)
        assert_equal(weigh(regions.unflatten(0, (2, 3)), (4, 3)), one_by_one, 1e-12)


def test_mirroring_regions_mirrors_their_weights():
    boxes, quads = draw_boxes(20), draw_rectangles(20)
    mirrored = weigh_boxes(
        torch.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], -1), (4, 7)
    )
    assert_equal(mirrored.view(20, 4, 7).flip(-1), weigh_boxes(boxes, (4, 7)).view(20, 4, 7), 1e-12)
    mirrored = weigh_quads(quads * torch.tensor([-1, 1]) + torch.tensor([1, 0]), (4, 7))
    assert_equal(mirrored.view(20, 4, 7).flip(-1), weigh_quads(quads, (4, 7)).view(20, 4, 7), 1e-12)


def test_no_regions_have_no_weights():
    assert weigh_boxes(torch.zeros(2, 0, 4), (3, 5)).shape == (2, 0, 15)
    assert weigh_quads(torch.zeros(2, 0, 4, 2), (3, 5)).shape == (2, 0, 15)
    assert weigh_masks(torch.zeros(2, 0, 6, 10), (3, 5)).shape == (2, 0, 15)
    assert masks_to_coverage(torch.zeros(0, 6, 10, dtype=torch.bool), (3, 5)).shape == (0, 3, 5)


# Conversions


def test_a_coco_box_of_width_30_and_height_5_ends_30_right_and_5_below_its_start():
    assert xywh_to_xyxy(torch.tensor([[10, 20, 30, 5]])).tolist() == [[10, 20, 40, 25]]


def test_a_box_survives_becoming_a_quad_and_a_box_again():
    boxes = draw_boxes(10)
    assert torch.equal(quads_to_xyxy(xyxy_to_quads(boxes)), boxes)


# Masks


def test_a_mask_of_one_pixel_more_in_a_patch_weighs_that_patch_by_its_count():
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.bool)
    assert_equal(weigh_masks(mask, grid=(2, 2)), [3 / 4, 0, 0, 1 / 4], 1e-7)


@pytest.mark.parametrize("grid", GRIDS)
def test_a_mask_of_ones_pools_the_mean_of_the_whole_image(grid):
    features = draw(1, math.prod(grid), 8)
    weights = weigh_masks(torch.ones(1, 1, 4 * grid[0], 4 * grid[1]), grid)
    assert_equal(pool_regions(features, weights.double()), features.mean(dim=1, keepdim=True), 1e-7)


def test_a_mask_of_the_lower_half_pools_the_lower_half():
    features = draw(1, 4 * 3, 8)
    mask = torch.zeros(1, 1, 8, 6, dtype=torch.bool)
    mask[..., 4:, :] = True
    pooled = pool_regions(features, weigh_masks(mask, grid=(4, 3)).double())
    assert_equal(pooled, features[:, 6:].mean(dim=1, keepdim=True), 1e-7)


def test_a_mask_of_a_box_weighs_as_the_quad_of_that_box():
    mask = torch.zeros(28, 42)
    mask[5:17, 8:33] = 1
    quad = xyxy_to_quads(torch.tensor([8 / 42, 5 / 28, 33 / 42, 17 / 28]))
    assert_equal(weigh_masks(mask, grid=(4, 6)), weigh_quads(quad, grid=(4, 6)), 1e-6)


def test_an_empty_mask_weighs_nothing():
    assert weigh_masks(torch.zeros(2, 4, 4), grid=(2, 2)).tolist() == [[0.0] * 4] * 2


@pytest.mark.parametrize("size", [(37, 53), (12, 20), (74, 159), (224, 224), (1, 1), (50, 31)])
def test_resampling_a_mask_keeps_its_share_of_the_image(size):
    masks = draw(3, 37, 53) > 0.7
    coverage = masks_to_coverage(masks, size)
    assert coverage.shape == (3, *size)
    assert coverage.min() >= 0 and coverage.max() <= 1 + 1e-6
    assert_equal(coverage.mean(dim=(1, 2)), masks.double().mean(dim=(1, 2)), 1e-6)


def test_three_pixels_become_two_with_the_middle_one_shared():
    masks = torch.tensor([[[True, False, False]], [[False, True, False]]])
    assert_equal(masks_to_coverage(masks, (1, 2)), [[[2 / 3, 0]], [[1 / 3, 1 / 3]]], 1e-7)


def test_a_mask_at_its_own_size_is_its_own_coverage():
    masks = draw(2, 9, 13) > 0.5
    assert torch.equal(masks_to_coverage(masks, (9, 13)), masks.float())


def test_only_the_box_of_a_mask_takes_part_with_equal_results():
    masks = torch.zeros(4, 61, 47, dtype=torch.bool)
    for r, (top, left) in enumerate(((0, 0), (20, 30), (60, 46), (5, 0))):
        masks[r, top : top + 13, left : left + 9] = draw(13, 9)[: 61 - top, : 47 - left] > 0.3
        masks[r, top, left] = True
    down, across = _overlap_pixels(61, 14), _overlap_pixels(47, 16)
    assert_equal(masks_to_coverage(masks, (14, 16)), down @ masks.float() @ across.T, 1e-7)


# Pooling


def test_pooling_is_the_weighted_sum_of_patch_features():
    features = torch.tensor([[[1.0, 10.0], [2.0, 20.0]], [[3.0, 30.0], [4.0, 40.0]]])
    weights = torch.tensor([[[0.25, 0.75]], [[1.0, 0.0]]])
    assert pool_regions(features, weights).tolist() == [[[1.75, 17.5]], [[3.0, 30.0]]]


def test_equal_patch_features_pool_to_themselves():
    features = draw(1, 1, 8).expand(1, 63, 8)
    for weights in weigh_all_forms(10, (7, 9)):
        assert_equal(pool_regions(features, weights[None]), features[:, :10], 2e-6)


def test_no_regions_pool_to_no_features():
    assert pool_regions(torch.zeros(2, 15, 8), torch.zeros(2, 0, 15)).shape == (2, 0, 8)


def test_the_gradient_of_pooling_is_that_of_finite_differences():
    features = draw(2, 12, 3).requires_grad_()
    weights = weigh_boxes(draw_boxes(10).view(2, 5, 4), (4, 3))
    assert torch.autograd.gradcheck(lambda tensor: pool_regions(tensor, weights), features)


def test_bf16_features_pool_to_bf16_within_its_rounding():
    features, weights = draw(2, 12, 8), weigh_boxes(draw_boxes(10).view(2, 5, 4), (4, 3))
    pooled = pool_regions(features.bfloat16(), weights)
    assert pooled.dtype == torch.bfloat16
    assert_equal(pooled, pool_regions(features, weights), 0.02)  # 8 bits, numbers up to 1


@pytest.mark.parametrize(("num_images", "num_patches"), [(2, 12), (3, 9)])
def test_pooling_refuses_weights_of_another_batch_or_grid(num_images, num_patches):
    with refuses(
        f"features of 2 images with 9 patches do not fit weights for {num_images} images with {num_patches} "
        "patches. Make the weights for this grid."
    ):
        pool_regions(torch.zeros(2, 9, 4), torch.zeros(num_images, 5, num_patches))


# Checks of boxes


def test_a_box_inside_its_image_passes_unchanged_in_float64():
    boxes = torch.tensor([[0, 0, 200, 100], [3, 4, 5, 6]])
    checked = check_boxes(boxes, width=200, height=100, clip_boxes=False)
    assert checked.dtype == torch.float64 and torch.equal(checked, boxes.double())


def test_a_box_partly_outside_is_cut_at_the_edge_of_its_image():
    boxes = torch.tensor([[-5.0, -7.0, 10.0, 12.0], [190.0, 90.0, 210.0, 170.0], [-1.0, -1.0, 201.0, 101.0]])
    cut = [[0, 0, 10, 12], [190, 90, 200, 100], [0, 0, 200, 100]]
    assert check_boxes(boxes, width=200, height=100).tolist() == cut


def test_no_boxes_and_no_quads_pass():
    assert check_boxes(torch.zeros(0, 4), width=2, height=2).shape == (0, 4)
    assert check_quads(torch.zeros(0, 4, 2), width=2, height=2).shape == (0, 4, 2)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_box_that_is_not_finite_is_refused(number):
    with refuses(
        f"boxes[1] = [1.0, 2.0, {number}, 4.0] is not finite. Boxes are four numbers, xyxy pixels; "
        "remove this one."
    ):
        check_boxes(torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, number, 4.0]]), width=20, height=20)


@pytest.mark.parametrize(("box", "axis"), [([12, 4, 9, 8], "x"), ([9, 4, 9, 8], "x"), ([1, 8, 9, 8], "y")])
def test_an_empty_box_is_refused_with_its_place_and_axis(box, axis):
    box = [float(number) for number in box]
    with refuses(
        f"boxes[3][0] = {box} has {axis}1 <= {axis}0. Boxes are xyxy pixels of the image as given; "
        "convert COCO boxes with xywh_to_xyxy first."
    ):
        check_boxes(torch.tensor([box]), width=20, height=20, name="boxes[3]")


@pytest.mark.parametrize("box", [[20, 0, 30, 10], [-9, 0, 0, 10], [0, 10, 5, 15], [0, -5, 5, 0]])
def test_a_box_wholly_outside_its_image_is_refused(box):
    box = [float(number) for number in box]
    with refuses(
        f"boxes[0] = {box} is completely outside its image of 20 x 10 pixels (width x height). "
        "Boxes are xyxy pixels of the image as given, before any resizing; remove this one."
    ):
        check_boxes(torch.tensor([box]), width=20, height=10)


def test_a_box_partly_outside_is_refused_where_cutting_is_not_allowed():
    with refuses(
        "boxes[0] = [0.0, 0.0, 20.5, 10.0] reaches outside its image of 20 x 10 pixels (width x height). "
        "Cut it, or allow cutting with clip_boxes=True."
    ):
        check_boxes(torch.tensor([[0.0, 0.0, 20.5, 10.0]]), width=20, height=10, clip_boxes=False)


# Checks of oriented boxes


def test_a_quad_that_touches_its_image_passes_unchanged_in_float64():
    quads = torch.tensor([[[-5, 5], [5, -5], [15, 5], [5, 15]], [[1, 1], [5, 2], [9, 1], [5, 9]]])
    for checked in (check_quads(quads, width=10, height=10), check_quads(quads.flip(1), 10, 10).flip(1)):
        assert checked.dtype == torch.float64 and torch.equal(checked, quads.double())


def test_a_quad_that_is_not_finite_is_refused():
    with refuses(
        "quads[0] = [[0.0, 0.0], [nan, 0.0], [4.0, 4.0], [0.0, 4.0]] is not finite. "
        "Quads are four corners x, y in pixels; remove this one."
    ):
        check_quads(torch.tensor([[[0, 0], [math.nan, 0], [4, 4], [0, 4]]]), width=9, height=9)


@pytest.mark.parametrize(
    "quad",
    [
        [[0.0, 0.0], [4.0, 4.0], [4.0, 0.0], [0.0, 4.0]],  # equal lobes
        [[0.0, 0.0], [4.0, 0.0], [0.0, 3.0], [6.0, 3.0]],  # lobes of unlike area, second pair of sides
        [[0.0, 0.0], [6.0, 3.0], [6.0, 0.0], [0.0, 5.0]],  # lobes of unlike area, first pair of sides
        [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [4.0, 4.0]],  # a line
        [[2.0, 2.0], [2.0, 2.0], [2.0, 2.0], [2.0, 2.0]],  # a point
        [[0.1, 0.3], [100.1, 300.3], [200.2, 600.6], [50.05, 150.15]],  # a line but for rounding
        [[0.0, 0.0], [0.1, 0.3], [0.2, 0.6], [0.3, 0.9]],  # a line but for rounding
    ],
)
def test_a_quad_without_area_or_with_sides_that_cross_is_refused(quad):
    with refuses(
        f"quads[1] = {quad} has no area or sides that cross. "
        "Quads are four corners x, y in pixels, going round."
    ):
        square = [[0.0, 0.0], [4.0, 0.0], [4.0, 4.0], [0.0, 4.0]]
        check_quads(torch.tensor([square, quad], dtype=torch.float64), width=1000, height=1000)


def test_a_quad_beside_its_image_is_refused_by_the_box_round_it():
    with refuses(
        "the box around quads[2][0] = [20.0, 0.0, 24.0, 4.0] is completely outside its image of 20 x 10 "
        "pixels (width x height). Boxes are xyxy pixels of the image as given, before any resizing; "
        "remove this one."
    ):
        diamond = torch.tensor([[[22, 0], [24, 2], [22, 4], [20, 2]]])
        check_quads(diamond, width=20, height=10, name="quads[2]")


def test_a_quad_that_passes_a_corner_of_its_image_is_refused_though_the_box_round_it_overlaps():
    with refuses(
        "quads[0] = [[-4.0, 2.0], [2.0, -4.0], [-1.0, -5.0], [-5.0, -1.0]] is completely outside its image "
        "of 20 x 10 pixels (width x height), though the box around it is not. Remove it."
    ):
        quad = torch.tensor([[[-4, 2], [2, -4], [-1, -5], [-5, -1]]])
        check_quads(quad, width=20, height=10)


def test_a_quad_partly_outside_is_refused_where_cutting_is_not_allowed():
    with refuses(
        "the box around quads[0] = [-1.0, 0.0, 3.0, 4.0] reaches outside its image of 20 x 10 pixels "
        "(width x height). Cut it, or allow cutting with clip_boxes=True."
    ):
        check_quads(torch.tensor([[[1, 0], [3, 2], [1, 4], [-1, 2]]]), width=20, height=10, clip_boxes=False)
