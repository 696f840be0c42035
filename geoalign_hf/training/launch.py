"""Preparation of a distributed run: checks of the processes, and the form of the weights."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import broadcast_object_list
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy
from torch.distributed.tensor import DTensor, distribute_tensor

# Backends that Accelerate starts by an environment variable, and that GeoAlignTrainer cannot use.
OTHER_BACKENDS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor, context or sequence parallelism",
}
INSTEAD = "Use DDP or FSDP 2, see examples/accelerate_configs."


def check_backend_variables() -> None:
    """Refuse the backends that a launcher asks for by environment variables, before any of them starts.

    Raises:
        ValueError: if one is asked for that GeoAlignTrainer cannot use.
    """
    for variable, backend in OTHER_BACKENDS.items():
        if is_set(variable):
            raise ValueError(
                f"{variable} is {os.environ[variable]!r}, which asks for {backend}, but GeoAlignTrainer does "
                f"not support it. {INSTEAD}"
            )


def check_backend(accelerator: Accelerator, asks_for_fsdp: bool) -> None:
    """Check that Accelerate runs the backend that was asked for, and that it is one we can use.

    Args:
        accelerator: the accelerator of the trainer.
        asks_for_fsdp: True if the training arguments ask for FSDP. A launcher asks by an environment
            variable.

    Raises:
        ValueError: if it is another backend, FSDP 1, or fp16 on a device that has no gradient scaler.
        RuntimeError: if FSDP was asked for and is not used.
    """
    backend = accelerator.distributed_type
    if backend in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM, DistributedType.XLA):
        raise ValueError(f"the backend is {backend.value}, which GeoAlignTrainer does not support. {INSTEAD}")
    if backend == DistributedType.FSDP:
        plugin = accelerator.state.fsdp_plugin
        if plugin.auto_wrap_policy is size_based_auto_wrap_policy:
            raise ValueError(
                "auto_wrap_policy is SIZE_BASED_WRAP, with which FSDP 2 cannot shard lists of blocks. "
                "Use TRANSFORMER_BASED_WRAP."
            )
        if plugin.fsdp_version != 2:
            raise ValueError(
                f"fsdp_version is 1; it must be 2, the only version that is supported. {INSTEAD}"
            )
    elif asks_for_fsdp or is_set("ACCELERATE_USE_FSDP"):
        raise RuntimeError(
            f"FSDP was asked for, but Accelerate started {backend.value} on {accelerator.device.type} "
            "without it. FSDP needs GPUs, and accelerate launch or torchrun. Start it so, or remove fsdp."
        )
    if accelerator.mixed_precision == "fp16" and accelerator.scaler is None:
        raise ValueError(
            f"fp16 was asked for, but on {accelerator.device.type} Accelerate would train in float32 without "
            "a word. Use bf16, or remove fp16."
        )


def is_set(variable: str) -> bool:
    """Return whether an environment variable switches something on."""
    return os.environ.get(variable, "").lower() in ("1", "true", "t", "yes", "y", "on")


def check_processes(num_processes: int) -> None:
    """Check that the processes that were launched work together.

    Args:
        num_processes: number of processes that Accelerate found.

    Raises:
        RuntimeError: if that is not the number that was launched.
    """
    launched = os.environ.get("WORLD_SIZE")
    if launched is not None and int(launched) != num_processes:
        raise RuntimeError(
            f"WORLD_SIZE is {launched} but Accelerate started {num_processes} process, so each would train "
            "a model of its own. On CPUs start the same command with: "
            f"ACCELERATE_USE_CPU=true torchrun --nproc_per_node {launched} ..."
        )
    # What `accelerate launch --cpu --num_processes N` leaves behind for N > 1, before it starts one process.
    if (
        launched is None
        and num_processes == 1
        and is_set("ACCELERATE_USE_CPU")
        and "MASTER_PORT" in os.environ
    ):
        raise RuntimeError(
            "accelerate launch was asked for several processes on CPUs and started one. In place of "
            "`accelerate launch`, write: ACCELERATE_USE_CPU=true torchrun --nproc_per_node N ..."
        )


def check_batch(num_views: int, batch_size: int, num_processes: int) -> None:
    """Check that an epoch has at least one batch, where an incomplete last batch is dropped.

    Args:
        num_views: number of views of an epoch.
        batch_size: number of views per process and step.
        num_processes: number of processes.

    Raises:
        ValueError: if it has none.
    """
    if num_views < batch_size * num_processes:
        raise ValueError(
            f"an epoch has {num_views} views of the rows, fewer than one batch of "
            f"{batch_size * num_processes} ({batch_size} on each of {num_processes} processes). "
            "Lower per_device_train_batch_size."
        )


def prepare_model(model: Any, accelerator: Accelerator) -> None:
    """Make the trained weights float32, and bring the model into the form that its wrappers need."""
    is_mixed = accelerator.mixed_precision != "no"
    for parameter in model.parameters():
        # A checkpoint may be in half precision. Under mixed precision frozen weights may stay so.
        if parameter.requires_grad or (parameter.is_floating_point() and not is_mixed):
            parameter.data = parameter.data.float()
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    # Only reentrant checkpointing needs gradients of the inputs, which a frozen tower need not compute.
    base.disable_input_require_grads()
    if accelerator.distributed_type == DistributedType.FSDP:
        prepare_for_fsdp(model, accelerator)


def prepare_for_fsdp(model: torch.nn.Module, accelerator: Accelerator) -> None:
    """Give CLIP's scale an axis, since FSDP shards no scalars. It is saved without the axis."""
    clip: Any = next(module for module in model.modules() if "logit_scale" in module._parameters)
    scale = clip.logit_scale  # of the model that adapters may wrap
    clip.logit_scale = torch.nn.Parameter(scale.detach().reshape(1), scale.requires_grad)
    plugin = accelerator.state.fsdp_plugin
    # Only autocast chooses half precision. FSDP's own policy would also round boxes and scales.
    plugin.mixed_precision_policy = None
    if plugin.transformer_cls_names_to_wrap is None:  # the default list wraps CLIP's text embeddings twice
        plugin.transformer_cls_names_to_wrap = ["CLIPEncoderLayer"]


def call_on_main(accelerator: Accelerator, function: Callable, *arguments):
    """Call a function on the main process, and return its result or raise its error on every process."""
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = function(*arguments)
        except (ValueError, RuntimeError, OSError) as error:
            outcome[1] = error
    result, error = broadcast_object_list(outcome)
    if error is not None:
        raise error
    return result


def reshard(model: torch.nn.Module) -> None:
    """Shard parameters again. FSDP keeps some of them unsharded after a forward pass, as in an evaluation."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def copy_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Copy unsharded weights into the parameters of a model, which FSDP may have sharded.

    Raises:
        ValueError: if a trained parameter is not among them, or has another shape.
    """
    reshard(model)
    parameters = dict(model.named_parameters())
    trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
    if missing := sorted(trained - weights.keys()):
        raise ValueError(f"the checkpoint lacks the weights {missing[:3]} ({len(missing)} in all).")
    shared = sorted(parameters.keys() & weights.keys())  # the same order on every process
    for name in shared:
        found, expected = tuple(weights[name].shape), tuple(parameters[name].shape)
        if found != expected and {found, expected} != {(), (1,)}:  # see `prepare_for_fsdp`
            raise ValueError(f"{name} has the shape {found} in the checkpoint, and {expected} in the model.")
    with torch.no_grad():
        for name in shared:
            parameter = parameters[name]
            whole = weights[name].to(parameter.device).reshape(parameter.shape)
            if isinstance(parameter, DTensor):
                whole = distribute_tensor(whole, parameter.device_mesh, parameter.placements)
            parameter.copy_(whole)


def collect_weights(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gather unsharded weights on the CPU. Under FSDP every process must call it."""
    gathered = {}
    for name, weight in weights.items():
        whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
        gathered[name] = whole.detach().cpu().clone().contiguous()
    return gathered
