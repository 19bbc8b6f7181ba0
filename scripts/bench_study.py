"""What a whole study costs: base2new of trainers on images in files, here and in another checkout.

``python scripts/bench.py CoOp FDACoOp --study --against ../before``

Every round runs ``scripts/run.py base2new`` of each checkout once, in a process of its own and on
the same images and weights, in turns: which is first changes with the round. Times are those of the
whole process with everything that it starts, imports included.
"""

from __future__ import annotations

import json
import os
import os.path as osp
import resource
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
from PIL import Image
from tabulate import tabulate

from proxyfda.utils.errors import BadValue, NotFound
from proxyfda.utils.files import write_text

HERE, OTHER = "here", "against"


def write_images(root: str, classes: int, shots: int, tested: int, side: int) -> None:
    """A folder dataset of smooth noise, the same for the same numbers.

    Args:
        shots, tested: training and test images of each class.
        side: of the images, in pixels.
    """
    rng = np.random.default_rng(0)
    for label in range(classes):
        for part, count in (("train", shots), ("test", tested)):
            folder = osp.join(root, part, f"class {label:04d}")
            os.makedirs(folder)
            for number in range(count):
                coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
                image = coarse.resize((side, side), Image.Resampling.BICUBIC)
                image.save(osp.join(folder, f"{number}.jpg"), quality=90)


def checkouts(against: str) -> dict[str, str]:
    """Name -> folder of what is compared.

    Raises:
        NotFound: the other folder has no ``scripts/run.py``.
    """
    found = {HERE: osp.dirname(osp.dirname(osp.abspath(__file__)))}
    if against:
        if not osp.isfile(osp.join(against, "scripts", "run.py")):
            raise NotFound(
                f"--against {against} holds no scripts/run.py; give the folder of a checkout, such "
                "as `git worktree add ../before COMMIT` makes"
            )
        found[OTHER] = osp.abspath(against)
    return found


def command(args: Namespace, folder: str, weights: str, size: int) -> list[str]:
    """The words of ``scripts/run.py`` but for its output."""
    dataset = osp.join(folder, "noise.yaml")
    if not osp.exists(dataset):
        write_images(osp.join(folder, "noise"), args.classes, args.shots, args.tested, size)
        root = json.dumps(osp.join(folder, "noise"))
        write_text(dataset, f"DATASET:\n  NAME: ImageFolder\n  ROOT: {root}\n")
    words = ["base2new", ",".join(args.trainers), dataset, args.seeds, str(args.shots)]
    words += ["INPUT.SIZE", f"({size},{size})", "OPTIM.MAX_EPOCH", str(args.epochs)]
    words += ["MODEL.BACKBONE.NAME", args.backbone, "MODEL.BACKBONE.WEIGHTS", weights]
    words += ["DATALOADER.TRAIN_X.BATCH_SIZE", str(args.batch)]
    words += ["DATALOADER.TEST.BATCH_SIZE", str(args.eval_batch)]
    words += [word for pair in args.opts for word in pair]
    return [*words, "--data", folder, "--cfg", "bundled"]


def timed(root: str, words: list[str], threads: int) -> tuple[float, float]:
    """Seconds by the clock and of processors that ``scripts/run.py`` of a checkout takes.

    Raises:
        BadValue: it failed.
    """
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if threads:
        env["OMP_NUM_THREADS"] = str(threads)
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    script = osp.join(root, "scripts", "run.py")
    result = subprocess.run(
        [sys.executable, script, *words], cwd=root, env=env, capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if result.returncode:
        reason = result.stderr.strip().splitlines()[-1:] or ["it was killed"]
        raise BadValue(f"the study of {root} failed: {reason[0]}")
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, used


def accuracies(output: str) -> dict[str, float]:
    """Folder below an output -> accuracy of its run."""
    found = sorted(Path(output).rglob("result.json"))
    return {
        str(path.parent.relative_to(output)): json.loads(path.read_text())["accuracy"]
        for path in found
    }


def study(args: Namespace, folder: str, weights: str, size: int) -> str:
    """Run the rounds; gives the table.

    Args:
        folder: for images and outputs, to be removed by the caller.
    """
    compared = checkouts(args.against)
    words = command(args, folder, weights, size)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in compared}
    outputs: dict[str, str] = {}
    for number in range(args.rounds):
        turn = list(compared)[:: -1 if number % 2 else 1]
        for name in turn:
            outputs[name] = osp.join(folder, f"{name}-{number}")
            own = [*words, "--output", outputs[name]]
            times[name].append(timed(compared[name], own, args.threads))
    rows = []
    for name, taken in times.items():
        row = [name, *(statistics.median(values) for values in zip(*taken))]
        for place in (0, 1):
            pairs = zip(taken, times[HERE])
            row.append(statistics.median(one[place] / other[place] for one, other in pairs))
        rows.append(row)
    head = ["checkout", "clock, s", "processor, s", "clock / here", "processor / here"]
    text = tabulate(rows, head, floatfmt=("", ".1f", ".1f", ".2f", ".2f"))
    if args.against:
        ours, theirs = (accuracies(outputs[name]) for name in (HERE, OTHER))
        common = ours.keys() & theirs.keys()
        most = max((abs(ours[key] - theirs[key]) for key in common), default=0.0)
        text += f"\naccuracies of {len(common)} runs differ by at most {most:.2f} points"
    return text
