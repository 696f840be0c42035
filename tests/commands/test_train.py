"""`geoalign-hf train` and `geoalign-hf adapt`, and that the verbs fit together by their defaults."""

import json
import re

import pytest
from transformers import AutoModel

from geoalign_hf.data.schema import list_concepts

SMALL = ["--image_size", 64, "--width", 64, "--depth", 1]
SHORT = ["--num_train_epochs", 1, "--per_device_train_batch_size", 4]


def test_what_one_verb_writes_the_next_one_reads_by_default(coco_folder, geoalign, tmp_path):
    coco = ["--coco", coco_folder / "rows.json"]
    assert geoalign("build", *coco).endswith("wrote outputs/rows\n")
    assert geoalign("build", *coco, "--split", "validation").endswith("wrote outputs/rows_validation\n")
    assert geoalign("build", *coco, "--split", "test").endswith("wrote outputs/rows_test\n")
    printed = geoalign("train", *SMALL, *SHORT, "--preset", "clip", "--region", 0.2)
    assert printed.endswith("wrote outputs/train/final\n") and "region top-1 micro" in printed
    settings = json.loads((tmp_path / "outputs/train/args.json").read_text())
    weights = settings["loss_weights"]
    assert (weights["scene"], weights["region"], weights["concept"]) == (1.0, 0.2, 0.0)
    printed = geoalign("evaluate", "regions")
    assert printed.endswith("wrote outputs/evaluate_regions/metrics.json\n")
    geoalign("embed", coco_folder)
    assert geoalign("search", "a ship", "--top_k", 1).startswith("a ship:\n  ")


def test_train_starts_from_a_stock_clip_with_rates_for_fine_tuning(
    coco_folder, clip_folder, geoalign, geoalign_refuses, tmp_path
):
    files = ["--dataset", coco_folder / "rows.json", "--images", coco_folder, "--validation_share", 0.25]
    printed = geoalign("train", "--model", clip_folder, *files, *SHORT, "--layer_decay", 0.75)
    assert "on 2 images" in printed or "of 2 images" in printed
    training = json.loads((tmp_path / "outputs/train/args.json").read_text())["training"]
    assert (training["learning_rate"], training["warmup_steps"], training["layer_decay"]) == (1e-5, 0.1, 0.75)
    for name in ("best", "final"):
        model = AutoModel.from_pretrained(tmp_path / "outputs/train" / name)
        assert model.config.model_type == "geoalign_clip"
    line = geoalign_refuses("train", "--model", clip_folder, *files, *SHORT)
    assert "outputs/train" in line and "overwrite_output_dir" in line


@pytest.mark.parametrize("source", ["clip_folder", "folder"])
def test_the_view_of_a_region_is_evaluated_and_stored(source, coco_folder, geoalign, tmp_path, request):
    files = ["--dataset", coco_folder / "rows.json", "--images", coco_folder, "--validation_share", 0.25]
    start = ["--model", request.getfixturevalue(source), *files, *SHORT]
    view = ["--region_view", "window", "--region_context", 2]
    for name, options in (("default", []), ("window", view)):
        geoalign("train", *start, *options, "--output_dir", name)
    for name, source, context in (("default", "image", 1.6), ("window", "window", 2.0)):
        config = AutoModel.from_pretrained(tmp_path / name / "final").config
        assert (config.region_view, config.region_context) == (source, context)
        for scores in json.loads((tmp_path / name / "metrics.json").read_text()).values():
            assert scores["protocol"]["region_source"] == source
    card = (tmp_path / "window/final/README.md").read_text()
    assert "a window around it, 2.0 times its longer side" in card


def test_the_view_of_a_new_model_can_be_the_image(coco_folder, geoalign, tmp_path):
    files = ["--dataset", coco_folder / "rows.json", "--images", coco_folder]
    geoalign("train", *files, *SMALL, *SHORT, "--region_view", "image")
    assert AutoModel.from_pretrained(tmp_path / "outputs/train/final").config.region_view == "image"


def test_a_base_that_an_adapter_could_not_find_is_refused(folder, clip_folder, coco_folder, geoalign_refuses):
    files = ["--dataset", coco_folder / "rows.json", "--images", coco_folder, "--lora", "text"]
    line = geoalign_refuses("train", "--model", clip_folder, *files)
    assert f"geoalign-hf convert {clip_folder}" in line
    line = geoalign_refuses("train", "--model", folder, *files, "--region_view", "window")
    assert "--region_view" in line and f"config.json of {folder}" in line


def test_train_refuses_options_that_contradict_each_other(folder, geoalign_refuses, coco_folder):
    rows = ["--dataset", coco_folder / "rows.json", "--images", coco_folder]
    assert "--model" in geoalign_refuses("train", *rows, "--lora", "text")
    line = geoalign_refuses("train", *rows, "--model", folder, "--width", 64)
    assert "--width" in line and str(folder) in line
    line = geoalign_refuses("train", *rows, "--validation_share", 0.5, "--eval_dataset", "other")
    assert "--validation_share" in line and "--eval_dataset" in line


@pytest.mark.slow
def test_adapt_learns_a_concept_that_train_left_out(
    coco_folder, folder, geoalign, geoalign_refuses, rows, tmp_path
):
    new, *old = list_concepts(rows)
    files = ["--dataset", coco_folder / "rows.json", "--images", coco_folder]
    few = ["--concepts", new, "--shots", "1,2", "--num_seeds", 2, "--num_steps", 2, "--rehearsed", 1]
    test = ["--test_dataset", coco_folder / "rows.json"]
    printed = geoalign("adapt", "--model", folder, *files, *few, *test)
    metrics = json.loads((tmp_path / "outputs/adapt/metrics.json").read_text())
    methods = ("prototypes", "prototypes and names", "ridge probe", "LoRA")
    expected = {"zero-shot", *(f"{name}, {shots}-shot" for shots in (1, 2) for name in methods)}
    assert set(metrics) == expected
    for title, scores in metrics.items():
        assert re.search(rf"^\| {title} \| 100.0", printed, flags=re.MULTILINE)  # one name to choose from
        assert scores["protocol"]["old"] == ", ".join(old)
    adapted = AutoModel.from_pretrained(tmp_path / "outputs/adapt/final")
    assert any("lora_A" in name for name in adapted.state_dict())
    line = geoalign_refuses("adapt", "--model", folder, *files, *few)
    assert "outputs/adapt" in line and "earlier adaptation" in line and "--overwrite_output_dir" in line
    again = ["--shots", "1", "--overwrite_output_dir"]
    line = geoalign_refuses("adapt", "--model", "outputs/adapt/final", *files, *few, *again)
    assert "outputs/adapt/final" in line and "another folder" in line
    line = geoalign_refuses("adapt", "--model", folder, *files, *few, *test, *again, "--shots", "1,99")
    assert "99 boxes" in line and (tmp_path / "outputs/adapt/final").exists()
    geoalign("adapt", "--model", folder, *files, *few, *test, *again)
    assert not (tmp_path / "outputs/adapt/lora/2_shots_seed_0").exists()

    geoalign("train", *files, *SMALL, *SHORT, "--eval_dataset", files[1], "--exclude_concepts", new)
    scores = json.loads((tmp_path / "outputs/train/metrics.json").read_text())
    assert all(result["protocol"]["concepts"] == old for result in scores.values())
