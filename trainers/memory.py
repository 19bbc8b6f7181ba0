"""How much memory a forward pass keeps for its backward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

GIB = 2**30


def saved_bytes(module: nn.Module, compute) -> int:
    """Bytes that autograd keeps for the backward pass of ``compute()``, without keeping them.

    Each storage counts once; those of the module's own weights do not count.
    """
    weights = [*module.parameters(), *module.buffers()]
    # A weak reference holds no memory, but as long as it lives no other storage has its identity.
    seen = {ref.cdata: ref for ref in (StorageWeakRef(w.untyped_storage()) for w in weights)}
    total = 0

    def count(tensor: Tensor) -> None:
        nonlocal total
        ref = StorageWeakRef(tensor.untyped_storage())
        if ref.cdata not in seen:
            seen[ref.cdata] = ref
            total += tensor.untyped_storage().nbytes()

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda kept: kept):
        compute()
    return total
