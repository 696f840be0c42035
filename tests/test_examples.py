"""Every example runs as its docstring says, at a small size."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(script: str, *arguments, cwd: Path) -> str:
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=600)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def run_here(monkeypatch, capsys, tmp_path):
    """Run a script in this process, which spares it the imports; it works in `tmp_path`."""

    def run_path(script: str, *arguments) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return capsys.readouterr().out

    return run_path


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
    assert f"| top1_micro | {metrics['final']['top1_micro']:.4f} |" in card
    assert "`num_epochs=2`" in card

    files = ["--coco", coco_folder / "rows.json", "--images", coco_folder]
    printed = run("evaluate_regions.py", "--model", "out/final", *files, cwd=tmp_path)
    scores = json.loads((tmp_path / "outputs" / "evaluate_regions" / "metrics.json").read_text())
    assert scores["concepts, image"] | {"step": 4} == metrics["final"]
    assert f"{scores['concepts, image']['top1_macro']:.4f}" in printed


def test_evaluate_regions_by_every_source_on_a_dataset_of_rows(rows, folder, tmp_path, run_here):
    (tmp_path / "rows").mkdir()
    rows.to_parquet(tmp_path / "rows" / "test.parquet")
    sources = ["image", "window", "crop", "both"]
    run_here(
        "evaluate_regions.py", "--model", folder, "--dataset", "rows", "--region_sources", *sources,
        "--templates", "skyscript", "--start", folder, "--save_embeds", "--output_dir", "out",
    )  # fmt: skip
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    tasks = ("concepts", "phrases", "hard negatives")
    assert list(metrics) == [f"{task}, {source}" for source in sources for task in tasks] + ["guards"]
    assert metrics["guards"]["image_cosine_to_start"] == pytest.approx(1)
    for source in sources:
        assert len(metrics[f"concepts, {source}"]["protocol"]["templates"]) == 2
        assert Image.open(tmp_path / "out" / f"confusion_{source}.png").width > 300
        saved = np.load(tmp_path / "out" / f"concepts_{source}.npz")
        right = (saved["regions"] @ saved["concepts"].T).argmax(axis=1) == saved["references"]
        assert metrics[f"concepts, {source}"]["top1_micro"] == right.mean()


def test_evaluate_scenes_on_folders_and_on_a_dataset(toy_rows, folder, tmp_path, run_here):
    for i, row in enumerate(toy_rows):
        path = tmp_path / "scenes" / ("Storage_tank" if i % 2 else "road") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        row["image"].save(path)
    (tmp_path / "renamed.json").write_text('{"Storage_tank": "oil tank"}')
    sets = ["--templates", "clip", "overhead", "--renamed", "renamed.json", "--output_dir"]
    printed = run_here("evaluate_scenes.py", "--model", folder, "--folder", "scenes", *sets, "a")
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert list(metrics) == ["scenes, clip", "scenes, overhead"]
    assert metrics["scenes, clip"]["protocol"]["concepts"] == ["oil tank", "road"]
    assert metrics["scenes, clip"]["num_per_concept"] == {"oil tank": 4, "road": 4}
    assert f"{metrics['scenes, overhead']['top1_micro']:.4f}" in printed
    assert Image.open(tmp_path / "a" / "confusion_overhead.png").width > 300

    dataset = ["--dataset", "scenes", "--split", "train"]  # as datasets calls folders without a split
    run_here("evaluate_scenes.py", "--model", folder, *dataset, *sets, "b")
    assert json.loads((tmp_path / "b" / "metrics.json").read_text()) == metrics


def test_evaluate_retrieval_on_a_caption_file_and_on_a_dataset(toy_rows, rows, folder, tmp_path, run_here):
    entries = []
    for i, row in enumerate(toy_rows):
        row["image"].save(tmp_path / f"{i}.png")
        sentences = [{"raw": f" {caption} "} for caption in row["captions"]]
        entries.append({"filename": f"{i}.png", "split": "test", "sentences": sentences})
    entries.append(entries[0] | {"split": "train"})
    (tmp_path / "captions.json").write_text(json.dumps({"images": entries}))
    both = ["--protocols", "all", "unique", "--output_dir"]
    files = ["--captions", "captions.json", "--images", "."]
    printed = run_here("evaluate_retrieval.py", "--model", folder, *files, *both, "a")
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert metrics["retrieval, all"]["num_images"] == 8
    assert f"{metrics['retrieval, unique']['mean_recall']:.4f}" in printed

    (tmp_path / "rows").mkdir()
    rows.to_parquet(tmp_path / "rows" / "test.parquet")
    run_here("evaluate_retrieval.py", "--model", folder, "--dataset", "rows", *both, "b")
    assert json.loads((tmp_path / "b" / "metrics.json").read_text()) == metrics


def test_evaluate_choice_on_files_of_questions(toy_rows, folder, tmp_path, run_here):
    questions = []
    for i, row in enumerate(toy_rows):
        row["image"].save(tmp_path / f"{i}.png")
        options = {"A": "a lake", "B": row["captions"][0]}
        questions.append({"file_name": f"{i}.png", "question": "What?", "options": options, "answer": "B"})
    for name, part in (("caption", questions[:3]), ("scene", questions[3:])):
        (tmp_path / f"{name}.json").write_text(json.dumps(part))
    printed = run_here("evaluate_choice.py", "--model", folder, "--questions", "caption.json", "scene.json")
    scores = json.loads((tmp_path / "outputs" / "evaluate_choice" / "metrics.json").read_text())["choice"]
    assert scores["num_per_subject"] == {"caption": 3, "scene": 5} and scores["chance"] == 0.5
    assert f"{scores['accuracy']:.4f}   0.5000" in printed


def test_localize_maps_phrases_and_scores_maps_against_a_truth(toy_rows, folder, tmp_path, run_here):
    row = toy_rows[0]
    row["image"].save(tmp_path / "large.png")
    phrases = ["--image", "large.png", "--phrases", "a ship", "a road", "--stride", 8, "--output_dir", "a"]
    printed = run_here("localize.py", "--model", folder, *phrases)
    assert "map_tile_1.png: a road" in printed
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"map_tile_0.png", "map_tile_1.png"}
    assert Image.open(tmp_path / "a" / "map_tile_0.png").width > 500

    entry = {"jpg_name": "large.png", "caption": row["phrases"][0], "points": row["quads"][:1]}
    (tmp_path / "queries.json").write_text(json.dumps([entry]))
    queries = ["--queries", "queries.json", "--images", ".", "--stride", 8, "--output_dir", "b"]
    printed = run_here("localize.py", "--model", folder, *queries, "--map_sources", "tile", "dense")
    metrics = json.loads((tmp_path / "b" / "metrics.json").read_text())
    assert list(metrics) == ["localisation, tile", "localisation, dense"]
    for scores in metrics.values():
        assert scores["num_queries"] == 1 and f"rmi {scores['rmi']:.4f}" in printed


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
    weights = ["--text_consistency", 0.1]
    run("train.py", "--dataset", "rows", "--output_dir", "out", *small, *weights, cwd=tmp_path)
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


def test_train_lora_leaves_an_adapter_and_a_merged_model_that_score_alike(
    coco_folder, folder, tmp_path, run_here, rows
):
    files = ["--dataset", coco_folder / "rows.json", "--eval_dataset", coco_folder / "rows.json"]
    options = ["--images", coco_folder, "--num_epochs", 2, "--batch_size", 4, "--lora_rank", 2]
    printed = run_here("train_lora.py", "--model", folder, *files, *options, "--output_dir", "out")
    assert re.search(r"^9,218 of [\d,]+ parameters are trained", printed)
    adapter = tmp_path / "out" / "final" / "adapter_model.safetensors"
    assert f"final/adapter_model.safetensors: {adapter.stat().st_size / 2**20:.2f} MiB" in printed
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(metrics) == ["start", "best", "final", "merged"]
    assert metrics["merged"] | {"step": 4} == metrics["final"]
    card = (tmp_path / "out" / "merged" / "README.md").read_text()
    assert f"| top1_micro | {metrics['merged']['top1_micro']:.4f} |" in card

    scored = ["--coco", coco_folder / "rows.json", "--images", coco_folder]
    run_here("evaluate_regions.py", "--model", "out/final", *scored, "--output_dir", "scores")
    scores = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert scores["concepts, image"]["top1_micro"] == metrics["final"]["top1_micro"]


def test_train_takes_adapters_over_a_model_that_is_there(coco_folder, folder, tmp_path, run_here):
    files = ["--dataset", coco_folder / "rows.json", "--images", coco_folder, "--output_dir", "out"]
    small = ["--num_epochs", 1, "--batch_size", 4, "--lora", "text", "--lora_blocks", 1]
    printed = run_here("train.py", *files, *small, "--model", folder)
    assert "parameters are trained (" in printed
    assert (tmp_path / "out" / "final" / "adapter_config.json").exists()
    with pytest.raises(SystemExit):
        run_here("train.py", *files, *small)


@pytest.mark.slow
def test_the_lora_benchmark_prints_ratios(tmp_path):
    small = ["--rounds", 1, "--batch_size", 2, "--width", 64, "--depth", 2, "--image_size", 64]
    printed = run("benchmarks/lora_memory.py", *small, cwd=tmp_path)
    assert re.search(r"^LoRA, last 2 blocks +[\d,]+ +0\.\d+", printed, flags=re.MULTILINE)
