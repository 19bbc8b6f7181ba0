"""Prompted text and image encoders: thin wrappers around the modules of an open_clip model.

Nothing is copied: the wrappers hold the model's own submodules and parameters, and add prompts
at the input and at the inputs of deeper blocks (Jia et al., Visual Prompt Tuning, 2022; Zhou et
al., CoOp, 2022; Khattak et al., MaPLe, 2023, and PromptSRC, 2023).

Depth d of prompting means d sets of prompts: the ones at the input, and one before each of the
blocks 1..d-1 (counting from 0), where they take the place of what the previous set has become.
"""

from __future__ import annotations

from functools import partial
from typing import Callable, Sequence

import torch
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from proxyfda.backbones.clip.blocks import (
    are_known,
    attend_from,
    attend_to_all,
    run_block,
    run_last_block,
)
from proxyfda.backbones.clip.tree import LayoutCache, PromptLayout, common_prefix
from proxyfda.neighbours.cosines import autocast_dtype
from proxyfda.utils.errors import BadValue


class FrozenEncoder(nn.Module):
    """A module that stays in eval mode, as the parts of a frozen CLIP do in any module."""

    def train(self, mode: bool = True) -> FrozenEncoder:
        return super().train(False)


def expand_prompts(prompts: Tensor, like: Tensor) -> Tensor:
    """Shared [t, w] or per-sample [n, t, w] prompts as [n, t, w] in the dtype of ``like``."""
    if prompts.dim() == 2:
        prompts = prompts.unsqueeze(0)
    if prompts.dim() != 3 or prompts.shape[-1] != like.shape[-1]:
        raise BadValue(
            f"prompts of shape {tuple(prompts.shape)} do not fit tokens of width "
            f"{like.shape[-1]}; give [t, {like.shape[-1]}] or [n, t, {like.shape[-1]}]."
        )
    return prompts.to(like.dtype).expand(like.shape[0], -1, -1)


def run_blocks(
    transformer: nn.Module,
    x: Tensor,
    run: Callable[[nn.Module, Tensor], Tensor],
    deep_prompts: Sequence[Tensor],
    replace: Callable[[Tensor, Tensor], Tensor],
    run_last: Callable[[nn.Module, Tensor], Tensor] | None = None,
) -> Tensor:
    """``x = run(block, x)`` for all blocks, ``run_last`` for the last one where it is given; before
    block j+1, ``replace(x, deep_prompts[j])``."""
    blocks = transformer.resblocks
    if len(deep_prompts) >= len(blocks):
        raise BadValue(
            f"prompt depth {len(deep_prompts) + 1} exceeds the {len(blocks)} layers of the "
            f"encoder; set it to at most {len(blocks)}."
        )
    for index, block in enumerate(blocks):
        if 0 < index <= len(deep_prompts):
            x = replace(x, deep_prompts[index - 1])
        if run_last and index + 1 == len(blocks):
            run = run_last
        if transformer.grad_checkpointing and torch.is_grad_enabled():
            x = checkpoint(run, block, x, use_reentrant=False)
        else:
            x = run(block, x)
    return x


def whole_sequences(transformer: nn.Module, attn_mask: Tensor | None = None):
    """``run`` of :func:`run_blocks` for x [n, L, w]."""
    if are_known(transformer):
        return partial(run_block, attend=partial(attend_to_all, attn_mask=attn_mask))
    if getattr(transformer, "batch_first", False):
        return lambda block, x: block(x, attn_mask=attn_mask)
    return lambda block, x: block(x.transpose(0, 1), attn_mask=attn_mask).transpose(0, 1)


def text_output_dim(clip: nn.Module) -> int:
    """Number of dimensions of the text features, and so of the space that both towers share."""
    text = getattr(clip, "text", clip)
    projection = text.text_projection
    if isinstance(projection, nn.Linear):
        return projection.out_features
    return text.token_embedding.weight.shape[1] if projection is None else projection.shape[1]


class TextEncoder(FrozenEncoder):
    """The causal text transformer of an open_clip model, fed with embeddings.

    Attributes: ``width`` of the tokens, ``num_layers``, ``context_length``, ``output_dim``,
    ``tokenizer``, and ``dtype``, the one the blocks compute in.
    """

    def __init__(self, clip: nn.Module):
        super().__init__()
        text = getattr(clip, "text", clip)
        self.token_embedding = text.token_embedding
        self.positional_embedding = text.positional_embedding
        self.transformer = text.transformer
        self.ln_final = text.ln_final
        self.text_projection = text.text_projection
        self.register_buffer("attn_mask", text.attn_mask, persistent=False)
        self.pool_type = getattr(text, "text_pool_type", None) or text.pool_type
        self.eos_id = getattr(text, "text_eos_id", getattr(text, "eos_id", None))
        self.tokenizer = getattr(clip, "tokenizer", None)
        self.context_length = text.context_length
        self.width = self.token_embedding.weight.shape[1]
        self.num_layers = len(self.transformer.resblocks)
        self.output_dim = text_output_dim(clip)
        self._layouts = LayoutCache()
        self.eval()

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.get_cast_dtype()

    def tokenize(self, texts: list[str]) -> Tensor:
        """Token ids [n, context_length] on the encoder's device.

        Raises:
            ValueError: a text is too long (the tokenizer alone would cut it silently).
        """
        encode = getattr(self.tokenizer, "encode", None)
        for text in texts if encode else ():
            length = len(encode(text)) + 2  # start and end of text
            if length > self.context_length:
                raise BadValue(
                    f"the prompt {text!r} has {length} tokens, the text encoder takes "
                    f"{self.context_length}; use fewer context tokens or a shorter class name."
                )
        return self.tokenizer(texts).to(self.token_embedding.weight.device)

    @torch.no_grad()
    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids [n, L] to their embeddings [n, L, w], without positional embedding."""
        return self.token_embedding(tokens)

    def eot_positions(self, tokenized_prompts: Tensor) -> Tensor:
        """Position [n] of the end-of-text token, where the text features are read."""
        if self.pool_type == "eos":
            return (tokenized_prompts == self.eos_id).int().argmax(dim=-1)
        return tokenized_prompts.argmax(dim=-1)  # it has the highest id of the vocabulary

    def forward(
        self,
        prompts: Tensor,
        tokenized_prompts: Tensor,
        deep_prompts: Sequence[Tensor] | None = None,
        shared: int = 0,
    ) -> Tensor:
        """Text features, not normalised.

        Args:
            prompts: embeddings [n, L, w] without positional embedding, or [s, n, L, w]: s sets of
                the same n texts, each with a context of its own (CoCoOp's images).
            tokenized_prompts: ids [n, L'] of the same prompts; they say where each text ends.
                Everything after the longest of them is cut off, which changes no feature as the
                attention is causal; L may be that short already.
            deep_prompts: entry j, [t, w] or [n, t, w], takes positions 1..t at the input of
                block j+1.
            shared: number of leading tokens that the n texts (of a set) have in common, embedding
                for embedding. They are computed once, and so is nothing behind a text's end; the
                features stay the same. 0 computes every text by itself.

        Returns:
            [n, d] features; [s * n, d], one set after the other, for s sets.
        """
        layout = self._layouts.get(
            tokenized_prompts,
            prompts.device,
            lambda: self._layout(tokenized_prompts, prompts.device),
        )
        return self._forward(prompts, layout, deep_prompts or (), shared)

    def _layout(self, tokenized_prompts: Tensor, device: torch.device) -> PromptLayout:
        return PromptLayout(self.eot_positions(tokenized_prompts).to(device))

    def _forward(
        self, prompts: Tensor, layout: PromptLayout, deep_prompts: Sequence[Tensor], shared: int
    ) -> Tensor:
        length = layout.length
        if prompts.shape[-2] < length:
            raise BadValue(
                f"prompts of {prompts.shape[-2]} tokens are shorter than their text, which ends at "
                f"token {length}; give the embeddings of the whole text."
            )
        if not 0 <= shared < length:
            raise BadValue(
                f"{shared} shared tokens leave nothing of texts of {length} tokens; share fewer."
            )
        sets = prompts if prompts.dim() == 4 else prompts.unsqueeze(0)
        x = sets[:, :, :length].to(self.dtype) + self.positional_embedding[:length].to(self.dtype)

        def replace(x: Tensor, new: Tensor) -> Tensor:
            new = expand_prompts(new, x)
            if new.shape[1] + 1 > length:
                raise BadValue(
                    f"{new.shape[1]} deep prompts do not fit into texts of {length} tokens; the "
                    f"prompts at the input must be as many."
                )
            return torch.cat([x[:, :1], new, x[:, 1 + new.shape[1] :]], dim=1)

        in_common = all(new.dim() == 2 and new.shape[0] < shared for new in deep_prompts)
        if shared and in_common and are_known(self.transformer):
            tree = layout.tree(shared)
            run = partial(run_block, attend=tree.attend)
            run_last = partial(run_last_block, read=tree.ends, attend=tree.attend_ends)
            x = run_blocks(self.transformer, tree.pack(x), run, deep_prompts, replace, run_last)
        else:
            run = whole_sequences(self.transformer, self.attn_mask[:length, :length])
            x = run_blocks(self.transformer, x.flatten(0, 1), run, deep_prompts, replace)
            x = x[torch.arange(len(x), device=x.device), layout.ends.repeat(len(sets))]
        # LayerNorm acts on each token alone: only the one that is read needs it
        x = self.ln_final(x.view(-1, x.shape[-1]))
        if isinstance(self.text_projection, nn.Linear):
            return self.text_projection(x)
        return x if self.text_projection is None else x @ self.text_projection

    def plain(self, texts: list[str], chunk: int = 256) -> Tensor:
        """Features [n, d] of plain texts, not normalised, ``chunk`` texts at a time; with gradient
        where weights are trained.

        Hooks on this module do not see them: they are for the features of the prompts at work.
        """
        tokens = self.tokenize(texts)
        shared = common_prefix(tokens, self.eot_positions(tokens))
        parts = []
        for part in tokens.split(chunk):
            embedded = self.token_embedding(part)
            # These tokens are used once: their layout does not go into the cache.
            parts.append(self._forward(embedded, self._layout(part, part.device), (), shared))
        return torch.cat(parts)

    @torch.no_grad()
    def encode(self, texts: list[str], chunk: int = 256) -> Tensor:
        """What :meth:`plain` gives, without gradient."""
        return self.plain(texts, chunk)


class ImageEncoder(FrozenEncoder):
    """The image tower of an open_clip model; vision transformers take prompts.

    It is a :class:`~proxyfda.backbones.Backbone`.

    Attributes: ``output_dim`` of the features, ``image_size`` in pixels, ``image_mean`` and
    ``image_std`` of each channel, with which images in [0, 1] are normalised, ``width`` of the
    tokens, ``num_layers`` and ``num_tokens``, of an image by itself (0 for towers without tokens),
    and ``dtype``, the one of the weights.
    """

    def __init__(self, clip: nn.Module):
        super().__init__()
        self.visual = clip.visual
        self.output_dim = getattr(clip.visual, "output_dim", None) or text_output_dim(clip)
        self.image_mean = tuple(getattr(clip.visual, "image_mean", None) or OPENAI_DATASET_MEAN)
        self.image_std = tuple(getattr(clip.visual, "image_std", None) or OPENAI_DATASET_STD)
        size = getattr(self.visual, "image_size", None)
        self.image_size = size[0] if isinstance(size, (tuple, list)) else size
        self.takes_prompts = hasattr(self.visual, "class_embedding")
        blocks = self.visual.transformer.resblocks if self.takes_prompts else ()
        self.num_layers = len(blocks)
        self.width = self.visual.class_embedding.shape[0] if self.takes_prompts else 0
        self.num_tokens = len(self.visual.positional_embedding) if self.takes_prompts else 0
        self.eval()

    @property
    def dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.visual.parameters() if p.dim() == 4)

    @property
    def _reads_one_token(self) -> bool:
        """Whether the features are read at the class token alone, behind blocks that are known."""
        visual = self.visual
        return (
            self.takes_prompts
            and getattr(visual, "pool_type", "") == "tok"
            and getattr(visual, "attn_pool", None) is None
            and are_known(visual.transformer)
        )

    def forward(
        self,
        images: Tensor,
        prompts: Tensor | None = None,
        deep_prompts: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Image features, not normalised.

        Args:
            images: [B, 3, H, W], normalised as the model expects.
            prompts: [t, w] or [B, t, w]; they come after the patches, without positional
                embedding, and before ``ln_pre``.
            deep_prompts: entry j, of the same kind, takes the place of the prompts' outputs at
                the input of block j+1.

        Returns:
            [B, d] features.

        Raises:
            ValueError: prompts for a tower without tokens, such as a ResNet.
        """
        images = images.to(self.dtype)
        deep_prompts = deep_prompts or ()
        if prompts is None and not deep_prompts and not self._reads_one_token:
            out = self.visual(images)
            return out[0] if isinstance(out, tuple) else out
        if not self.takes_prompts:
            raise BadValue(
                f"a {type(self.visual).__name__} (RN50 and other towers that are not open_clip's "
                f"vision transformers) has no tokens to prompt; use a ViT such as ViT-B/16."
            )

        visual = self.visual
        x = visual.conv1(images).flatten(2).transpose(1, 2)
        cls = visual.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        x = torch.cat([cls, x], dim=1) + visual.positional_embedding.to(x.dtype)
        x = visual.patch_dropout(x)
        n = x.shape[1]

        def replace(x: Tensor, new: Tensor) -> Tensor:
            return torch.cat([x[:, :n], expand_prompts(new, x)], dim=1)

        if prompts is not None:
            x = replace(x, prompts)
        run, run_last = whole_sequences(visual.transformer), None
        if self._reads_one_token:
            read = torch.zeros(1, dtype=torch.long, device=x.device)
            run_last = partial(run_last_block, read=read, attend=attend_from)
        x = run_blocks(visual.transformer, visual.ln_pre(x), run, deep_prompts, replace, run_last)
        # The prompts are not among the tokens that are pooled.
        pooled, _ = visual._pool(x[:, :n])
        return pooled if visual.proj is None else pooled @ visual.proj

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Features [B, d] without prompts, not normalised; unseen by hooks, as in TextEncoder."""
        return self.forward(images)


class StateCache:
    """Keeps what was computed from some parameters until one of them changes.

    Only while gradients are off. The parameters are compared by value, with copies: fused
    optimisers and edits through ``.data`` leave no trace in a tensor's version counter.
    """

    def __init__(self):
        self._state: list[Tensor] = []
        self._context = self._value = None

    def get(self, module: nn.Module, compute):
        """``compute()``, or its last result if no parameter of ``module`` has changed since."""
        if torch.is_grad_enabled():
            return compute()
        state = [p.detach() for p in module.parameters()]
        autocast = [autocast_dtype(device) for device in ("cpu", "cuda")]
        context = [*autocast, *((p.device, p.dtype, p.shape) for p in state)]
        if context != self._context or not _all_equal(state, self._state):
            self._value = compute()
            self._context, self._state = context, [p.clone() for p in state]
        return self._value


def _all_equal(ones: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether tensors of equal shapes are equal in pairs, read back from the device at once."""
    if not ones:
        return True
    device = ones[0].device
    return bool(torch.stack([(a == b).all().to(device) for a, b in zip(ones, others)]).all())
