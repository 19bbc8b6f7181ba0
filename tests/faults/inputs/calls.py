"""One call of train.py on a bad input, and what has to come of it."""

import contextlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

import train
from proxyfda.utils.errors import UserError, sentence

ROOT = Path(train.__file__).parent
CLASSES = ("ant", "bee", "cat", "dog")


def picture(path, seed=0, size=32):
    """A PNG of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3))
    Image.fromarray(pixels.astype("uint8")).save(path)


@dataclass
class Place:
    """What the cases work on; each has a copy of its own of what it spoils.

    Attributes:
        folder: for files of the case.
        root: data root of class folders.
        config: config file of CoOp with the tiny CLIP.
        weights: of the tiny CLIP.
        run: output folder of a training that has ended.
        words: the words of the command line, to which a case adds, or which it replaces.
        output: where the run would be written; there is a file of somebody else's in it.
    """

    folder: Path
    root: Path
    config: Path
    weights: Path
    run: Path
    words: list
    output: Path


def contents(folder):
    """Name and bytes of all files in a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(Path(folder).rglob("*"))
    }


def call(words):
    """(the error, what was printed) of train.py on a command line; no error: None."""
    printed, before = io.StringIO(), sys.stdout
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            train.main(train.parser().parse_args([str(word) for word in words]))
    except (Exception, SystemExit) as error:
        return error, printed.getvalue()
    finally:
        sys.stdout = before
    return None, printed.getvalue()


def verdict(case, place):
    """What is wrong with the end of a case, in words; empty if it ended as it should."""
    before = contents(place.output)
    error, printed = call(case.words(place))
    if error is None:
        return "accepted"
    if isinstance(error, SystemExit):  # of argparse, which prints its usage and one line
        said = printed.strip().splitlines()[-1] if printed.strip() else ""
        fine = error.code not in (0, None)
    else:
        said, fine = sentence(error), isinstance(error, UserError)
    if not fine:
        return f"{type(error).__name__}: {said}"
    if not said or "\n" in said or "Traceback" in said:
        return f"no single sentence: {said!r}"
    if len(said) > 1000:
        return f"{len(said)} characters: {said[:200]}"
    if case.names.lower() not in said.lower():
        return f"does not name {case.names!r}: {said}"
    after = contents(place.output)
    if getattr(case, "while_training", False):
        after = {name: after.get(name) for name in before}
    if after != before:
        return f"the output folder has changed: {sorted(set(after) ^ set(before))}"
    return ""


def words_of(root, config, output, trainer="CoOp"):
    folder = ROOT / "configs" / "datasets" / "folder.yaml"
    return [
        *("--root", root, "--seed", 1, "--trainer", trainer, "--dataset-config-file", folder),
        *("--config-file", config, "--output-dir", output),
    ]
