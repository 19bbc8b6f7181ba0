"""Train and evaluate a trainer on a dataset; ``python train.py --help`` shows the flags.

This file registers the trainers and the datasets; what a run does is in
:mod:`proxyfda.experiments.run`, and how its config is made in :mod:`proxyfda.experiments.config`.
"""

from __future__ import annotations

from proxyfda.utils.errors import show_user_errors

if __name__ == "__main__":
    show_user_errors()  # before the imports, which choose the engine

import datasets  # noqa: F401  (registers the readers)
import trainers  # noqa: F401  (registers the trainers)
from proxyfda.experiments.grid import main as main_grid
from proxyfda.experiments.run import main, parser

__all__ = ["main", "main_grid", "parser"]

if __name__ == "__main__":
    main(parser().parse_args())
