"""Laws of sampling: what training sees follows from seed, epoch and index; words stay with their regions."""

import torch

from geoalign_hf.data.augmentation import Augmentation
from geoalign_hf.data.training_dataset import EpochSampler, TrainingDataset


def test_what_a_row_becomes_depends_on_seed_epoch_and_index_alone(rows):
    first = TrainingDataset(rows, Augmentation(), max_regions=2, seed=1)
    second = TrainingDataset(rows, Augmentation(), max_regions=2, seed=1)
    for index in (5, 0, 3):
        first[index]
    torch.manual_seed(7)
    assert first[2]["image"].tobytes() == second[2]["image"].tobytes()
    assert first[2]["boxes"] == second[2]["boxes"]
    second.epoch = 1
    assert first[2]["image"].tobytes() != second[2]["image"].tobytes()


def test_of_too_many_regions_as_many_as_allowed_are_drawn_with_their_words(rows):
    index = max(range(len(rows)), key=lambda i: len(rows[i]["boxes"]))
    row = rows[index]
    drawn = set()
    for epoch in range(30):
        training_rows = TrainingDataset(rows, None, max_regions=2, seed=0)
        training_rows.epoch = epoch
        view = training_rows[index]
        assert len(view["boxes"]) == 2
        for box, phrase, quad in zip(view["boxes"], view["phrases"], view["quads"], strict=True):
            r = row["boxes"].index(box)
            assert (row["phrases"][r], row["quads"][r]) == (phrase, quad)
            drawn.add(r)
    assert drawn == set(range(len(row["boxes"])))


def test_each_of_the_captions_gets_its_turn(rows):
    captions = rows[0]["captions"] + ["another one"]
    training_rows = TrainingDataset([rows[0] | {"captions": captions}], None, max_regions=9, seed=0)
    seen = set()
    for training_rows.epoch in range(30):
        (caption,) = training_rows[0]["captions"]
        seen.add(caption)
    assert seen == set(captions)


def test_the_order_of_rows_is_a_permutation_that_changes_with_the_epoch():
    sampler = EpochSampler(20, seed=3)
    first = list(sampler)
    assert sorted(first) == list(range(20)) == sorted(set(first))
    assert list(sampler) == first
    sampler.epoch = 1
    assert list(sampler) != first


def test_hard_negatives_and_crops_are_drawn_up_to_their_number(rows):
    whole = rows[0]
    drawn = set()
    for epoch in range(20):
        training_rows = TrainingDataset(rows, None, max_regions=9, seed=0, max_negatives=1, max_crops=2)
        training_rows.epoch = epoch
        row = training_rows[0]
        for kept, phrases in zip(row["hard_negatives"], whole["hard_negatives"], strict=True):
            assert len(kept) == 1 and kept[0] in phrases
        assert len(row["crops"]) == min(2, len(row["boxes"])) and row["crops"] == sorted(set(row["crops"]))
        drawn |= set(row["crops"])
    assert drawn == set(range(len(whole["boxes"])))


def test_a_row_knows_its_number_and_names_crops_only_where_they_are_asked_for(rows):
    row = TrainingDataset(rows, None, max_regions=9, seed=0)[3]
    assert row["row_id"] == 3 and "crops" not in row
    assert row["hard_negatives"] == rows[3]["hard_negatives"]


def test_regions_of_rare_concepts_are_drawn_more_often(rows):
    common = {"concepts": ["road"] * 9 + ["ship"], "boxes": [[0, 0, 9, 9]] * 10, "phrases": ["x"] * 10}
    data = [rows[0] | common | {"quads": [], "hard_negatives": []}, rows[1] | {"concepts": [], "boxes": []}]
    for balance, expected in ((0.0, 0.1), (0.5, 1 / 4), (1.0, 1 / 2)):
        views = TrainingDataset(data, Augmentation(balance=balance), max_regions=9, seed=0)
        draws = [views._draw_region(torch.Generator().manual_seed(i)) for i in range(600)]
        assert {row for row, _ in draws} == {0}
        assert abs(sum(r == 9 for _, r in draws) / 600 - expected) < 0.06


def test_a_batch_mixes_whole_images_and_windows_and_all_have_quads(rows):
    plain = [row | {"quads": []} for row in rows]
    augment = Augmentation(whole_share=0.5, views_per_row=10)
    views = TrainingDataset(plain, augment, max_regions=9, seed=0, image_size=32)
    assert len(views) == 80
    drawn = [views[i] for i in range(80)]
    num_whole = sum(bool(view["captions"]) for view in drawn)
    assert 25 <= num_whole <= 55
    for view in drawn:
        assert len(view["quads"]) == len(view["boxes"]) == len(view["phrases"])
        assert view["captions"] or view["image"].size == (32, 32)


def test_the_region_of_a_window_is_never_thinned_out(rows):
    augment = Augmentation(whole_share=0.0, min_visible=0.0, max_context=9.0, turn=False, shift=0.0)
    for index in range(40):
        views = TrainingDataset(rows, augment, max_regions=1, seed=index, image_size=32)
        (box,) = views[0]["boxes"]
        assert 32 / max(box[2] - box[0], box[3] - box[1]) < 12


def test_regions_too_small_to_be_learned_from_a_view_are_left_to_their_own_windows(rows):
    for min_side in (0.0, 0.2, 0.5):
        options = {"min_visible": 0.0, "min_region_side": min_side, "turn": False, "stretch_sides": 0.0}
        for whole_share, num_fixed in ((0.999999, 0), (0.0, 1)):
            views = TrainingDataset(rows, Augmentation(whole_share, **options), 9, seed=0, image_size=64)
            every = TrainingDataset(
                rows,
                Augmentation(whole_share, **options | {"min_region_side": 0.0}),
                9,
                seed=0,
                image_size=64,
            )
            for i in range(len(rows)):
                view, whole = views[i], every[i]
                sides = [
                    max((x1 - x0) / whole["image"].width, (y1 - y0) / whole["image"].height)
                    for x0, y0, x1, y1 in whole["boxes"]
                ]
                kept = [r for r, side in enumerate(sides) if r < num_fixed or side >= min_side]
                for name in ("boxes", "phrases", "concepts", "quads"):
                    assert view[name] == [whole[name][r] for r in kept]
                assert view["captions"] == whole["captions"]
        whole_images = TrainingDataset(rows, Augmentation(1.0, **options), 9, seed=0)
        assert [len(whole_images[i]["boxes"]) for i in range(len(rows))] == [
            len(row["boxes"]) for row in rows
        ]


def test_a_cached_image_gives_the_view_that_a_fresh_one_gives(rows, monkeypatch):
    cached = TrainingDataset(rows, Augmentation(), max_regions=9, seed=0)
    first = [cached[i]["image"].tobytes() for i in range(8)]
    assert cached._cache
    monkeypatch.setattr("geoalign_hf.data.training_dataset.CACHE_BYTES", 0)
    fresh = TrainingDataset(rows, Augmentation(), max_regions=9, seed=0)
    assert [fresh[i]["image"].tobytes() for i in range(8)] == first and not fresh._cache
    assert [cached[i]["image"].tobytes() for i in range(8)] == first
