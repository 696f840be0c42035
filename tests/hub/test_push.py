"""A push to a Hub that speaks HTTP is complete or absent, and sends no file twice."""

import json
import os
import re
import shutil
import subprocess
import sys

import huggingface_hub
import pytest
import torch
from absent import ABSENT
from hub_server import TOKENS, Fault
from huggingface_hub import HfApi

from geoalign_hf.hub.cards import UNNAMED, write_card
from geoalign_hf.hub.push import BackgroundPush, check_folder, push


@pytest.fixture
def saved(folder, tmp_path):
    """A whole folder that a test may change."""
    shutil.copytree(folder, tmp_path / "harbors")
    write_card(tmp_path / "harbors", {}, {"training": {"seed": 0}, "license": "cc-by-4.0"})
    return tmp_path / "harbors"


def list_large(hub) -> list[str]:
    return [request for request in hub.log if request.startswith("PUT /large/")]


def test_a_push_is_one_commit_that_holds_the_folder(hub, saved):
    (saved / "state").mkdir()
    (saved / "state" / "optimizer.bin").write_bytes(b"0" * 9000)
    (saved / ".weights.partial").write_text("")
    commit = push(saved, "you/harbors")
    repository = hub.repositories["model", "you/harbors"]
    assert repository.messages == ["initial commit", "Push harbors"]
    assert repository.find("main") == commit.oid
    names = {path.name for path in saved.iterdir()} - {"state", ".weights.partial", ".geoalign.lock"}
    assert set(hub.list("you/harbors")) == names | {".gitattributes"}
    assert {"metrics.json", "args.json", "pipeline_geoalign_clip.py", "model.safetensors"} <= names
    for name in names - {"README.md"}:
        assert hub.read("you/harbors", name) == (saved / name).read_bytes(), name


def test_the_card_of_a_push_names_the_repository(hub, saved):
    push(saved, "harbors")  # of the owner of the token
    card = hub.read("you/harbors", "README.md").decode()
    assert 'AutoModel.from_pretrained("you/harbors", trust_remote_code=True)' in card
    assert 'model="you/harbors"' in card and UNNAMED not in card
    assert UNNAMED in (saved / "README.md").read_text()


def test_a_folder_without_a_card_gets_one(hub, folder):
    push(folder, "you/harbors")
    assert "**This is a reconstruction.**" in hub.read("you/harbors", "README.md").decode()
    assert not (folder / "README.md").exists()


def test_a_second_push_sends_nothing_again_and_makes_no_empty_commit(hub, saved):
    first = push(saved, "you/harbors")
    num_sent = len(list_large(hub))
    assert push(saved, "you/harbors").oid == first.oid
    assert len(list_large(hub)) == num_sent > 0
    (saved / "args.json").write_text("{}")
    assert push(saved, "you/harbors").oid != first.oid
    assert len(list_large(hub)) == num_sent


def test_weights_of_an_older_push_are_deleted(hub, saved, model):
    push(saved, "you/harbors")
    (saved / "model.safetensors").unlink()
    model.save_pretrained(saved, max_shard_size="300KB")
    shards = {path.name for path in saved.glob("model-*.safetensors")}
    assert len(shards) > 1
    push(saved, "you/harbors")
    found = {name for name in hub.list("you/harbors") if "safetensors" in name}
    assert found == shards | {"model.safetensors.index.json"}


def test_files_with_other_names_are_kept(hub, saved):
    push(saved, "you/harbors")
    kept = {"concepts.safetensors", "v2/model.safetensors", "embeds/embeds-0.json"}
    for name in kept:
        HfApi().upload_file(path_or_fileobj=b"mine", path_in_repo=name, repo_id="you/harbors")
    (saved / "args.json").write_text("{}")
    push(saved, "you/harbors")
    assert kept < set(hub.list("you/harbors"))


def test_private_branch_tag_and_pull_request(hub, saved):
    commit = push(saved, "you/harbors", private=True, revision="wide", tag="v1", commit_message="wider")
    repository = hub.repositories["model", "you/harbors"]
    assert repository.private
    assert repository.branches["wide"] == repository.tags["v1"] == commit.oid != repository.branches["main"]
    assert repository.messages[-1] == "wider"
    assert hub.list("you/harbors", "main") == [".gitattributes"]
    proposed = push(saved, "you/harbors", create_pr=True)
    assert repository.pull_requests == {"refs/pr/1": proposed.oid}
    assert proposed.pr_url.endswith("/discussions/1")
    assert hub.list("you/harbors", "main") == [".gitattributes"]


def check_refusal(hub, error, message, call) -> None:
    """A refusal says the whole message, and no repository shows anything that it did not before."""
    before = {key: dict(repository.branches) for key, repository in hub.repositories.items()}
    with pytest.raises(error, match=message):
        call()
    for key, repository in hub.repositories.items():
        shown = before.get(key, {"main": repository.find("main")})
        assert repository.branches == shown, key
        if key not in before:
            assert hub.list(key[1]) == [".gitattributes"]


def test_options_that_do_not_fit_are_refused_before_anything_is_sent(hub, saved):
    def refuse(message, **options):
        check_refusal(hub, ValueError, message, lambda: push(saved, "you/harbors", **options))
        assert not list_large(hub)[num_sent:]

    num_sent = 0
    refuse(
        "a pull request cannot be tagged.*'v1'",
        create_pr=True,
        tag="v1",
    )
    refuse("base_model is 'you/b'.*harbors holds a model", base_model="you/b")
    push(saved, "you/harbors", tag="v1")
    num_sent = len(list_large(hub))
    refuse("you/harbors already has the tag 'v1'", tag="v1")
    for revision in ("v1", hub.repositories["model", "you/harbors"].find("v1")):
        message = f"revision is '{revision}', a tag or commit"
        refuse(message, revision=revision)
    refuse(
        "you/harbors exists and is public, but private is set",
        private=True,
    )


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("two words", "you/harbors needs a token, but the one that was found has a space.*`hf auth login`"),
        ("hf_wr\u0131ter", "you/harbors needs a token, but the one that was found .*`hf auth login`"),
        (None, "you/harbors needs a token, but none was found.*`hf auth login`"),
        ("hf_wrong", "^you/harbors: .*token is not valid.*`hf auth login`"),
        ("hf_reader", "^you/harbors: .*token may not write"),
        ("hf_other", "^you/harbors: .*token may not write"),
    ],
)
@pytest.mark.parametrize("is_taken", [False, True])
def test_without_the_right_token_nothing_is_pushed(
    hub, saved, monkeypatch, token, message, is_taken, tmp_path
):
    if is_taken:
        HfApi(token="hf_writer").create_repo("you/harbors")
    monkeypatch.setenv("HF_TOKEN", token or "")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    check_refusal(hub, RuntimeError, message, lambda: push(saved, "you/harbors"))


def test_a_token_of_a_login_in_the_browser_pushes(hub, saved, monkeypatch):
    token = "hf_oauth_eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ5b3UifQ.s-g_n~t+r/e=="  # OAuth: a JWT, or other signs
    monkeypatch.setitem(TOKENS, token, ("you", True))
    monkeypatch.setenv("HF_TOKEN", token)
    assert push(saved, "you/harbors").oid


@pytest.mark.parametrize("what", [500, "cut"])
@pytest.mark.parametrize(
    "pattern", ["POST .*create", "POST .*preupload", "POST .*batch", "PUT /large", "POST .*/commit/"]
)
def test_a_push_that_fails_changes_nothing_and_a_second_push_completes_it(hub, saved, pattern, what):
    hub.faults = [Fault(pattern, what, times=99)]
    message = "^you/harbors: the push failed; push again"
    check_refusal(hub, RuntimeError, message, lambda: push(saved, "you/harbors"))
    hub.faults, hub.log[:] = [], []
    push(saved, "you/harbors")
    assert "model.safetensors" in hub.list("you/harbors")
    assert len(list_large(hub)) == len({*list_large(hub)})


@pytest.mark.parametrize(
    "pattern",
    ["POST .*create", "POST .*validate", "GET /api/models", "POST .*preupload", "POST .*batch",
     "POST .*/commit/", "."],
)  # fmt: skip
def test_a_login_page_in_place_of_an_answer_is_reported_with_the_address(hub, saved, pattern):
    hub.faults = [Fault(pattern, "html", times=99)]
    with pytest.raises(RuntimeError, match=f"^you/harbors: the push failed; {hub.url}.*login page"):
        push(saved, "you/harbors")


PAGES = """
import sys
from geoalign_hf.data.loading import load_rows
from geoalign_hf.embedding.checkpoints import load_model, load_processor
from geoalign_hf.training.start import load_start

for load in (load_model, load_processor, load_start):
    try:
        load("you/harbors")
    except (ValueError, OSError) as error:
        assert "you" in str(error) and "harbors" in str(error), error
    else:
        raise AssertionError(load)
for options in ({}, {"split": "train"}, {"split": "train", "streaming": True}):
    try:
        next(iter(load_rows("you/rows", **options)))
    except (ValueError, OSError) as error:
        assert "you/rows" in str(error), error
    else:
        raise AssertionError(options)
"""


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [".", "/resolve/"])
def test_what_is_loaded_from_a_login_page_is_refused_by_its_name(hub, saved, rows, tmp_path, pattern):
    push(saved, "you/harbors")
    (tmp_path / "rows" / "data").mkdir(parents=True)
    (tmp_path / "rows" / "README.md").write_text("---\nlicense: other\n---\n# Rows")
    rows.to_parquet(tmp_path / "rows" / "data" / "train-00000-of-00001.parquet")
    push(tmp_path / "rows", "you/rows")
    hub.faults = [Fault(pattern, "html", times=999)]
    run(PAGES, hub, tmp_path / "home")


def test_after_a_lost_commit_the_large_files_are_not_sent_again(hub, saved):
    hub.faults = [Fault("POST .*/commit/", "cut")]
    with pytest.raises(RuntimeError, match="the push failed"):
        push(saved, "you/harbors")
    assert list_large(hub)
    hub.log.clear()
    push(saved, "you/harbors")
    assert not list_large(hub)


def test_a_push_survives_a_passing_fault_and_a_slow_answer(hub, saved):
    hub.faults = [Fault("PUT /large", 503), Fault("POST .*batch", "cut"), Fault("POST .*/commit/", 0.5)]
    push(saved, "you/harbors")
    assert hub.read("you/harbors", "model.safetensors") == (saved / "model.safetensors").read_bytes()


def test_a_tag_that_could_not_be_created_is_reported_with_the_commit_that_was_pushed(hub, saved):
    hub.faults = [Fault("POST .*/tag/", 500, times=99)]
    with pytest.raises(RuntimeError, match=r"^you/harbors: commit \w{40} was pushed, but tag 'v1' was not"):
        push(saved, "you/harbors", tag="v1")
    assert "model.safetensors" in hub.list("you/harbors")


def test_two_pushes_at_once_do_not_mix(hub, saved, monkeypatch):
    create_commit = HfApi.create_commit

    def overtake(*arguments, **options):
        monkeypatch.setattr(HfApi, "create_commit", create_commit)
        push(other, "you/harbors", commit_message="the other")
        return create_commit(*arguments, **options)

    monkeypatch.setattr(HfApi, "create_commit", overtake)
    other = shutil.copytree(saved, saved.with_name("other"))
    (other / "args.json").write_text("{}")
    with pytest.raises(RuntimeError, match="changed at the same time. Push again"):
        push(saved, "you/harbors", commit_message="the one")
    assert hub.repositories["model", "you/harbors"].messages == ["initial commit", "the other"]


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "regions_geoalign_clip.py",
        "pipeline_geoalign_clip.py",
    ],
)
def test_an_incomplete_folder_is_not_pushed(hub, saved, name):
    (saved / name).unlink()
    with pytest.raises(ValueError, match="incomplete model|holds no model") as error:
        push(saved, "you/harbors")
    assert name in str(error.value)
    assert not hub.log


def test_nothing_is_sent_in_offline_mode(hub, saved, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RuntimeError, match="HF_HUB_OFFLINE"):
        push(saved, "you/harbors")
    assert not hub.log


@pytest.mark.parametrize("size", [0, 5000])
def test_a_truncated_file_is_noticed(saved, size):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"model.safetensors is truncated or corrupt"):
        check_folder(saved)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("README.md", b"\xff", "README.md is not UTF-8 text"),
        ("config.json", b"{", "config.json is not valid JSON"),
        ("config.json", b"[]", "config.json holds a list"),
    ],
)
def test_a_text_that_cannot_be_read_is_named_before_anything_is_sent(hub, saved, name, content, message):
    (saved / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        push(saved, "you/harbors")
    assert not hub.log


def test_numbers_without_a_protocol_are_not_shown(hub, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "harbors")
    (tmp_path / "harbors" / "metrics.json").write_text('{"eval_loss": 0.1}')  # of another trainer
    push(tmp_path / "harbors", "you/harbors")
    assert "The model was not evaluated." in hub.read("you/harbors", "README.md").decode()


def test_a_missing_shard_is_noticed(saved, model):
    (saved / "model.safetensors").unlink()
    model.save_pretrained(saved, max_shard_size="300KB")
    assert check_folder(saved) == "model"
    lost = sorted(saved.glob("model-*"))[1]
    lost.unlink()
    with pytest.raises(ValueError, match=re.escape(f"incomplete model: ['{lost.name}']")):
        check_folder(saved)


ROUND_TRIP = (
    ABSENT
    + """
import torch
from huggingface_hub import snapshot_download
from transformers import AutoModel, AutoProcessor, pipeline

inputs, revision = sys.argv[1:]
torch.set_num_threads(1)
options = {"trust_remote_code": True, "revision": revision}
model = AutoModel.from_pretrained("you/harbors", **options).eval()
processor = AutoProcessor.from_pretrained("you/harbors", **options)
given = torch.load(inputs, weights_only=False)
with torch.no_grad():
    output = model(**processor(**given, return_tensors="pt", padding=True))
found = {name: output[name] for name in ("image_embeds", "region_embeds", "text_embeds")}
classify = pipeline("zero-shot-region-classification", model="you/harbors", **options)
found["answers"] = classify(given["images"][0], boxes=given["boxes"][0], candidate_concepts=["ship", "road"])
found["task"] = pipeline(model="you/harbors", **options).task
scene = pipeline("zero-shot-image-classification", model="you/harbors", **options)
found["scene"] = scene(given["images"][0], candidate_labels=["a ship", "a road"])
found["snapshot"] = snapshot_download("you/harbors", revision=revision)
torch.save(found, inputs + ".out")
"""
)


def run(code: str, hub, home, *arguments) -> None:
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | hub.env(home),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_a_pushed_model_works_by_name_without_the_package(hub, saved, built, toy_rows, tmp_path):
    from transformers import pipeline

    commit = push(saved, "you/harbors", private=True)
    call = {"images": [toy_rows[0]["image"]], "boxes": [toy_rows[0]["boxes"]], "text": ["a ship", "a road"]}
    torch.save(call, tmp_path / "inputs")
    hub.faults = [Fault("GET .*/resolve/.*json", 0.3), Fault("GET .*safetensors", "cut")]
    run(ROUND_TRIP, hub, tmp_path / "home", tmp_path / "inputs", commit.oid)
    found = torch.load(tmp_path / "inputs.out", weights_only=False)
    model, processor = built
    with torch.no_grad():
        output = model(**processor(**call, return_tensors="pt", padding=True))
    for name in ("image_embeds", "region_embeds", "text_embeds"):
        assert (found[name] - output[name]).abs().max() < 1e-6, name
    assert found["task"] == "zero-shot-region-classification"
    for task, name, options in (
        ("zero-shot-region-classification", "answers", {"boxes": call["boxes"][0]}),
        ("zero-shot-image-classification", "scene", {}),
    ):
        words = {"candidate_concepts": ["ship", "road"]} if options else {"candidate_labels": call["text"]}
        answers = pipeline(task, model=str(saved))(call["images"][0], **words, **options)
        answer, again = (answers, found[name]) if name == "scene" else (answers[0], found[name][0])
        assert [part["label"] for part in again] == [part["label"] for part in answer]
        assert [part["score"] for part in again] == pytest.approx(
            [part["score"] for part in answer], abs=1e-5
        )
    assert sorted(os.listdir(found["snapshot"])) == hub.list("you/harbors")


STOCK_PUSH = """
import sys
import geoalign_hf
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained(sys.argv[1])
processor = AutoProcessor.from_pretrained(sys.argv[1])
model.push_to_hub("harbors", max_shard_size="300KB")
processor.push_to_hub("harbors")
"""


@pytest.mark.slow
def test_the_methods_of_transformers_push_the_code_too(hub, saved, built, toy_rows, tmp_path):
    run(STOCK_PUSH, hub, tmp_path / "pusher", saved)
    assert sum("safetensors" in name for name in hub.list("you/harbors")) > 2
    call = {"images": [toy_rows[0]["image"]], "boxes": [toy_rows[0]["boxes"]], "text": ["a ship", "a road"]}
    torch.save(call, tmp_path / "inputs")
    run(ROUND_TRIP, hub, tmp_path / "home", tmp_path / "inputs", "main")
    found = torch.load(tmp_path / "inputs.out", weights_only=False)
    with torch.no_grad():
        output = built[0](**built[1](**call, return_tensors="pt", padding=True))
    assert (found["region_embeds"] - output.region_embeds).abs().max() < 1e-6


ADAPTER = """
import sys
import torch
from peft import PeftModel
from transformers import AutoModel

torch.set_num_threads(1)
base = AutoModel.from_pretrained("you/harbors", trust_remote_code=True)
wrapped = PeftModel.from_pretrained(base, "you/piers").eval()
direct = AutoModel.from_pretrained("you/piers", trust_remote_code=True).eval()
pixel_values = torch.ones(1, 3, *[base.config.vision_config.image_size] * 2)
with torch.no_grad():
    found = [model.get_image_features(pixel_values).pooler_output for model in (wrapped, direct)]
torch.save(found, sys.argv[1])
"""


@pytest.mark.slow
def test_an_adapter_names_its_base_model_and_loads_by_name(hub, saved, model, tmp_path):
    from peft import LoraConfig, get_peft_model

    push(saved, "you/harbors")
    model.name_or_path = str(saved)
    model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "piers")
    assert check_folder(tmp_path / "piers") == "adapter"
    assert "[More Information Needed]" in (tmp_path / "piers" / "README.md").read_text()  # PEFT's own
    for base in (None, "/no/longer/there", "../x y"):
        with pytest.raises(ValueError, match="base model of the adapter in .*piers is '.*', a local folder"):
            push(tmp_path / "piers", "you/piers", base_model=base)
    push(tmp_path / "piers", "you/piers", base_model="you/harbors")
    card = hub.read("you/piers", "README.md").decode()
    assert 'from_pretrained("you/harbors"' in card and 'PeftModel.from_pretrained(model, "you/piers")' in card
    assert "base_model: you/harbors" in card and "Training started from you/harbors." in card
    assert str(tmp_path) not in card
    for mine, name, other in (("harbors", "you/piers", "adapter"), ("piers", "you/harbors", "model")):
        with pytest.raises(ValueError, match=f"^{name} holds a {other}"):
            push(tmp_path / mine, name, base_model="you/harbors" if mine == "piers" else None)
    config = json.loads(hub.read("you/piers", "adapter_config.json"))
    assert config["base_model_name_or_path"] == "you/harbors"
    run(ADAPTER, hub, tmp_path / "home", tmp_path / "found")
    pixel_values = torch.ones(1, 3, *[model.config.vision_config.image_size] * 2)
    with torch.no_grad():
        expected = model.eval().get_image_features(pixel_values).pooler_output
    for found in torch.load(tmp_path / "found"):
        assert (found - expected).abs().max() < 1e-6


DORA = """
import sys
from transformers import AutoModel

for name in ("you/piers", sys.argv[1]):
    try:
        AutoModel.from_pretrained(name, trust_remote_code=True)
    except ValueError as error:
        assert "lora_magnitude_vector" in str(error) and "PeftModel.from_pretrained" in str(error), error
    else:
        raise AssertionError(f"{name} loads without its magnitudes")
"""


@pytest.mark.slow
@pytest.mark.parametrize("absent", ["", ABSENT])
def test_a_dora_adapter_of_the_hub_is_refused_as_a_folder_is(hub, saved, model, tmp_path, absent):
    from peft import LoraConfig, get_peft_model

    push(saved, "you/harbors")
    model.name_or_path = "you/harbors"
    config = LoraConfig(target_modules=["q_proj"], use_dora=True)
    get_peft_model(model, config).save_pretrained(tmp_path / "piers")
    push(tmp_path / "piers", "you/piers")
    run(absent + DORA, hub, tmp_path / "home", tmp_path / "piers")


DATASET = """
import sys
from datasets import load_dataset
from geoalign_hf.data.loading import load_rows

rows = load_dataset("you/rows", split="train")
again = load_rows("you/rows", "train")
assert rows["phrases"][:] == again["phrases"][:]
print(len(rows), sum(map(len, rows["boxes"])), file=open(sys.argv[1], "w"))
"""


@pytest.mark.slow
def test_rows_are_pushed_and_loaded_by_name(hub, coco_folder, tmp_path):
    from geoalign_hf.dataset_builder.build import BuildConfig, build

    config = BuildConfig(str(tmp_path / "rows"), coco=str(coco_folder / "rows.json"), license="mit")
    statistics = build(config)
    push(tmp_path / "rows", "you/rows")
    files = hub.list("you/rows", repo_type="dataset")
    assert "data/train-00000-of-00001.parquet" in files and "contact_sheet.png" in files
    card = hub.read("you/rows", "README.md", repo_type="dataset").decode()
    assert 'load_dataset("you/rows", split="train")' in card
    run(DATASET, hub, tmp_path / "home", tmp_path / "counts")
    counts = (tmp_path / "counts").read_text().split()
    assert list(map(int, counts)) == [statistics["num_rows"], statistics["num_regions"]]


def test_a_folder_is_pushed_beside_what_goes_on_even_if_it_is_dropped_meanwhile(hub, saved, caplog):
    hub.faults = [Fault("POST .*preupload", 2.0)]
    background = BackgroundPush("harbors", private=True)
    assert hub.repositories["model", "you/harbors"].private
    checkpoint = saved.rename(saved.with_name("checkpoint-8"))
    background.start(saved)  # which is gone: that stops nothing
    background.start(checkpoint)
    background.start(checkpoint)  # one at a time
    assert hub.repositories["model", "you/harbors"].messages == ["initial commit"]  # none was waited for
    final = checkpoint.with_name("final")
    shutil.copytree(checkpoint, final)
    (final / "args.json").write_text("{}")
    shutil.rmtree(checkpoint)
    background.finish(final)
    messages = hub.repositories["model", "you/harbors"].messages
    assert messages == ["initial commit", "Push checkpoint-8", "Push final"]
    assert [path.name for path in final.parent.iterdir() if path.name.startswith("partial")] == []


def test_a_push_in_the_background_that_fails_stops_nothing_and_the_final_one_says_so(hub, saved):
    background = BackgroundPush("harbors")
    hub.faults = [Fault("POST .*/commit/", "cut", times=2)]
    background.start(saved)
    with pytest.raises(RuntimeError, match="^you/harbors: the push failed"):
        background.finish(saved)
    assert hub.repositories["model", "you/harbors"].messages == ["initial commit"]
