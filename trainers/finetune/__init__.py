"""Tuning an image encoder end to end, and what keeps it from forgetting.

``FineTune`` tunes the encoder and a linear head, with any regulariser by name; ``LPFT`` starts the
head from a linear probe; ``FLYP`` tunes by the contrastive loss of images and class texts. Each has
its ``FDA`` and ``ProxyFDA`` form. They sum the regulariser to their loss themselves and so are not
given to the plugin.
"""

from trainers.finetune.flyp import FLYP
from trainers.finetune.trainer import LPFT, FineTune

__all__ = ["FLYP", "LPFT", "FineTune"]
