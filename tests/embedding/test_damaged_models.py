"""Damaged folders of models: one ValueError that names the folder, whatever transformers raises."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from geoalign_hf import Embedder
from geoalign_hf.embedding.checkpoints import load_model, load_processor
from geoalign_hf.hub.push import check_folder
from geoalign_hf.training.checkpoints import read_weights
from geoalign_hf.training.start import load_start

HTML = b"<!DOCTYPE html><html><body>503 Service Unavailable</body></html>"
FILES = [
    "config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "model.safetensors",
]


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"", HTML, b"null", b"[" * 100_000])
def test_a_file_that_holds_something_else_is_refused(copy, name, content):
    (copy / name).write_bytes(content)
    with pytest.raises((ValueError, OSError), match="copy|tokenizer") as caught:
        load_model(str(copy))
        load_processor(str(copy))
    assert "\n\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("model_max_length", ["x", "77", -1, 0, 2, 77.5, True, [77]]),
        ("model_input_names", [["x"], [], "x", "input_ids", None]),
        ("pad_token", [None, 5]),
        ("eos_token", [None, []]),
    ],
)
def test_settings_of_the_tokenizer_that_cannot_be_used_are_refused(copy, key, values):
    for value in values:
        edit(copy / "tokenizer_config.json", lambda content, value=value: content.update({key: value}))
        with pytest.raises(ValueError, match=f"{copy}.*({key}|TypeError)"):
            load_processor(str(copy))


@pytest.mark.parametrize(
    ("key", "values"),
    [
        (
            "size",
            [None, {"height": "x", "width": 64}, {"height": -1, "width": -1}, {"height": 64.5, "width": 64}],
        ),
        ("image_std", [[0, 0, 0], [1, 1, float("nan")], None, "x", ["a", 1, 1]]),
        ("image_mean", [[0, 0, float("inf")], None, "x"]),
        ("rescale_factor", [0, "x", float("nan"), None]),
    ],
)
def test_settings_of_the_image_processor_that_cannot_be_used_are_refused(copy, key, values):
    for value in values:
        edit(
            copy / "processor_config.json",
            lambda content, value=value: content["image_processor"].update({key: value}),
        )
        with pytest.raises(ValueError, match=f"{copy}.*{key}"):
            load_processor(str(copy))


def test_a_config_that_is_no_object_cannot_start_a_training(copy):
    for content in (b"null", b"5", b"[" * 100_000):
        (copy / "config.json").write_bytes(content)
        with pytest.raises(ValueError, match="copy"):
            load_start(str(copy))


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_config(copy, tower, **values):
    edit(copy / "config.json", lambda content: content[tower].update(values))


@pytest.mark.parametrize("number", [1, 3])
def test_weights_of_another_number_of_layers_are_refused(copy, number):
    edit_config(copy, "vision_config", num_hidden_layers=number)
    with pytest.raises(ValueError, match="copy.*weights.*vision_model"):
        load_model(str(copy))


@pytest.mark.parametrize(
    "values",
    [{"num_hidden_layers": 10**9}, {"hidden_size": 10**12}, {"hidden_size": 0}, {"num_hidden_layers": -1}],
)
def test_towers_of_impossible_size_are_refused_before_they_are_built(copy, values):
    for tower in ("text_config", "vision_config"):
        edit_config(copy, tower, **values)
        with pytest.raises((ValueError, OSError), match=next(iter(values))):
            load_model(str(copy))


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_weights_that_do_not_fit_are_refused(copy, change):
    weights = load_file(copy / "model.safetensors")
    name = "visual_projection.weight"
    if change == "missing":
        del weights[name]
    elif change == "unexpected":
        weights["more.weight"] = torch.ones(3)
    else:
        weights[name] = torch.ones(3)
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="copy"):
        load_model(str(copy))


@pytest.mark.parametrize(
    "name", ["../stray.safetensors", "{}/stray.safetensors", "none.safetensors", "a/b.safetensors", "x.bin",
             ".", "", 5, None, "a\0b"],
)  # fmt: skip
def test_an_index_of_other_files_than_those_beside_it_is_refused(copy, model, name):
    (copy / "model.safetensors").rename(copy.parent / "stray.safetensors")
    model.save_pretrained(copy, max_shard_size="200KB")
    index = copy / "model.safetensors.index.json"
    name = name.format(copy.parent) if isinstance(name, str) else name

    def change(content):
        content["weight_map"][next(iter(content["weight_map"]))] = name

    edit(index, change)
    for use in (lambda: load_model(str(copy)), lambda: check_folder(copy), lambda: read_weights(copy)):
        with pytest.raises(ValueError, match="model.safetensors.index.json names|incomplete"):
            use()


@pytest.mark.parametrize("content", ["[]", "{}", "null", '{"weight_map": null}', '{"weight_map": [1]}', "x"])
def test_an_index_that_is_not_one_is_refused(copy, content):
    (copy / "model.safetensors.index.json").write_text(content)
    for use in (lambda: load_model(str(copy)), lambda: check_folder(copy), lambda: read_weights(copy)):
        with pytest.raises(ValueError, match="model.safetensors.index.json"):
            use()


def test_a_stock_clip_and_our_own_model_load(folder, clip_folder):
    for path in (folder, clip_folder):
        assert sum(parameter.numel() for parameter in load_model(str(path)).parameters())
        load_processor(str(path))


def test_a_model_that_needs_a_missing_package_is_refused(copy):
    content = json.loads((copy / "config.json").read_text())
    content["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (copy / "config.json").write_text(json.dumps(content))
    with pytest.raises((ValueError, ModuleNotFoundError), match="bitsandbytes"):
        load_model(str(copy))


@pytest.mark.parametrize("config", [{"use_dora": True}, {"peft_type": "VERA"}])
def test_an_adapter_that_transformers_cannot_load_is_refused_with_the_remedy(folder, tmp_path, config):
    from peft import LoraConfig, VeraConfig, get_peft_model

    kind = VeraConfig if "peft_type" in config else LoraConfig
    options = {} if "peft_type" in config else config
    adapted = get_peft_model(load_model(str(folder)), kind(target_modules=["q_proj"], **options))
    adapted.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="adapter.*PeftModel.from_pretrained.*merge_and_unload") as caught:
        load_model(str(tmp_path / "adapter"))
    assert "damaged" not in str(caught.value)


def test_an_embedder_refuses_a_tokenizer_with_tokens_that_the_model_does_not_have(built, copy):
    processor = load_processor(str(copy))
    processor.tokenizer.add_special_tokens({"pad_token": "<new>"})
    with pytest.raises(ValueError, match="'<new>' the number .* Use the tokenizer of this model"):
        Embedder(built[0], processor).embed_text(["a ship"])
