"""Collectives and gradient caching, which give multi-process and chunked training the full batch's gradient.

Without a process group every function works on this process alone. Whether a collective is called never
depends on the data, so all processes call the same ones in the same order.
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch.distributed
from torch.utils.checkpoint import get_device_states, set_device_states


def count_processes() -> int:
    """Return the number of processes of the group, W; 1 without a group."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def get_rank() -> int:
    """Return the rank of this process; 0 without a group."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenate a tensor over all processes, in the order of their ranks.

    The gradient of each part is summed over all processes and returned to the process that it came from.

    Args:
        tensor: (B, ...), of the same shape on every process.

    Returns:
        (W * B, ...); the tensor itself without a process group.
    """
    return tensor if count_processes() == 1 else _Gather.apply(tensor.contiguous())


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor):
        parts = [torch.empty_like(tensor) for _ in range(count_processes())]
        torch.distributed.all_gather(parts, tensor)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone(
            memory_format=torch.contiguous_format
        )  # autograd may still read the tensor that it passed in
        torch.distributed.all_reduce(grad)
        return grad.chunk(count_processes())[get_rank()]


def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over all processes, without gradient.

    Args:
        tensor: (...), of the same shape on every process.

    Returns:
        (...), equal on all processes.
    """
    tensor = tensor.detach().clone()
    if count_processes() > 1:
        torch.distributed.all_reduce(tensor)
    return tensor


def backward_in_chunks(
    chunks: list,
    encode: Callable[[object], dict[str, torch.Tensor]],
    compute_loss: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    backward: Callable[[torch.Tensor], None],
    no_sync: Callable = nullcontext,
) -> dict[str, torch.Tensor]:
    """Compute the gradient of a whole batch while only one chunk at a time is held in memory (GradCache).

    1. Every chunk is embedded without gradient.
    2. The loss of all embeddings together gives the gradient of each embedding. So no negative is lost.
    3. Every chunk is embedded again, from the same random state, and its gradient is passed to the encoder.

    Memory grows with the size of a chunk. The cost is one more forward pass.

    Args:
        chunks: the inputs of `encode`, the same number on every process.
        encode: function that returns the embeddings of a chunk by name. Tensors with axes are concatenated
            along the first one. A scalar is the value of a parameter and is equal for all chunks.
        compute_loss: function of the concatenated embeddings. The entry `loss` of its result is minimized.
        backward: function that runs a backward pass from a scalar, such as `Accelerator.backward`.
        no_sync: function that returns a context in which gradients are not averaged over processes.

    Returns:
        The result of `compute_loss`.

    Source:
        GradCache, https://arxiv.org/abs/2101.06983.
    """
    states, parts = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(_get_random_state(chunk))
            parts.append(encode(chunk))
    torch.clear_autocast_cache()  # these casts have no gradient, and torch 2.8 would use them again
    cached = {}
    for name, first in parts[0].items():
        cached[name] = torch.cat([part[name] for part in parts]) if first.ndim else first.clone()
        cached[name].requires_grad_()
    lengths = [{name: len(part[name]) for name in part if part[name].ndim} for part in parts]
    del parts
    terms = compute_loss(cached)
    terms["loss"].backward()
    grads = {
        name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in cached.items()
    }
    starts = dict.fromkeys(grads, 0)
    for k, chunk in enumerate(chunks):
        with no_sync() if k < len(chunks) - 1 else nullcontext():
            _set_random_state(states[k])
            surrogate = 0  # its gradient with respect to the embeddings is the cached one
            for name, embeds in encode(chunk).items():
                if embeds.ndim:
                    grad = grads[name][starts[name] : starts[name] + lengths[k][name]]
                    starts[name] += lengths[k][name]
                else:
                    grad = grads[name] / len(chunks)
                surrogate = surrogate + (embeds * grad).sum()
            backward(surrogate)
    return terms


def _get_random_state(chunk) -> tuple:
    first = next(iter(chunk.values() if isinstance(chunk, dict) else chunk))
    return torch.get_rng_state(), *get_device_states(first)


def _set_random_state(state: tuple) -> None:
    cpu, devices, states = state
    torch.set_rng_state(cpu)
    set_device_states(devices, states)
