"""Laws of loops that users write: Accelerate's and a stock Trainer's losses are those of our trainer."""

import copy
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from runs import build_trainer, list_losses
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor, Trainer, TrainingArguments

from geoalign_hf.data.augmentation import Augmentation
from geoalign_hf.data.collator import RowCollator
from geoalign_hf.data.loading import from_coco
from geoalign_hf.data.schema import build_rows
from geoalign_hf.losses.objective import LossWeights, compute_losses
from geoalign_hf.training.step import encode_batch

SCRIPT = Path(__file__).parents[2] / "examples" / "train_accelerate.py"
CONFIG = SCRIPT.parent / "accelerate_configs" / "ddp.yaml"


@pytest.fixture
def run_script(folder, coco_folder, tmp_path, monkeypatch, capsys):
    def run(output_dir, *arguments) -> str:
        files = ["--model", folder, "--dataset", coco_folder / "rows.json", "--images", coco_folder]
        small = ["--per_device_train_batch_size", 4, "--learning_rate", 1e-3, "--output_dir", output_dir]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, [*files, *small, *arguments])])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return capsys.readouterr().out

    return run


def read_losses(printed: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", printed)]


def test_the_accelerate_script_is_short():
    assert len(SCRIPT.read_text().splitlines()) < 120


def test_the_accelerate_script_gives_the_losses_of_the_trainer_and_resumes(
    run_script, folder, coco_folder, processor, tmp_path
):
    evaluated = ["--eval_dataset", coco_folder / "rows.json", "--mini_batch_size", 2]
    printed = run_script(tmp_path / "loop", "--num_train_epochs", 2, *evaluated)
    assert "region top-1 macro" in printed
    trainer = build_trainer(
        AutoModel.from_pretrained(folder), processor, from_coco(coco_folder / "rows.json", coco_folder),
        tmp_path / "trainer", learning_rate=1e-3, augmentation=Augmentation(), max_negatives=10,
        loss_weights=LossWeights(),
    )  # fmt: skip
    trainer.train()
    assert read_losses(printed) == pytest.approx(list_losses(trainer), rel=1e-3)

    whole = load_file(tmp_path / "loop" / "checkpoint-2" / "model.safetensors")
    (tmp_path / "loop" / "checkpoint-2").rename(tmp_path / "aside")
    run_script(tmp_path / "loop", "--num_train_epochs", 2, *evaluated, "--resume")
    resumed = load_file(tmp_path / "loop" / "checkpoint-2" / "model.safetensors")
    assert all((whole[name] == resumed[name]).all() for name in whole)


def test_the_accelerate_script_resumes_only_its_own_run(run_script, folder, coco_folder, tmp_path):
    printed = run_script(tmp_path / "loop", "--num_train_epochs", 1, "--resume")
    assert "no checkpoint is resumed" in printed
    with pytest.raises(SystemExit, match="loop holds checkpoint-1"):
        run_script(tmp_path / "loop", "--num_train_epochs", 1)
    weights = tmp_path / "loop" / "checkpoint-1" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="model.safetensors is damaged"):
        run_script(tmp_path / "loop", "--num_train_epochs", 2, "--resume")
    weights.write_bytes(content)
    other = json.loads((coco_folder / "rows.json").read_text())
    other["annotations"] = other["annotations"][1:]
    (coco_folder / "fewer.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="checkpoint-1 is a checkpoint of a run .*: rows was"):
        run_script(
            tmp_path / "loop", "--num_train_epochs", 1, "--resume", "--dataset", coco_folder / "fewer.json"
        )
    changed = AutoModel.from_pretrained(folder)
    changed.config.dense_mode = "value"
    changed.save_pretrained(tmp_path / "changed")
    AutoProcessor.from_pretrained(folder).save_pretrained(tmp_path / "changed")
    with pytest.raises(ValueError, match="other settings: dense_mode was"):
        run_script(tmp_path / "loop", "--num_train_epochs", 1, "--resume", "--model", tmp_path / "changed")


def test_the_accelerate_script_resumes_only_with_the_same_schedule(
    run_script, coco_folder, tmp_path, monkeypatch
):
    run_script(tmp_path / "loop", "--num_train_epochs", 1)
    changes = {"num_train_epochs": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-4, "seed": 1}
    for name, value in changes.items():
        with pytest.raises(ValueError, match=f"other settings: {name} was .* and is {value}\\. Resume with"):
            run_script(tmp_path / "loop", "--num_train_epochs", 1, "--resume", f"--{name}", value)
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    monkeypatch.setattr("geoalign_hf.training.launch.check_processes", lambda num_processes: None)
    with pytest.raises(ValueError, match="other settings: num_processes was 1 and is 2"):
        run_script(tmp_path / "loop", "--num_train_epochs", 1, "--resume")


def test_the_accelerate_script_refuses_an_epoch_without_a_batch(run_script, tmp_path):
    with pytest.raises(ValueError, match="8 views .* one batch of 9 .*per_device_train_batch_size"):
        run_script(tmp_path / "loop", "--per_device_train_batch_size", 9)
    assert not (tmp_path / "loop").exists()


def test_the_accelerate_script_trains_a_checkpoint_in_half_precision_in_float32(run_script, folder, tmp_path):
    AutoModel.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    AutoProcessor.from_pretrained(folder).save_pretrained(tmp_path / "half")
    run_script(tmp_path / "loop", "--num_train_epochs", 1, "--model", tmp_path / "half")
    weights = load_file(tmp_path / "loop" / "checkpoint-1" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc_per_node", "2", "--master_port"],
    "accelerate": [
        "accelerate.commands.launch", "--config_file", CONFIG, "--num_processes", "2",
        "--mixed_precision", "no", "--main_process_port",
    ],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_accelerate_script_gives_the_losses_of_one_process_on_two(
    run_script, folder, coco_folder, tmp_path, launcher
):
    expected = run_script(tmp_path / "one", "--num_train_epochs", 2)
    files = ["--model", folder, "--dataset", coco_folder / "rows.json", "--images", coco_folder]
    small = ["--per_device_train_batch_size", 2, "--learning_rate", 1e-3, "--num_train_epochs", 2]
    port = 29400 + os.getpid() % 500
    command = [sys.executable, "-m", *LAUNCHERS[launcher], port, SCRIPT, *files, *small]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    result = subprocess.run(
        [*map(str, command), "--output_dir", str(tmp_path / "two")],
        capture_output=True, text=True, env=environment, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = read_losses(result.stdout)
    assert len(found) == 4 and found == pytest.approx(read_losses(expected), rel=1e-4)


class PlainTrainer(Trainer):
    """The four lines that bring our objective to a stock Trainer."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        output = SimpleNamespace(**encode_batch(model, inputs))
        loss = compute_losses(output, inputs, LossWeights(crop_consistency=0))["loss"]
        return (loss, output) if return_outputs else loss


def test_a_stock_trainer_with_four_lines_gives_our_losses(model, built, processor, toy_rows, tmp_path):
    shared = {"max_steps": 3, "learning_rate": 1e-3, "weight_decay": 0.0, "seed": 0, "logging_steps": 1}
    shared |= {"per_device_train_batch_size": 8, "save_strategy": "no"}
    rows = build_rows(row | {"captions": row["captions"][:1]} for row in toy_rows)  # ours draws one of them
    args = TrainingArguments(
        output_dir=str(tmp_path / "stock"), remove_unused_columns=False, use_cpu=True, adam_beta2=0.98,
        lr_scheduler_type="cosine", warmup_steps=0.05, disable_tqdm=True, **shared,
    )  # fmt: skip
    examples = [dict(row) | {"row_id": i} for i, row in enumerate(rows)]
    stock = PlainTrainer(model, args, RowCollator(processor, 6), train_dataset=examples)
    stock.train()
    ours = build_trainer(
        copy.deepcopy(built[0]), processor, rows, tmp_path / "ours", max_negatives=100,
        loss_weights=LossWeights(crop_consistency=0), max_vocabulary=0, **shared,
    )  # fmt: skip
    ours.train()
    found = [record["loss"] for record in stock.state.log_history if "loss" in record]
    assert found == pytest.approx(list_losses(ours), rel=1e-3)  # one batch holds all rows, in any order
