"""Laws of adapters: which weights are trained and saved, and that all our code takes an adapted model."""

import copy
import json
import re
import subprocess
import sys
from itertools import chain

import peft
import pytest
import torch
import torch.distributed
from absent import ABSENT
from accelerate import Accelerator
from gradients import ALL_TERMS, check_grads, compute_grads, list_cases
from packaging.version import Version
from peft import AutoPeftModelForFeatureExtraction, LoraConfig, PeftModel, get_peft_model
from refusals import refuses
from runs import build_trainer, list_losses
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModel, AutoProcessor, CLIPModel, pipeline
from transformers.integrations.peft import MIN_PEFT_VERSION

from geoalign_hf import ConceptBank
from geoalign_hf.data.augmentation import Augmentation
from geoalign_hf.data.collator import RowCollator
from geoalign_hf.evaluation.classification import RegionClassificationEvaluator
from geoalign_hf.losses.objective import LossWeights
from geoalign_hf.training.launch import prepare_model
from geoalign_hf.training.lora import AdapterConfig, adapt_model, count_parameters, describe_trained
from geoalign_hf.training.step import compute_gradients
from geoalign_hf.training.teacher import Teacher

BOTH = AdapterConfig(lora="vision,text", lora_rank=4)
EVERYTHING = AdapterConfig(lora="vision,text", lora_rank=4, lora_blocks=1, train_projections=True)
NAMES = ("image_embeds", "text_embeds", "region_embeds", "logit_scale", "region_logit_scale")

needs_native = pytest.mark.skipif(
    Version(peft.__version__) < Version(MIN_PEFT_VERSION),
    reason=f"this transformers refuses peft {peft.__version__}: its own adapters want {MIN_PEFT_VERSION}",
)


def move(model, seed: int = 0):
    """Give everything that is trained other values, so that adapters have an effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def inputs(processor, toy_rows):
    """Two images with their boxes, and two texts."""
    return processor(
        images=[row["image"] for row in toy_rows[:2]], boxes=[row["boxes"] for row in toy_rows[:2]],
        text=["a ship", "a storage tank at a road"], return_tensors="pt", padding=True,
    )  # fmt: skip


@torch.no_grad()
def embed(model, inputs) -> dict[str, torch.Tensor]:
    output = model.eval()(**inputs)
    return {name: getattr(output, name) for name in NAMES}


def check_close(found: dict, expected: dict, tolerance: float = 0.0) -> None:
    for name in NAMES:
        torch.testing.assert_close(found[name], expected[name], rtol=tolerance, atol=tolerance, msg=name)


def differ(found: dict, other: dict) -> list[str]:
    return [name for name in NAMES if not torch.allclose(found[name], other[name], atol=1e-4)]


@pytest.fixture(scope="module")
def trained(folder, processor, rows, tmp_path_factory):
    """An adapter with scales and projections of its own, trained on the saved base: folder and model."""
    path = tmp_path_factory.mktemp("adapted")
    model = adapt_model(AutoModel.from_pretrained(folder), EVERYTHING)
    trainer = build_trainer(
        model, processor, rows, path, num_train_epochs=3, learning_rate=0.01,
        eval_strategy="steps", eval_steps=5, evaluators=[RegionClassificationEvaluator(rows)],
    )  # fmt: skip
    trainer.train()
    return path, model.eval(), list_losses(trainer)


def load_base(folder):
    return AutoModel.from_pretrained(folder).eval()


# What is trained


@pytest.mark.parametrize(
    ("lora", "blocks", "expected"),
    [
        ("vision", None, {"vision.0", "vision.1"}),
        ("text", 1, {"text.1"}),
        ("vision,text", 1, {"vision.1", "text.1"}),
    ],
)
def test_the_last_blocks_of_the_towers_asked_for_get_adapters_on_all_their_layers(
    model, lora, blocks, expected
):
    adapted = adapt_model(model, AdapterConfig(lora=lora, lora_blocks=blocks, train_scales=False))
    names = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    found = {re.search(r"(\w+)_model\.encoder\.layers\.(\d+)\.\w+\.(\w+)\.lora_A", name) for name in names}
    found = {(f"{match[1]}.{match[2]}", match[3]) for match in found if match}
    layers = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
    assert found == {(block, layer) for block in expected for layer in layers}
    assert all("lora_" in name for name in names)


def test_scales_and_projections_are_trained_where_asked_for(model):
    adapted = adapt_model(model, EVERYTHING)
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert {name.split(".modules_to_save")[0].split(".")[-1] for name in trained if "lora_" not in name} == {
        "scene_scale", "region_scale", "visual_projection", "text_projection",
    }  # fmt: skip


def test_the_parameters_that_are_trained_are_counted(model):
    total = sum(parameter.numel() for parameter in model.parameters())
    adapted = adapt_model(model, AdapterConfig(lora="text", lora_rank=2, lora_blocks=1))
    # four layers of 64 x 64, two of 64 x 256, and the two scales; each scale is there twice
    added = 4 * 2 * (64 + 64) + 2 * 2 * (64 + 256) + 2
    assert count_parameters(adapted) == (added, total + added)
    percentage = f"{100 * added / (total + added):.2f} %"
    assert (
        describe_trained(adapted) == f"{added:,} of {total + added:,} parameters are trained ({percentage})"
    )


def test_a_fresh_adapter_changes_no_bit(built, model, inputs):
    check_close(embed(adapt_model(model, EVERYTHING), inputs), embed(built[0], inputs))


def test_a_model_without_adapters_trains_one_scene_scale(folder):
    loaded = AutoModel.from_pretrained(folder)
    frozen = [name for name, parameter in loaded.named_parameters() if not parameter.requires_grad]
    assert frozen == ["scene_scale.offset"]


@pytest.fixture(scope="module")
def batch(processor, toy_rows):
    return RowCollator(processor, 6)(list_cases(toy_rows)["uneven"])


@pytest.mark.parametrize("mini_batch_size", [None, 3])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_each_adapter_gets_gradient_and_nothing_else_does(model, batch, mini_batch_size, checkpointing):
    adapted = move(adapt_model(model, AdapterConfig("vision,text", lora_rank=4, train_projections=True)))
    expected = copy.deepcopy(adapted)
    accelerator = Accelerator(cpu=True)
    prepare_model(adapted, accelerator)
    if checkpointing:
        adapted.activation_checkpointing_enable({"use_reentrant": False})
    teacher = Teacher("self", adapted, 0.0)
    compute_gradients(accelerator, adapted.train(), batch, ALL_TERMS, teacher, mini_batch_size)
    compute_gradients(accelerator, expected.train(), batch, ALL_TERMS, Teacher("self", expected, 0.0))
    for (name, found), other in zip(adapted.named_parameters(), expected.parameters(), strict=True):
        if not found.requires_grad:
            assert found.grad is None, name
        else:
            assert found.grad.norm() > 0, name
            assert (found.grad - other.grad).norm() <= 1e-5 * other.grad.norm() + 1e-7, name


@pytest.mark.parametrize("checkpointing", [False, True])
def test_through_a_frozen_tower_no_gradient_is_kept(model, inputs, checkpointing):
    adapted = adapt_model(model, AdapterConfig(lora="text"))
    prepare_model(adapted, Accelerator(cpu=True))
    output = adapted.train()(**inputs)
    assert output.text_embeds.requires_grad
    assert not (output.image_embeds.requires_grad or output.region_embeds.requires_grad)


def test_a_frozen_tower_keeps_its_bits_and_the_rest_is_trained(built, model, processor, rows, tmp_path):
    frozen = adapt_model(model, AdapterConfig(freeze="vision"))
    assert frozen is model
    build_trainer(frozen, processor, rows, tmp_path).train()
    folder = tmp_path / "final"
    after, before = load_file(folder / "model.safetensors"), built[0].state_dict()
    same = {name for name in after if torch.equal(after[name], before[name])}
    assert same == {name for name in after if name.startswith("vision_model.")} | {"scene_scale.offset"}


# Training


def test_training_learns_by_the_adapter_alone_and_leaves_the_base(trained, folder):
    _, model, losses = trained
    assert losses[-1] < losses[0]
    base = load_base(folder).state_dict()
    for name, weight in model.get_base_model().state_dict().items():
        if ".base_layer." in name or ".original_module." in name:
            original = name.replace(".base_layer", "").replace(".original_module", "")
            assert torch.equal(weight, base[original]), name


def test_every_folder_holds_the_adapter_alone_and_knows_its_base(trained, folder):
    path, model, _ = trained
    for name in ("final", "best", "checkpoint-6"):
        weights = load_file(path / name / "adapter_model.safetensors")
        assert sum(weight.numel() for weight in weights.values()) == count_parameters(model)[0]
        assert not any((path / name).glob("model*.safetensors"))
        saved = json.loads((path / name / "adapter_config.json").read_text())
        assert saved["base_model_name_or_path"] == str(folder)
        assert type(AutoProcessor.from_pretrained(path / name)).__name__ == "GeoAlignCLIPProcessor"


@pytest.mark.parametrize(
    "changes",
    [
        {"mini_batch_size": 1, "activation_checkpointing": True},
        {},
        {"teacher": "ema", "teacher_decay": 0.5, "ema_decay": 0.5},
    ],
)
@pytest.mark.slow
def test_a_stopped_run_goes_on_with_the_same_bits(folder, processor, rows, tmp_path, changes):
    changes = {
        "num_train_epochs": 3,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 9,
        **changes,
    }
    adapters = AdapterConfig(lora="vision,text", lora_rank=4, lora_dropout=0.2, train_projections=True)

    def run(output_dir, seed, **more):
        torch.manual_seed(seed)
        model = adapt_model(AutoModel.from_pretrained(folder), adapters)
        options = changes | more | {"augmentation": Augmentation()}
        build_trainer(model, processor, rows, output_dir, **options).train()
        return output_dir / "final"

    whole = run(tmp_path / "a", 0)
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "checkpoint-3").rename(tmp_path / "b" / "checkpoint-3")
    resumed = run(tmp_path / "b", 99, resume_from_checkpoint="last")
    left, right = (load_file(path / "adapter_model.safetensors") for path in (whole, resumed))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_an_adapter_is_trained_further(trained, folder, processor, rows, tmp_path):
    path, *_ = trained
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(folder), path / "final", is_trainable=True)
    build_trainer(model, processor, rows, tmp_path).train()
    final = tmp_path / "final"
    before, after = (load_file(each / "adapter_model.safetensors") for each in (path / "final", final))
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("base", "precision"),
    [
        (torch.bfloat16, "no"),
        pytest.param(torch.float32, "bf16", marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, "bf16", marks=pytest.mark.slow),
    ],
)
def test_whatever_the_precision_adapters_train_in_single(folder, processor, rows, tmp_path, base, precision):
    model = adapt_model(AutoModel.from_pretrained(folder, dtype=base), EVERYTHING)
    options = {
        "bf16": precision == "bf16",
        "mini_batch_size": 2,
        "num_train_epochs": 10,
        "learning_rate": 3e-3,
    }
    trainer = build_trainer(model, processor, rows, tmp_path, **options)
    trainer.train()
    assert {
        weight.dtype for weight in load_file(tmp_path / "final" / "adapter_model.safetensors").values()
    } == {torch.float32}
    frozen = model.get_base_model().vision_model.post_layernorm.weight
    assert frozen.dtype == (base if precision == "bf16" else torch.float32)
    losses = list_losses(trainer)
    assert losses[-1] < losses[0]


# Loading, switching, merging


def load_by_auto_peft(base, adapter):
    return AutoPeftModelForFeatureExtraction.from_pretrained(adapter)


def load_by_auto_model(base, adapter):
    return AutoModel.from_pretrained(adapter)


def load_into(base, adapter):
    model = load_base(base)
    model.load_adapter(str(adapter))
    return model


def load_by_peft(base, adapter):
    return PeftModel.from_pretrained(load_base(base), adapter)


@pytest.mark.parametrize(
    "load",
    [
        load_by_peft,
        load_by_auto_peft,
        load_by_auto_model,
        load_into,
    ],
)
def test_every_way_of_loading_gives_equal_bits(trained, folder, inputs, load):
    path, model, _ = trained
    expected = embed(model, inputs)
    assert differ(expected, embed(load_base(folder), inputs)) == list(NAMES)
    check_close(embed(load(folder, path / "final"), inputs), expected)


def test_two_adapters_share_one_base_and_can_be_switched_off(trained, folder, model, inputs, tmp_path):
    path, first, _ = trained
    second = move(adapt_model(load_base(folder), BOTH), seed=7)
    second.save_pretrained(tmp_path)
    both = PeftModel.from_pretrained(load_base(folder), path / "final", adapter_name="first")
    both.load_adapter(tmp_path, adapter_name="second")
    check_close(embed(both, inputs), embed(first, inputs))
    both.set_adapter("second")
    check_close(embed(both, inputs), embed(second, inputs))
    with both.disable_adapter():
        check_close(embed(both, inputs), embed(model, inputs))
    both.set_adapter("first")
    check_close(embed(both, inputs), embed(first, inputs))


@pytest.fixture(scope="module")
def merged(trained, folder, processor, tmp_path_factory):
    """The trained adapter merged into its base, and saved."""
    path = tmp_path_factory.mktemp("merged")
    model = PeftModel.from_pretrained(load_base(folder), trained[0] / "final").merge_and_unload()
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path, model


def test_merged_the_model_is_the_same_and_so_it_is_saved_and_loaded(trained, merged, inputs):
    path, model = merged
    expected = embed(trained[1], inputs)
    check_close(embed(model, inputs), expected, 1e-5)
    check_close(embed(AutoModel.from_pretrained(path), inputs), expected, 1e-5)


def test_the_scene_scale_of_a_merged_model_is_where_every_clip_has_it(trained, merged, inputs):
    path, _ = merged
    expected = embed(trained[1], inputs)
    assert load_file(path / "model.safetensors")["scene_scale.offset"].item() == 0
    clip = CLIPModel.from_pretrained(path).eval()
    assert clip.logit_scale.exp().item() == pytest.approx(expected["logit_scale"].item())
    with torch.no_grad():
        output = clip(**{name: inputs[name] for name in ("pixel_values", "input_ids", "attention_mask")})
    torch.testing.assert_close(output.image_embeds, expected["image_embeds"], rtol=1e-5, atol=1e-5)


def test_an_adapter_made_by_hand_with_any_target_modules_works(folder, inputs, tmp_path):
    config = LoraConfig(
        r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["scene_scale", "text_projection"]
    )
    adapted = move(get_peft_model(load_base(folder), config))
    adapted.save_pretrained(tmp_path)
    expected = embed(adapted, inputs)
    check_close(embed(load_by_peft(folder, tmp_path), inputs), expected)
    adapted.merge_adapter()
    check_close(embed(adapted, inputs), expected, 1e-5)
    adapted.unmerge_adapter()
    check_close(embed(adapted, inputs), expected, 1e-5)


def test_what_peft_passes_beside_the_inputs_does_no_harm(model, inputs):
    model.config.dense_mode = "value"
    expected = embed(model, inputs)
    adapted = adapt_model(model, BOTH)
    check_close(embed(adapted, inputs), expected)
    output = adapted(**inputs, output_hidden_states=True, return_dict=False)
    assert isinstance(output, tuple)
    with pytest.raises(ValueError, match="^inputs_embeds is given, but CLIP's text tower takes token ids"):
        adapted(**inputs, inputs_embeds=torch.zeros(1))


@needs_native
def test_adapters_of_transformers_itself_add_save_switch_and_load(folder, model, inputs, tmp_path):
    native = load_base(folder)
    config = LoraConfig(
        r=2, target_modules=["q_proj", "fc1"], modules_to_save=["scene_scale", "region_scale"]
    )
    native.add_adapter(config, adapter_name="mine")
    expected = embed(move(native), inputs)
    native.save_pretrained(tmp_path)
    assert not any(tmp_path.glob("model*.safetensors"))
    assert sum(
        weight.numel() for weight in load_file(tmp_path / "adapter_model.safetensors").values()
    ) == sum(parameter.numel() for name, parameter in native.named_parameters() if ".mine." in name)
    other = load_base(folder)
    other.load_adapter(str(tmp_path), adapter_name="loaded")
    check_close(embed(other, inputs), expected)
    other.add_adapter(config, adapter_name="fresh")
    other.set_adapter("fresh")
    check_close(embed(other, inputs), embed(model, inputs))
    other.set_adapter("loaded")
    check_close(embed(other, inputs), expected)
    other.disable_adapters()
    check_close(embed(other, inputs), embed(model, inputs))


@needs_native
def test_an_adapter_of_which_transformers_loses_weights_is_refused_and_peft_loads_it(
    folder, inputs, tmp_path
):
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], use_dora=True)
    adapted = get_peft_model(load_base(folder), config).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1.5)
    adapted.save_pretrained(tmp_path)
    check_close(embed(load_by_peft(folder, tmp_path), inputs), embed(adapted, inputs))
    for load in (load_by_auto_model, load_into):
        with refuses("lora_magnitude_vector", "PeftModel.from_pretrained"):
            load(folder, tmp_path)


# Evaluation and pipelines


def test_evaluation_takes_adapted_and_merged_models_alike(trained, merged, processor, rows):
    scores = [RegionClassificationEvaluator(rows)(model, processor) for model in (trained[1], merged[1])]
    assert scores[0] == scores[1]
    banks = [ConceptBank.build(model, processor, ["ship", "road"]) for model in (trained[1], merged[1])]
    torch.testing.assert_close(banks[0].embeds, banks[1].embeds, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("zero-shot-image-classification", {"candidate_labels": ["a ship", "a road"]}),
        ("zero-shot-region-classification", {"candidate_concepts": ["ship", "road"]}),
    ],
)
def test_both_pipelines_answer_alike_by_adapter_folder_and_merged(
    trained, merged, processor, toy_rows, task, words
):
    row = toy_rows[0]
    if task == "zero-shot-region-classification":
        words = words | {"boxes": row["boxes"]}
    parts = {"processor": processor, "tokenizer": processor.tokenizer}
    parts["image_processor"] = processor.image_processor
    pipelines = [
        pipeline(task, model=trained[1], **parts),
        pipeline(task, model=str(trained[0] / "final")),
        pipeline(task, model=str(merged[0])),
    ]
    answers = [classify(row["image"], **words) for classify in pipelines]
    for found in answers[1:]:
        flat, expected = (
            list(chain(*each) if isinstance(each[0], list) else each) for each in (found, answers[0])
        )
        assert [entry["label"] for entry in flat] == [entry["label"] for entry in expected]
        assert [entry["score"] for entry in flat] == pytest.approx(
            [entry["score"] for entry in expected], abs=1e-5
        )


REMOTE = (
    ABSENT
    + """
import torch
from peft import AutoPeftModelForFeatureExtraction, PeftModel
from transformers import AutoModel, AutoProcessor, pipeline

torch.set_num_threads(1)
base, adapter, path = sys.argv[1:]
given = torch.load(path, weights_only=False)
processor = AutoProcessor.from_pretrained(adapter, trust_remote_code=True)
models = {
    "auto": AutoModel.from_pretrained(adapter, trust_remote_code=True),
    "peft": PeftModel.from_pretrained(AutoModel.from_pretrained(base, trust_remote_code=True), adapter),
    "auto_peft": AutoPeftModelForFeatureExtraction.from_pretrained(adapter, trust_remote_code=True),
}
merged = PeftModel.from_pretrained(AutoModel.from_pretrained(base, trust_remote_code=True), adapter)
models["merged"] = merged.merge_and_unload()
assert type(models["auto"]).__module__.startswith("transformers_modules.")
found = {}
for name, model in models.items():
    with torch.no_grad():
        output = model.eval()(**given["inputs"])
    found[name] = {key: getattr(output, key) for key in given["names"]}
classify = pipeline("zero-shot-region-classification", model=adapter, trust_remote_code=True)
found["answers"] = classify(given["image"], boxes=given["boxes"], candidate_concepts=["ship", "road"])
torch.save(found, path)
"""
)


@pytest.mark.slow
def test_where_geoalign_hf_is_not_installed_adapters_load_over_the_base_s_own_code(
    trained, folder, inputs, toy_rows, tmp_path
):
    path, model, _ = trained
    row = toy_rows[0]
    given = {"inputs": dict(inputs), "names": NAMES, "image": row["image"], "boxes": row["boxes"]}
    torch.save(given, tmp_path / "file")
    command = [sys.executable, "-c", REMOTE, folder, path / "final", tmp_path / "file"]
    result = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert result.returncode == 0, result.stderr
    found = torch.load(tmp_path / "file", weights_only=False)
    expected = embed(model, inputs)
    for name in ("auto", "peft", "auto_peft"):
        check_close(found[name], expected)
    check_close(found["merged"], expected, 1e-5)
    classify = pipeline("zero-shot-region-classification", model=str(path / "final"))
    assert found["answers"] == classify(row["image"], boxes=row["boxes"], candidate_concepts=["ship", "road"])


# Several processes

SHARED = {
    "both towers": BOTH,
    "both towers, the last block, scales and projections": EVERYTHING,
    "text, without scales": AdapterConfig(lora="text", train_scales=False),
    "vision": AdapterConfig(lora="vision"),
    "all but the vision tower": AdapterConfig(freeze="vision"),
    "all but the towers": AdapterConfig(freeze="vision,text"),
}
JOBS = {
    f"{name}, {case}, {num_chunks}": (name, case, weights, num_chunks)
    for name in SHARED
    for case, weights, num_chunks in [
        ("uneven", ALL_TERMS, 1),
        ("one has no region", ALL_TERMS, 2),
        ("uneven", LossWeights(scene=0, description=0), 1),
    ]
}


def work(rank: int, models: dict, batches: dict, folder):
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    wrapped = {name: DistributedDataParallel(model) for name, model in models.items()}
    results = {
        job: compute_grads(wrapped[name], models[name], batches[case][rank], weights, num_chunks)
        for job, (name, case, weights, num_chunks) in JOBS.items()
    }
    torch.save(results, folder / f"results-{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_gradients_of_one(built, processor, toy_rows, tmp_path):
    models = {
        name: move(adapt_model(copy.deepcopy(built[0]), config)) if config.lora
        else adapt_model(copy.deepcopy(built[0]), config)
        for name, config in SHARED.items()
    }  # fmt: skip
    collate, rows = RowCollator(processor, 6), list_cases(toy_rows)
    batches = {case: [collate(rows[case][:3]), collate(rows[case][3:])] for case in rows}
    method = "spawn" if torch.accelerator.is_available() else "fork"
    torch.multiprocessing.start_processes(work, (models, batches, tmp_path), nprocs=2, start_method=method)
    for rank in range(2):
        results = torch.load(tmp_path / f"results-{rank}.pt", weights_only=True)
        for job, (name, case, weights, _) in JOBS.items():
            expected = compute_grads(models[name], models[name], collate(rows[case]), weights)
            torch.testing.assert_close(results[job]["loss"], expected["loss"], rtol=1e-5, atol=1e-7)
            check_grads(results[job], expected, models[name])


# A quantised base


@pytest.mark.filterwarnings("ignore")
def test_on_a_base_of_8_bits_adapters_train_save_and_reload(folder, processor, rows, inputs, tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    skipped = ["visual_projection", "text_projection"]
    quantised = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    model = adapt_model(AutoModel.from_pretrained(folder, quantization_config=quantised), EVERYTHING)
    weight = model.get_base_model().vision_model.encoder.layers[0].mlp.fc1.weight
    assert weight.dtype == torch.int8
    build_trainer(model, processor, rows, tmp_path).train()
    final = tmp_path / "final"
    base = AutoModel.from_pretrained(folder, quantization_config=quantised)
    check_close(embed(PeftModel.from_pretrained(base, final), inputs), embed(model, inputs))
    check_close(embed(model.merge_and_unload(), inputs), embed(load_by_peft(folder, final), inputs), 0.05)


@pytest.mark.filterwarnings("ignore")
def test_on_a_base_of_4_bits_each_adapter_gets_gradient(folder, batch):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = adapt_model(AutoModel.from_pretrained(folder, quantization_config=quantised), BOTH).train()
    # Without the crops' targets: on CPUs bitsandbytes packs weights in evaluation, for good.
    weights = LossWeights(crop_consistency=0)
    compute_gradients(Accelerator(cpu=True), model, batch, weights, Teacher("self", model, 0.0))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_A" not in name:
            assert parameter.grad.norm() > 0, name


@pytest.mark.filterwarnings("ignore")
def test_projections_that_are_quantised_are_not_trained(folder):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    quantised = BitsAndBytesConfig(load_in_8bit=True)
    with refuses("train_projections", "torch.int8", "llm_int8_skip_modules"):
        adapt_model(AutoModel.from_pretrained(folder, quantization_config=quantised), EVERYTHING)


# Refusals


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"lora": "image"}, ("lora is 'image'", "vision, text, vision,text")),
        ({"freeze": "text,text"}, ("freeze is 'text,text'", "vision, text, vision,text")),
        ({"lora_rank": 0}, ("lora_rank is 0", "at least 1")),
        ({"lora_blocks": 0}, ("lora_blocks is 0", "at least 1")),
        ({"lora_dropout": -0.1}, ("lora_dropout is -0.1", "at least 0")),
        ({"lora": "text", "freeze": "vision"}, ("lora is 'text'", "freeze is 'vision'")),
    ],
)
def test_settings_without_a_meaning_are_refused(changes, facts):
    with refuses(*facts):
        AdapterConfig(**changes)


def test_more_blocks_than_the_tower_has_are_refused(model):
    with refuses("lora_blocks is 3", "the text tower has 2 blocks"):
        adapt_model(model, AdapterConfig(lora="text", lora_blocks=3))


def test_a_model_that_has_adapters_is_refused(trained):
    with refuses("already has adapters", "merge_and_unload()", "is_trainable=True"):
        adapt_model(AutoModel.from_pretrained(trained[0] / "final"), BOTH)
