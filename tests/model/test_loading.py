"""Laws of saving and loading: the file has exactly the model's keys, whatever reads or writes it."""

import copy

import pytest
import torch
from accelerate import init_empty_weights, load_checkpoint_and_dispatch
from transformers import AutoModel, CLIPConfig, CLIPModel

from geoalign_hf import GeoAlignCLIPConfig, GeoAlignCLIPModel
from geoalign_hf.convert.convert import convert_clip


@pytest.fixture(scope="module")
def inputs(processor, toy_rows):
    row = toy_rows[0]
    words = {"text": ["a ship", "a road"], "padding": True, "return_tensors": "pt"}
    return processor(images=[row["image"]], boxes=[row["boxes"]], **words)


def check_close(found, expected) -> None:
    """Compare embeddings of equal weights. Where weights lie in memory changes the rounding of some CPUs."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@torch.no_grad()
def check_equal(model, other, inputs) -> None:
    weights = {name: weight for name, weight in model.state_dict().items() if not weight.is_meta}
    assert all(torch.equal(weight, other.state_dict()[name]) for name, weight in weights.items())
    found, expected = model.eval()(**inputs), other.eval()(**inputs)
    for name in ("image_embeds", "text_embeds", "region_embeds", "logit_scale", "region_logit_scale"):
        check_close(getattr(found, name), getattr(expected, name))


@pytest.mark.filterwarnings("ignore:Attempting to save a model", "ignore:The following device_map keys")
@pytest.mark.parametrize("device_map", ["auto", "disk"])
def test_a_model_that_is_partly_on_the_disk_computes_and_saves_the_same(
    built, folder, inputs, tmp_path, device_map
):
    if device_map == "disk":
        device_map = {name: "cpu" for name, _ in built[0].named_children()}
        device_map |= {"logit_scale": "cpu", "scene_scale": "disk"}
    options = {"max_memory": {"cpu": 400_000}, "offload_folder": tmp_path / "offload"}
    model = AutoModel.from_pretrained(folder, device_map=device_map, **options)
    assert "disk" in model.hf_device_map.values()
    check_equal(model, built[0], inputs)
    model.save_pretrained(tmp_path / "again")
    check_equal(AutoModel.from_pretrained(tmp_path / "again"), built[0], inputs)


def test_load_checkpoint_and_dispatch_takes_the_file(built, folder, inputs):
    with init_empty_weights():
        model = GeoAlignCLIPModel(built[0].config)
    check_equal(load_checkpoint_and_dispatch(model, folder, device_map={"": "cpu"}), built[0], inputs)


# Round trips with the stock classes


@pytest.fixture(scope="module")
def stock(folder, processor, tmp_path_factory):
    """Our folder read by the stock class and saved by it, with its processor."""
    path = tmp_path_factory.mktemp("stock")
    config = CLIPConfig(**{
        key: value
        for key, value in CLIPConfig.from_pretrained(folder).to_dict().items()
        if key in ("text_config", "vision_config", "projection_dim", "logit_scale_init_value")
    })  # fmt: skip
    CLIPModel.from_pretrained(folder, config=config).save_pretrained(path)
    processor.save_pretrained(path)
    return path


def test_our_folder_read_by_the_stock_class_embeds_alike(built, folder, inputs):
    clip = CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        output = clip(**{name: inputs[name] for name in ("pixel_values", "input_ids", "attention_mask")})
        expected = built[0](**inputs)
    check_close(output.image_embeds, expected.image_embeds)
    check_close(output.text_embeds, expected.text_embeds)


def test_saved_by_the_stock_class_it_is_converted_back_to_an_equal_model(built, stock, inputs):
    model, _ = convert_clip(stock)
    expected = copy.deepcopy(built[0])
    with torch.no_grad():  # the one weight that a stock CLIP does not have
        expected.region_scale.logit_scale.copy_(expected.logit_scale.reshape(1))
    check_equal(model, expected, inputs)


def test_a_stock_folder_read_by_our_class_embeds_alike(built, stock, inputs):
    fields = CLIPConfig.from_pretrained(stock).to_dict() | {"model_type": "geoalign_clip"}
    model = GeoAlignCLIPModel.from_pretrained(stock, config=GeoAlignCLIPConfig(**fields)).eval()
    with torch.no_grad():
        check_close(model(**inputs).image_embeds, built[0](**inputs).image_embeds)
