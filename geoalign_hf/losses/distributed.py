"""What training on several processes and in chunks needs, so that either gives the gradients of neither.

A gather that gradients pass through, a sum over processes, and cached accumulation. Without a process group
all of it works on this process alone. No collective depends on data: every process calls the same ones.
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch.distributed
from torch.utils.checkpoint import get_device_states, set_device_states


def count_processes() -> int:
    """Count the processes of the group, W; 1 without one."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def get_rank() -> int:
    """Give this process's place among them; 0 without a group."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenate a tensor over all processes, in the order of their ranks.

    Gradients flow back to the process that each part came from, summed over the processes that used it.

    Args:
        tensor: (B, ...), of the same shape on every process.

    Returns:
        (W * B, ...); without a process group the tensor itself.
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
        grad = grad.clone(memory_format=torch.contiguous_format)  # others may read the one given
        torch.distributed.all_reduce(grad)
        return grad.chunk(count_processes())[get_rank()]


def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """Add a tensor up over all processes, without gradient.

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
    """Give the gradient of a whole batch of which only a chunk is encoded at a time: no negative is lost.

    First every chunk is embedded without gradient; the loss of all embeddings together gives the gradient on
    each of them; then chunk by chunk is embedded anew, from the same random state, and that gradient is sent
    on into the encoder. Memory grows with the chunk, time by one forward pass.

    Args:
        chunks: what `encode` takes, the same number on every process.
        encode: embeddings of a chunk by name; those with axes are concatenated along the first, a scalar is a
            parameter's value and the same for all chunks.
        compute_loss: of the concatenated embeddings; its `loss` is what is minimised.
        backward: runs a backward pass from a scalar, such as `Accelerator.backward`.
        no_sync: gives a context in which gradients are not yet averaged over processes.

    Returns:
        What `compute_loss` gave.

    Source:
        GradCache, https://arxiv.org/abs/2101.06983.
    """
    states, parts = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(_get_random_state(chunk))
            parts.append(encode(chunk))
    torch.clear_autocast_cache()  # weights cast here have no gradient; older torch would use them again
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
            surrogate = 0  # its gradient on the embeddings is what was cached
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
