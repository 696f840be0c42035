"""Laws of sampling: what training sees follows from seed, epoch and index; words stay with their regions."""

import torch

from geoalign_hf.data.augmentation import Augmentation
from geoalign_hf.data.training_dataset import EpochSampler, TrainingRows


def test_what_a_row_becomes_depends_on_seed_epoch_and_index_alone(rows):
    first = TrainingRows(rows, Augmentation(), max_regions=2, seed=1)
    second = TrainingRows(rows, Augmentation(), max_regions=2, seed=1)
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
        training_rows = TrainingRows(rows, None, max_regions=2, seed=0)
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
    training_rows = TrainingRows([rows[0] | {"captions": captions}], None, max_regions=9, seed=0)
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
        training_rows = TrainingRows(rows, None, max_regions=9, seed=0, max_negatives=1, max_crops=2)
        training_rows.epoch = epoch
        row = training_rows[0]
        for kept, phrases in zip(row["hard_negatives"], whole["hard_negatives"], strict=True):
            assert len(kept) == 1 and kept[0] in phrases
        assert len(row["crops"]) == min(2, len(row["boxes"])) and row["crops"] == sorted(set(row["crops"]))
        drawn |= set(row["crops"])
    assert drawn == set(range(len(whole["boxes"])))


def test_a_row_knows_its_number_and_names_crops_only_where_they_are_asked_for(rows):
    row = TrainingRows(rows, None, max_regions=9, seed=0)[3]
    assert row["row_id"] == 3 and "crops" not in row
    assert row["hard_negatives"] == rows[3]["hard_negatives"]
