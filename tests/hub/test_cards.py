"""A model card shows measured numbers only, and describes the model."""

import configparser
import json
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard, DatasetCardData, ModelCard

from geoalign_hf.evaluation.choice import StatementChoiceEvaluator
from geoalign_hf.evaluation.classification import (
    RegionClassificationEvaluator,
    SceneClassificationEvaluator,
)
from geoalign_hf.evaluation.drift import EmbeddingDriftEvaluator
from geoalign_hf.evaluation.hard_negatives import HardNegativeEvaluator
from geoalign_hf.evaluation.retrieval import CaptionRetrievalEvaluator, PhraseRetrievalEvaluator
from geoalign_hf.hub.cards import (
    describe_dataset,
    list_numbers,
    list_protocol,
    list_tables,
    sort_results,
    write_card,
)
from geoalign_hf.model.requirements_geoalign_clip import REQUIRED_TRANSFORMERS
from geoalign_hf.storage import name_partial

SETTINGS = {
    "training": {"learning_rate": 0.0005, "num_epochs": 3},
    "loss_weights": {"scene": 1.0, "region": 0.1},
    "num_rows": 8,
}
TASK_TYPES = {
    "toy, regions": "zero-shot-region-classification",
    "toy, windows": "zero-shot-region-classification",
    "toy, scenes": "zero-shot-image-classification",
    "toy, captions": "image-text-retrieval",
    "toy, phrases": "image-text-retrieval",
    "toy, negatives": "feature-extraction",
    "toy, choice": "visual-question-answering",
    "toy, guards": "feature-extraction",
}


@pytest.fixture(scope="module")
def metrics(built, rows):
    """Real results of the toy model, of every kind, as they come back from their file."""
    images, names = list(rows["image"]), ["ship", "road"] * 4
    question = {"image": images[0], "options": ["a ship", "a | road"], "answer": 1, "subject": "x | y"}
    evaluators = (
        RegionClassificationEvaluator(rows),
        RegionClassificationEvaluator(rows, region_source="window", context=2.5, templates=("a {}",)),
        SceneClassificationEvaluator(images, names),
        CaptionRetrievalEvaluator(rows),
        PhraseRetrievalEvaluator(rows),
        HardNegativeEvaluator(rows),
        StatementChoiceEvaluator([question]),
        EmbeddingDriftEvaluator(images, ["a ship"], start=built[0]),
    )
    results = [evaluator(*built) for evaluator in evaluators]
    return json.loads(json.dumps(dict(zip(TASK_TYPES, results, strict=True))))


@pytest.fixture
def text(metrics, tmp_path):
    write_card(tmp_path / "toy-clip", metrics, SETTINGS)
    return (tmp_path / "toy-clip" / "README.md").read_text(encoding="utf-8")


def split_sections(text: str) -> dict[str, str]:
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_card_that_was_written_is_the_one_given_back(metrics, tmp_path):
    card = write_card(tmp_path, metrics, SETTINGS)
    loaded = ModelCard.load(tmp_path / "README.md")
    assert loaded.text.strip() == card.text.strip()
    assert loaded.data.to_dict() == card.data.to_dict()


def test_the_card_says_what_the_hub_asks(metrics, tmp_path):
    write_card(tmp_path / "toy-clip", metrics)
    data = ModelCard.load(tmp_path / "toy-clip" / "README.md").data
    assert (data.license, data.library_name, data.language) == (None, "transformers", "en")
    assert data.pipeline_tag == "zero-shot-image-classification"
    assert data.tags == ["remote-sensing", "clip", "region", "geoalign_clip", "custom_code"]
    assert data.model_name == "toy-clip"


def test_every_number_that_was_measured_is_a_result_on_the_card_and_no_other(metrics, tmp_path):
    write_card(tmp_path, metrics, SETTINGS)
    results = ModelCard.load(tmp_path / "README.md").data.eval_results
    found = {(result.dataset_name, result.metric_name): result for result in results}
    expected = {
        (title, f"{name}, {title}"): value
        for title, scores in metrics.items()
        for name, value in scores.items()
        if isinstance(value, float) and not name.startswith(("chance", "blind"))
    }
    assert len(found) == len(results)
    assert {key: result.metric_value for key, result in found.items()} == expected
    for title, scores in metrics.items():
        told = list_protocol(scores)
        assert told["task"] == scores["protocol"]["task"] and "versions" in told
        for (of_title, _), result in found.items():
            if of_title == title:
                assert result.dataset_args == told
                assert (result.task_name, result.task_type) == (told["task"], TASK_TYPES[title])


def test_results_are_of_the_kinds_that_the_hub_knows(metrics, tmp_path):
    results = write_card(tmp_path, metrics).data.eval_results
    kinds = {result.metric_name: result.metric_type for result in results}
    assert kinds["top1_macro, toy, regions"] == kinds["accuracy, toy, choice"] == "accuracy"
    assert kinds["image_to_text_recall_at_5, toy, captions"] == "recall"
    assert kinds["coherence, toy, guards"] == "coherence"


def test_every_row_of_a_table_is_a_score_that_was_measured(text, metrics):
    results = split_sections(text)["Results"]
    expected = []
    for scores in sort_results(metrics).values():
        expected += [f"| {name} | {value:.4f} |" for name, value in list_numbers(scores).items()]
        for table in list_tables(scores).values():
            for name, (share, count) in table.items():
                expected.append(f"| {name.replace('|', '/')} | {share:.4f} | {count} |")
    found = [line for line in results.splitlines() if re.search(r"\d \|$", line)]
    assert found == expected
    assert results.count("| concept | score | count |\n| --- | --- | --- |\n") == 3
    assert results.count("| kind | score | count |") == results.count("| subject | score | count |") == 1


def test_every_protocol_is_told_whole(text, metrics):
    results = split_sections(text)["Results"]
    for title, scores in metrics.items():
        part = results.split(f"**{title}**, ")[1].split("\n**")[0]
        assert part.startswith(f"{scores['protocol']['task']}:\n")
        told = part.split("Protocol: ")[1]
        for name, value in scores["protocol"].items():
            if name not in ("task", "concepts") and value not in (None, "", [], {}):
                assert f"`{name}={json.dumps(value)}`" in told
        for name, value in scores.items():
            if name.startswith("num_") and isinstance(value, int):
                assert f"`{name}={value}`" in told


def test_a_table_stands_apart_from_the_words_around_it(text):
    # Markdown takes a table only after an empty line, and the words after one only after another.
    lines = text.splitlines()
    for i, line in enumerate(lines):
        if line.startswith("| ") and line.endswith(("| value |", "| score | count |")):  # a head
            assert lines[i - 1] == ""
        if line.startswith("| ") and not lines[i + 1].startswith("| "):
            assert lines[i + 1] == ""


def test_the_training_settings_are_on_the_card(text):
    training = split_sections(text)["Training"]
    assert "training: `learning_rate=0.0005`, `num_epochs=3`\n" in training
    assert "loss_weights: `scene=1.0`, `region=0.1`\n" in training


@pytest.mark.parametrize("is_empty", [True, False])
def test_the_card_says_that_it_is_a_reconstruction(metrics, tmp_path, is_empty):
    text = write_card(tmp_path, {} if is_empty else metrics).text
    assert "**This is a reconstruction.**" in text
    assert "No number here is the paper's." in text
    assert "https://arxiv.org/abs/2603.09566" in text


@pytest.mark.parametrize("is_empty", [True, False])
def test_nothing_on_the_card_is_left_to_be_filled_in(metrics, tmp_path, is_empty):
    card = write_card(tmp_path / "toy-clip", {} if is_empty else metrics, None if is_empty else SETTINGS)
    for leftover in ("[More Information Needed]", "{{", "}}", "{%", "%}", "None\n", "****", "nan", "TODO"):
        assert leftover not in card.text, leftover
    for title, body in split_sections(card.text).items():
        assert body.strip(), title


def test_without_metrics_and_settings_the_card_says_so_and_has_no_results(tmp_path):
    card = write_card(tmp_path, {})
    sections = split_sections(card.text)
    assert sections["Results"].strip() == "The model was not evaluated."
    assert sections["Training"].strip() == "The settings were not recorded."
    assert ModelCard.load(tmp_path / "README.md").data.eval_results is None
    assert "model-index" not in card.content.split("---")[1]


@pytest.mark.parametrize("name", ["final", "best", "checkpoint-8"])
def test_a_folder_of_a_run_is_named_for_the_run_also_while_it_is_written(tmp_path, name):
    folder = tmp_path / "harbors" / name
    for place in (folder, name_partial(folder)):
        card = write_card(place, {})
        assert "\n# harbors\n" in card.text and card.data.model_name == "harbors"
        assert 'from_pretrained("you/your-repository", trust_remote_code=True)' in card.text


def test_what_the_card_was_made_of_lies_beside_it(metrics, tmp_path):
    write_card(tmp_path, metrics, SETTINGS)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert json.loads((tmp_path / "args.json").read_text()) == SETTINGS


def test_data_licence_base_and_pictures_have_their_places(tmp_path):
    (tmp_path / "curves.png").write_bytes(b"")
    (tmp_path / "COCO.json").write_text('{"licenses": [{"id": 1, "name": "research only"}]}')
    about = {"license": "cc-by-4.0", "base_model": "someone/clip"}
    card = write_card(tmp_path, {}, about | {"data": describe_dataset(str(tmp_path / "COCO.json"))})
    assert (card.data.license, card.data.base_model) == ("cc-by-4.0", "someone/clip")
    sections = split_sections(card.text)
    assert "Trained on COCO.json. Licence of the data: research only." in sections["Data and licences"]
    assert "Licence of the weights: cc-by-4.0." in sections["Data and licences"]
    assert "Training started from someone/clip." in sections["Training"]
    assert "![curves.png](curves.png)" in card.text


def test_the_best_result_comes_first_and_results_before_training_are_not_in_the_model_index(
    metrics, tmp_path
):
    start, low, high = (metrics["toy, regions"] | {"top1_macro": value} for value in (0.1, 0.25, 0.75))
    card = write_card(tmp_path, {"low": low, "boxes start": start, "boxes final": high})
    results = split_sections(card.text)["Results"]
    assert re.findall(r"\| top1_macro \| (.*) \|", results) == ["0.7500 | 0.1000", "0.2500"]
    assert "**boxes**, " in results and "| score | value | before training |\n| --- | --- | --- |" in results
    values = {entry.metric_name: entry.metric_value for entry in card.data.eval_results}
    assert {name: value for name, value in values.items() if name.startswith("top1_macro")} == {
        "top1_macro, boxes": 0.75,
        "top1_macro, low": 0.25,
    }


def test_the_evaluation_set_is_named(metrics, tmp_path):
    (tmp_path / "harbors.json").write_text('{"categories": [{"id": 1, "name": "ship"}]}')
    told = describe_dataset(str(tmp_path / "harbors.json"))
    card = write_card(tmp_path, {"final": metrics["toy, regions"]}, {"evaluation_data": told})
    assert {entry.dataset_name for entry in card.data.eval_results} == {"harbors.json"}
    assert "evaluated on harbors.json" in card.text
    result = metrics["toy, regions"]
    result = result | {"protocol": result["protocol"] | {"dataset": "VHR-10, test"}}
    card = write_card(tmp_path, {"final": result}, {"evaluation_data": told})
    assert {entry.dataset_name for entry in card.data.eval_results} == {"VHR-10, test"}


def test_the_card_describes_the_weights_and_the_concepts(folder, tmp_path, model):
    shutil.copytree(folder, tmp_path / "toy")
    data = {"name": "toy rows", "repo_id": None, "license": None, "concepts": ["road", "ship"]}
    text = write_card(tmp_path / "toy", {}, {"data": data}).text
    (found,) = re.findall(r"\| parameters \| ([\d,]+) \|", text)
    assert int(found.replace(",", "")) == pytest.approx(model.num_parameters(), abs=10)  # and a few buffers
    assert "| image size | 64 x 64 pixels, in patches of 16;" in text
    assert "trained on 2 concepts: road, ship." in text


def test_the_package_asks_for_no_older_transformers_than_the_code_that_ships(tmp_path):
    requirements = configparser.ConfigParser()
    requirements.read(Path(__file__).parents[2] / "setup.cfg")
    (asked,) = re.findall(r"transformers>=([\d.]+),", requirements["options"]["install_requires"])
    assert [int(part) for part in asked.split(".")] >= [
        int(part) for part in REQUIRED_TRANSFORMERS.split(".")
    ]
    assert f"transformers>={REQUIRED_TRANSFORMERS}" in write_card(tmp_path, {}).text


def test_a_card_shows_no_local_path(metrics, tmp_path):
    settings = {"training": {"output_dir": str(tmp_path / "harbors"), "seed": 0}}
    card = write_card(tmp_path, metrics, settings | {"data": describe_dataset(str(tmp_path))})
    assert "`output_dir=harbors`" in card.text
    assert str(tmp_path) not in card.content


def test_a_local_base_is_no_link(tmp_path):
    card = write_card(tmp_path, {}, {"base_model": str(tmp_path)})
    assert card.data.base_model is None
    assert "Training started from a local folder." in card.text and str(tmp_path) not in card.text


def test_the_terms_of_a_built_set_are_those_of_its_card(tmp_path):
    DatasetCard.from_template(DatasetCardData(license="other", license_name="ask first")).save(
        tmp_path / "README.md"
    )
    told = describe_dataset(str(tmp_path))
    expected = {"name": tmp_path.name, "repo_id": None, "license": "ask first"}
    assert told == expected | {"concepts": None, "image_rule": None}
    (tmp_path / "README.md").unlink()
    assert describe_dataset(str(tmp_path))["license"] is None


@pytest.mark.parametrize("is_adapter", [True, False])
def test_the_code_on_the_card_is_code(tmp_path, is_adapter):
    if is_adapter:
        (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "you/base"}')
    text = write_card(tmp_path, {}).text
    (block,) = re.findall(r"```python\n(.+?)```", text, re.DOTALL)
    compile(block, "card", "exec")
    assert ("PeftModel" in block) == is_adapter
    assert sum(line.strip() != "" for line in block.splitlines()) <= 20


def test_a_card_replaces_the_one_before(metrics, tmp_path):
    write_card(tmp_path, metrics)
    assert "top1_micro" in (tmp_path / "README.md").read_text(encoding="utf-8")
    write_card(tmp_path, {})
    assert "top1_micro" not in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_the_same_metrics_give_the_same_card(metrics, tmp_path):
    cards = [write_card(tmp_path / "toy-clip", metrics, SETTINGS).content for _ in range(2)]
    assert cards[0] == cards[1]


def test_no_file_beside_the_card_names_a_folder_of_this_machine(metrics, tmp_path):
    local = tmp_path / "harbors"
    local.mkdir()
    settings = {"script": {"dataset": str(local), "model": str(local)}, "base_model": str(local)}
    metrics = {
        name: scores | {"protocol": scores["protocol"] | {"test": str(local)}}
        for name, scores in metrics.items()
    }
    card = write_card(tmp_path / "model", metrics, settings)
    for path in (tmp_path / "model").iterdir():
        assert str(tmp_path) not in path.read_text(), path.name
    saved = json.loads((tmp_path / "model" / "args.json").read_text())
    again = write_card(tmp_path / "model", metrics, saved)  # as a push does that makes the card again
    assert card.data.base_model is None and again.data.base_model is None
    assert "Training started from a local folder." in again.text


@pytest.mark.parametrize("view", ["image", "window"])
def test_the_card_says_which_view_of_a_region_the_pipeline_uses(folder, tmp_path, view):
    shutil.copytree(folder, tmp_path / "toy")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "toy" / "config.json").write_text(
        json.dumps(config | {"region_view": view, "region_context": 2.5})
    )
    text = write_card(tmp_path / "toy", {}).text
    expected = "a window around it, 2.5 times its longer side" if view == "window" else "the whole image"
    assert f"| view of a region | {expected}" in text
