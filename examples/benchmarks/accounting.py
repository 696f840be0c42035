"""Counts the bytes of all tensors while code runs, without doing its arithmetic on large tensors.

Operations on large floating-point tensors only allocate their results. What a training step needs for tensors
therefore shows in seconds on any machine, and is the same in every run. Not counted are the working memory
inside single operations, and what an allocator keeps beside the tensors.
"""

import weakref
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only


class MemoryAccount(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside the block.

    Args:
        threshold: number of elements from which a tensor is large. An operation that reads a large tensor and
            returns floating-point tensors only allocates these; their values are arbitrary. None computes
            everything.

    Attributes:
        current: bytes of the tensors that exist now.
        peak: the largest number of bytes that existed at once.
    """

    def __init__(self, threshold: int | None = 10_000):
        super().__init__()
        self.threshold, self.current, self.peak = threshold, 0, 0
        self._known: set[int] = set()

    def count(self, tensors) -> None:
        """Count the memory of tensors, each once, until it is freed."""
        for tensor in tree_leaves(tensors):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            key, num_bytes = storage._cdata, storage.nbytes()
            if key not in self._known:
                self._known.add(key)
                self.current += num_bytes
                weakref.finalize(storage, self._forget, key, num_bytes)
        self.peak = max(self.peak, self.current)

    def _forget(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self.current -= num_bytes

    def __torch_dispatch__(self, func: Callable, types, args=(), kwargs=None):
        """Run an operation, or allocate its result, and count it."""
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        result = self._allocate(func, tensors, args, kwargs) if self._is_large(tensors) else NotImplemented
        if result is NotImplemented:
            result = func(*args, **kwargs)
        self.count(result)
        return result

    def _is_large(self, tensors: list[torch.Tensor]) -> bool:
        if self.threshold is None:
            return False
        return any(tensor.is_floating_point() and tensor.numel() >= self.threshold for tensor in tensors)

    def _allocate(self, func: Callable, tensors: list[torch.Tensor], args: tuple, kwargs: dict):
        """Return the result without its values, or NotImplemented if it must be computed."""
        if func is torch.ops.aten._fused_adamw_.default:
            return None
        if func.overloadpacket.__name__.endswith("_") and args[0].is_floating_point():  # changes it in place
            return args[0]
        if func.is_view or func._schema.is_mutable:
            return NotImplemented
        try:
            found = func(*tree_map_only(torch.Tensor, _to_meta, args), **_to_meta_options(kwargs))
        except NotImplementedError:  # the shape of the result depends on values
            return NotImplemented
        outputs = [leaf for leaf in tree_leaves(found) if isinstance(leaf, torch.Tensor)]
        if not all(output.is_floating_point() for output in outputs):
            return NotImplemented
        device = tensors[0].device
        return tree_map_only(torch.Tensor, lambda meta: torch.empty_like(meta, device=device), found)


def _to_meta(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")


def _to_meta_options(options: dict) -> dict:
    options = tree_map_only(torch.Tensor, _to_meta, options)
    return options | {"device": torch.device("meta")} if options.get("device") is not None else options
