"""Frozen features from the weights that sit in a host's own model.

The prompt-tuning family keeps OpenAI's modules under OpenAI's names and adds prompts in many ways:
to the input, as arguments of blocks, as parameters inside blocks. Here those modules get a forward
pass of our own which leaves all of that out, so the untouched CLIP needs neither a second download
nor, where its weights are frozen, a second copy.

Two things are gone once a host has built its model, and are noted while it does: the token
embedding, and which of its functions tokenises.
"""

from __future__ import annotations

import copy
import functools
import re
import sys
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from proxyfda.utils.errors import BadType, BadValue
from proxyfda.utils.templates import DEFAULT_TEMPLATE, TEMPLATES

_IMAGE = (
    "conv1",
    "class_embedding",
    "positional_embedding",
    "ln_pre",
    "transformer",
    "ln_post",
    "proj",
)
_TEXT = ("positional_embedding", "transformer", "ln_final", "text_projection")
# The parameters of CLIP among those of its parts; everything else is the host's addition.
_CLIP_PARAMETER = re.compile(
    r"(conv1|ln_pre|ln_post|ln_final)\.(weight|bias)"
    r"|class_embedding|positional_embedding|proj|text_projection"
    r"|transformer\.resblocks\.\d+\.(ln_[12]\.(weight|bias)|mlp\.(c_fc|c_proj)\.(weight|bias)"
    r"|attn\.(in_proj_weight|in_proj_bias|out_proj\.weight|out_proj\.bias))"
)
_CHUNK = 64  # texts encoded at a time


def is_images(value: Any) -> bool:
    """Whether a value is a tensor of images, [B, 3, H, W]."""
    tensor = isinstance(value, Tensor) and value.is_floating_point()
    return tensor and value.dim() == 4 and value.shape[1] == 3


@contextmanager
def watch_embeddings() -> Iterator[List[nn.Embedding]]:
    """Collect the ``nn.Embedding`` modules that are called inside."""
    found: List[nn.Embedding] = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, nn.Embedding) and not any(module is other for other in found):
            found.append(module)

    handle = nn.modules.module.register_module_forward_hook(note)
    try:
        yield found
    finally:
        handle.remove()


def _host_modules(trainer: type) -> Iterator[Any]:
    """The Python modules of a trainer's classes, then the others of their packages."""
    names = [
        base.__module__
        for base in trainer.__mro__
        if base.__module__.split(".")[0] not in ("builtins", "dassl", "proxyfda", "torch")
    ]
    packages = {name.split(".")[0] for name in names}
    names += [name for name in list(sys.modules) if name.split(".")[0] in packages]
    for name in dict.fromkeys(names):
        if name in sys.modules:
            yield sys.modules[name]


def find_tokenize(trainer: type) -> Optional[Callable[[Sequence[str]], Tensor]]:
    """The host's ``clip.tokenize``: texts to tokens [n, L]; ``None`` if it has none."""
    for module in [*_host_modules(trainer), *map(sys.modules.get, ("clip.clip", "clip"))]:
        for owner in (getattr(module, "clip", None), module):
            tokenize = getattr(owner, "tokenize", None)
            if callable(tokenize):
                return tokenize
    return None


def find_template(trainer: type, dataset: Any, name: str) -> str:
    """The hand-written prompt of a dataset, with ``{}`` for the class name.

    From the dataset's ``template``, or a table ``CUSTOM_TEMPLATES`` of the host (the family keeps
    it with zero-shot CLIP) under the dataset's name in the config; else from our own table, and for
    a dataset that is not in it CLIP's "a photo of a {}.". Tables of placeholders such as
    "X X X X {}." (TCP's) are no hand-written prompts.
    """
    own = getattr(dataset, "template", None)
    if isinstance(own, str):
        return own
    for module in _host_modules(trainer):
        table = getattr(module, "CUSTOM_TEMPLATES", None)
        found = table.get(name) if isinstance(table, dict) else None
        if isinstance(found, str) and not re.search(r"\bX\b", found):
            return found
    return TEMPLATES.get(name, DEFAULT_TEMPLATE)


def _parts(root: nn.Module, names: Tuple[str, ...]) -> Optional[SimpleNamespace]:
    """CLIP's parts in the first module below ``root`` that has them all, ``None`` without one.

    Parts whose weights are tuned are copied as they are now, the others shared.

    Raises:
        BadValue: frozen parameters that CLIP does not have, so that leaving them out is no
            longer the pre-trained model.
    """
    for module in root.modules():
        if all(getattr(module, name, None) is not None for name in names) and hasattr(
            module.transformer, "resblocks"
        ):
            break
    else:
        return None
    parts = {name: getattr(module, name) for name in names}
    for name, part in parts.items():
        own = part.named_parameters() if isinstance(part, nn.Module) else [("", part)]
        tuned = False
        for key, parameter in own:
            key = f"{name}.{key}" if key else name
            if _CLIP_PARAMETER.fullmatch(key):
                tuned |= parameter.requires_grad
            elif not parameter.requires_grad:
                raise BadValue(
                    f"{type(module).__name__} has a frozen parameter {key} that CLIP does not have"
                )
        if tuned:
            parts[name] = copy.deepcopy(part).requires_grad_(False)
    return SimpleNamespace(**parts)


def _run(blocks: Any, x: Tensor, mask: Optional[Tensor] = None) -> Tensor:
    """CLIP's residual blocks on tokens [n, L, w]."""
    for block in blocks:
        y = block.ln_1(x)
        if getattr(block.attn, "batch_first", False):
            x = x + block.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        else:
            y = y.transpose(0, 1)
            x = x + block.attn(y, y, y, need_weights=False, attn_mask=mask)[0].transpose(0, 1)
        x = x + block.mlp(block.ln_2(x))
    return x


class FrozenCLIP:
    """The pre-trained CLIP inside a host's model.

    Args:
        image_encoder, text_encoder: the host's modules, tuned parts still as they were loaded;
            None for a side that is not asked for.
        embeddings: embeddings that were called while the model was built.
        tokenize: texts to tokens [n, L].
        texts: hand-written prompt of each class, in label order.
        words: hand-written prompts of names beyond the classes.
    """

    def __init__(
        self,
        image_encoder: Optional[nn.Module],
        text_encoder: Optional[nn.Module],
        embeddings: Sequence[nn.Embedding],
        tokenize: Optional[Callable[[Sequence[str]], Tensor]],
        texts: Sequence[str],
        words: Sequence[str] = (),
    ) -> None:
        self._problems: Dict[str, str] = {}
        self._image = self._find("image", image_encoder, _IMAGE)
        self._text = self._find("text", text_encoder, _TEXT)
        self._image_encoder = image_encoder
        self._embedding: Any = None
        self._tokenize: Any = tokenize
        self._texts, self._words = texts, words
        if self._text is None or text_encoder is None:
            return
        width = self._text.positional_embedding.shape[-1]
        kept = [m for m in text_encoder.modules() if isinstance(m, nn.Embedding)]
        for embedding in [*kept, *embeddings]:
            if embedding.embedding_dim == width:
                self._embedding = embedding
                break
        else:
            self._problems["text"] = "no token embedding was called while the model was built"
        if tokenize is None:
            self._problems["text"] = "the trainer's module has no clip.tokenize"

    def _find(self, side: str, encoder: Optional[nn.Module], names: Tuple[str, ...]) -> Any:
        if encoder is None:
            self._problems[side] = f"it has no {side}_encoder"
            return None
        try:
            parts = _parts(encoder, names)
        except BadValue as error:
            self._problems[side] = str(error)
            return None
        if parts is None:
            self._problems[side] = f"the {side}_encoder lacks one of the parts {', '.join(names)}"
        return parts

    def _refuse(self, side: str) -> None:
        if side in self._problems:
            raise BadValue(
                f"the frozen {side} features cannot be rebuilt from the host's model: "
                f"{self._problems[side]}; give frozen_{side}_features to proxyfda.register or to "
                "the trainer class (see docs/drop-in.md)"
            )

    def image_weights(self) -> Dict[str, Tensor]:
        """The weights behind :meth:`image_features`, by name; they never change."""
        if self._image is None:
            return {} if self._image_encoder is None else dict(self._image_encoder.state_dict())
        found: Dict[str, Tensor] = {}
        for name, part in vars(self._image).items():
            if isinstance(part, Tensor):
                found[name] = part
            else:
                own = part.named_parameters(prefix=name)
                found.update(item for item in own if _CLIP_PARAMETER.fullmatch(item[0]))
        return found

    @torch.no_grad()
    def image_features(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] to features [B, d] of the image encoder without prompts.

        A network of another kind than CLIP's ViT (``RN50``) is called as it is, if nothing in it
        is tuned.

        Raises:
            BadType: anything but one tensor of images.
            BadValue: a kind whose prompts cannot be taken out.
        """
        if not is_images(images):
            given = f"a {type(images).__name__}"
            if isinstance(images, Tensor):
                given = f"a tensor {list(images.shape)}"
            raise BadType(
                f"the image encoder was given {given} and no images [B, 3, H, W], so its frozen "
                "features cannot be rebuilt; use TRAINER.PROXYFDA.SPACES text, or give "
                "frozen_image_features, which is then given the same, to proxyfda.register or to "
                "the trainer class (see docs/drop-in.md)"
            )
        frozen = self._image_encoder is not None and not any(
            p.requires_grad for p in self._image_encoder.parameters()
        )
        if self._image is None and self._image_encoder is not None and frozen:
            dtype = next(self._image_encoder.parameters()).dtype
            return self._image_encoder(images.to(dtype))
        self._refuse("image")
        vit = self._image
        x = vit.conv1(images.to(vit.conv1.weight.dtype)).flatten(2).transpose(1, 2)
        first = vit.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        x = torch.cat([first, x], dim=1) + vit.positional_embedding.to(x.dtype)
        x = _run(vit.transformer.resblocks, vit.ln_pre(x))
        return vit.ln_post(x[:, 0]) @ vit.proj

    def text_features(self) -> Tensor:
        """Features [C, d] of the classes' hand-written prompts.

        Raises:
            BadValue: a text encoder that is not CLIP's, no token embedding, no tokeniser.
        """
        return self._all_text_features[: len(self._texts)]

    def word_features(self) -> Tensor:
        """Features [n, d] of the words' hand-written prompts; raises as :meth:`text_features`."""
        return self._all_text_features[len(self._texts) :]

    @functools.cached_property
    def _all_text_features(self) -> Tensor:
        """Both, computed once; then the token embedding is let go of."""
        self._refuse("text")
        with torch.no_grad():
            tokens = self._tokenize([*self._texts, *self._words])
            features = torch.cat([self._encode(part) for part in tokens.split(_CHUNK)])
        self._embedding = None
        return features

    def _encode(self, tokens: Tensor) -> Tensor:
        """Tokens [n, L] to features [n, d]."""
        text, length = self._text, tokens.shape[1]
        position = text.positional_embedding[:length]
        dtype = text.transformer.resblocks[0].attn.in_proj_weight.dtype
        x = self._embedding(tokens.to(self._embedding.weight.device)).to(position.device, dtype)
        mask = torch.full((length, length), float("-inf"), dtype=dtype, device=x.device).triu_(1)
        x = _run(text.transformer.resblocks, x + position.to(dtype), mask)
        # The end-of-text token has the largest number.
        x = text.ln_final(x[torch.arange(len(x)), tokens.argmax(1).to(x.device)])
        return x.to(dtype) @ text.text_projection
