"""Laws of the training arguments: every number has a range, and nothing is ignored."""

from dataclasses import fields
from typing import get_args

import pytest
from refusals import refuses

from geoalign_hf.training.arguments import LOWEST, UNSUPPORTED, GeoAlignTrainingArguments
from geoalign_hf.training.launch import OTHER_BACKENDS

KINDS = {option.name: {option.type, *get_args(option.type)} for option in fields(GeoAlignTrainingArguments)}
NUMBERS = [name for name, kinds in KINDS.items() if kinds & {int, float} and name not in UNSUPPORTED]


def test_every_number_has_a_range():
    assert set(NUMBERS) - set(LOWEST) == {"local_rank"}  # which a launcher sets


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["5", True])
def test_what_is_no_number_is_refused(name, value):
    with refuses(name, repr(value), kind=TypeError):
        GeoAlignTrainingArguments(**{name: value})


@pytest.mark.parametrize("name", [name for name in NUMBERS if int in KINDS[name]])
def test_a_fraction_is_refused_where_a_count_is_expected(name):
    with refuses(name, "2.5", "whole number"):
        GeoAlignTrainingArguments(**{name: 2.5})


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_no_number_may_be_infinite_or_nan(name, value):
    with refuses(name, str(value), "finite"):
        GeoAlignTrainingArguments(**{name: value})


@pytest.mark.parametrize("name", LOWEST)
def test_numbers_below_their_range_are_refused(name):
    low, includes_low = LOWEST[name]
    with refuses(f"{name} is", str(low)):
        GeoAlignTrainingArguments(**{name: low - 1 if includes_low else low})


@pytest.mark.parametrize("name", ["ema_decay", "teacher_decay", "adam_beta1", "adam_beta2"])
def test_a_decay_of_1_is_refused(name):
    with refuses(name, "below 1"):
        GeoAlignTrainingArguments(**{name: 1.0})


@pytest.mark.parametrize(
    "option",
    [
        {"deepspeed": "ds.json"},
        {"deepspeed": {"zero_optimization": {"stage": 2}}},
        {"auto_find_batch_size": True},
        {"save_only_model": True},
        {"neftune_noise_alpha": 5.0},
        {"train_sampling_strategy": "group_by_length"},
        {"dataloader_persistent_workers": True, "dataloader_num_workers": 1},
        {"hub_strategy": "all_checkpoints"},
        {"hub_always_push": True},
        {"eval_accumulation_steps": 1},
        {"bf16_full_eval": True},
        {"dataloader_in_order": False},
        {"use_cache": True},
        {"max_steps": 0},
        {"teacher": "mine"},
    ],
    ids=str,
)
def test_what_has_no_effect_or_no_meaning_is_refused(option):
    with refuses(next(iter(option))):
        GeoAlignTrainingArguments(**option)


@pytest.mark.parametrize("value", ["true", "True", "1", "yes"])
@pytest.mark.parametrize("variable", OTHER_BACKENDS)
def test_a_backend_that_a_launcher_asks_for_is_refused_by_name(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with refuses(variable, OTHER_BACKENDS[variable], "examples/accelerate_configs"):
        GeoAlignTrainingArguments()


def test_a_description_holds_what_defines_a_run_and_no_paths_or_tokens():
    args = GeoAlignTrainingArguments(
        output_dir="/secret/place", hub_token="hf_secret", adam_beta1=0.8, seed=3
    )
    described = args.describe()
    assert described["adam_beta1"] == 0.8 and described["seed"] == 3
    assert "secret" not in repr(described)
