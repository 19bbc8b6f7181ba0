"""open_clip's models for tuning end to end: CLIP of OpenAI and LAION, SigLIP, CoCa and others."""

from __future__ import annotations

from typing import Any, Callable, Sequence

import torch
from torch import Tensor, nn

from proxyfda.backbones.clip.architectures import BUNDLED_NAME, cannot_be_prompted
from proxyfda.backbones.clip.encoders import TextEncoder
from proxyfda.backbones.clip.loading import BUNDLED_WEIGHTS, build_tokenizer, load_any_clip
from proxyfda.backbones.from_timm import tokens_of_timm, transformer_blocks
from proxyfda.backbones.image import ImageBackbone

__all__ = ["OpenCLIPBackbone", "PlainTexts"]


class PlainTexts(nn.Module):
    """The text tower of any open_clip model, as the library runs it.

    Args:
        clip: the model; its other parts are taken off it.
        make_tokenizer: called before the first text, since a tokenizer may be the hub's.
    """

    def __init__(self, clip: Any, make_tokenizer: Callable[[], Any]):
        super().__init__()
        clip.visual = None
        if hasattr(clip, "text_decoder"):  # CoCa's captions
            clip.text_decoder = None
        self.clip = clip
        self._make_tokenizer, self._tokenizer = make_tokenizer, None

    def plain(self, texts: list[str], chunk: int = 256) -> Tensor:
        """Features [n, d], not normalised. A text that is too long is cut by the tokenizer."""
        self._tokenizer = self._tokenizer or self._make_tokenizer()
        tokens = self._tokenizer(texts).to(self.clip.logit_scale.device)
        parts = [self.clip.encode_text(part, normalize=False) for part in tokens.split(chunk)]
        return torch.cat(parts)


class OpenCLIPBackbone(ImageBackbone):
    """An open_clip model: its image tower, with all weights trained, and its frozen texts.

    A feature is what ``encode_image`` gives, in the space that images and texts share. Texts that
    can be prompted run through :class:`~proxyfda.backbones.clip.TextEncoder`, which is faster.

    Args:
        name, weights, image_size: see :func:`proxyfda.backbones.clip.loading.load_any_clip`.
    """

    def __init__(self, name: str, weights: str = "", image_size: int | None = None):
        super().__init__()
        self.name = name
        self.weights = weights or (BUNDLED_WEIGHTS if name == BUNDLED_NAME else "openai")
        clip: Any
        clip, config = load_any_clip(name, self.weights, image_size=image_size)
        visual = self.image_tower = clip.visual
        self.output_dim = config["embed_dim"]
        size = visual.image_size
        self.image_size = size[0] if isinstance(size, (tuple, list)) else size
        self.image_mean, self.image_std = tuple(visual.image_mean), tuple(visual.image_std)
        self.interpolation = visual.interpolation
        self.logit_scale = clip.logit_scale.detach().reshape(()).clone()
        if cannot_be_prompted(config):
            self.text_tower = PlainTexts(clip, lambda: build_tokenizer(name, config))
        else:
            clip.tokenizer = build_tokenizer(name, config)
            self.text_tower = TextEncoder(clip)
        self._ready()

    @property
    def _trunk(self) -> Any:
        """timm's model in the image tower, or None."""
        return getattr(self.image_tower, "trunk", None)

    def forward(self, images: Tensor) -> Tensor:
        """See :meth:`ImageBackbone.forward`."""
        out = self.image_tower(images)
        return out[0] if isinstance(out, tuple) else out

    def blocks(self) -> Sequence[nn.Module]:
        """See :meth:`ImageBackbone.blocks`."""
        if self._trunk is not None:
            return transformer_blocks(self._trunk)
        transformer = getattr(self.image_tower, "transformer", None)
        return () if transformer is None else list(transformer.resblocks)

    def stages(self, images: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """See :meth:`ImageBackbone.stages`; OpenAI's ResNets give their stem and four layers."""
        tower: Any = self.image_tower
        inner = tower if self._trunk is None else self._trunk
        if not hasattr(inner, "forward_intermediates"):
            return super().stages(images)
        found = tower.forward_intermediates(images, output_fmt="NCHW")
        return found["image_features"], found["image_intermediates"]

    def tokens_of(self, output: Any) -> Tensor:
        """See :meth:`ImageBackbone.tokens_of`."""
        found = super().tokens_of(output)
        if self._trunk is not None:
            return tokens_of_timm(found, self._trunk)
        first: bool = getattr(self.image_tower.transformer, "batch_first", False)
        return found if first else found.transpose(0, 1)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """See :meth:`ImageBackbone.encode_texts`."""
        text: Any = self.text_tower
        return text.plain(list(texts))

    def _switch_checkpointing(self, on: bool) -> None:
        # open_clip's ResNets take the call and do nothing, its wrapper of timm's models logs
        # that they cannot: neither is asked.
        tower: Any = self.image_tower if self._trunk is None else self._trunk
        if self._trunk is None and not self.blocks():
            raise AttributeError("no blocks")
        tower.set_grad_checkpointing(on)
