"""Every example runs as its docstring says, at a small size."""

import json
import os
import re
import runpy
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

from geoalign_hf.data.schema import list_concepts
from geoalign_hf.embedding.embedder import Embedder
from geoalign_hf.embedding.shards import read_embeds

EXAMPLES = Path(__file__).parents[1] / "examples"
WAYS = ("prototypes", "prototypes and names", "ridge probe", "LoRA")  # of adapt.py


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
    assert set(metrics) == {"start", "best", "final"}
    card = (tmp_path / "out" / "final" / "README.md").read_text()
    assert f"| top1_micro | {metrics['final']['top1_micro']:.4f} |" in card
    assert "`num_epochs=2`" in card

    files = ["--coco", coco_folder / "rows.json", "--images", coco_folder]
    printed = run("evaluate_regions.py", "--model", "out/final", *files, cwd=tmp_path)
    scores = json.loads((tmp_path / "outputs" / "evaluate_regions" / "metrics.json").read_text())
    assert scores["concepts, window"] | {"step": 4} == metrics["final"]
    assert f"{scores['concepts, window']['top1_macro']:.4f}" in printed


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
    assert list(metrics) == [f"{task}, {source}" for source in sources for task in tasks] + ["drift"]
    assert metrics["drift"]["image_cosine_to_start"] == pytest.approx(1)
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


def test_zero_shot_names_an_image_and_its_boxes(toy_rows, folder, built, tmp_path, run_here):
    row = toy_rows[0]
    row["image"].save(tmp_path / "scene.png")
    boxes = [",".join(map(str, box)) for box in row["boxes"]]
    asked = ["--image", "scene.png", "--concepts", "ship", "storage tank", "--boxes", *boxes]
    printed = run_here("zero_shot.py", "--model", folder, *asked)
    answers = json.loads((tmp_path / "outputs" / "zero_shot" / "answers.json").read_text())
    texts = [f"a satellite image of a {concept}." for concept in ("ship", "storage tank")]
    batch = built[1](images=row["image"], text=texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = built[0](**batch).logits_per_image[0].softmax(-1).tolist()
    found = {answer["label"]: answer["score"] for answer in answers["image"]}
    assert [found["ship"], found["storage tank"]] == pytest.approx(expected, abs=1e-5)
    assert [best["box"] for best, _ in answers["regions"]] == row["boxes"]
    best = answers["regions"][0][0]
    assert f"box {best['box']}: {best['label']} {best['score']:.4f}" in printed


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
    assert list(metrics) == ["linear probe", "1 nearest neighbours", "zero-shot"]
    assert metrics["1 nearest neighbours"]["top1_micro"] == 1  # each test image is its own neighbour
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


def test_search_finds_in_an_embedded_folder_what_brute_force_finds(
    folder, built, coco_folder, run_here, tmp_path
):
    files = ["--images", coco_folder, "--coco", coco_folder / "rows.json", "--shard_size", 3]
    printed = run_here("embed_folder.py", "--model", folder, *files, "--output_dir", "embeds")
    assert "process 0 of 1: made 3 shards;" in printed and "8 images make 3 shards in embeds" in printed
    assert "made 0 shards" in run_here("embed_folder.py", "--model", folder, *files, "--output_dir", "embeds")

    embedder = Embedder(*built)
    queries = ["a ship", "a storage tank near a road"]
    text_embeds, image_embeds = embedder.embed_text(queries), embedder.embed_images([coco_folder / "2.png"])
    everything = read_embeds(tmp_path / "embeds")
    asked = ["--model", folder, "--embeds", "embeds", "--image", coco_folder / "2.png", "--query", *queries]
    for kind in ("image", "region"):
        again = None
        for _ in range(2):  # with the index that is built, and with the one that is loaded
            printed = run_here("search.py", *asked, "--kind", kind, "--images", coco_folder, "--top_k", 4)
            assert again in (None, printed)
            again = printed
        rows = [row for row in everything if row["kind"] == kind]
        embeds = np.array([row["embed"] for row in rows])
        expected = ""
        for name, query in zip([*queries, coco_folder / "2.png"], [*text_embeds, *image_embeds], strict=True):
            expected += f"{name}:\n"
            scores = embeds @ query.numpy()
            for i in np.argsort(-scores)[:4]:
                box = [round(side, 1) for side in rows[i]["box"]] if kind == "region" else "whole"
                concept = f"{rows[i]['concept']} " if kind == "region" else ""
                expected += f"  {rows[i]['path']} {box} {concept}{scores[i]:.4f}\n"
        assert printed == expected
        assert Image.open(tmp_path / "outputs" / "search" / "hits_2.png").height > 400
    assert rows and "  2.png whole 1.0000" in run_here("search.py", *asked)


@pytest.mark.slow
def test_exported_towers_say_what_the_model_says(folder, built, toy_rows, tmp_path, run_here):
    printed = run_here("export_onnx.py", "--model", folder)
    assert printed.count("differs by at most") == 3
    onnx = tmp_path / "outputs" / "export_onnx"
    processor = AutoProcessor.from_pretrained(onnx)
    images, boxes = [row["image"] for row in toy_rows], [row["boxes"] for row in toy_rows]
    texts = [row["captions"][0] for row in toy_rows]
    batch = processor(images=images, boxes=boxes, text=texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = built[0](**batch)
    for name in ("image", "text", "region"):
        session = onnxruntime.InferenceSession(onnx / f"{name}.onnx", providers=["CPUExecutionProvider"])
        inputs = {entry.name: batch[entry.name].numpy() for entry in session.get_inputs()}
        (found,) = session.run([f"{name}_embeds"], inputs)
        assert found == pytest.approx(expected[f"{name}_embeds"].numpy(), abs=1e-4)


@pytest.mark.slow
def test_oriented_boxes_and_the_value_path_are_exported_too(model, processor, tmp_path, run_here):
    model.config.dense_mode = "value"
    model.save_pretrained(tmp_path / "value")
    processor.save_pretrained(tmp_path / "value")
    printed = run_here("export_onnx.py", "--model", "value", "--region_form", "quads")
    assert printed.count("differs by at most") == 3


@pytest.mark.slow
def test_two_processes_embed_a_folder_as_one_does_and_a_killed_run_goes_on(folder, coco_folder, tmp_path):
    boxes = ["--coco", coco_folder / "rows.json"]
    files = ["--model", folder, "--images", coco_folder, "--shard_size", 1, *boxes]
    run("embed_folder.py", *files, "--output_dir", "one", cwd=tmp_path)
    script = [EXAMPLES / "embed_folder.py", *files, "--output_dir", "two"]
    port = 29400 + os.getpid() % 500
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", port]
    command = list(map(str, [sys.executable, *launcher, *script]))
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    alone = subprocess.Popen(
        list(map(str, [sys.executable, *script])), cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    while not list((tmp_path / "two").glob("*.parquet")):
        assert alone.poll() is None
        time.sleep(0.001)
    alone.kill()
    alone.wait()
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert "process 0 of 2: made" in result.stdout and "process 1 of 2: made" in result.stdout
    assert not list((tmp_path / "two").glob("*.partial"))
    one, two = (read_embeds(tmp_path / name) for name in ("one", "two"))
    assert np.array(two["embed"]) == pytest.approx(np.array(one["embed"]), abs=1e-6)  # but for rounding
    assert two.remove_columns("embed").to_list() == one.remove_columns("embed").to_list()


@pytest.mark.slow
def test_a_built_dataset_is_trained_on_with_every_term(coco_folder, tmp_path):
    command = [
        sys.executable,
        "-m",
        "geoalign_hf.dataset_builder.build",
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
    run("train.py", *files, "--num_epochs", 1, "--batch_size", 8, "--learning_rate", 0, cwd=tmp_path)
    from safetensors.torch import load_file

    before, after = (
        load_file(folder / "model.safetensors"),
        load_file(tmp_path / "out/final/model.safetensors"),
    )
    assert all((before[name] == after[name]).all() for name in before)


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_train_pushes_its_checkpoints_and_the_final_model(hub, coco_folder, folder, tmp_path, run_here):
    files = ["--dataset", coco_folder / "rows.json", "--eval_dataset", coco_folder / "rows.json"]
    options = ["--images", coco_folder, "--num_epochs", 2, "--batch_size", 4, "--model", folder]
    more = ["--save_every", 2, "--push_to_hub", "--hub_model_id", "harbors", "--license", "mit"]
    printed = run_here("train.py", *files, *options, *more, "--output_dir", "out")
    messages = hub.repositories["model", "you/harbors"].messages
    assert messages == ["initial commit", "Push checkpoint-2", "Push final"]
    assert f"{hub.url}/you/harbors/commit/" in printed
    final = tmp_path / "out" / "final"
    for name in ("model.safetensors", "metrics.json", "args.json", "curves.png"):
        assert hub.read("you/harbors", name) == (final / name).read_bytes()
    card = hub.read("you/harbors", "README.md").decode()
    assert "license: mit" in card and "rows.json; its licence: not stated there." in card
    assert (
        f"| top1_micro | {json.loads((final / 'metrics.json').read_text())['final']['top1_micro']:.4f} |"
        in card
    )
    assert not list((tmp_path / "out").glob("partial-*"))

    with pytest.raises(SystemExit):  # an adapter whose base nobody else has
        run_here("train.py", *files, *options, *more, "--lora", "text", "--output_dir", "adapted")


def test_train_takes_adapters_over_a_model_that_is_there(coco_folder, folder, tmp_path, run_here):
    files = ["--dataset", coco_folder / "rows.json", "--images", coco_folder, "--output_dir", "out"]
    small = ["--num_epochs", 1, "--batch_size", 4, "--lora", "text", "--lora_blocks", 1]
    printed = run_here("train.py", *files, *small, "--model", folder)
    assert "parameters are trained (" in printed
    assert (tmp_path / "out" / "final" / "adapter_config.json").exists()
    with pytest.raises(SystemExit):
        run_here("train.py", *files, *small)


@pytest.mark.slow
def test_train_leaves_concepts_out_and_adapt_brings_them_in(coco_folder, folder, tmp_path, run_here, rows):
    new, *old = list_concepts(rows)
    boxes = ["--images", coco_folder, "--coco", coco_folder / "rows.json"]
    small = ["--concepts", new, "--shots", "1,2", "--num_seeds", 2, "--num_steps", 2, "--rehearsed", 1]
    test = ["--test_coco", coco_folder / "rows.json", "--output_dir", "out"]
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

    fresh = ["--image_size", 64, "--width", 64, "--depth", 1, "--num_epochs", 1, "--batch_size", 4]
    files = ["--dataset", coco_folder / "rows.json", "--eval_dataset", coco_folder / "rows.json"]
    run_here("train.py", *files, *boxes[:2], *fresh, "--exclude_concepts", new, "--output_dir", "base")
    told = json.loads((tmp_path / "base" / "metrics.json").read_text())["final"]["protocol"]["concepts"]
    assert told == old


@pytest.mark.slow
def test_the_lora_benchmark_prints_ratios(tmp_path):
    small = ["--rounds", 1, "--batch_size", 2, "--width", 64, "--depth", 2, "--image_size", 64]
    printed = run("benchmarks/lora_memory.py", *small, cwd=tmp_path)
    assert re.search(r"^LoRA, last 2 blocks +[\d,]+ +0\.\d+", printed, flags=re.MULTILINE)
