"""A saved folder works where geoalign_hf is not installed, with equal bits."""

import json
import subprocess
import sys

import pytest
import torch
from absent import ABSENT

REMOTE = (
    ABSENT
    + """
import json, sys
import torch
from transformers import AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor, pipeline

torch.set_num_threads(1)
folder, inputs, resaved = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model)
assert type(processor).__name__ == "GeoAlignCLIPProcessor", type(processor)
given = torch.load(inputs, weights_only=False)
batch = processor(**given["call"], return_tensors="pt", padding=True)
with torch.no_grad():
    output = model(**batch)
    concepts = model.embed_concepts(**processor.tokenize_concepts(["ship", "road"]))
names = ("image_embeds", "region_embeds", "text_embeds", "logits_per_region", "logits_per_image")
found = {name: getattr(output, name) for name in names} | {"concepts": concepts, **batch}
classify = pipeline("zero-shot-region-classification", model=folder, trust_remote_code=True)
found["answers"] = classify(
    given["call"]["images"][0], boxes=given["call"]["boxes"][0], candidate_concepts=["ship", "road"]
)
view = classify.model.config.region_view, classify.model.config.region_context
classify.model.config.region_view, classify.model.config.region_context = "window", 2.0
found["windows"] = classify(
    given["call"]["images"][0], boxes=given["call"]["boxes"][0], candidate_concepts=["ship", "road"]
)
classify.model.config.region_view, classify.model.config.region_context = view
inferred = pipeline(model=folder, trust_remote_code=True)
found["inferred"] = inferred.task
scene = pipeline("zero-shot-image-classification", model=folder, trust_remote_code=True)
found["scene"] = scene(given["call"]["images"][0], candidate_labels=["a ship", "a road"])
detect = pipeline("zero-shot-object-detection", model=folder, trust_remote_code=True)
found["detections"] = detect(given["call"]["images"][0], candidate_labels=["ship", "road"], sides=[40])
classify.save_pretrained(resaved)
torch.save(found, inputs + ".out")
"""
)


@pytest.fixture(scope="module")
def remote(folder, toy_rows, tmp_path_factory):
    """Results of a process without geoalign_hf on the same folder."""
    path = tmp_path_factory.mktemp("remote")
    call = {
        "images": [row["image"] for row in toy_rows[:2]],
        "boxes": [row["boxes"] for row in toy_rows[:2]],
        "text": ["a ship", "a storage tank at a road"],
    }
    torch.save({"call": call}, path / "inputs")
    command = [sys.executable, "-c", REMOTE, str(folder), str(path / "inputs"), str(path / "resaved")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=path, timeout=300)
    assert result.returncode == 0, result.stderr
    return call, torch.load(path / "inputs.out", weights_only=False), path / "resaved"


def test_the_folder_holds_the_code_and_names_every_way_in(folder):
    assert sorted(path.name for path in folder.glob("*.py")) == [
        "adapters_geoalign_clip.py",
        "configuration_geoalign_clip.py",
        "detection_geoalign_clip.py",
        "detection_pipeline_geoalign_clip.py",
        "image_files_geoalign_clip.py",
        "image_options_geoalign_clip.py",
        "images_geoalign_clip.py",
        "interface_geoalign_clip.py",
        "masks_geoalign_clip.py",
        "modeling_geoalign_clip.py",
        "packing_geoalign_clip.py",
        "pipeline_geoalign_clip.py",
        "processing_geoalign_clip.py",
        "region_checks_geoalign_clip.py",
        "regions_geoalign_clip.py",
        "requirements_geoalign_clip.py",
        "resizing_geoalign_clip.py",
        "scales_geoalign_clip.py",
        "stem_geoalign_clip.py",
        "text_cache_geoalign_clip.py",
        "views_geoalign_clip.py",
    ]
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_geoalign_clip.GeoAlignCLIPConfig",
        "AutoModel": "modeling_geoalign_clip.GeoAlignCLIPModel",
        "AutoModelForZeroShotImageClassification": "modeling_geoalign_clip.GeoAlignCLIPModel",
    }
    assert config["custom_pipelines"] == {
        "zero-shot-object-detection": {
            "impl": "detection_pipeline_geoalign_clip.GeoAlignCLIPDetectionPipeline",
            "pt": ["AutoModel"],
            "type": "multimodal",
        },
        "zero-shot-region-classification": {
            "impl": "pipeline_geoalign_clip.ZeroShotRegionClassificationPipeline",
            "pt": ["AutoModel"],
            "type": "multimodal",
        },
    }


def test_without_the_package_every_tensor_has_equal_bits(built, remote):
    model, processor = built
    call, found, _ = remote
    batch = processor(**call, return_tensors="pt", padding=True)
    with torch.no_grad():
        output = model(**batch)
        concepts = model.embed_concepts(**processor.tokenize_concepts(["ship", "road"]))
    for name in batch:
        assert torch.equal(found[name], batch[name]), name
    for name in ("image_embeds", "region_embeds", "text_embeds", "logits_per_region", "logits_per_image"):
        assert torch.equal(found[name], getattr(output, name)), name
    assert torch.equal(found["concepts"], concepts)


def test_without_the_package_the_pipelines_answer_alike(folder, remote):
    from transformers import AutoModel, pipeline

    call, found, _ = remote
    classify = pipeline("zero-shot-region-classification", model=str(folder))
    image, boxes = call["images"][0], call["boxes"][0]
    assert found["answers"] == classify(image, boxes=boxes, candidate_concepts=["ship", "road"])
    windows = AutoModel.from_pretrained(folder, region_view="window", region_context=2.0)
    classify = pipeline("zero-shot-region-classification", model=windows, processor=str(folder))
    assert found["windows"] == classify(image, boxes=boxes, candidate_concepts=["ship", "road"])
    assert found["windows"] != found["answers"]
    assert found["inferred"] == "zero-shot-region-classification"
    detect = pipeline("zero-shot-object-detection", model=str(folder))
    assert found["detections"] == detect(image, candidate_labels=["ship", "road"], sides=[40]) != []
    scene = pipeline("zero-shot-image-classification", model=str(folder))
    assert found["scene"] == scene(image, candidate_labels=["a ship", "a road"])


def test_saved_again_from_there_the_code_is_carried_along(folder, remote):
    *_, resaved = remote
    left_out = ("config.json", ".geoalign.lock")  # a push of the folder leaves its lock
    names = sorted(path.name for path in folder.iterdir() if path.name not in left_out)
    assert sorted(path.name for path in resaved.iterdir() if path.name != "config.json") == names
    for name in set(names) - {"tokenizer.json", "tokenizer_config.json"}:  # they remember how they were read
        assert (resaved / name).read_bytes() == (folder / name).read_bytes(), name


def test_without_trust_nothing_of_the_folder_is_run(folder):
    command = [
        sys.executable,
        "-c",
        "import sys; from transformers import AutoModel; AutoModel.from_pretrained(sys.argv[1])",
        str(folder),
    ]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)
    assert result.returncode != 0
    assert "trust_remote_code=True" in result.stderr


@pytest.mark.slow
def test_an_older_transformers_is_told_which_version_the_code_needs(folder, tmp_path):
    code = """
import sys
from transformers import AutoConfig, AutoModel, AutoProcessor, CLIPModel, pipeline
sys.modules["transformers"].__version__ = "5.17.1"
for auto in (AutoConfig, AutoModel, AutoProcessor):
    try:
        auto.from_pretrained(sys.argv[1], trust_remote_code=True)
    except ImportError as error:
        assert "5.18" in str(error) and "5.17.1" in str(error), error
    else:
        raise AssertionError(auto)
"""
    command = [sys.executable, "-c", ABSENT + code, str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
