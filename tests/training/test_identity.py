"""Laws of what a resumed run must find again: the same rows and the same model."""

import copy

import pytest
import torch
from refusals import refuses
from runs import build_trainer

from geoalign_hf.data.schema import build_rows
from geoalign_hf.training.identity import checksum_rows
from geoalign_hf.training.launch import copy_weights
from geoalign_hf.training.lora import AdapterConfig, adapt_model


def test_the_checksum_of_rows_is_that_of_their_boxes_texts_and_order(toy_rows, rows, tmp_path):
    rows.save_to_disk(tmp_path / "copy")
    assert checksum_rows(rows.load_from_disk(tmp_path / "copy")) == checksum_rows(rows)
    order = [1, 0, *range(2, len(rows))]
    changed = [rows.select(order), rows.select(range(len(rows) - 1))]
    for column in ("boxes", "phrases", "concepts"):  # of two or more regions
        changed.append(build_rows([toy_rows[0] | {column: toy_rows[0][column][::-1]}, *toy_rows[1:]]))
    changed.append(build_rows([toy_rows[0] | {"captions": ["another caption"]}, *toy_rows[1:]]))
    found = {checksum_rows(each) for each in [rows, *changed]}
    assert len(found) == 1 + len(changed)


@pytest.mark.parametrize("change", ["order", "text"])
def test_a_run_is_not_resumed_with_other_rows_of_the_same_number(start, toy_rows, rows, change):
    start(num_train_epochs=1).train()
    other = rows.select(reversed(range(len(rows))))
    if change == "text":
        other = build_rows([toy_rows[0] | {"captions": ["another caption"]}, *toy_rows[1:]])
    with refuses("other settings", "rows was"):
        start(train_rows=other, num_train_epochs=1, resume_from_checkpoint="last").train()


def vary(model, change: str):
    """Change a model so that it has equally many weights of the same names, or other ones."""
    if change == "region_view":
        model.config.region_view = "window"
    elif change == "frozen":
        model.text_model.requires_grad_(False)
    elif change in ("depth", "width"):
        config = copy.deepcopy(model.config)
        name, value = {"depth": ("num_hidden_layers", 1), "width": ("hidden_size", 128)}[change]
        setattr(config.vision_config, name, value)
        model = type(model)(config)
    return model


@pytest.mark.parametrize("change", ["region_view", "frozen", "depth", "width"])
def test_a_run_is_not_resumed_with_another_model(start, model, change):
    start(num_train_epochs=1).train()
    fact = "region_view was 'image' and is 'window'" if change == "region_view" else "parameters was"
    with refuses("other settings", fact):
        start(model=vary(model, change), num_train_epochs=1, resume_from_checkpoint="last").train()


def test_adapters_are_not_resumed_on_another_base(built, processor, rows, tmp_path):
    def start(model, **options):
        adapted = adapt_model(model, AdapterConfig(lora="text", lora_rank=4))
        return build_trainer(adapted, processor, rows, tmp_path, num_train_epochs=1, **options)

    start(copy.deepcopy(built[0])).train()
    other = copy.deepcopy(built[0])
    with torch.no_grad():
        other.visual_projection.weight[0, 0] += 1e-3
    with refuses("other settings", "frozen_weights was"):
        start(other, resume_from_checkpoint="last").train()


def test_weights_of_another_shape_are_never_copied(model):
    weights = {name: weight.clone() for name, weight in model.named_parameters()}
    name = "visual_projection.weight"
    weights[name] = weights[name].T.contiguous()  # as many numbers
    with refuses(name, "(64, 32)", "(32, 64)"):
        copy_weights(model, weights)
