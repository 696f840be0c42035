"""What must be right before the first step: processes, folder, precision, what decays, the learning rate."""

import math
import os
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType

from .checkpoints import PARTIAL, find_newest_checkpoint, remove_partial_folders


def check_processes(num_processes: int, script: str = "examples/train.py") -> None:
    """Refuse to work alone where several processes were launched.

    Args:
        num_processes: that Accelerate came up with.
        script: that was launched.

    Raises:
        RuntimeError: if Accelerate came up with another number of processes than were asked for.
    """
    launched = os.environ.get("WORLD_SIZE")
    if launched is not None and int(launched) != num_processes:
        raise RuntimeError(
            f"WORLD_SIZE is {launched} but Accelerate started {num_processes} process, so each would work "
            "alone and know nothing of the others. On CPUs start with: "
            f"ACCELERATE_USE_CPU=true torchrun --nproc_per_node {launched} {script} ..."
        )
    # What `accelerate launch --cpu --num_processes N` leaves behind for N > 1, before it starts one process.
    is_on_cpus = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1")
    if launched is None and num_processes == 1 and is_on_cpus and "MASTER_PORT" in os.environ:
        raise RuntimeError(
            "accelerate launch was asked for several processes on CPUs and started one. Start them with: "
            f"ACCELERATE_USE_CPU=true torchrun --nproc_per_node N {script} ..."
        )


def prepare_output(output_dir: Path, resume: bool) -> None:
    """Make the folder, see that it can be written, and clear away what killed runs left unfinished.

    Raises:
        RuntimeError: if it cannot be written, or holds the checkpoints of a run that is not to be resumed.
    """
    if not resume and (newest := find_newest_checkpoint(output_dir)):
        raise RuntimeError(
            f"output_dir {output_dir} holds {newest.name} of another run. Give --resume to go on with it, or "
            "another output_dir."
        )
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / f"{PARTIAL}probe").mkdir(exist_ok=True)
        remove_partial_folders(output_dir)
    except OSError as error:
        raise RuntimeError(
            f"output_dir {output_dir} cannot be written ({error}). Give a folder that can."
        ) from error


def prepare_model(model: torch.nn.Module, gradient_checkpointing: bool, accelerator: Accelerator) -> None:
    """Give the model float32 weights to train, and the forms that its wrappers ask for."""
    is_mixed = accelerator.mixed_precision != "no"
    for parameter in model.parameters():
        # A checkpoint may have come in half precision; under mixed precision what is frozen may stay so.
        if parameter.requires_grad or (parameter.is_floating_point() and not is_mixed):
            parameter.data = parameter.data.float()
    if gradient_checkpointing:
        # its name before transformers 5.23
        old = getattr(model, "gradient_checkpointing_enable", None)
        getattr(model, "activation_checkpointing_enable", old)({"use_reentrant": False})
        model.disable_input_require_grads()  # only the reentrant kind asks for gradients of a frozen tower
    if accelerator.distributed_type == DistributedType.FSDP:
        prepare_for_fsdp(model, accelerator)


def prepare_for_fsdp(model: torch.nn.Module, accelerator: Accelerator) -> None:
    """Give CLIP's scale an axis, since FSDP shards no scalars; it is saved without."""
    clip = next(module for module in model.modules() if "logit_scale" in module._parameters)
    scale = clip.logit_scale  # of the model itself, which adapters may wrap
    clip.logit_scale = torch.nn.Parameter(scale.detach().reshape(1), scale.requires_grad)
    # Autocast alone makes half precision: FSDP's own would round boxes and scales, too.
    accelerator.state.fsdp_plugin.mixed_precision_policy = None


def group_parameters(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    """Split parameters into matrices, which decay, and vectors and scales, which do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {
            "params": [parameter for parameter in parameters if parameter.ndim >= 2],
            "weight_decay": weight_decay,
        },
        {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
    ]


def warmup_cosine(step: int, num_steps: int, warmup_share: float) -> float:
    """Give the factor on the learning rate: a line up, then half a cosine down to 0."""
    num_warmup = max(1, round(warmup_share * num_steps))
    if step < num_warmup:
        return (step + 1) / num_warmup
    return 0.5 * (1 + math.cos(math.pi * (step - num_warmup) / max(1, num_steps - num_warmup)))
