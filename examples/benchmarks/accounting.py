"""Counts the bytes of all tensors while code runs, without doing its expensive arithmetic.

Matrix products, convolutions, attention and norms only allocate their results. What a step would need for
tensors therefore shows in seconds on any machine, and is the same in every run. Not counted are the working
memory inside single operations, and what an allocator keeps beside the tensors.
"""

import weakref
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten
SKIPPED = {
    aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution, aten.convolution_backward,
    aten.native_layer_norm, aten.native_layer_norm_backward, aten.gelu, aten.gelu_backward,
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_flash_attention_for_cpu_backward,
}  # fmt: skip


class MemoryAccount(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside the block.

    Args:
        skips: whether expensive operations only allocate their results, whose values are then arbitrary.

    Attributes:
        current: bytes of the tensors that exist now.
        peak: the largest number of bytes that existed at once.
    """

    def __init__(self, skips: bool = True):
        super().__init__()
        self.skips, self.current, self.peak = skips, 0, 0
        self._known: set[int] = set()

    def count(self, tensors) -> None:
        """Count the memory of tensors, each once, until it is freed."""
        for tensor in tree_leaves(tensors):
            if not isinstance(tensor, torch.Tensor) or tensor.is_meta:
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._known:
                continue
            self._known.add(key)
            self.current += storage.nbytes()
            weakref.finalize(storage, self._forget, key, storage.nbytes())
        self.peak = max(self.peak, self.current)

    def _forget(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self.current -= num_bytes

    def __torch_dispatch__(self, func: Callable, types, args=(), kwargs=None):
        """Run an operation, or allocate its result, and count it."""
        kwargs = kwargs or {}
        if self.skips and func.overloadpacket in SKIPPED:
            shapes = tree_map_only(torch.Tensor, _to_meta, (args, kwargs))
            device = next(leaf.device for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor))
            result = tree_map_only(
                torch.Tensor,
                lambda meta: torch.empty_like(meta, device=device),
                func(*shapes[0], **shapes[1]),
            )
        else:
            result = func(*args, **kwargs)
        self.count(result)
        return result


def _to_meta(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
