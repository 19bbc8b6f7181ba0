"""Text prompts with learnable context: embeddings of class names around given context vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from proxyfda.backbones.clip.encoders import TextEncoder
from proxyfda.backbones.clip.tree import common_prefix
from proxyfda.utils.errors import BadValue

POSITIONS = ("end", "middle", "front")


def plain_name(classname: str) -> str:
    """A class name as it stands in a prompt: underscores are spaces."""
    return classname.replace("_", " ")


class ClassPrompts(nn.Module):
    """Embedded prompts "<context> <class name>." whose first n_ctx context tokens are replaceable.

    Args:
        text_encoder: gives tokenizer and token embedding.
        classnames: n names.
        n_ctx: number of replaceable tokens.
        words: the context in words; the tokens beyond n_ctx stay as they are. Without it a
            placeholder of n_ctx one-token words.
        position: of the class name, ``end`` (behind the context), ``middle`` (between its
            halves, the first being the smaller) or ``front`` (before it).

    For a time it may hold further names behind the classes (:meth:`set_words`).

    Attributes: ``tokenized_prompts`` [n, context_length]; ``prefix`` [n, 1, w] (start of text)
    and ``suffix`` [n, L-1-n_ctx, w] (class name, end of text; up to the longest prompt's end),
    both outside the state dict, as they follow from the class names; ``classes``, the number of
    class names, n without further ones.
    """

    def __init__(
        self,
        text_encoder: TextEncoder,
        classnames: list[str],
        n_ctx: int,
        words: str = "",
        position: str = "end",
    ):
        super().__init__()
        self.n_ctx, self.classes, self.position = n_ctx, len(classnames), position
        self._context = words or " ".join(["X"] * n_ctx)
        for name in self._OF_NAMES:
            self.register_buffer(name, None, persistent=False)
        if position != "end":
            used = int(text_encoder.eot_positions(text_encoder.tokenize([self._context]))) - 1
            if used != n_ctx:
                raise BadValue(
                    f"class token position {position!r} needs every context token to be "
                    f"learnable, but {words!r} has {used} tokens for {n_ctx} context vectors; use "
                    f"position 'end' or other words."
                )
        self._of_classes: dict | None = None
        self._known: dict[str, tuple[Tensor, Tensor]] = {}
        self._set(text_encoder, *self._tokenize(text_encoder, classnames))

    _OF_NAMES = ("tokenized_prompts", "prefix", "suffix", "order", "name_lengths")

    def _tokenize(self, text_encoder: TextEncoder, names: list[str]) -> tuple[Tensor, Tensor]:
        """Ids [n, context_length] of the prompts, and the numbers of tokens [n] of the names."""
        names = [plain_name(name) for name in names]
        tokens = text_encoder.tokenize([f"{self._context} {name}." for name in names])
        if self.position == "end":  # where the numbers do not matter
            return tokens, tokens.new_zeros(len(names))
        return tokens, text_encoder.eot_positions(text_encoder.tokenize(names)) - 1

    def _set(self, text_encoder: TextEncoder, tokens: Tensor, name_lengths: Tensor) -> None:
        n_ctx, ends = self.n_ctx, text_encoder.eot_positions(tokens)
        length = int(ends.max()) + 1
        embedding = text_encoder.embed(tokens[:, :length])
        self.tokenized_prompts, self.name_lengths = tokens, name_lengths
        self.prefix, self.suffix = embedding[:, :1], embedding[:, 1 + n_ctx :]
        self.order = None
        if self.position != "end":
            before = {"middle": n_ctx // 2, "front": 0}[self.position]
            rows = [self._order(length, n_ctx, count, before) for count in name_lengths.tolist()]
            self.order = torch.stack(rows).to(tokens.device)
        # One context for all: its tokens agree, whatever ids hold their places.
        agreed = tokens.clone()
        agreed[:, 1 : 1 + n_ctx] = -1
        if self.order is not None:
            agreed = agreed[:, :length].gather(1, self.order)
        self._shared = common_prefix(agreed, ends)
        self.tokens = int(ends.sum()) + len(ends) - self._shared * (len(ends) - 1)

    def set_words(self, text_encoder: TextEncoder, words: list[str]) -> None:
        """Have these names behind the classes from now on; with none of them the classes alone."""
        if self._of_classes is not None:
            for name, value in self._of_classes.items():
                setattr(self, name, value)
            self._of_classes = None
        if not words:
            return
        names = [word for word in dict.fromkeys(words) if word not in self._known]
        if names:
            self._known.update(zip(names, zip(*self._tokenize(text_encoder, names))))
        rows = [self._known[word] for word in words]
        kept = {name: getattr(self, name) for name in (*self._OF_NAMES, "_shared", "tokens")}
        self._set(
            text_encoder,
            torch.cat([self.tokenized_prompts, torch.stack([tokens for tokens, _ in rows])]),
            torch.cat([self.name_lengths, torch.stack([length for _, length in rows])]),
        )
        self._of_classes = kept

    def shared_tokens(self, context: Tensor) -> int:
        """How many leading tokens the prompts of all classes have in common, for a context as in
        ``forward``: at least the start of text."""
        return self._shared if context.dim() == 2 or context.shape[-3] == 1 else 1

    @staticmethod
    def _order(length: int, n_ctx: int, name_length: int, before: int) -> Tensor:
        """Where each of ``length`` positions comes from when ``before`` context tokens lead."""
        start, context, rest = torch.arange(length).split([1, n_ctx, length - 1 - n_ctx])
        name, rest = rest[:name_length], rest[name_length:]
        return torch.cat([start, context[:before], name, context[before:], rest])

    def forward(self, context: Tensor) -> Tensor:
        """Put context [n_ctx, w], or [..., n, n_ctx, w] per class, into the prompts; [..., 1,
        n_ctx, w] is one for all classes again.

        Returns:
            [..., n, L, w] in the dtype of the context (leading dimensions as given, for example
            one per image).
        """
        n, _, width = self.prefix.shape
        if context.dim() == 2:
            context = context.expand(n, -1, -1)
        lead = context.shape[:-3]
        context = context.expand(*lead, n, -1, -1)
        prefix = self.prefix.to(context.dtype).expand(*lead, -1, -1, -1)
        suffix = self.suffix.to(context.dtype).expand(*lead, -1, -1, -1)
        x = torch.cat([prefix, context, suffix], dim=-2)
        if self.order is not None:
            x = x.gather(-2, self.order.unsqueeze(-1).expand(*x.shape[:-1], width))
        return x


def initial_context(text_encoder: TextEncoder, words: str, n_ctx: int) -> Tensor:
    """Embeddings [n_ctx, w] of the first n_ctx tokens of some words, in fp32."""
    return text_encoder.embed(text_encoder.tokenize([words]))[0, 1 : 1 + n_ctx].float().clone()
