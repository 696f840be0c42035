"""`geoalign-hf evaluate`: every task on small data, and what it refuses."""

import json

import numpy as np
import pytest
from PIL import Image


def remove_data(output_dir, dataset, split):
    """Read the scores of a folder without the data set and split that their protocols must name."""
    metrics = json.loads((output_dir / "metrics.json").read_text())
    for scores in metrics.values():
        protocol = scores["protocol"]
        assert (protocol.pop("dataset"), protocol.pop("split", None)) == (dataset, split)
    return metrics


def test_evaluate_regions_by_every_source_on_a_dataset_of_rows(rows, folder, tmp_path, geoalign):
    (tmp_path / "rows").mkdir()
    rows.to_parquet(tmp_path / "rows" / "test.parquet")
    sources = ["image", "window", "crop", "both"]
    geoalign(
        "evaluate", "regions", "--model", folder, "--dataset", "rows", "--region_sources", *sources,
        "--templates", "skyscript", "--start", folder, "--save_embeds", "--output_dir", "out",
    )  # fmt: skip
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    tasks = ("concepts", "phrases", "hard negatives")
    assert list(metrics) == [f"{task}, {source}" for source in sources for task in tasks] + ["drift"]
    assert metrics["drift"]["image_cosine_to_start"] == pytest.approx(1)
    assert {(s["protocol"]["dataset"], s["protocol"]["split"]) for s in metrics.values()} == {
        ("rows", "test")
    }
    for source in sources:
        assert len(metrics[f"concepts, {source}"]["protocol"]["templates"]) == 2
        assert Image.open(tmp_path / "out" / f"confusion_{source}.png").width > 300
        saved = np.load(tmp_path / "out" / f"concepts_{source}.npz")
        right = (saved["regions"] @ saved["concepts"].T).argmax(axis=1) == saved["references"]
        assert metrics[f"concepts, {source}"]["top1_micro"] == right.mean()


def test_evaluate_scenes_on_folders_and_on_a_dataset(toy_rows, folder, tmp_path, geoalign):
    for i, row in enumerate(toy_rows):
        path = tmp_path / "scenes" / ("Storage_tank" if i % 2 else "road") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        row["image"].save(path)
    (tmp_path / "renamed.json").write_text('{"Storage_tank": "oil tank"}')
    sets = ["--templates", "clip", "overhead", "--renamed", "renamed.json", "--output_dir"]
    printed = geoalign("evaluate", "scenes", "--model", folder, "--folder", "scenes", *sets, "a")
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert list(metrics) == ["scenes, clip", "scenes, overhead"]
    assert metrics["scenes, clip"]["protocol"]["concepts"] == ["oil tank", "road"]
    assert metrics["scenes, clip"]["num_per_concept"] == {"oil tank": 4, "road": 4}
    assert f"{metrics['scenes, overhead']['top1_micro']:.4f}" in printed
    assert Image.open(tmp_path / "a" / "confusion_overhead.png").width > 300

    dataset = ["--dataset", "scenes", "--split", "train"]  # as datasets calls folders without a split
    geoalign("evaluate", "scenes", "--model", folder, *dataset, *sets, "b")
    assert remove_data(tmp_path / "b", "scenes", "train") == remove_data(tmp_path / "a", "scenes", None)


def test_evaluate_retrieval_on_a_caption_file_and_on_a_dataset(toy_rows, rows, folder, tmp_path, geoalign):
    entries = []
    for i, row in enumerate(toy_rows):
        row["image"].save(tmp_path / f"{i}.png")
        sentences = [{"raw": f" {caption} "} for caption in row["captions"]]
        entries.append({"filename": f"{i}.png", "split": "test", "sentences": sentences})
    toy_rows[0]["image"].save(tmp_path / "other.png")
    entries.append(entries[0] | {"split": "train", "filename": "other.png"})
    (tmp_path / "captions.json").write_text(json.dumps({"images": entries}))
    both = ["--protocols", "all", "unique", "--output_dir"]
    files = ["--captions", "captions.json", "--images", "."]
    printed = geoalign("evaluate", "retrieval", "--model", folder, *files, *both, "a")
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert metrics["retrieval, all"]["num_images"] == 8
    assert f"{metrics['retrieval, unique']['mean_recall']:.4f}" in printed

    (tmp_path / "rows").mkdir()
    rows.to_parquet(tmp_path / "rows" / "test.parquet")
    (tmp_path / "rows" / "README.md").write_text("---\npretty_name: Harbors\n---\n")
    geoalign("evaluate", "retrieval", "--model", folder, "--dataset", "rows", *both, "b")
    assert remove_data(tmp_path / "b", "Harbors", "test") == remove_data(
        tmp_path / "a", "captions.json", "test"
    )


def test_evaluate_choice_on_files_of_questions(toy_rows, folder, tmp_path, geoalign):
    questions = []
    for i, row in enumerate(toy_rows):
        row["image"].save(tmp_path / f"{i}.png")
        options = {"A": "a lake", "B": row["captions"][0]}
        questions.append({"file_name": f"{i}.png", "question": "What?", "options": options, "answer": "B"})
    for name, part in (("caption", questions[:3]), ("scene", questions[3:])):
        (tmp_path / f"{name}.json").write_text(json.dumps(part))
    printed = geoalign("evaluate", "choice", "--model", folder, "--questions", "caption.json", "scene.json")
    scores = json.loads((tmp_path / "outputs" / "evaluate_choice" / "metrics.json").read_text())["choice"]
    assert scores["num_per_subject"] == {"caption": 3, "scene": 5} and scores["chance"] == 0.5
    assert scores["protocol"]["dataset"] == "caption.json, scene.json"
    assert f"{scores['accuracy']:.4f}" in printed and "0.5000" in printed


def test_localize_maps_phrases_and_scores_maps_against_a_truth(toy_rows, folder, tmp_path, geoalign):
    row = toy_rows[0]
    row["image"].save(tmp_path / "large.png")
    phrases = ["--image", "large.png", "--phrases", "a ship", "a road", "--stride", 8, "--output_dir", "a"]
    printed = geoalign("evaluate", "localization", "--model", folder, *phrases)
    assert "map_tile_1.png: a road" in printed
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"map_tile_0.png", "map_tile_1.png"}
    assert Image.open(tmp_path / "a" / "map_tile_0.png").width > 500

    entry = {"jpg_name": "large.png", "caption": row["phrases"][0], "points": row["quads"][:1]}
    (tmp_path / "queries.json").write_text(json.dumps([entry]))
    queries = ["--queries", "queries.json", "--images", ".", "--stride", 8, "--output_dir", "b"]
    printed = geoalign(
        "evaluate", "localization", "--model", folder, *queries, "--map_sources", "tile", "dense"
    )
    metrics = json.loads((tmp_path / "b" / "metrics.json").read_text())
    assert list(metrics) == ["localization, tile", "localization, dense"]
    for scores in metrics.values():
        assert scores["protocol"]["dataset"] == "queries.json"
        assert scores["num_queries"] == 1 and f"{scores['rmi']:.4f}" in printed
