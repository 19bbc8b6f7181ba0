"""Counting what a step asks the device to do."""

from collections import Counter

import torch

# fmt: off
VIEWS = frozenset([
    "alias", "as_strided", "broadcast_to", "chunk", "detach", "diagonal", "expand",
    "expand_as", "flatten", "lift_fresh", "movedim", "narrow", "permute", "resolve_conj",
    "resolve_neg", "select", "slice", "split", "split_with_sizes", "squeeze", "t",
    "transpose", "unbind", "unflatten", "unsafe_chunk", "unsafe_split", "unsqueeze", "view",
    "view_as", "_unsafe_view",
])
# fmt: on
"""Operations that move no data and launch nothing."""

SOMETIMES = frozenset(["contiguous", "reshape", "result_type", "to", "type_as"])
"""Those that launch something only where they have to copy."""

SYNCHRONISING = frozenset(["item", "_local_scalar_dense", "nonzero", "is_nonzero", "equal"])
"""Operations for which the host waits until a device has an answer."""


def _operations(step):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        step()
    for event in profiler.events():
        if event.name.startswith("aten::"):
            yield event.name[len("aten::") :], event


def count_operations(step):
    """How often each operation of PyTorch is called by ``step()``, views left out.

    Counted are ``aten`` operations that are called by Python or by the backward pass, not those
    that they are made of in turn, as seen by ``torch.profiler`` on the CPU: near the number of
    kernels that a GPU would have to be told to start. Operations that only sometimes copy
    (``reshape``, ``to``) count where they do.

    Args:
        step: a function without arguments; it is called twice, so that what is computed once and
            kept is not counted.

    Returns:
        A Counter; its ``total`` is ``sum(counter.values())``.
    """
    step()
    counts = Counter()
    for name, event in _operations(step):
        parent = event.cpu_parent
        while parent is not None and not parent.name.startswith("aten::"):
            parent = parent.cpu_parent
        copies = any(c.name.startswith("aten::") and not _is_view(c) for c in event.cpu_children)
        if parent is None and not _is_view(event) and (name not in SOMETIMES or copies):
            counts[name] += 1
    return counts


def _is_view(event):
    return event.name[len("aten::") :] in VIEWS


def synchronisations(step):
    """The operations of ``step()``, at any depth, that make the host wait for a device."""
    step()
    return [name for name, _ in _operations(step) if name in SYNCHRONISING]
