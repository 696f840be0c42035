"""Every example runs as its docstring says, at a small size."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModel

from geoalign_hf.data.schema import list_concepts
from geoalign_hf.storage import read_json

EXAMPLES = Path(__file__).parents[1] / "examples"
WAYS = ("prototypes", "prototypes and names", "ridge probe", "LoRA")  # of adapt.py


def run(script: str, *arguments, cwd: Path) -> str:
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=600)
    assert result.returncode == 0, result.stderr
    return result.stdout


SMALL = ["--image_size", 64, "--width", 64, "--depth", 1, "--num_train_epochs", 2]
SMALL += ["--per_device_train_batch_size", 4]


@pytest.fixture
def run_here(monkeypatch, capsys, tmp_path):
    """Run a script in this process, which spares it the imports; it works in `tmp_path`."""

    def run_path(script: str, *arguments) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str((EXAMPLES / script).parent))  # as Python does for a script
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        try:
            runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise
        return capsys.readouterr().out

    return run_path


@pytest.mark.slow
def test_train_then_evaluate_regions_on_a_coco_file(coco_folder, geoalign, tmp_path, toy_rows):
    files = [
        "--dataset",
        coco_folder / "rows.json",
        "--eval_dataset",
        coco_folder / "rows.json",
        "--images",
        coco_folder,
    ]
    printed = run("train.py", *files, "--output_dir", "out", *SMALL, cwd=tmp_path)
    num_regions = sum(len(row["boxes"]) for row in toy_rows)
    assert f"on {num_regions} boxes of 8 images" in printed
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(metrics) == {"regions start", "regions best", "regions final"}
    card = (tmp_path / "out" / "final" / "README.md").read_text()
    assert f"| top1_micro | {metrics['regions final']['top1_micro']:.4f} |" in card
    assert "`num_train_epochs=2" in card

    files = ["--dataset", coco_folder / "rows.json", "--images", coco_folder]
    printed = geoalign("evaluate", "regions", "--model", "out/final", *files)
    scores = json.loads((tmp_path / "outputs" / "evaluate_regions" / "metrics.json").read_text())
    protocol = scores["concepts, window"]["protocol"]
    assert (protocol.pop("dataset"), protocol.pop("split")) == ("rows.json", None)
    assert scores["concepts, window"] | {"step": 4} == metrics["regions final"]
    assert f"{scores['concepts, window']['top1_macro']:.4f}" in printed


def test_score_model_prints_the_main_score_of_each_task(rows, folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "rows").mkdir()
    rows.to_parquet(tmp_path / "rows" / "test.parquet")
    monkeypatch.setattr(sys, "argv", ["score_model.py", str(folder), str(tmp_path / "rows")])
    runpy.run_path(str(EXAMPLES / "score_model.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert re.search(r"^regions: top1_macro 0\.\d{4}$", printed, flags=re.MULTILINE)
    assert len(printed.splitlines()) == 6


def test_search_finds_an_image_among_the_best(coco_folder, folder, run_here):
    printed = run_here("search.py", folder, coco_folder, "a ship", "a road").splitlines()
    assert printed[0] == "a ship:" and printed[6] == "a road:" and len(printed) == 12
    assert re.fullmatch(rf"  {coco_folder}/\d\.png -?\d\.\d{{4}}", printed[1])


def test_zero_shot_names_an_image_and_its_boxes(toy_rows, folder, built, tmp_path, run_here):
    row = toy_rows[0]
    row["image"].save(tmp_path / "scene.png")
    boxes = [",".join(map(str, box)) for box in row["boxes"]]
    asked = ["--image", "scene.png", "--concepts", "ship", "storage tank", "--boxes", *boxes]
    printed = run_here("zero_shot.py", "--model", folder, *asked)
    answers = json.loads((tmp_path / "outputs" / "zero_shot" / "answers.json").read_text())
    texts = [f"a satellite image of a {concept}." for concept in ("ship", "storage tank")]
    # The stock pipeline calls the image processor itself, which resizes by PIL and not by torch.
    batch = built[1](text=texts, return_tensors="pt", padding=True)
    batch |= built[1].image_processor(row["image"], return_tensors="pt")
    with torch.no_grad():
        expected = built[0](**batch).logits_per_image[0].softmax(-1).tolist()
    found = {answer["label"]: answer["score"] for answer in answers["image"]}
    assert [found["ship"], found["storage tank"]] == pytest.approx(expected, abs=1e-5)
    assert [best["box"] for best, _ in answers["regions"]] == row["boxes"]
    best = answers["regions"][0][0]
    assert f"box {best['box']}: {best['label']} {best['score']:.4f}" in printed


def test_localize_draws_a_map_of_every_phrase(toy_rows, folder, tmp_path, run_here):
    toy_rows[0]["image"].save(tmp_path / "large.png")
    printed = run_here("localize.py", folder, "large.png", "a ship", "a road")
    assert "outputs/localize/map_1.png: a road" in printed
    assert Image.open(tmp_path / "outputs" / "localize" / "map_0.png").width > 500


@pytest.mark.slow
def test_zero_shot_runs_where_geoalign_hf_is_not_installed(toy_rows, folder, tmp_path):
    toy_rows[0]["image"].save(tmp_path / "scene.png")
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent" / "geoalign_hf.py").write_text("raise ModuleNotFoundError('geoalign_hf')")
    asked = ["--image", "scene.png", "--concepts", "ship", "road", "--boxes", "2,2,30,30"]
    command = [sys.executable, EXAMPLES / "zero_shot.py", "--model", folder, "--trust_remote_code", *asked]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "absent")}
    result = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert result.returncode == 0, result.stderr
    assert "box [2.0, 2.0, 30.0, 30.0]: " in result.stdout


def test_linear_probe_on_folders_and_on_boxes(toy_rows, folder, coco_folder, tmp_path, run_here):
    for i, row in enumerate(toy_rows):
        path = tmp_path / "scenes" / ("Storage_tank" if i % 2 else "road") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        row["image"].save(path)
    fewer = ["--num_neighbors", 1, "--folds", 2, "--output_dir"]
    run_here(
        "linear_probe.py", "--model", folder, "--folder", "scenes", "--test_folder", "scenes", *fewer, "a"
    )
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert list(metrics) == ["linear probe", "1 nearest neighbors", "zero-shot"]
    assert metrics["1 nearest neighbors"]["top1_micro"] == 1  # each test image is its own neighbor
    assert metrics["zero-shot"]["num_per_concept"] == {"road": 4, "storage tank": 4}

    boxes = ["--coco", coco_folder / "rows.json", "--images", coco_folder]
    printed = run_here("linear_probe.py", "--model", folder, *boxes, *fewer, "b")
    metrics = json.loads((tmp_path / "b" / "metrics.json").read_text())
    num_regions = sum(len(row["boxes"]) for row in toy_rows)
    for scores in metrics.values():
        assert scores["num_tests"] + scores["protocol"]["num_train"] == num_regions
        assert f"micro {scores['top1_micro']:.4f}" in printed
    first = metrics
    run_here("linear_probe.py", "--model", folder, *boxes, *fewer, "b")
    assert json.loads((tmp_path / "b" / "metrics.json").read_text()) == first


@pytest.mark.slow
def test_a_built_dataset_is_trained_on_with_every_term(coco_folder, geoalign, tmp_path):
    geoalign("build", "--coco", coco_folder / "rows.json", "--output_dir", "rows")
    weights = ["--description", 1, "--crop_consistency", 0.1, "--image_consistency", 0.1]
    weights += ["--text_consistency", 0.1, "--logging_steps", 1, "--whole_share", 0.5]
    run("train.py", "--dataset", "rows", "--output_dir", "out", *SMALL, *weights, cwd=tmp_path)
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    for term in ("description", "hard_negative", "crop_consistency", "image_consistency", "text_consistency"):
        assert max(record.get(term, 0) for record in history) > 0, term


@pytest.mark.slow
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
    run(
        "train.py",
        *files,
        "--num_train_epochs",
        1,
        "--per_device_train_batch_size",
        8,
        "--learning_rate",
        0,
        cwd=tmp_path,
    )
    from safetensors.torch import load_file

    before, after = (
        load_file(folder / "model.safetensors"),
        load_file(tmp_path / "out/final/model.safetensors"),
    )
    assert all((before[name] == after[name]).all() for name in before)


@pytest.mark.slow
def test_the_quickstart_leaves_a_model_folder_a_picture_and_its_numbers(tmp_path):
    printed = run("quickstart.py", "--num_rows", 40, "--max_steps", 2, cwd=tmp_path)
    output = tmp_path / "outputs" / "quickstart"
    assert Image.open(output / "quickstart.png").width > 500
    assert {"README.md", "model.safetensors", "processor_config.json"} <= {
        path.name for path in (output / "final").iterdir()
    }
    results = json.loads((output / "quickstart.json").read_text())["results"]
    assert f"{100 * results['boxes named, by the pipeline']:.1f} %" in printed


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
@pytest.mark.parametrize("objective", ["full", "concept"])
def test_the_vhr10_benchmark_trains_each_seed_once_and_writes_mean_and_spread(
    objective, coco_folder, tmp_path, run_here
):
    for split in ("train", "test"):
        shutil.copy(coco_folder / "rows.json", coco_folder / f"{split}.json")
    small = ["--width", 64, "--depth", 1, "--max_steps", 4, "--batch_size", 8, "--views", 1.5, 2.0]
    command = [
        "benchmarks/nwpu_vhr10.py",
        "--root",
        coco_folder,
        "--output_dir",
        "out",
        "--seeds",
        0,
        1,
        "--objective",
        objective,
        *small,
    ]
    run_here(*command)
    table = (tmp_path / "out" / "table.md").read_text()
    for line in ("HOG + colour, linear SVM", "... + eight turned copies", "GeoAlignCLIP, averaged views"):
        assert re.search(rf"\| {re.escape(line)} \| [\d.]+", table)
    assert re.search(r"GeoAlignCLIP, one view \| [\d.]+ ± [\d.]+ \|", table)
    written = tmp_path / "out" / "seed_0.json"
    before = written.stat().st_mtime_ns
    assert run_here(*command) == table
    assert written.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="max_steps"):
        run_here(*command, "--max_steps", 5)


@pytest.mark.slow
def test_the_ablation_runs_each_cell_once_and_compares_rows(coco_folder, tmp_path, run_here):
    for split in ("train", "validation", "test"):
        shutil.copy(coco_folder / "rows.json", coco_folder / f"{split}.json")
    command = ["benchmarks/ablation.py", "--root", coco_folder, "--output_dir", "out", "--quick"]
    command += ["--rows", "concept", "full", "--arms", "all", "tenth", "--seeds", 0, 1]
    run_here(*command)
    table = (tmp_path / "out" / "table.md").read_text()
    assert re.search(r"\| concept \| [\d.]+ ± [\d.]+ \|.*\[[-+\d.]+, [-+\d.]+\]", table)
    cells = list((tmp_path / "out" / "cells").glob("*.json"))
    assert len(cells) == 8
    before = {cell: cell.stat().st_mtime_ns for cell in cells}
    assert table.strip() in run_here(*command)
    assert {cell: cell.stat().st_mtime_ns for cell in cells} == before


@pytest.mark.slow
def test_the_pooling_benchmark_prints_ratios(tmp_path):
    printed = run("benchmarks/region_pooling.py", "--rounds", 1, "--threads", 1, cwd=tmp_path)
    assert "our boxes" in printed
    assert "grid_sample" in printed


@pytest.mark.slow
def test_train_lora_leaves_an_adapter_and_a_merged_model_that_score_alike(
    coco_folder, folder, tmp_path, run_here, geoalign
):
    files = ["--dataset", coco_folder / "rows.json", "--eval_dataset", coco_folder / "rows.json"]
    options = ["--images", coco_folder, "--num_train_epochs", 2, "--per_device_train_batch_size", 4]
    options += ["--lora_rank", 2]
    printed = run_here("train_lora.py", "--model", folder, *files, *options, "--output_dir", "out")
    assert re.search(r"^9,218 of [\d,]+ parameters are trained", printed)
    assert (tmp_path / "out" / "final" / "adapter_model.safetensors").exists()
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    micro = f"{metrics['regions final']['top1_micro']:.4f}"
    for moment in ("after", "merged"):
        assert f"{moment}: region top-1 micro {micro}" in printed
    assert f"| top1_micro | {micro} |" in (tmp_path / "out" / "merged" / "README.md").read_text()

    scored = ["--dataset", coco_folder / "rows.json", "--images", coco_folder]
    geoalign("evaluate", "regions", "--model", "out/final", *scored, "--output_dir", "scores")
    scores = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert scores["concepts, image"]["top1_micro"] == metrics["regions final"]["top1_micro"]


def test_train_pushes_its_checkpoints_and_the_final_model(hub, coco_folder, folder, tmp_path, run_here):
    files = ["--dataset", coco_folder / "rows.json", "--eval_dataset", coco_folder / "rows.json"]
    options = [
        "--images",
        coco_folder,
        "--num_train_epochs",
        2,
        "--per_device_train_batch_size",
        4,
        "--model",
        folder,
    ]
    more = [
        "--save_strategy",
        "steps",
        "--save_steps",
        2,
        "--push_to_hub",
        "--hub_model_id",
        "harbors",
        "--license",
        "mit",
    ]
    printed = run_here("train.py", *files, *options, *more, "--output_dir", "out")
    messages = hub.repositories["model", "you/harbors"].messages
    assert messages == ["initial commit", "Push checkpoint-2", "Push final"]
    assert f"{hub.url}/you/harbors/commit/" in printed
    final = tmp_path / "out" / "final"
    for name in ("model.safetensors", "metrics.json", "args.json", "curves.png"):
        assert hub.read("you/harbors", name) == (final / name).read_bytes()
    card = hub.read("you/harbors", "README.md").decode()
    assert "license: mit" in card and "Trained on rows.json. Licence of the data: not stated" in card
    assert f"| top1_micro | {read_json(final / 'metrics.json')['regions final']['top1_micro']:.4f} |" in card
    assert not list((tmp_path / "out").glob("partial-*"))

    with pytest.raises(SystemExit):  # an adapter whose base nobody else has
        run_here("train.py", *files, *options, *more, "--lora", "text", "--output_dir", "adapted")


def test_train_takes_adapters_over_a_model_that_is_there(coco_folder, folder, tmp_path, run_here):
    files = ["--dataset", coco_folder / "rows.json", "--images", coco_folder, "--output_dir", "out"]
    small = [
        "--num_train_epochs",
        1,
        "--per_device_train_batch_size",
        4,
        "--lora",
        "text",
        "--lora_blocks",
        1,
    ]
    printed = run_here("train.py", *files, *small, "--model", folder)
    assert "parameters are trained (" in printed
    assert (tmp_path / "out" / "final" / "adapter_config.json").exists()
    with pytest.raises(SystemExit):
        run_here("train.py", *files, *small)


@pytest.mark.slow
def test_train_leaves_concepts_out_and_adapt_brings_them_in(coco_folder, folder, tmp_path, run_here, rows):
    new, *old = list_concepts(rows)
    boxes = ["--images", coco_folder, "--dataset", coco_folder / "rows.json"]
    small = ["--concepts", new, "--shots", "1,2", "--num_seeds", 2, "--num_steps", 2, "--rehearsed", 1]
    test = ["--test_dataset", coco_folder / "rows.json", "--output_dir", "out"]
    printed = run_here("adapt.py", "--model", folder, *boxes, *small, *test)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    ways = [f"{way}, {shots}-shot" for shots in (1, 2) for way in WAYS]
    assert list(metrics) == ["zero-shot", *ways]
    for title, scores in metrics.items():
        assert re.search(rf"^\| {title} \| 100.0", printed, flags=re.MULTILINE)  # one name to choose from
        assert scores["protocol"]["old"] == ", ".join(old)
    adapted = AutoModel.from_pretrained(tmp_path / "out" / "final")  # the base with the adapter
    alone = {"lora_A", "lora_B"} & {part for name in adapted.state_dict() for part in name.split(".")}
    assert alone == {"lora_A", "lora_B"}
    card = (tmp_path / "out" / "final" / "README.md").read_text()
    assert "**this adapter**" in card and "**LoRA, 2-shot**" in card

    fresh = [
        "--image_size",
        64,
        "--width",
        64,
        "--depth",
        1,
        "--num_train_epochs",
        1,
        "--per_device_train_batch_size",
        4,
    ]
    files = ["--dataset", coco_folder / "rows.json", "--eval_dataset", coco_folder / "rows.json"]
    run_here("train.py", *files, *boxes[:2], *fresh, "--exclude_concepts", new, "--output_dir", "base")
    told = json.loads((tmp_path / "base" / "metrics.json").read_text())["regions final"]["protocol"][
        "concepts"
    ]
    assert told == old


@pytest.mark.slow
def test_the_lora_benchmark_prints_ratios(tmp_path):
    small = ["--rounds", 1, "--batch_size", 2, "--width", 64, "--depth", 2, "--image_size", 64]
    printed = run("benchmarks/lora_memory.py", *small, cwd=tmp_path)
    assert re.search(r"^LoRA, last 2 blocks +[\d,]+ +0\.\d+", printed, flags=re.MULTILINE)


@pytest.mark.slow
def test_all_benchmarks_agree_with_their_peers_and_write_one_table(tmp_path):
    run("benchmarks/run_all.py", "--tiny", "--rounds", 1, "--output", "out", cwd=tmp_path)
    results = json.loads((tmp_path / "out" / "benchmarks.json").read_text())
    table = (tmp_path / "out" / "benchmarks.md").read_text()
    assert len(results["cases"]) == 16
    for case in results["cases"].values():
        assert len(case["measured"]) == 4 and case["title"] in table
    assert results["training"]["images_per_second"] > 0
    assert results["decoding"]["cores_for_training"]["draft"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("cached_accumulation.py --rounds 1 --width 64 --depth 1 --image_size 32 --batch_sizes 8",
         r"^ +8 +cached .* [0-9.]+e-\d+$"),
        ("text_packing.py --num_images 1 --depth 1 --width 64 --rounds 1", "^largest difference of embedd"),
        ("scene_profile.py --side 224 --regions 2", r"^classify .* % outside the model"),
        ("training_memory.py --batch_sizes 1,2 --model CLIP", r"^\| .*LoRA"),
        ("detection.py --train rows.json --test rows.json --images . --max_steps 2 --proposals noisy~boxes",
         r"^noisy boxes +\d+ proposals per image  mAP"),
    ],
    ids=lambda text: text.split()[0],
)  # fmt: skip
def test_a_benchmark_runs_at_a_small_size(command, line, coco_folder, clip_folder):
    script, *options = (word.replace("~", " ") for word in command.replace("CLIP", str(clip_folder)).split())
    printed = run(f"benchmarks/{script}", *options, cwd=coco_folder)
    assert re.search(line, printed, flags=re.MULTILINE), printed


@pytest.mark.slow
def test_the_benchmark_of_the_loss_fails_where_its_blocks_save_too_little_memory(tmp_path):
    command = [sys.executable, EXAMPLES / "benchmarks/loss_memory.py", "--rows", "256", "--rounds", "1"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 1 and "expected less than 0.1" in result.stderr + result.stdout


def test_every_script_is_run_by_a_test_or_imported_by_another_script():
    scripts = [path for path in EXAMPLES.rglob("*.py") if path.name != "app.py"]  # test_app.py runs it
    imported = {
        name for path in scripts for name in re.findall(r"^(?:from|import) (\w+)", path.read_text(), re.M)
    }
    tested = "".join(path.read_text() for path in Path(__file__).parent.rglob("test_*.py"))
    missing = [p.name for p in scripts if p.stem not in imported and not re.search(rf"\b{p.stem}\b", tested)]
    assert missing == []
