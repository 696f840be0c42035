"""Laws of the model card: every number on it was measured, and it says what the model is."""

import re

import pytest
from huggingface_hub import ModelCard

from geoalign_hf.evaluation import classify_regions
from geoalign_hf.hub import write_card

TITLES = ["toy, whole image", "toy, windows"]
SETTINGS = {
    "training": {"learning_rate": 0.0005, "num_epochs": 3},
    "loss_weights": {"scene": 1.0, "region": 0.1},
    "num_rows": 8,
}


@pytest.fixture(scope="module")
def metrics(built, rows):
    """Real results of the toy model, with shares that no other number on a card resembles."""
    results = {
        TITLES[0]: classify_regions(*built, rows),
        TITLES[1]: classify_regions(*built, rows, region_source="window", context=2.5, templates=("a {}",)),
    }
    for k, scores in enumerate(results.values()):
        scores |= {"top1_micro": 0.71234 + k / 100, "top1_macro": 0.61234 + k / 100}
        scores["per_concept"] = {
            name: 0.1234 + c / 10 + k / 100 for c, name in enumerate(scores["per_concept"])
        }
    return results


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
    assert (data.license, data.library_name, data.language) == ("apache-2.0", "transformers", "en")
    assert data.pipeline_tag == "zero-shot-image-classification"
    assert data.tags == ["remote-sensing", "clip", "region", "geoalign_clip", "custom_code"]
    assert data.model_name == "toy-clip"


def test_every_result_on_the_card_is_one_that_was_measured(metrics, tmp_path):
    write_card(tmp_path, metrics, SETTINGS)
    results = ModelCard.load(tmp_path / "README.md").data.eval_results
    found = {(result.dataset_config, result.metric_name): result for result in results}
    assert len(found) == len(results) == 4
    for title, scores in metrics.items():
        for name in ("top1_micro", "top1_macro"):
            result = found[title, f"{name}, {title}"]
            assert result.metric_value == scores[name] and result.metric_type == "accuracy"
            assert result.task_name == scores["protocol"]["task"]
            assert result.dataset_name == f"{scores['num_regions']} boxes of 8 images"
            protocol = scores["protocol"].items()
            # A card holds no None: what a protocol does not have is left out.
            told = {key: value for key, value in protocol if key != "concepts" and value is not None}
            assert result.dataset_args == told


def test_every_row_of_a_table_is_a_concept_with_its_share_and_count(text, metrics):
    results = split_sections(text)["Results"]
    assert results.count("| concept | top-1 | boxes |\n| --- | --- | --- |\n") == 2
    found = re.findall(r"^\| ([a-z ]+) \| (\d\.\d{4}) \| (\d+) \|$", results, re.MULTILINE)
    expected = [
        (name, f"{share:.4f}", str(scores["num_per_concept"][name]))
        for scores in metrics.values()
        for name, share in scores["per_concept"].items()
    ]
    assert found == expected


def test_every_number_among_the_results_comes_from_the_metrics(text, metrics):
    allowed = {"1"}  # of top-1
    for scores in metrics.values():
        shares = [scores["top1_micro"], scores["top1_macro"], *scores["per_concept"].values()]
        allowed |= {f"{share:.4f}" for share in shares}
        protocol = scores["protocol"]
        counts = [scores["num_regions"], *scores["num_per_concept"].values(), protocol["num_images"]]
        allowed |= {str(number) for number in [*counts, protocol["image_size"], protocol["context"]]}
    found = re.findall(r"\d+(?:\.\d+)?", split_sections(text)["Results"])
    assert (
        len(found) == 2 * (6 + 5 * 2) + 2 + 1 and set(found) <= allowed
    )  # per result 6 or 7 numbers and 5 concepts with 2 each


def test_every_protocol_is_told_whole(text, metrics):
    results = " ".join(split_sections(text)["Results"].split())
    assert (
        f"**{TITLES[1]}**: top-1 0.7223 micro, 0.6223 macro, on {metrics[TITLES[1]]['num_regions']} boxes of "
        "8 images. Protocol: region classification from ground-truth boxes; "
        "encoded: window with context 2.5; 64 pixels a side; dense mode last; templates a {}."
    ) in results
    assert "encoded: image; 64 pixels a side" in results


def test_a_table_stands_apart_from_the_words_around_it(text):
    # Markdown takes a table only after an empty line, and the words after one only after another.
    lines = text.splitlines()
    for i, line in enumerate(lines):
        if line.startswith("| concept |"):
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
    assert sections["Results"].strip() == "None were measured."
    assert sections["Training"].strip() == "Not recorded."
    assert ModelCard.load(tmp_path / "README.md").data.eval_results is None
    assert "model-index" not in card.content.split("---")[1]


def test_a_folder_called_final_is_named_for_the_run_that_it_ended(tmp_path):
    (tmp_path / "harbors" / "final").mkdir(parents=True)
    card = write_card(tmp_path / "harbors" / "final", {})
    assert "\n# harbors\n" in card.text
    assert 'from_pretrained("harbors", trust_remote_code=True)' in card.text


def test_a_card_replaces_the_one_before(metrics, tmp_path):
    write_card(tmp_path, metrics)
    write_card(tmp_path, {})
    assert "0.7123" not in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_the_same_metrics_give_the_same_card(metrics, tmp_path):
    cards = [write_card(tmp_path / "toy-clip", metrics, SETTINGS).content for _ in range(2)]
    assert cards[0] == cards[1]
