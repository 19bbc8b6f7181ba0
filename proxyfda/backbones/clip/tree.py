"""Texts with a common beginning: the tokens that they share are computed once.

Attention over a text is causal, so a token's states depend on the tokens before it alone. Class
prompts start with the same tokens (start of text, context, maybe more): these have the same states
for every class. Drawn as a tree, they are the trunk, and what is left of each text is a branch,
whose tokens attend to the trunk and to their own branch. Ours; the features are the same as those
of the whole texts.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def common_prefix(tokens: Tensor, ends: Tensor) -> int:
    """Number of leading tokens on which all rows of ids [n, L] agree, before any text's end [n]."""
    agree = (tokens == tokens[:1]).all(dim=0).int().cumprod(dim=0).sum()
    return min(int(agree), int(ends.min()))


class PromptTree:
    """Sets of n texts with P tokens in common, each set packed into one sequence [P + T, w]: the
    trunk, then the branches one after the other, each cut at its text's end.

    Building one reads tensors back to the host; using it does not.

    Args:
        shared: P, at least 1 and before every end.
        ends: position [n] of each text's end.
    """

    def __init__(self, shared: int, ends: Tensor):
        lengths = ends + 1 - shared
        self.shared, self.texts, self.longest = shared, len(ends), int(lengths.max())
        used = torch.arange(self.longest, device=ends.device) < lengths.unsqueeze(1)
        # where the packed tokens of the branches are among n x longest; None: everywhere
        self.places = None if used.all() else used.flatten().nonzero().squeeze(1)
        self.beyond = None if self.places is None else ~used  # [n, longest]
        self.ends = shared + lengths.cumsum(0) - 1  # of the texts, in the packed sequence
        self.causal = torch.ones_like(used[0]).expand(self.longest, -1).triu(1)

    def pack(self, x: Tensor) -> Tensor:
        """Texts [s, n, L, w] as s packed sequences."""
        branches = x[:, :, self.shared : self.shared + self.longest].flatten(1, 2)
        if self.places is not None:
            branches = branches.index_select(1, self.places)
        return torch.cat([x[:, 0, : self.shared], branches], dim=1)

    def attend(self, qkv: Tensor) -> Tensor:
        """Queries, keys and values [s, P + T, 3, h, e] to the attended values [s, P + T, h * e],
        each token attending to those before it in its own text."""
        trunk, branches = self._split(qkv)
        width = qkv.shape[-1]
        trunk_q, trunk_k, trunk_v = trunk.permute(2, 0, 3, 1, 4)  # each [s, h, P, e]
        all_q, all_k, all_v = branches.permute(2, 0, 3, 1, 4)  # each [s, h, n * longest, e]
        q, k, v = (t.unflatten(2, (self.texts, self.longest)) for t in (all_q, all_k, all_v))

        scale = width**-0.5
        far = (all_q * scale) @ trunk_k.transpose(-1, -2)
        near = (q * scale) @ k.transpose(-1, -2)
        near = near.masked_fill(self.causal, float("-inf"))
        scores = torch.cat([far.unflatten(2, q.shape[2:4]), near], dim=-1)
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(v.dtype)
        far, near = weights.split([self.shared, self.longest], dim=-1)
        out = far.flatten(2, 3) @ trunk_v + (near @ v).flatten(2, 3)
        if self.places is not None:
            out = out.index_select(2, self.places)
        first = F.scaled_dot_product_attention(trunk_q, trunk_k, trunk_v, is_causal=True)
        return torch.cat([first, out], dim=2).transpose(1, 2).flatten(2)

    def attend_ends(self, q: Tensor, kv: Tensor) -> Tensor:
        """The rows of :meth:`attend` at ``ends``: queries [s, n, h, e] of these, keys and values
        [s, P + T, 2, h, e] of all tokens to the attended values [s, n, h * e]."""
        trunk, branches = self._split(kv)
        trunk_k, trunk_v = trunk.permute(2, 0, 3, 1, 4)  # each [s, h, P, e]
        k, v = branches.permute(2, 0, 3, 1, 4).unflatten(3, (self.texts, self.longest))
        q = q.transpose(1, 2) * q.shape[-1] ** -0.5
        near = (k @ q.unsqueeze(-1)).squeeze(-1)  # [s, h, n, longest]
        if self.beyond is not None:
            near = near.masked_fill(self.beyond, float("-inf"))
        scores = torch.cat([q @ trunk_k.transpose(-1, -2), near], dim=-1)
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(v.dtype)
        far, near = weights.split([self.shared, self.longest], dim=-1)
        out = far @ trunk_v + (near.unsqueeze(-2) @ v).squeeze(-2)
        return out.transpose(1, 2).flatten(2)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The trunk [s, P, ...] of packed tokens, and the branches padded to [s, n * longest, ...]
        with zeros."""
        trunk, branches = x[:, : self.shared], x[:, self.shared :]
        if self.places is not None:
            padded = x.new_zeros(len(x), self.texts * self.longest, *x.shape[2:])
            branches = padded.index_copy(1, self.places, branches)
        return trunk, branches


class PromptLayout:
    """What the token ids of some texts say about them, whatever their embeddings are.

    Computing it reads tensors back to the host, for which a GPU has to finish its work: a training
    step takes it from a :class:`LayoutCache`.

    Args:
        ends: position [n] of each text's end.

    Attributes:
        ends: as given.
        length: number of tokens up to the last of these.
    """

    def __init__(self, ends: Tensor):
        self.ends, self.length = ends, int(ends.max()) + 1
        self._trees: dict[int, PromptTree] = {}

    def tree(self, shared: int) -> PromptTree:
        """The tree of the texts with ``shared`` tokens in common, built once."""
        if shared not in self._trees:
            self._trees[shared] = PromptTree(shared, self.ends)
        return self._trees[shared]


class LayoutCache:
    """The layouts of the token tensors that were used last.

    Two tensors are the same if they are the same view of the same tensor, and nothing was written
    to that in between. A copy of the cache is empty.

    Args:
        size: the number of layouts that are kept, with their tensors.
    """

    def __init__(self, size: int = 32):
        self.size = size
        self._kept: OrderedDict[tuple, tuple[Tensor, int, PromptLayout]] = OrderedDict()

    def get(
        self, tokens: Tensor, device: torch.device, compute: Callable[[], PromptLayout]
    ) -> PromptLayout:
        """The layout of ids [n, L] on a device; ``compute()`` if there is none."""
        whole = tokens if tokens._base is None else tokens._base
        if whole.is_inference():  # it does not count what is written to it
            return compute()
        key = (id(whole), whole.data_ptr(), tokens.storage_offset(), tokens.shape, tokens.stride())
        key += (device,)
        tensor, version, layout = self._kept.pop(key, (None, 0, None))
        if layout is None or tensor is not whole or version != whole._version:
            layout = compute()
        self._kept[key] = whole, whole._version, layout
        if len(self._kept) > self.size:
            self._kept.popitem(last=False)
        return layout

    def __reduce__(self):
        return type(self), (self.size,)
