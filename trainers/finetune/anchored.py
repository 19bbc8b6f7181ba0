"""λ R of a step: a regulariser between an encoder that is tuned and one that is frozen."""

from __future__ import annotations

import torch
from torch import Tensor

from proxyfda.anchors import FrozenCopy
from proxyfda.backbones import ImageBackbone
from proxyfda.integrations.dassl_options import PluginOptions
from proxyfda.regularisers import Regulariser, create, find

__all__ = ["Anchored", "frozen_copy"]


def frozen_copy(backbone: ImageBackbone) -> ImageBackbone:
    """A copy of a backbone as it is now, in eval mode and without gradient; without its texts."""
    texts, backbone.text_tower = backbone.text_tower, None
    try:
        return FrozenCopy(backbone).module
    finally:
        backbone.text_tower = texts


class Anchored:
    """The regulariser of a run, made while the encoder is what it is to stay near.

    Args:
        options: with a term.
        backbone: the encoder that is tuned, as it is anchored.
        seed: of the generator of proxies, where the options name none.

    Attributes:
        takes_layers: whether features are the outputs of several layers.
        takes_anchors: whether it needs features of the frozen encoder.
        own: the optimiser of what the regulariser learns itself, Adam; None where that is nothing.
    """

    def __init__(self, options: PluginOptions, backbone: ImageBackbone, seed: int):
        kind = find(options.regulariser)
        settings = dict(options.settings)
        if settings.get("proxy_seed", 0) < 0:
            settings["proxy_seed"] = seed
        self.takes_layers = kind.takes_layers
        self.takes_anchors = kind.kind != "weights"
        device = next(backbone.image_tower.parameters()).device
        self.regulariser: Regulariser
        if self.takes_anchors:
            made = create(options.regulariser, backbone.output_dim, **settings)
        else:
            made = kind(backbone.image_tower, **settings)  # the head has nothing to go back to
        self.regulariser = made.to(device).train()
        self._name, self._weight = options.regulariser, options.weight
        learned = list(self.regulariser.parameters())
        self.own = torch.optim.Adam(learned, lr=options.generator_lr) if learned else None

    def encode(self, backbone: ImageBackbone, images: Tensor):
        """Features [B, d] of images and what the regulariser compares of them, by one pass."""
        if self.takes_layers:
            return backbone.with_layers(images)
        features = backbone(images)
        return features, features

    def terms(self, compared, anchors) -> dict[str, Tensor]:
        """The terms of a step by name; the first is R, the others are the regulariser's own."""
        return self.regulariser.terms(compared, anchors)

    def weighted(self, terms: dict[str, Tensor]) -> tuple[Tensor, Tensor | int]:
        """λ R, and the sum of the regulariser's own terms, which reach no weight of the encoder."""
        first, *others = terms.values()
        return self._weight * first, sum(others)

    # -- what a resumed run needs ---------------------------------------------------------------

    def saved_state(self) -> dict:
        """What the regulariser has learned; empty where it learns nothing.

        Starting weights and the frozen encoder are not in it: a resumed run makes them as the first
        did.
        """
        learned = self.regulariser.state_dict() if self.takes_anchors else {}
        if not learned:
            return {}
        optimiser = None if self.own is None else self.own.state_dict()
        return {"name": self._name, "state": learned, "optimiser": optimiser}

    def restore(self, state: dict) -> None:
        """Take up :meth:`saved_state`."""
        if state.get("name") == self._name:
            self.regulariser.load_state_dict(state["state"])
            if self.own is not None:
                self.own.load_state_dict(state["optimiser"])
        elif self.saved_state():
            print(f"The checkpoint has no state of {self._name}, so it starts anew")
