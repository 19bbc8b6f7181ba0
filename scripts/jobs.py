"""Base-to-new runs: ``python scripts/jobs.py TRAINER DATASETS SEEDS [SHOTS] [KEY VALUE ...]``."""

from __future__ import annotations

import sys

import run as _command_line
from runner.job import Job  # noqa: F401
from runner.protocols import base2new_jobs, bundled_datasets  # noqa: F401
from runner.sweep import run  # noqa: F401

from proxyfda.errors import tell_mistakes


def main() -> int:
    return _command_line.main(["base2new", *sys.argv[1:]])


if __name__ == "__main__":
    tell_mistakes()
    sys.exit(main())
