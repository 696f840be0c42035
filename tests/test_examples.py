"""Every example runs as its docstring says, at a small size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(script: str, *arguments, cwd: Path) -> str:
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=600)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_train_then_evaluate_regions_on_a_coco_file(coco_folder, tmp_path, toy_rows):
    small = ["--image_size", 64, "--width", 64, "--depth", 1, "--num_epochs", 2, "--batch_size", 4]
    files = [
        "--dataset",
        coco_folder / "rows.json",
        "--eval_dataset",
        coco_folder / "rows.json",
        "--images",
        coco_folder,
    ]
    printed = run("train.py", *files, "--output_dir", "out", *small, cwd=tmp_path)
    num_regions = sum(len(row["boxes"]) for row in toy_rows)
    assert f"on {num_regions} boxes of 8 images" in printed
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(metrics) == {"start", "best", "final", "final, by windows"}
    card = (tmp_path / "out" / "final" / "README.md").read_text()
    assert f"{metrics['final']['top1_micro']:.4f} micro" in card
    assert "`num_epochs=2`" in card

    files = ["--coco", coco_folder / "rows.json", "--images", coco_folder]
    printed = run("evaluate_regions.py", "--model", "out/final", *files, cwd=tmp_path)
    scores = json.loads((tmp_path / "outputs" / "evaluate_regions" / "metrics.json").read_text())
    assert scores | {"step": 4} == metrics["final"]
    assert f"{scores['top1_macro']:.4f}" in printed


@pytest.mark.slow
def test_a_built_dataset_is_trained_on_with_every_term(coco_folder, tmp_path):
    command = [
        sys.executable,
        "-m",
        "geoalign_hf.build",
        "--coco",
        coco_folder / "rows.json",
        "--output",
        "rows",
    ]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, cwd=tmp_path)
    small = ["--image_size", 64, "--width", 64, "--depth", 1, "--num_epochs", 2, "--batch_size", 4]
    run("train.py", "--dataset", "rows", "--output_dir", "out", *small, cwd=tmp_path)
    *_, last = map(json.loads, (tmp_path / "out" / "history.jsonl").read_text().splitlines())
    for term in ("description", "hard_negative", "crop_consistency", "image_consistency", "text_consistency"):
        assert last[term] > 0, term


def test_training_goes_on_from_a_saved_model(coco_folder, tmp_path, folder):
    files = [
        "--dataset",
        coco_folder / "rows.json",
        "--images",
        coco_folder,
        "--model",
        folder,
        "--output_dir",
        "out",
    ]
    run("train.py", *files, "--num_epochs", 1, "--batch_size", 8, "--learning_rate", 0, cwd=tmp_path)
    from safetensors.torch import load_file

    before, after = (
        load_file(folder / "model.safetensors"),
        load_file(tmp_path / "out/final/model.safetensors"),
    )
    assert all((before[name] == after[name]).all() for name in before)


def test_quickstart_goes_the_whole_way(tmp_path):
    printed = run("quickstart.py", "--num_rows", 32, "--num_epochs", 1, cwd=tmp_path)
    assert "untrained: region top-1" in printed
    output = tmp_path / "outputs" / "quickstart"
    assert Image.open(output / "regions.png").width > 500
    assert {"README.md", "model.safetensors", "processor_config.json"} <= {
        path.name for path in (output / "final").iterdir()
    }
    metrics = json.loads((output / "metrics.json").read_text())
    assert f"{metrics['image']['top1_micro']:.3f}" in printed


def test_toy_rows_draws_a_contact_sheet(tmp_path):
    run("toy_rows.py", "--num_rows", 2, "--output", "sheet.png", cwd=tmp_path)
    assert Image.open(tmp_path / "sheet.png").size[0] > 300


@pytest.mark.slow
def test_the_classical_baseline_runs_on_a_coco_file(coco_folder, tmp_path):
    rows = [
        "--train_coco",
        coco_folder / "rows.json",
        "--test_coco",
        coco_folder / "rows.json",
        "--images",
        coco_folder,
    ]
    printed = run("benchmarks/classical_baseline.py", *rows, "--no-box_size", cwd=tmp_path)
    assert "HOG + colour, linear SVM" in printed


@pytest.mark.slow
def test_the_pooling_benchmark_prints_ratios(tmp_path):
    printed = run("benchmarks/region_pooling.py", "--rounds", 1, "--threads", 1, cwd=tmp_path)
    assert "our boxes" in printed
    assert "grid_sample" in printed
