"""Laws of conversion: a CLIP stays what it was, and a checkpoint that is not whole is refused."""

import argparse
import json
import logging
import math
import shutil

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from PIL import Image
from refusals import refuses
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, CLIPConfig, CLIPImageProcessorPil, CLIPModel

from geoalign_hf.convert.convert import check_parity, convert_clip
from geoalign_hf.convert.from_scratch import train_tokenizer
from geoalign_hf.model.configuration_geoalign_clip import GeoAlignCLIPConfig
from geoalign_hf.model.modeling_geoalign_clip import GeoAlignCLIPModel
from geoalign_hf.model.processing_geoalign_clip import GeoAlignCLIPProcessor

SCALE = 31.0
TEXTS = ["a ship at a pier", "two storage tanks", "x"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A stock CLIP of two layers with its cropping image processor and tokenizer; not to be changed."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = train_tokenizer(TEXTS)
    tower = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "projection_dim": 16,
    }  # fmt: skip
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = CLIPConfig(
        text_config=tower | ids | {"vocab_size": len(tokenizer)},
        vision_config=tower | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    torch.manual_seed(1)
    clip = CLIPModel(config)
    clip.logit_scale.data.fill_(math.log(SCALE))
    clip.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def converted(saved):
    return convert_clip(saved)


@pytest.fixture
def source(saved, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(saved, tmp_path / "source")


def spoil(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, {"format": "pt"})


def complain(source, problems: str) -> str:
    return f"{source} do not match its configuration: {problems}. Give a complete"


# What stays


def test_images_and_texts_keep_their_embeddings(saved, converted):
    model, processor = converted
    clip = CLIPModel.from_pretrained(saved).eval()
    batch = processor(
        images=torch.randint(256, (3, 40, 70), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
        text=TEXTS, padding=True, return_tensors="pt",
    )  # fmt: skip
    with torch.no_grad():
        ours, theirs = model(**batch), clip(**batch)
    for name in ("image_embeds", "text_embeds"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.logits_per_image, theirs.logits_per_image, rtol=0, atol=1e-4)


def test_every_weight_is_the_source_s(saved, converted):
    ours, theirs = converted[0].state_dict(), load_file(saved / "model.safetensors")
    assert ours.keys() - theirs.keys() == {"region_scale.logit_scale", "scene_scale.offset"}
    assert ours["scene_scale.offset"].tolist() == [0.0]
    for name, weight in theirs.items():
        assert torch.equal(ours[name], weight), name


def test_weights_that_a_clip_cannot_have_are_not_reported_as_missing(saved, monkeypatch):
    records = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", records.append)
    logging.getLogger("transformers").addHandler(handler)
    try:
        GeoAlignCLIPModel.from_pretrained(saved)  # the report that a conversion would print
        assert "region_scale" in "".join(record.getMessage() for record in records)
        records.clear()
        convert_clip(saved)
        assert not records
    finally:
        logging.getLogger("transformers").removeHandler(handler)


def test_the_region_scale_starts_from_the_source_s_scale(converted):
    scale = converted[0].region_scale
    assert scale.logit_scale.tolist() == pytest.approx([math.log(SCALE)])
    assert scale().item() == pytest.approx(SCALE)


def test_square_images_get_the_pixels_that_the_source_s_processor_gives(saved, converted):
    pixels = torch.randint(256, (32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = Image.fromarray(pixels.numpy())
    theirs = CLIPImageProcessorPil.from_pretrained(saved)(images=image, return_tensors="pt")["pixel_values"]
    ours = converted[1](images=image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_images_are_no_longer_cropped(converted):
    # Left a black half, right a white one: a crop to the middle square would lose the outer columns.
    image = Image.new("RGB", (96, 32))
    image.paste((255, 255, 255), (80, 0, 96, 32))
    image_processor = converted[1].image_processor
    assert not image_processor.do_center_crop
    assert dict(image_processor.size) == {"height": 32, "width": 32}
    pixel_values = converted[1](images=image, return_tensors="pt")["pixel_values"]
    assert pixel_values.shape == (1, 3, 32, 32)
    assert pixel_values[0, 0, 0, -1] > 1.8 > -1.7 > pixel_values[0, 0, 0, 0]


def test_texts_get_the_token_ids_that_the_source_s_tokenizer_gives(saved, converted):
    assert converted[1](text=TEXTS).input_ids == AutoTokenizer.from_pretrained(saved)(TEXTS).input_ids


def test_the_configuration_is_the_source_s(saved, converted):
    ours, theirs = converted[0].config, CLIPConfig.from_pretrained(saved)
    for tower in ("text_config", "vision_config"):
        fields, expected = getattr(ours, tower).to_dict(), getattr(theirs, tower).to_dict()
        assert fields | {"dtype": None} == expected | {"dtype": None}  # theirs is not read from the weights
    assert (ours.model_type, ours.projection_dim) == ("geoalign_clip", 16)


def test_the_dense_mode_is_the_one_asked_for(saved, converted):
    assert converted[0].config.dense_mode == "last"
    assert convert_clip(saved, dense_mode="value")[0].config.dense_mode == "value"


def test_an_unknown_dense_mode_is_refused(saved):
    with refuses("dense_mode is 'best'", "('last', 'value')", kind=StrictDataclassClassValidationError):
        convert_clip(saved, dense_mode="best")


def test_loading_the_source_with_our_configuration_gives_the_same_model(saved, converted):
    config = GeoAlignCLIPConfig(
        **CLIPConfig.from_pretrained(saved).to_dict() | {"model_type": "geoalign_clip"}
    )
    model = GeoAlignCLIPModel.from_pretrained(saved, config=config)
    expected = converted[0].state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, expected[name]), name


def test_converted_saved_and_loaded_the_model_has_equal_bits(converted, tmp_path):
    model, processor = converted
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, loaded_processor = (
        cls.from_pretrained(tmp_path) for cls in (GeoAlignCLIPModel, GeoAlignCLIPProcessor)
    )
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name
    options = {"images": Image.new("RGB", (50, 30), (9, 99, 199)), "boxes": [[[1, 2, 30, 20]]], "text": TEXTS}
    options |= {"padding": True, "return_tensors": "pt"}
    batch, loaded_batch = processor(**options), loaded_processor(**options)
    assert all(torch.equal(batch[key], loaded_batch[key]) for key in batch)


@pytest.mark.parametrize("form", ["pytorch_model.bin", "shards", "half precision"])
def test_the_form_of_the_source_s_weights_does_not_matter(saved, converted, source, form):
    weights = load_file(source / "model.safetensors")
    if form == "shards":
        (source / "model.safetensors").unlink()
        CLIPModel.from_pretrained(saved).save_pretrained(source, max_shard_size="50KB")
        assert len(list(source.glob("model-*.safetensors"))) > 1
    elif form == "half precision":
        spoil(source, lambda weights: weights.update({name: value.half() for name, value in weights.items()}))
    else:
        torch.save(weights, source / "pytorch_model.bin")
        (source / "model.safetensors").unlink()
    model, _ = convert_clip(source)
    for name, weight in model.state_dict().items():
        expected = converted[0].state_dict()[name]
        expected = expected.half().float() if form == "half precision" else expected
        assert weight.dtype == torch.float32
        assert torch.equal(weight, expected), name


# Long texts


def test_a_source_of_248_positions_takes_texts_of_248_tokens(saved, source):
    config = CLIPConfig.from_pretrained(saved)
    config.text_config.max_position_embeddings = 248
    torch.manual_seed(2)
    CLIPModel(config).save_pretrained(source)
    model, processor = convert_clip(source)
    batch = processor(text="a ship " * 300, truncation=True, return_tensors="pt")
    assert batch["input_ids"].shape == (1, 248)
    clip = CLIPModel.from_pretrained(source).eval()
    with torch.no_grad():
        expected = torch.nn.functional.normalize(clip.get_text_features(**batch).pooler_output, dim=-1)
        torch.testing.assert_close(model.embed_text(**batch), expected, rtol=0, atol=1e-5)


def test_a_stretched_model_is_saved_with_its_length_and_keeps_short_texts(saved, converted, tmp_path):
    model, processor = convert_clip(saved, text_length=248)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = GeoAlignCLIPModel.from_pretrained(tmp_path).eval()
    assert loaded.config.text_config.max_position_embeddings == 248
    assert GeoAlignCLIPProcessor.from_pretrained(tmp_path).tokenizer.model_max_length == 248
    short = processor(text=TEXTS, padding=True, return_tensors="pt")
    long = processor(text="a ship " * 300, truncation=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(loaded.embed_text(**short), converted[0].embed_text(**short))
        torch.testing.assert_close(loaded.embed_text(**long), model.embed_text(**long), rtol=0, atol=1e-6)


# What is refused


def test_a_checkpoint_with_a_missing_weight_is_refused(source):
    spoil(source, lambda weights: weights.pop("visual_projection.weight"))
    with refuses(complain(source, "missing: ['visual_projection.weight']")):
        convert_clip(source)


def test_a_checkpoint_with_a_weight_that_is_not_used_is_refused(source):
    spoil(source, lambda weights: weights.update({"extra.weight": torch.ones(2)}))
    with refuses(complain(source, "not used: ['extra.weight']")):
        convert_clip(source)


def test_a_checkpoint_with_a_weight_of_another_shape_is_refused(source):
    spoil(source, lambda weights: weights.update({"text_projection.weight": torch.ones(16, 31)}))
    with refuses(complain(source, "of another shape: ['text_projection.weight']")):
        convert_clip(source)


def test_all_that_does_not_fit_is_named_at_once(source):
    def change(weights):
        weights["b.weight"], weights["a.weight"] = torch.ones(2), torch.ones(2)
        del weights["vision_model.post_layernorm.bias"], weights["logit_scale"]

    spoil(source, change)
    problems = (
        "missing: ['logit_scale', 'vision_model.post_layernorm.bias']; not used: ['a.weight', 'b.weight']"
    )
    with refuses(complain(source, problems)):
        convert_clip(source)


def test_position_ids_of_older_checkpoints_are_no_weights(source, converted):
    positions = {"text_model.embeddings.position_ids": torch.arange(77).unsqueeze(0)}
    spoil(source, lambda weights: weights.update(positions))
    model, _ = convert_clip(source)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, converted[0].state_dict()[name]), name


def test_a_source_that_is_no_clip_is_refused(tmp_path):
    BertConfig(hidden_size=32).save_pretrained(tmp_path)
    with refuses(f"{tmp_path}", "'bert'", "'clip'"):
        convert_clip(tmp_path)


def test_a_geoalign_clip_needs_no_conversion(folder):
    with refuses(str(folder), "AutoModel.from_pretrained"):
        convert_clip(folder)


def test_a_geoalign_clip_that_the_stock_class_has_saved_is_converted(folder, built, tmp_path):
    CLIPModel.from_pretrained(folder).save_pretrained(tmp_path)
    built[1].tokenizer.save_pretrained(tmp_path)
    built[1].image_processor.save_pretrained(tmp_path)
    model, _ = convert_clip(tmp_path)
    expected = built[0].state_dict()
    for name, weight in model.state_dict().items():
        if name != "region_scale.logit_scale":  # which a stock CLIP does not have
            assert torch.equal(weight, expected[name]), name
    model.save_pretrained(tmp_path / "again")
    assert type(GeoAlignCLIPModel.from_pretrained(tmp_path / "again").config) is GeoAlignCLIPConfig


def test_a_pickle_of_more_than_tensors_is_not_run(source):
    weights = load_file(source / "model.safetensors")
    torch.save(weights | {"options": argparse.Namespace(lr=1)}, source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    with refuses(str(source), "argparse.Namespace", "not executed"):
        convert_clip(source)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_web_page_in_place_of_weights_is_called_one(source, name):
    (source / "model.safetensors").unlink()
    (source / name).write_bytes(b"\n<!DOCTYPE html><html><body>Sign in</body></html>")
    with refuses(str(source / name), "web page", "Download"):
        convert_clip(source)


def test_what_a_configuration_tells_is_not_to_be_given(source):
    with refuses(str(source), "config.json", "--activation, --text_heads"):
        convert_clip(source, activation="gelu", text_heads=2)


def test_a_folder_without_a_configuration_is_refused(source):
    (source / "config.json").unlink()
    with refuses(str(source), "config.json", "open_clip_config.json", f"{source}/FILE"):
        convert_clip(source)


@pytest.mark.parametrize("name", ["none.pt", "some/none.pt", "/some/where/none.pt", "/some/where"])
def test_what_is_not_there_is_refused(name):
    with refuses(f"{name} does not exist", "REPOSITORY/FILE"):
        convert_clip(name)


@pytest.mark.parametrize(("part", "name"), [("visual", "image_embeds"), ("text", "text_embeds")])
def test_a_model_whose_embeddings_differ_is_refused(saved, converted, part, name):
    clip = CLIPModel.from_pretrained(saved).eval()
    check_parity(converted[0], clip)
    getattr(clip, f"{part}_projection").weight.data[0] *= 1.5
    with pytest.raises(ValueError, match=f"^{name} .* more than 1e-05"):
        check_parity(converted[0], clip)


# The command line


def test_the_command_writes_a_folder_that_loads(saved, converted, geoalign, tmp_path):
    dest = tmp_path / "dest"
    geoalign("convert", saved, dest, "--dense_mode", "value")
    model = GeoAlignCLIPModel.from_pretrained(dest)
    assert model.config.dense_mode == "value"
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, converted[0].state_dict()[name]), name
    assert not GeoAlignCLIPProcessor.from_pretrained(dest).image_processor.do_center_crop
    assert json.loads((dest / "config.json").read_text())["model_type"] == "geoalign_clip"


def test_the_command_stores_the_view_of_a_region(saved, geoalign, geoalign_refuses, tmp_path):
    geoalign("convert", saved, tmp_path / "window", "--region_view", "window", "--region_context", 2)
    config = GeoAlignCLIPModel.from_pretrained(tmp_path / "window").config
    assert (config.region_view, config.region_context) == ("window", 2.0)
    line = geoalign_refuses("convert", saved, tmp_path / "image", "--region_context", 2)
    assert "--region_context" in line and "--region_view window" in line
    for number in ("0.5", "nan", "inf"):
        line = geoalign_refuses(
            "convert", saved, tmp_path / "image", "--region_view", "window", "--region_context", number
        )
        assert f"region_context is {number}" in line
    assert not (tmp_path / "image").exists()


def test_a_folder_that_is_not_empty_is_not_written_into(saved, tmp_path, geoalign_refuses):
    (tmp_path / "notes.txt").write_text("mine")
    line = geoalign_refuses("convert", saved, tmp_path)
    assert f"{tmp_path} exists and is not empty" in line
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
