"""Saves and restores the state of a run beside the model: optimizer, schedule, averages and scores."""

from pathlib import Path

from peft import PeftModel
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from ..storage import read_json, write_json
from .checkpoints import STATE, get_random_state, load_tree, read_weights, save_tree
from .identity import check_same_run
from .launch import collect_weights, copy_weights, reshard


def write_state(trainer, folder: Path) -> None:
    """Write the state of a trainer into a folder. Every process must call it.

    Args:
        trainer: a `GeoAlignTrainer` between two steps.
        folder: folder to write into.
    """
    model, average = trainer.accelerator.unwrap_model(trainer.model), trainer.average
    reshard(model)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    optimizer = get_optimizer_state_dict(trainer.model, trainer.optimizer.optimizer, options=options)
    weights = None
    if average is not None or isinstance(model, PeftModel):  # else they are in the saved model
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        weights = collect_weights(trained)
    averaged = None
    if average is not None:
        averaged = {"weights": collect_weights(average.weights), "num_updates": average.num_updates}
    folder.mkdir(exist_ok=True)
    save_tree(get_random_state(), folder / f"random-{trainer.args.process_index}.safetensors")
    if not trainer.accelerator.is_main_process:
        return
    trees = {
        "optimizer": optimizer,
        "scheduler": trainer.lr_scheduler.state_dict(),
        "teacher": trainer.teacher.state_dict(),
    }
    if averaged is not None:
        trees["average"] = averaged
    if trainer.accelerator.scaler is not None:
        trees["scaler"] = trainer.accelerator.scaler.state_dict()
    for name, tree in trees.items():
        save_tree(tree, folder / f"{name}.safetensors")
    if weights is not None:
        save_file(weights, folder / "weights.safetensors")
    write_json(folder / "run.json", {"settings": trainer.describe_run(), "scores": trainer.scores})


def restore_state(trainer, checkpoint: Path) -> None:
    """Restore everything but the random generators.

    Args:
        trainer: a `GeoAlignTrainer` before its first step, whose model is prepared.
        checkpoint: a complete checkpoint.

    Raises:
        ValueError: if the checkpoint is of a run with other settings.
    """
    folder = checkpoint / STATE
    run = read_json(folder / "run.json")
    check_same_run(checkpoint, run["settings"], trainer.describe_run())
    trainer.scores = run["scores"]
    model = trainer.accelerator.unwrap_model(trainer.model)
    copy_weights(model, read_weights(checkpoint))
    optimizer, saved = trainer.optimizer.optimizer, load_tree(folder / "optimizer.safetensors")
    if saved["state"]:
        options = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(trainer.model, optimizer, saved, options=options)
    else:  # torch cannot load optimizers without a state, such as SGD
        for group, settings in zip(optimizer.param_groups, saved["param_groups"], strict=True):
            group.update({name: value for name, value in settings.items() if name != "params"})
    trainer.lr_scheduler.load_state_dict(load_tree(folder / "scheduler.safetensors"))
    trainer.teacher.load_state_dict(load_tree(folder / "teacher.safetensors"))
    if trainer.accelerator.scaler is not None:
        trainer.accelerator.scaler.load_state_dict(load_tree(folder / "scaler.safetensors"))
    if trainer.average is not None:
        average = load_tree(folder / "average.safetensors")
        trainer.average.num_updates = average["num_updates"]
        with trainer.average.in_place():
            copy_weights(model, average["weights"])
