"""Which features of a CLIP-like model a regulariser acts on: spaces ``image``, ``text``, ``cross``.

A trainer of the prompt-tuning family encodes images and class texts. Of the features of one step

* ``image`` relates (or pulls) image features,
* ``text`` class text features,
* ``cross`` relates image features to class text features.

Where an encoder is frozen a term on its features alone has no gradient. The paper does not say how
FDA acts on CoOp and CoCoOp, whose image encoder is frozen: text and cross are *ours*.
"""

from __future__ import annotations

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
        frozen_image: Callable[[Tensor], Tensor],
        learning_rate: float = 1e-3,
        device: Optional[torch.device] = None,
    ) -> None:
        super().__init__()
        self.name, self.kind = name, find(name).kind
        self.regularisers = nn.ModuleDict()
        self._settings, self._spaces, self._weight = dict(settings), tuple(spaces), weight
        self._frozen_text, self._frozen_image = frozen_text, frozen_image
        self._learning_rate, self._device = learning_rate, device
        self._optimiser: Optional[torch.optim.Optimizer] = None
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

    def _images(self, captured: Captured) -> Tuple[Tensor, Tensor]:
        """Features of the step's images and their anchors, each [B, d]; encoded once."""
        leaves = captured.leaves.get("image_encoder")
        if not leaves:
            raise Unusable(
                "the image encoder was not called in this step (are image features computed "
                "beforehand?), so the spaces image and cross have nothing to act on; use "
                "TRAINER.PROXYFDA.SPACES text"
            )
        features = torch.cat(leaves) if len(leaves) > 1 else leaves[0]
        if not captured.tuned("image_encoder"):
            return features, features
        found: Dict[int, Tensor] = {}
        for call in captured.calls["image_encoder"]:
            if call.inputs is None:
                raise Unusable(
                    "the image encoder was called without a tensor for the images; give "
                    "frozen_image_features to proxyfda.register, or use SPACES text"
                )
            if id(call.inputs) not in found:
                with torch.no_grad(), call.precision():
                    found[id(call.inputs)] = self._frozen_image(call.inputs).detach().float()
        return features, torch.cat([found[id(c.inputs)] for c in captured.calls["image_encoder"]])

    def _texts(self, captured: Captured) -> Tensor:
        """Class text features of the step [S, C, d]: one set for all images, or one per image."""
        texts = captured.leaves.get("text_encoder")
        if not texts:
            raise Unusable(
                "the text encoder was not called in this step (does the trainer keep the class "
                "texts from an earlier one?), so the spaces text and cross have nothing to act on; "
                "use TRAINER.PROXYFDA.SPACES image"
            )
        classes = self.text_anchors().shape[0]
        rows = torch.cat([text.reshape(-1, text.shape[-1]) for text in texts])
        if rows.shape[0] % classes:
            raise BadValue(
                f"the text encoder returned {rows.shape[0]} features in one step, not a multiple "
                f"of the {classes} classes; spaces text and cross need one feature per class, so "
                "use TRAINER.PROXYFDA.SPACES image"
            )
        return rows.view(-1, classes, rows.shape[-1])

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
        regulariser: Regulariser = self.regularisers[space]  # type: ignore[assignment]
        return regulariser

    def _terms_of(self, space: str, captured: Captured) -> Dict[str, Tensor]:
        if space == "image":
            features, anchors = self._images(captured)
            return self._regulariser(space, features.shape[-1]).terms(features, anchors)
        texts, anchors = self._texts(captured), self.text_anchors()
        regulariser = self._regulariser(space, texts.shape[-1])
        if space == "text":
            if not isinstance(regulariser, RelationalRegulariser):
                return regulariser.terms(texts.flatten(0, 1), anchors.repeat(len(texts), 1))
            if self._text_graph is None:
                self._text_graph = regulariser.graph(anchors)
            return regulariser.terms(texts, anchors, graph=self._text_graph)
        features, image_anchors = self._images(captured)
        if len(texts) == 1:
            return regulariser.terms(
                features, image_anchors, columns=texts[0], column_anchors=anchors
            )
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
        for space in self.spaces(captured):
            for name, term in self._terms_of(space, captured).items():
                terms.setdefault(name, []).append(term)
        sums = [
            torch.stack(found).sum() if len(found) > 1 else found[0] for found in terms.values()
        ]
        self._terms = {name: total.detach() for name, total in zip(terms, sums)}
        leaves = [
            leaf for found in captured.leaves.values() for leaf in found if leaf.requires_grad
        ]
        own: List[Tensor] = list(self._own_parameters())
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
            parameter.grad = gradient
        by_leaf = {id(leaf): gradient for leaf, gradient in zip(leaves, found)}
        return {
            name: [by_leaf.get(id(leaf)) for leaf in leaves]
            for name, leaves in captured.leaves.items()
        }

    def finish_step(self) -> Dict[str, Tensor]:
        """Let the regularisers' own parameters step; the terms of the step, without λ.

        Where no term had anything to align, the parameters stay as they are.
        """
        own = self._own_parameters()
        if any(parameter.grad is not None for parameter in own):
            optimiser = self._get_optimiser(own)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        terms, self._terms = self._terms, {}
        return terms

    # -- the regularisers' own parameters ---------------------------------------------------------

    def _own_parameters(self) -> List[nn.Parameter]:
        if self._restored and len(self.regularisers) == len(self._restored["spaces"]):
            self._restore()
        return list(self.parameters())

    def _get_optimiser(self, own: List[nn.Parameter]) -> torch.optim.Optimizer:
        if self._optimiser is None:
            self._optimiser = _adam(own, self._learning_rate)
        return self._optimiser

    def saved_state(self) -> Dict[str, Any]:
        """Weights of the regularisers and state of their optimiser; empty if they have none.

        Without the optimiser's options, which the config has: torch 1.13 cannot read numbers with
        ``weights_only``.
        """
        if not self._own_parameters():
            return self._restored
        state = self._optimiser.state_dict()["state"] if self._optimiser else {}
        return {
            "spaces": list(self.regularisers),
            "regularisers": self.regularisers.state_dict(),
            "optimiser": state,
        }

    def restore_state(self, state: Dict[str, Any]) -> None:
        """Take up :meth:`saved_state`, at the latest when the regularisers are built."""
        self._restored = dict(state)

    def _restore(self) -> None:
        state, self._restored = self._restored, {}
        self.regularisers.load_state_dict(state["regularisers"])
        if state["optimiser"]:
            optimiser = self._get_optimiser(list(self.parameters()))
            groups = optimiser.state_dict()["param_groups"]
            optimiser.load_state_dict({"state": state["optimiser"], "param_groups": groups})


def _adam(parameters: List[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """Adam in one operation where torch has it (from 2.4, also on the CPU)."""
    try:
        return torch.optim.Adam(parameters, lr=learning_rate, fused=True)
    except (RuntimeError, TypeError):
        return torch.optim.Adam(parameters, lr=learning_rate)
