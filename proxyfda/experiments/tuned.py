"""The encoder that a run has tuned end to end, and weights between it and the pre-trained one."""

from __future__ import annotations

import os.path as osp
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from proxyfda.backbones import ImageBackbone, load_backbone
from proxyfda.backbones.weights import mismatches
from proxyfda.dassl import find_checkpoint, load_checkpoint, weights_in
from proxyfda.experiments import layout
from proxyfda.experiments.folders import read_config
from proxyfda.utils.errors import BadValue, NotFound

__all__ = ["TunedRun", "checkpoint_state", "interpolated", "load_tuned", "run_config"]

IMAGE, TEXT = "image_encoder", "text_encoder"
"""Names of the checkpoints of the two towers in a run's folder."""


@dataclass(frozen=True)
class TunedRun:
    """What the folder of a run that tuned an encoder says.

    Attributes:
        folder: as given.
        config: the content of its ``config.yaml``.
        paths: tower -> file of its checkpoint.
    """

    folder: str
    config: dict[str, Any]
    paths: dict[str, str]

    @classmethod
    def at(cls, folder: str, epoch: int | None = None) -> TunedRun:
        """The run in a folder.

        Args:
            folder: its output folder.
            epoch: of the checkpoint; None for the best on the validation set, if one was kept,
                else the last, which has to be that of the training's end.

        Raises:
            NotFound: no such folder, or no such checkpoint.
            BadValue: the run tunes no encoder, or has not come to its end.
        """
        if not osp.isdir(folder):
            raise NotFound(f"{folder} does not exist; give the output folder of a FineTune run")
        config = run_config(folder)
        name = config.get("TRAINER", {}).get("NAME")
        if not osp.isdir(osp.join(folder, IMAGE)):
            raise BadValue(
                f"{folder} holds a run of {name} without checkpoints of an {IMAGE}; give the "
                "output folder of a FineTune run that has trained"
            )
        paths = {IMAGE: find_checkpoint(folder, IMAGE, epoch)}
        if osp.isdir(osp.join(folder, TEXT)):
            paths[TEXT] = find_checkpoint(folder, TEXT, epoch)
        found = cls(folder, config, paths)
        wanted = config.get("OPTIM", {}).get("MAX_EPOCH")
        if epoch is None and found.epoch not in (None, wanted):
            raise BadValue(
                f"the training in {folder} has stopped after epoch {found.epoch} of {wanted}; run "
                f"it again to its end, or give --load-epoch {found.epoch}"
            )
        return found

    @property
    def epoch(self) -> int | None:
        """The epoch of the image encoder's checkpoint; None for the best one."""
        found = re.search(r"-(\d+)$", self.paths[IMAGE])
        return int(found[1]) if found else None

    @property
    def backbone(self) -> dict[str, Any]:
        """Name and weights of the backbone, and the side of its images, as the config says."""
        chosen, size = self.config["MODEL"]["BACKBONE"], self.config["INPUT"]["SIZE"]
        return {
            "name": chosen["NAME"],
            "weights": chosen.get("WEIGHTS", ""),
            "image_size": int(size[0]),
        }

    def load(self, alpha: float = 1.0, device: str | torch.device = "cpu") -> ImageBackbone:
        """See :func:`load_tuned`."""
        found = load_backbone(**self.backbone, device=device)
        for tower, path in self.paths.items():
            module = found.image_tower if tower == IMAGE else found.text_tower
            if module is None:
                raise BadValue(
                    f"{path} is of a text encoder, and {found.name} has none; remove the folder "
                    "or give the run's own backbone"
                )
            _put(module, checkpoint_state(path), alpha, path)
        return found


def checkpoint_state(path: str) -> dict[str, Tensor]:
    """The weights in a checkpoint of a trainer.

    Raises:
        BadValue: it is damaged, or holds none.
        NotFinite: a weight is infinite or no number.
    """
    return weights_in(load_checkpoint(path), path)


def run_config(folder: str) -> dict[str, Any]:
    """The content of ``config.yaml`` in a run's folder.

    Raises:
        BadValue: there is none, or it is damaged.
    """
    config = read_config(folder)
    if not config:
        raise BadValue(f"{folder} has no {layout.CONFIG}; give the output folder of a FineTune run")
    try:
        config["MODEL"]["BACKBONE"]["NAME"], config["INPUT"]["SIZE"][0], config["TRAINER"]["NAME"]
    except (TypeError, KeyError, IndexError) as error:
        raise BadValue(
            f"{osp.join(folder, layout.CONFIG)} is not the config of a run "
            f"({type(error).__name__}); restore it, or train again"
        ) from None
    return config


def load_tuned(
    folder: str,
    alpha: float = 1.0,
    device: str | torch.device = "cpu",
    *,
    epoch: int | None = None,
) -> ImageBackbone:
    """The backbone of a FineTune run, with the weights that the run has tuned, or in between.

    Args:
        folder: the run's output folder; of FLYP the text tower is taken too.
        alpha: share of the tuned weights, see :func:`interpolated`; 1 for those of the run, 0 for
            the backbone as it was pre-trained.
        device: where it goes.
        epoch: of the checkpoint; None for the best on the validation set, if one was kept, else
            that of the training's end.

    Raises:
        NotFound: no such folder or checkpoint.
        BadValue: α outside of 0 to 1; the folder is of another kind of run, or of one that has not
            come to its end; a damaged checkpoint.
    """
    check_alpha(alpha)
    return TunedRun.at(folder, epoch).load(alpha, device)


def check_alpha(alpha: float, name: str = "alpha") -> None:
    """Refuse an α outside of 0 to 1."""
    if not 0 <= alpha <= 1:
        raise BadValue(f"{name} is {alpha}; use a number from 0 (pre-trained) to 1 (tuned)")


def interpolated(
    pretrained: dict[str, Tensor], tuned: dict[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """(1 - α) · pre-trained + α · tuned, for every tensor of two state dicts of the same names.

    WiSE-FT: Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022, arXiv 2109.01903.
    Whole numbers, such as counts of batches, are those of the nearer one.

    >>> interpolated({"w": torch.zeros(2)}, {"w": torch.ones(2)}, 0.25)
    {'w': tensor([0.2500, 0.2500])}
    """
    if alpha in (0, 1):
        return dict(tuned if alpha else pretrained)
    return {
        name: (1 - alpha) * theirs + alpha * tuned[name].to(theirs)
        if theirs.is_floating_point()
        else (tuned[name] if alpha >= 0.5 else theirs)
        for name, theirs in pretrained.items()
    }


def _put(module: nn.Module, tuned: dict[str, Tensor], alpha: float, path: str) -> None:
    own = module.state_dict()
    problems = mismatches(own, tuned)
    if problems:
        raise BadValue(
            f"{path} does not fit the backbone of its run ({problems}); was it saved with another "
            "version or config?"
        )
    module.load_state_dict(interpolated(own, tuned, alpha))
