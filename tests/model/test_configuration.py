"""GeoAlignCLIPConfig: what the model is."""

import json
import math

import pytest
from huggingface_hub.errors import StrictDataclassError

from geoalign_hf import GeoAlignCLIPConfig


def test_a_saved_config_loads_with_every_field_as_it_was(tmp_path):
    config = GeoAlignCLIPConfig(dense_mode="value", projection_dim=48, vision_config={"patch_size": 8})
    config.save_pretrained(tmp_path)
    loaded = GeoAlignCLIPConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.vision_config.patch_size == 8


def test_an_unknown_dense_mode_is_refused_at_construction():
    message = r"dense_mode is 'first'; it must be one of \('last', 'value'\)\."
    with pytest.raises(StrictDataclassError, match=message):
        GeoAlignCLIPConfig(dense_mode="first")


@pytest.mark.parametrize("field, value", [("dense_mode", 3), ("initializer_range", "wide")])
def test_a_field_of_the_wrong_type_is_refused_at_construction(field, value):
    with pytest.raises(StrictDataclassError, match=field):
        GeoAlignCLIPConfig(**{field: value})


def test_where_the_class_is_installed_no_remote_pipeline_code_is_asked_for(tmp_path):
    GeoAlignCLIPConfig().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"custom_pipelines": {"task": {}}}))
    config = GeoAlignCLIPConfig.from_pretrained(tmp_path)
    assert list(config.custom_pipelines) == ["task"]  # from which transformers infers the task
    assert "task" not in config.custom_pipelines  # with which it would ask for trust
    config.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "config.json").read_text())
    assert saved["custom_pipelines"] == {"task": {}}


@pytest.mark.parametrize(
    "fields, found",
    [
        ({"region_view": "crop"}, r"region_view is 'crop'; it must be one of \('image', 'window'\)"),
        *(({"region_context": x}, f"region_context is {x}; it must be") for x in (0.5, math.nan, math.inf)),
        ({"stem": "resnet"}, r"stem is 'resnet'; it must be one of \('patch', 'convolution'\)"),
        ({"stem": "convolution", "vision_config": {"patch_size": 14}}, "patch_size is 14;.*a multiple of 8"),
    ],
)
def test_a_view_or_stem_that_the_model_does_not_have_is_refused_at_construction(fields, found):
    with pytest.raises(StrictDataclassError, match=found):
        GeoAlignCLIPConfig(**fields)


def test_a_clip_looks_at_whole_images_through_a_patch_embedding_unless_told_otherwise():
    config = GeoAlignCLIPConfig()
    assert (config.region_view, config.stem) == ("image", "patch")
