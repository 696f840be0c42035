"""What training on several processes needs: a gather that gradients pass through."""

import torch
import torch.distributed
from torch.distributed.nn.functional import all_gather


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenate a tensor over all processes, in the order of their ranks.

    Gradients flow back to the process that each part came from. When every process computes the same loss of
    what was gathered, the gradients that DDP averages are those of one process with all the data.

    Args:
        tensor: (B, ...), of the same shape on every process.

    Returns:
        (W * B, ...); without a process group the tensor itself.
    """
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return tensor
    if tensor.requires_grad:
        return torch.cat(all_gather(tensor.contiguous()))
    parts = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)
