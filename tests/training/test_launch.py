"""What `accelerate launch` and `torchrun` start: real processes, whose run is that of one alone."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate import DistributedType
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import FullyShardedDataParallelPlugin
from refusals import refuses
from runs import build_trainer
from safetensors.torch import load_file

from geoalign_hf.training.launch import check_backend, check_processes

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "examples" / "accelerate_configs"

# Trains on rows that a process of its own can draw; batch 4 in all, however many processes share it.
SCRIPT = """
import json, os, sys
sys.path.insert(0, "EXAMPLES")
import torch
from accelerate import Accelerator, state
from accelerate.utils import DistributedType
from toy_rows import CONCEPTS, draw_rows
from geoalign_hf.losses.objective import LossWeights
from geoalign_hf.training.lora import AdapterConfig, adapt_model
from geoalign_hf.data.augmentation import Augmentation
from geoalign_hf.evaluation.classification import RegionClassificationEvaluator
from geoalign_hf.model.processing_geoalign_clip import CONCEPT_TEMPLATES
from geoalign_hf.data.schema import REGION_COLUMNS, build_rows
from geoalign_hf.convert.from_scratch import build_model
from geoalign_hf.training.arguments import GeoAlignTrainingArguments
from geoalign_hf.training.trainer import GeoAlignTrainer

torch.set_num_threads(1)
start = state.AcceleratorState.__init__

def start_sharded(self, *args, **kwargs):
    # Accelerate ignores FSDP on CPUs, where the sharding itself works. Use what was asked for.
    start(self, *args, **kwargs)
    plugin = kwargs.get("fsdp_plugin") or vars(self).get("fsdp_plugin")
    if self.distributed_type == DistributedType.MULTI_CPU and plugin:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugin

if "--ignored" not in sys.argv:
    state.AcceleratorState.__init__ = start_sharded

drawn = draw_rows(12)
# One half of the rows has no region: with batches of their own, processes are as uneven as can be.
nothing = {name: [] for name in REGION_COLUMNS}
drawn = [row | nothing if i % 2 else row for i, row in enumerate(drawn)]
texts = [text for row in drawn for text in [*row["captions"], *row["phrases"], row["description"]]]
texts += [template.format(concept) for template in CONCEPT_TEMPLATES for concept in CONCEPTS]
torch.manual_seed(0)
model, processor = build_model(texts, 64, 16, 64, 2, 64, 2, 32)
if "--lora" in sys.argv:
    model = adapt_model(model, AdapterConfig(lora="vision,text", lora_rank=4, train_projections=True))
rows = build_rows(drawn)
num = int(os.environ.get("WORLD_SIZE", 1))
args = GeoAlignTrainingArguments(
    output_dir=sys.argv[1], num_train_epochs=2,
    per_device_train_batch_size=(2 if "--accumulate" in sys.argv else 6) // num,
    gradient_accumulation_steps=3 if "--accumulate" in sys.argv else 1, logging_steps=1,
    fsdp="--fsdp" in sys.argv, layer_decay=0.5 if "--decay" in sys.argv else 1,
    fsdp_config=json.loads(os.environ.get("FSDP_SETTINGS", "{}")),
    save_strategy="steps", save_steps=3, eval_strategy="steps", eval_steps=2, save_total_limit=5,
    resume_from_checkpoint="last" if "--resume" in sys.argv else None,
    teacher="ema" if "--ema" in sys.argv else "self", ema_decay=0.5 if "--ema" in sys.argv else 0,
    mini_batch_size=1 if "--chunks" in sys.argv else None,
)
GeoAlignTrainer(
    model, args, train_dataset=rows, processing_class=processor, augmentation=Augmentation(),
    loss_weights=LossWeights(  # every term that has data, and a teacher
        scene=1, description=1, region=0.1, concept=0.5, hard_negative=0.5, crop_consistency=0.1
    ),
    evaluators=[RegionClassificationEvaluator(rows)],
).train()
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "script.py"
    path.write_text(SCRIPT.replace("EXAMPLES", str(ROOT / "examples")))
    return path


def run(command: list, **variables) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    command = [sys.executable, "-m", *map(str, command)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert result.returncode == 0, result.stderr
    return result.stderr


def launch(num: int, script, *arguments, **variables) -> str:
    command = ["torch.distributed.run", "--nproc_per_node", num, "--master_port", 29400 + os.getpid() % 500]
    return run([*command, script, *arguments], ACCELERATE_USE_CPU="true", **variables)


@pytest.fixture(scope="module")
def alone(script, tmp_path_factory):
    """What one process makes of all the rows."""
    folder = tmp_path_factory.mktemp("alone")
    command = [sys.executable, str(script), str(folder)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return folder


def load_weights(folder) -> dict:
    adapter = folder / "adapter_model.safetensors"
    return load_file(adapter if adapter.exists() else folder / "model.safetensors")


def check_same_run(folder, alone) -> None:
    """The same losses, scores and weights, but for rounding that AdamW has made larger."""
    found, expected = (
        json.loads((path / "trainer_state.json").read_text())["log_history"] for path in (folder, alone)
    )
    assert [record["step"] for record in found] == [record["step"] for record in expected]
    for one, other in zip(found, expected, strict=True):
        for name in other.keys() - {"step"}:
            if name.endswith(("_per_second", "_runtime")):
                continue
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-4), (one["step"], name)
    left, right = (load_weights(path / "final") for path in (folder, alone))
    assert left.keys() == right.keys()
    for name in right:
        assert left[name].shape == right[name].shape
        assert (left[name] - right[name]).abs().max() < 1e-3, name
    scores = [json.loads((path / "metrics.json").read_text()) for path in (folder, alone)]
    assert scores[0].keys() == scores[1].keys() == {"regions start", "regions best", "regions final"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num", "arguments"), [(2, []), (3, []), (2, ["--chunks"]), (2, ["--fsdp"]), (2, ["--fsdp", "--chunks"])]
)
def test_several_processes_train_as_one_does(script, alone, tmp_path, num, arguments):
    launch(num, script, tmp_path, *arguments)
    check_same_run(tmp_path, alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{"activation_checkpointing": True}, {"reshard_after_forward": False}, {"auto_wrap_policy": "NO_WRAP"}],
    ids=str,
)
def test_settings_of_fsdp_change_no_result(script, alone, tmp_path, settings):
    launch(2, script, tmp_path, "--fsdp", FSDP_SETTINGS=json.dumps(settings))
    check_same_run(tmp_path, alone)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--accumulate"], ["--decay"]])
@pytest.mark.parametrize("others", [[], ["--fsdp", "--chunks"]])
def test_several_processes_accumulate_and_decay_as_one_does(script, tmp_path, arguments, others):
    command = [sys.executable, str(script), str(tmp_path / "alone"), *arguments]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    launch(2, script, tmp_path / "two", *arguments, *others)
    check_same_run(tmp_path / "two", tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--chunks"], ["--fsdp"]])
def test_several_processes_train_adapters_as_one_does(script, tmp_path, arguments):
    command = [sys.executable, str(script), str(tmp_path / "alone"), "--lora"]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    launch(2, script, tmp_path / "two", "--lora", *arguments)
    check_same_run(tmp_path / "two", tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], ["--fsdp", "--ema"], ["--lora", "--ema"]])
def test_several_processes_go_on_from_a_checkpoint(script, tmp_path, arguments):
    launch(2, script, tmp_path / "a", *arguments)
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "checkpoint-3").rename(tmp_path / "b" / "checkpoint-3")
    launch(2, script, tmp_path / "b", "--resume", *arguments)
    left, right = (load_weights(tmp_path / name / "final") for name in "ab")
    for name in left:
        assert (left[name] - right[name]).abs().max() < 1e-6, name


@pytest.mark.slow
def test_the_config_for_several_gpus_starts_several_processes_on_cpus_too(script, alone, tmp_path):
    command = ["accelerate.commands.launch", "--config_file", CONFIGS / "ddp.yaml", "--mixed_precision", "no"]
    port = ["--main_process_port", 29400 + os.getpid() % 500]
    run([*command, *port, "--num_processes", 2, script, tmp_path], ACCELERATE_USE_CPU="true")
    check_same_run(tmp_path, alone)


@pytest.mark.slow
def test_the_launcher_that_starts_one_process_of_two_is_a_clear_error(script, tmp_path):
    command = ["accelerate.commands.launch", "--cpu", "--num_processes", "2", str(script), str(tmp_path)]
    result = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=300)
    assert result.returncode != 0
    assert "accelerate launch was asked for several processes on CPUs and started one" in result.stderr


@pytest.mark.slow
def test_torchrun_on_a_machine_without_gpus_needs_no_further_word(script, alone, tmp_path):
    variables = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    command = ["-m", "torch.distributed.run", "--nproc_per_node", "2", str(script), str(tmp_path)]
    subprocess.run([sys.executable, *command], check=True, capture_output=True, env=variables, timeout=300)
    check_same_run(tmp_path, alone)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_every_config(path):
    config = load_config_from_file(str(path))
    expected = {"single_gpu": ("NO", 1), "ddp": ("MULTI_GPU", 2), "fsdp": ("FSDP", 2)}[path.stem]
    assert (config.distributed_type, config.num_processes, config.mixed_precision) == (*expected, "bf16")
    assert str(path.relative_to(ROOT)) in path.read_text()  # it says how it is used


def test_only_matrices_decay(model, processor, rows, tmp_path):
    model.text_model.requires_grad_(False)
    trainer = build_trainer(model, processor, rows, tmp_path, weight_decay=0.3)
    decayed, others = trainer.create_optimizer().param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert all(parameter.ndim >= 2 for parameter in decayed["params"])
    assert any(parameter is model.region_scale.logit_scale for parameter in others["params"])
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(decayed["params"]) + len(others["params"]) == len(trainable)


def test_fsdp_that_accelerate_ignores_is_refused(model, processor, rows, tmp_path, monkeypatch):
    """Accelerate skips FSDP without a message on CPUs and with a single process."""
    for variable in ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING"):
        monkeypatch.setenv(variable, "false")  # they are set on the way, and restored after the test
    with refuses("FSDP was asked for", "cpu", kind=RuntimeError):
        build_trainer(model, processor, rows, tmp_path, fsdp=True)


@pytest.mark.parametrize(
    ("backend", "settings", "fact"),
    [
        ("DEEPSPEED", {}, "DEEPSPEED"),
        ("MEGATRON_LM", {}, "MEGATRON_LM"),
        ("FSDP", {"fsdp_version": 1}, "fsdp_version is 1"),
        ("FSDP", {"auto_wrap_policy": "SIZE_BASED_WRAP", "min_num_params": 9}, "SIZE_BASED_WRAP"),
    ],
)
def test_other_backends_are_refused_by_name(backend, settings, fact):
    """Also those that were started before the trainer was built."""
    plugin = FullyShardedDataParallelPlugin(**{"fsdp_version": 2} | settings)
    state = SimpleNamespace(fsdp_plugin=plugin)
    with refuses(fact):
        check_backend(SimpleNamespace(distributed_type=DistributedType[backend], state=state), False)


def test_fp16_on_a_device_without_a_gradient_scaler_is_refused(model, processor, rows, tmp_path):
    with refuses("fp16", "cpu", "bf16"):
        build_trainer(model, processor, rows, tmp_path, fp16=True)


def test_processes_that_did_not_come_up_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with refuses("WORLD_SIZE is 4", "1 process", "torchrun --nproc_per_node 4", kind=RuntimeError):
        check_processes(1)


def test_a_launcher_that_started_one_process_of_several_is_refused(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with refuses("accelerate launch", "several processes", "torchrun", kind=RuntimeError):
        check_processes(1)
    check_processes(2)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "False")  # as on a GPU, where clusters set MASTER_PORT
    check_processes(1)
