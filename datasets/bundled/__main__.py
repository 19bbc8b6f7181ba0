"""``python -m datasets.bundled --root DATA [NAME ...]`` renders the bundled datasets."""

from __future__ import annotations

import argparse
import sys

import torch

from proxyfda.utils.errors import show_user_errors

from .build import render_all


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m datasets.bundled", description=__doc__)
    parser.add_argument("--root", required=True, help="data root, the DATASET.ROOT of the runs")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="folders such as atlas_fruits; all if none"
    )
    args = parser.parse_args(argv)
    if not args.root:
        parser.error("--root is empty; give the folder of the datasets")
    torch.set_num_threads(1)  # small batches: threads would only wait for each other
    try:
        render_all(args.root, args.names or None)
    except OSError as error:
        print(f"cannot render into '{args.root}': {error}; give a folder that can be written",
              file=sys.stderr)  # fmt: skip
        return 1
    return 0


if __name__ == "__main__":
    show_user_errors()
    sys.exit(main())
