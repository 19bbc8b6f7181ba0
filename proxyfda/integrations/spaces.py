"""Which features of a CLIP-like model a regulariser acts on: its spaces.

A trainer of the prompt-tuning family encodes images and class texts; texts of words that are no
class, and mixtures of the images, can be added (:mod:`proxyfda.integrations.further`). Of the
features of one step

* ``image`` relates (or pulls) image features,
* ``text`` class text features, ``words`` those of words, ``text_words`` both as nodes of one graph,
* ``cross`` relates image features to class text features, ``image_words`` to those of words,
  ``cross_words`` to both.

Mixed images are images in all of these. In a host whose texts differ from image to image (CoCoOp)
every image has texts of its own of all words.

Where an encoder is frozen a term on its features alone has no gradient. The paper does not say how
FDA acts on CoOp and CoCoOp, whose image encoder is frozen: all but ``image`` is *ours*.
"""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from proxyfda.integrations.capture import Captured
from proxyfda.integrations.class_texts import ClassTexts
from proxyfda.neighbours.graph import NeighbourGraph
from proxyfda.regularisers import Regulariser, create, find
from proxyfda.regularisers.relations import RelationalRegulariser
from proxyfda.utils.errors import BadValue, Unusable

__all__ = ["ENCODERS", "SPACES", "RegularisedSpaces", "Space"]


class Space(NamedTuple):
    """What a space relates: the features in its rows, and those in its columns (None: the rows)."""

    rows: str
    columns: Optional[str] = None

    def uses(self, *nodes: str) -> bool:
        """Whether any of these are among the features."""
        return self.rows in nodes or self.columns in nodes


SPACES = {
    "image": Space("images"),
    "text": Space("classes"),
    "cross": Space("images", "classes"),
    "words": Space("words"),
    "image_words": Space("images", "words"),
    "text_words": Space("texts"),
    "cross_words": Space("images", "texts"),
}
"""The spaces by name; ``texts`` are those of classes and words."""

ENCODERS = {
    name: tuple(
        "image_encoder" if nodes == "images" else "text_encoder" for nodes in space if nodes
    )
    for name, space in SPACES.items()
}
"""The encoders whose features a space relates."""

_FIRST_STEPS = 5  # in which a space that does nothing is noticed
_NOTHING = 1e-12


class _Step:
    """What the spaces of one step share, each part made when it is first used.

    Args:
        captured: the features of the step.
        class_anchors: () -> [C, d].
        word_anchors: () -> [W, d] of the step's words; None: the host encodes the classes alone.
        frozen_image: images [B, 3, H, W] -> [B, d].
    """

    def __init__(
        self,
        captured: Captured,
        class_anchors: Callable[[], Tensor],
        word_anchors: Optional[Callable[[], Tensor]],
        frozen_image: Callable[[Any], Tensor],
        class_texts: ClassTexts,
    ) -> None:
        self._captured, self._class_texts = captured, class_texts
        self._class_anchors, self._word_anchors = class_anchors, word_anchors
        self._frozen_image = frozen_image

    @functools.cached_property
    def images(self) -> Tuple[Tensor, Tensor]:
        """Features of the images [B, d], or several sets of them [S, B, d], and their anchors
        [B, d]; those of a frozen encoder are their own."""
        leaves = self._captured.leaves.get("image_encoder")
        if not leaves:
            raise Unusable(
                "the image encoder was not called in this step (are image features computed "
                "beforehand?), so spaces of images have nothing to act on; use "
                "TRAINER.PROXYFDA.SPACES text"
            )
        if any(leaf.dim() not in (2, 3) for leaf in leaves):
            raise BadValue(
                f"the image encoder returned features of the shape {list(leaves[0].shape)}, but "
                "image and cross need one row per image [B, d] or sets of them [S, B, d]; use "
                "TRAINER.PROXYFDA.SPACES text"
            )
        features = _joined(leaves)
        if not self._captured.tuned("image_encoder"):
            return features, features
        found: Dict[int, Tensor] = {}
        for call in self._captured.calls["image_encoder"]:
            if call.inputs is None:
                raise Unusable(
                    "the image encoder got its images by keyword, which is seen from torch 2.0 on; "
                    "pass them by position, or use TRAINER.PROXYFDA.SPACES text"
                )
            if id(call.inputs) not in found:
                with torch.no_grad(), call.precision():
                    # The host's own images apart: it may have their frozen features already.
                    parts = [call.inputs] if call.more is None else [call.inputs, call.more]
                    rows = [self._frozen_image(part).detach().float() for part in parts]
                found[id(call.inputs)] = _joined(rows)
        anchors = _joined(
            [found[id(call.inputs)] for call in self._captured.calls["image_encoder"]]
        )
        if features.shape[-2:] != anchors.shape:
            raise BadValue(
                f"the image encoder returned features {list(features.shape)} for {len(anchors)} "
                f"images, whose frozen features are {list(anchors.shape)}; image and cross need "
                "one row per image, so use TRAINER.PROXYFDA.SPACES text"
            )
        return features, anchors

    @functools.cached_property
    def texts(self) -> Tuple[Tensor, Tensor]:
        """Text features of the classes and, behind them, the words, one set for all images
        [T, d] or several [S, T, d], and their anchors [T, d]."""
        leaves = self._captured.leaves.get("text_encoder")
        if not leaves:
            raise Unusable(
                "the text encoder was not called in this step (does the trainer keep the class "
                "texts from an earlier one?), so spaces of texts have nothing to act on; "
                "use TRAINER.PROXYFDA.SPACES image"
            )
        calls, anchors = self._captured.calls["text_encoder"], self._class_anchors()
        if self._word_anchors is not None:
            anchors = torch.cat([anchors, self._word_anchors().to(anchors)])
        return self._class_texts.sets(calls, leaves, anchors)

    @property
    def mixed(self) -> int:
        """How many of the images are mixtures, which are the last rows of a call."""
        calls = self._captured.calls.get("image_encoder", [])
        return sum(0 if call.more is None else len(call.more) for call in calls)

    def nodes(self, name: str) -> Tuple[Tensor, Tensor]:
        """``images``, ``classes``, ``words`` or ``texts``: features and anchors."""
        if name == "images":
            return self.images
        features, anchors = self.texts
        if name == "texts" or self._word_anchors is None:
            return features, anchors
        classes = len(self._class_anchors())
        some = slice(classes) if name == "classes" else slice(classes, None)
        return features[..., some, :], anchors[some]


class RegularisedSpaces(nn.Module):
    """One regulariser for each space, and the gradients of their sum in the features of a step.

    The regularisers are built at the first step, when the features' dimension is known.

    Args:
        name: of the regulariser, see :func:`proxyfda.regularisers.names`.
        settings: its options.
        spaces: names in ``SPACES``, whose terms are summed. Empty: ``image`` where the image
            encoder is tuned; otherwise ``text``, and for relations ``cross`` as well.
        weight: λ.
        frozen_text: () -> [C, d], features of the classes' hand-written prompts in label order.
        frozen_image: images [B, 3, H, W] -> [B, d].
        learning_rate: of the regularisers' own parameters (the proxies' generators, learned
            constants), by Adam.
        device: where these live.
        class_texts: tells which class a row of the text encoder is; None: rows are in label order.
        words: () -> [W, d], features of the hand-written prompts of the words that the host encodes
            behind the classes in this step; needed by the spaces of words.

    Attributes:
        regularisers: by space.
    """

    def __init__(
        self,
        name: str,
        settings: Dict[str, Any],
        spaces: Tuple[str, ...],
        weight: float,
        frozen_text: Callable[[], Tensor],
        frozen_image: Callable[[Any], Tensor],
        learning_rate: float = 1e-3,
        device: Optional[torch.device] = None,
        class_texts: Optional[ClassTexts] = None,
        words: Optional[Callable[[], Tensor]] = None,
    ) -> None:
        super().__init__()
        self._class_texts = class_texts or ClassTexts()
        self._steps = 0
        self._idle: Counter[str] = Counter()
        self.name, self.kind = name, find(name).kind
        self.regularisers = nn.ModuleDict()
        self._settings, self._spaces, self._weight = dict(settings), tuple(spaces), weight
        self._frozen_text, self._frozen_image = frozen_text, frozen_image
        self._learning_rate, self._device, self._words = learning_rate, device, words
        self._optimisers: Dict[str, torch.optim.Optimizer] = {}
        self._restored: Dict[str, Any] = {}
        self._text_anchors: Optional[Tensor] = None
        self._text_graph: Optional[NeighbourGraph] = None
        self._terms: Dict[str, Tensor] = {}

    # -- anchors ----------------------------------------------------------------------------------

    def text_anchors(self) -> Tensor:
        """Frozen class text features of the hand-written prompt, [C, d], computed once."""
        if self._text_anchors is None:
            with torch.no_grad():
                self._text_anchors = self._frozen_text().detach().float()
        return self._text_anchors

    # -- the terms --------------------------------------------------------------------------------

    def spaces(self, captured: Captured) -> Tuple[str, ...]:
        """Spaces of this step, checked against where gradients can flow.

        Raises:
            BadValue: for a choice without any path to the prompts.
        """
        image, text = (captured.tuned(name) for name in ("image_encoder", "text_encoder"))
        chosen = self._spaces
        if not chosen and image:
            chosen = ("image",)
        elif not chosen:
            chosen = ("text", "cross") if self.kind == "relations" else ("text",)
        found = tuple(
            space
            for space in chosen
            if (image and SPACES[space].uses("images"))
            or (text and SPACES[space].uses("classes", "words", "texts"))
        )
        if not found:
            frozen = "image" if not image else "text"
            raise BadValue(
                f"TRAINER.PROXYFDA.SPACES is {chosen!r}, but the {frozen} encoder is frozen "
                "and no gradient reaches the prompts; use cross or "
                + ("text" if frozen == "image" else "image")
            )
        mixed = any(call.more is not None for call in captured.calls.get("image_encoder", ()))
        if mixed and not any(SPACES[space].uses("images") for space in found):
            raise BadValue(
                f"TRAINER.PROXYFDA.MIXED adds images, but the spaces are {found!r}, which have "
                "none; set MIXED 0 or name a space of images in SPACES"
            )
        return found

    def _regulariser(self, space: str, dim: int) -> Regulariser:
        if space not in self.regularisers:
            self.regularisers[space] = create(self.name, dim, **self._settings).to(self._device)
            own = list(self.regularisers[space].parameters())
            if own:
                self._optimisers[space] = _adam(own, self._learning_rate)
            if space in self._restored:
                self._restore(space, self._restored.pop(space))
        regulariser: Regulariser = self.regularisers[space]  # type: ignore[assignment]
        return regulariser

    def _terms_of(self, space: str, step: _Step) -> Dict[str, Tensor]:
        rows, columns = SPACES[space]
        features, anchors = step.nodes(rows)
        if columns is not None:
            return self._cross_terms(space, step, (features, anchors), step.nodes(columns))
        regulariser = self._regulariser(space, features.shape[-1])
        if not isinstance(regulariser, RelationalRegulariser):
            if features.dim() == 3:
                features, anchors = features.flatten(0, 1), anchors.repeat(len(features), 1)
            return regulariser.terms(features, anchors)
        if space != "text" or len(anchors) != len(self.text_anchors()):
            return regulariser.terms(features, anchors)
        if self._text_graph is None:
            self._text_graph = regulariser.graph(anchors)
        return regulariser.terms(features, anchors, graph=self._text_graph)

    def _cross_terms(
        self,
        space: str,
        step: _Step,
        images: Tuple[Tensor, Tensor],
        classes: Tuple[Tensor, Tensor],
    ) -> Dict[str, Tensor]:
        (features, anchors), (texts, text_anchors) = images, classes
        if features.shape[-1] != texts.shape[-1]:
            raise BadValue(
                f"the features of the image encoder have {features.shape[-1]} dimensions and those "
                f"of the text encoder {texts.shape[-1]}, so the space {space} cannot relate them; "
                "use TRAINER.PROXYFDA.SPACES image or text"
            )
        more: Dict[str, Any] = {"columns": texts, "column_anchors": text_anchors}
        if step.mixed and texts.dim() == 3:
            raise BadValue(
                f"{len(features)} images, {step.mixed} of them mixed, met {len(texts)} sets of "
                f"class texts in one step; in the space {space} mixed images have no texts of "
                "their own, so set TRAINER.PROXYFDA.MIXED 0"
            )
        if features.dim() == 2 and texts.dim() == 3 and len(texts) == len(features):
            # A set of texts per image, which is a row of its own: its spread is that of its own
            # similarities.
            features, anchors = features.unsqueeze(1), anchors.unsqueeze(1)
            more["scale"] = "row"
        else:
            if features.dim() == 3:  # several features per image: each is a row
                anchors = anchors.expand_as(features).flatten(0, 1)
                features = features.flatten(0, 1)
            if texts.dim() == 3:  # several prompts per class: each meets all images
                features = features.expand(len(texts), -1, -1)
        return self._regulariser(space, texts.shape[-1]).terms(features, anchors, **more)

    def gradients(self, captured: Captured) -> Dict[str, List[Optional[Tensor]]]:
        """Gradients of λ R in every captured feature.

        Those of the terms on the regularisers' own parameters go there, without λ; the parameters
        step in :meth:`finish_step`.
        """
        terms: Dict[str, List[Tensor]] = {}
        step = _Step(
            captured, self.text_anchors, self._words, self._frozen_image, self._class_texts
        )
        spaces = self.spaces(captured)
        for space in spaces:
            for name, term in self._terms_of(space, step).items():
                terms.setdefault(name, []).append(term)
        sums = [sum(found[1:], found[0]) for found in terms.values()]
        self._terms = {name: total.detach() for name, total in zip(terms, sums)}
        leaves = [
            leaf for found in captured.leaves.values() for leaf in found if leaf.requires_grad
        ]
        own: List[Tensor] = list(self.parameters())
        scales = [self._weight] + [1.0] * (len(sums) - 1)
        # A batch with nothing to align has a zero without gradient in its place.
        live = [(total, scale) for total, scale in zip(sums, scales) if total.requires_grad]
        found = torch.autograd.grad(
            [total for total, _ in live],
            leaves + own,
            [torch.full_like(total, scale) for total, scale in live],
            allow_unused=True,
        )
        for parameter, gradient in zip(own, found[len(leaves) :]):
            if gradient is not None:  # of an earlier half-batch there may be one
                before = parameter.grad
                parameter.grad = gradient if before is None else before + gradient
        if self._steps < _FIRST_STEPS:
            values = dict(zip(spaces, next(iter(terms.values()))))
            self._notice_idle_spaces(values, found[: len(leaves)])
        by_leaf = {id(leaf): gradient for leaf, gradient in zip(leaves, found)}
        return {
            name: [by_leaf.get(id(leaf)) for leaf in leaves]
            for name, leaves in captured.leaves.items()
        }

    def _notice_idle_spaces(
        self, values: Dict[str, Tensor], gradients: Sequence[Optional[Tensor]]
    ) -> None:
        """Say after the first steps which spaces had no effect in any of them."""
        self._steps += 1
        still = not any(gradient is not None and bool(gradient.any()) for gradient in gradients)
        self._idle.update(
            space
            for space, value in values.items()
            if still or abs(float(value.detach())) < _NOTHING
        )
        if self._steps < _FIRST_STEPS:
            return
        for space, steps in self._idle.items():
            if steps == _FIRST_STEPS:
                print(
                    f"Proxy-FDA: {self.name} had nothing to align in the space {space} in each of "
                    f"the first {_FIRST_STEPS} steps; relations need at least 4 images in a batch "
                    "(image) or 4 classes (text), and features that training moves"
                )

    def finish_step(self) -> Dict[str, Tensor]:
        """Let the regularisers' own parameters step; the terms of the step, without λ.

        Where no term had anything to align, the parameters stay as they are.
        """
        for space, optimiser in self._optimisers.items():
            if any(
                parameter.grad is not None for parameter in self.regularisers[space].parameters()
            ):
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
        terms, self._terms = self._terms, {}
        return terms

    # -- the regularisers' own parameters ---------------------------------------------------------

    def saved_state(self) -> Dict[str, Any]:
        """Per space what the regulariser has learned and the state of its optimiser, if it has one;
        empty if there is nothing to learn.

        Without the optimiser's options, which the config has: torch 1.13 cannot read numbers with
        ``weights_only``.
        """
        found: Dict[str, Any] = {}
        for space, regulariser in self.regularisers.items():
            learned = regulariser.state_dict()
            if learned:
                found[space] = {"regulariser": learned}
            if space in self._optimisers:
                found[space]["optimiser"] = self._optimisers[space].state_dict()["state"]
        return {**self._restored, **found}

    def restore_state(self, state: Dict[str, Any]) -> None:
        """Take up :meth:`saved_state`; a regulariser that is not built yet does when it is."""
        self._restored = dict(state)
        for space in self.regularisers:
            if space in self._restored:
                self._restore(space, self._restored.pop(space))

    def _restore(self, space: str, state: Dict[str, Any]) -> None:
        self.regularisers[space].load_state_dict(state["regulariser"])
        if space in self._optimisers:
            optimiser = self._optimisers[space]
            groups = optimiser.state_dict()["param_groups"]
            optimiser.load_state_dict({"state": state["optimiser"], "param_groups": groups})


def _joined(parts: List[Tensor]) -> Tensor:
    """The rows of all parts [.., n, d]; a single one is not copied."""
    return torch.cat(parts, dim=-2) if len(parts) > 1 else parts[0]


def _adam(parameters: List[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """Adam in one operation where torch has it (from 2.4, also on the CPU)."""
    try:
        return torch.optim.Adam(parameters, lr=learning_rate, fused=True)
    except (RuntimeError, TypeError):
        return torch.optim.Adam(parameters, lr=learning_rate)
