"""The Accelerate loop: step, save, resume."""

import json
import math
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from geoalign_hf.augment import Augmentation
from geoalign_hf.losses import LossWeights
from geoalign_hf.training import (
    EpochSampler,
    TrainingConfig,
    TrainingRows,
    check_processes,
    find_newest_checkpoint,
    group_parameters,
    save_checkpoint,
    train,
    warmup_cosine,
)


def configure(path, **changes) -> TrainingConfig:
    return TrainingConfig(output_dir=str(path), **{"num_epochs": 2, "batch_size": 4} | changes)


def test_training_lowers_the_loss_and_leaves_a_folder_that_loads(model, processor, rows, tmp_path):
    from geoalign_hf.collator import RowCollator
    from geoalign_hf.losses import compute_losses

    batch = RowCollator(processor, 6)([rows[i] for i in range(8)])
    inputs = {key: batch[key] for key in ("pixel_values", "input_ids", "attention_mask", "region_mask")}
    inputs["region_quads"] = batch["region_quads"]

    def measure(trained):
        with torch.no_grad():
            return compute_losses(trained.eval()(**inputs), batch, LossWeights())["loss"].item()

    before = measure(model)
    folder = train(model, processor, rows, config=configure(tmp_path, num_epochs=15, learning_rate=1e-3))
    assert measure(model) < 0.7 * before
    assert measure(AutoModel.from_pretrained(folder)) == measure(model)


def test_a_run_that_was_stopped_and_resumed_ends_with_the_same_bits(built, processor, rows, tmp_path):
    import copy

    changes = {"num_epochs": 3, "save_every": 1, "keep_checkpoints": 10}
    whole = train(
        copy.deepcopy(built[0]),
        processor,
        rows,
        config=configure(tmp_path / "a", **changes),
        augment=Augmentation(),
    )
    torch.manual_seed(99)  # another process would start from another state
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "checkpoint-3").rename(tmp_path / "b" / "checkpoint-3")
    changes |= {"resume": True, "num_workers": 2}
    resumed = train(
        copy.deepcopy(built[0]),
        processor,
        rows,
        config=configure(tmp_path / "b", **changes),
        augment=Augmentation(),
    )
    left, right = (load_file(folder / "model.safetensors") for folder in (whole, resumed))
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def test_every_checkpoint_is_a_whole_model_and_only_the_newest_are_kept(model, processor, rows, tmp_path):
    train(model, processor, rows, config=configure(tmp_path, num_epochs=3, save_every=1, keep_checkpoints=2))
    kept = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert kept == ["checkpoint-4", "checkpoint-5", "final"]
    for name in kept:
        assert AutoModel.from_pretrained(tmp_path / name).config.model_type == "geoalign_clip"
    assert find_newest_checkpoint(tmp_path).name == "checkpoint-5"


def test_a_checkpoint_cut_short_is_never_the_newest(model, processor, tmp_path):
    class Dies:
        is_main_process = True

        def wait_for_everyone(self):
            pass

        def save_state(self, folder):
            folder.mkdir(parents=True)
            raise OSError("the disk is full")

    (tmp_path / "checkpoint-10").mkdir()
    with pytest.raises(OSError, match="the disk is full"):
        save_checkpoint(Dies(), model, processor, tmp_path, 20, keep=2)
    assert find_newest_checkpoint(tmp_path).name == "checkpoint-10"


def test_arguments_are_written_beside_the_model(model, processor, rows, tmp_path):
    weights = LossWeights(scene=0.25)
    train(model, processor, rows, weights, configure(tmp_path, num_epochs=1), Augmentation(turn=False))
    arguments = json.loads((tmp_path / "args.json").read_text())
    assert arguments["loss_weights"] == {"scene": 0.25, "region": 0.1, "concept": 0.5}
    assert arguments["augment"]["turn"] is False
    assert (arguments["num_rows"], arguments["num_steps"], arguments["num_processes"]) == (8, 2, 1)


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


def test_the_learning_rate_rises_in_a_line_and_falls_as_half_a_cosine():
    config = TrainingConfig(warmup_share=0.1)
    factors = [warmup_cosine(step, 100, config) for step in range(101)]
    assert factors[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert factors[10] == 1
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0)
    assert factors[33] == pytest.approx(0.5 * (1 + math.cos(math.pi * 23 / 90)))


def test_only_matrices_decay_and_every_trainable_parameter_is_in_one_group(model):
    model.text_model.requires_grad_(False)
    decayed, others = group_parameters(model, 0.3)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert all(parameter.ndim >= 2 for parameter in decayed["params"])
    assert any(parameter is model.region_scale.logit_scale for parameter in others["params"])
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(decayed["params"]) + len(others["params"]) == len(trainable)


# Refusals


def test_processes_that_did_not_come_up_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    message = (
        "WORLD_SIZE is 4 but Accelerate started 1 process, so each would train alone on a part of the "
        "negatives. On CPUs start with: "
        "ACCELERATE_USE_CPU=true torchrun --nproc_per_node 4 examples/train.py ..."
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        check_processes(1)


def test_fewer_rows_than_a_batch_are_refused(model, processor, rows, tmp_path):
    message = "there are 8 rows, fewer than one batch of 9 (9 on each of 1 processes). Lower batch_size."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        train(model, processor, rows, config=configure(tmp_path, batch_size=9))


def test_a_dataset_that_holds_no_rows_is_refused(model, processor, rows, tmp_path):
    message = (
        "the dataset lacks the columns ['boxes']; it has ['bbox', 'captions', 'concepts', 'description', "
        "'hard_negatives', 'image', 'phrases', 'quads']. "
        "Rename them, or build rows with geoalign_hf.rows.from_coco or build_rows."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        train(model, processor, rows.rename_column("boxes", "bbox"), config=configure(tmp_path))


def test_a_loss_that_is_not_finite_stops_the_run(model, processor, rows, tmp_path):
    torch.nn.init.constant_(model.visual_projection.weight, float("nan"))
    with pytest.raises(ValueError, match=r"^the loss is not finite: \{'scene': nan, .*Lower learning_rate"):
        train(model, processor, rows, config=configure(tmp_path))
