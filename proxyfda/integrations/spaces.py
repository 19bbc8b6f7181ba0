"""Which features of a CLIP-like model a regulariser acts on: spaces ``image``, ``text``, ``cross``.

A trainer of the prompt-tuning family encodes images and class texts. Of the features of one step

* ``image`` relates (or pulls) image features,
* ``text`` class text features,
* ``cross`` relates image features to class text features.

Where an encoder is frozen a term on its features alone has no gradient. The paper does not say how
FDA acts on CoOp and CoCoOp, whose image encoder is frozen: text and cross are *ours*.
"""

from __future__ import annotations

import functools
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn

from proxyfda.integrations.capture import Captured
from proxyfda.neighbours.graph import NeighbourGraph
from proxyfda.regularisers import Regulariser, create, find
from proxyfda.regularisers.relations import RelationalRegulariser
from proxyfda.utils.errors import BadValue, Unusable

__all__ = ["SPACES", "RegularisedSpaces"]

SPACES = ("image", "text", "cross")


class _Step:
    """What the spaces of one step share, each part made when it is first used."""

    def __init__(
        self,
        captured: Captured,
        text_anchors: Callable[[], Tensor],
        frozen_image: Callable[[Any], Tensor],
    ) -> None:
        self._captured = captured
        self._text_anchors, self._frozen_image = text_anchors, frozen_image

    @functools.cached_property
    def images(self) -> Tuple[Tensor, Tensor]:
        """Features of the images and their anchors, each [B, d]."""
        leaves = self._captured.leaves.get("image_encoder")
        if not leaves:
            raise Unusable(
                "the image encoder was not called in this step (are image features computed "
                "beforehand?), so the spaces image and cross have nothing to act on; use "
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
                    found[id(call.inputs)] = self._frozen_image(call.inputs).detach().float()
        return features, _joined(
            [found[id(call.inputs)] for call in self._captured.calls["image_encoder"]]
        )

    @functools.cached_property
    def texts(self) -> Tensor:
        """Class text features: one set for all images [C, d], or one per image [B, C, d]."""
        leaves = self._captured.leaves.get("text_encoder")
        if not leaves:
            raise Unusable(
                "the text encoder was not called in this step (does the trainer keep the class "
                "texts from an earlier one?), so the spaces text and cross have nothing to act on; "
                "use TRAINER.PROXYFDA.SPACES image"
            )
        classes = self._text_anchors().shape[0]
        rows = _joined([leaf.reshape(-1, leaf.shape[-1]) for leaf in leaves])
        if rows.shape[0] % classes:
            raise BadValue(
                f"the text encoder returned {rows.shape[0]} features in one step, not a multiple "
                f"of the {classes} classes; spaces text and cross need one feature per class, so "
                "use TRAINER.PROXYFDA.SPACES image"
            )
        return rows if rows.shape[0] == classes else rows.view(-1, classes, rows.shape[-1])


class RegularisedSpaces(nn.Module):
    """One regulariser for each space, and the gradients of their sum in the features of a step.

    The regularisers are built at the first step, when the features' dimension is known.

    Args:
        name: of the regulariser, see :func:`proxyfda.regularisers.names`.
        settings: its options.
        spaces: any of ``SPACES``, whose terms are summed. Empty: ``image`` where the image encoder
            is tuned; otherwise ``text``, and for relations ``cross`` as well.
        weight: λ.
        frozen_text: () -> [C, d], features of the classes' hand-written prompts in label order.
        frozen_image: images [B, 3, H, W] -> [B, d].
        learning_rate: of the regularisers' own parameters (the proxies' generators), by Adam.
        device: where these live.

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
    ) -> None:
        super().__init__()
        self.name, self.kind = name, find(name).kind
        self.regularisers = nn.ModuleDict()
        self._settings, self._spaces, self._weight = dict(settings), tuple(spaces), weight
        self._frozen_text, self._frozen_image = frozen_text, frozen_image
        self._learning_rate, self._device = learning_rate, device
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
        if not self._spaces:
            if image:
                return ("image",)
            return ("text", "cross") if self.kind == "relations" else ("text",)
        paths = {"image": image, "text": text, "cross": image or text}
        if not any(paths[space] for space in self._spaces):
            frozen = "image" if not image else "text"
            raise BadValue(
                f"TRAINER.PROXYFDA.SPACES is {self._spaces!r}, but the {frozen} encoder is frozen "
                "and no gradient reaches the prompts; use cross or "
                + ("text" if frozen == "image" else "image")
            )
        return tuple(space for space in self._spaces if paths[space])

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
        if space == "image":
            features, anchors = step.images
            return self._regulariser(space, features.shape[-1]).terms(features, anchors)
        texts, anchors = step.texts, self.text_anchors()
        several = texts.dim() == 3
        regulariser = self._regulariser(space, texts.shape[-1])
        if space == "text":
            if not isinstance(regulariser, RelationalRegulariser):
                if several:
                    texts, anchors = texts.flatten(0, 1), anchors.repeat(len(texts), 1)
                return regulariser.terms(texts, anchors)
            if self._text_graph is None:
                self._text_graph = regulariser.graph(anchors)
            return regulariser.terms(texts, anchors, graph=self._text_graph)
        features, image_anchors = step.images
        if not several:
            return regulariser.terms(features, image_anchors, columns=texts, column_anchors=anchors)
        if len(texts) != len(features):
            raise BadValue(
                f"{len(features)} images met {len(texts)} sets of class texts in one step; the "
                "space cross needs one set for all images or one per image, so use "
                "TRAINER.PROXYFDA.SPACES text"
            )
        # Each image is a row of its own: its spread is that of its own similarities.
        return regulariser.terms(
            features.unsqueeze(1),
            image_anchors.unsqueeze(1),
            columns=texts,
            column_anchors=anchors,
            scale="row",
        )

    def gradients(self, captured: Captured) -> Dict[str, List[Optional[Tensor]]]:
        """Gradients of λ R in every captured feature.

        Those of the terms on the regularisers' own parameters go there, without λ; the parameters
        step in :meth:`finish_step`.
        """
        terms: Dict[str, List[Tensor]] = {}
        step = _Step(captured, self.text_anchors, self._frozen_image)
        for space in self.spaces(captured):
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
        by_leaf = {id(leaf): gradient for leaf, gradient in zip(leaves, found)}
        return {
            name: [by_leaf.get(id(leaf)) for leaf in leaves]
            for name, leaves in captured.leaves.items()
        }

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
        """Per space what the regulariser has learned and the state of its optimiser; empty if
        there is nothing to learn.

        Without the optimiser's options, which the config has: torch 1.13 cannot read numbers with
        ``weights_only``.
        """
        found = {
            space: {
                "regulariser": self.regularisers[space].state_dict(),
                "optimiser": optimiser.state_dict()["state"],
            }
            for space, optimiser in self._optimisers.items()
        }
        return {**self._restored, **found}

    def restore_state(self, state: Dict[str, Any]) -> None:
        """Take up :meth:`saved_state`; a regulariser that is not built yet does when it is."""
        self._restored = dict(state)
        for space in self.regularisers:
            if space in self._restored:
                self._restore(space, self._restored.pop(space))

    def _restore(self, space: str, state: Dict[str, Any]) -> None:
        self.regularisers[space].load_state_dict(state["regulariser"])
        optimiser = self._optimisers[space]
        groups = optimiser.state_dict()["param_groups"]
        optimiser.load_state_dict({"state": state["optimiser"], "param_groups": groups})


def _joined(parts: List[Tensor]) -> Tensor:
    """The rows of all parts; a single one is not copied."""
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _adam(parameters: List[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """Adam in one operation where torch has it (from 2.4, also on the CPU)."""
    try:
        return torch.optim.Adam(parameters, lr=learning_rate, fused=True)
    except (RuntimeError, TypeError):
        return torch.optim.Adam(parameters, lr=learning_rate)
