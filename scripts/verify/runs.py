"""Whole runs on the device: the same twice, and the same after an interruption."""

from __future__ import annotations

import functools
import glob
import math
import os
import os.path as osp
import shutil
import tempfile
from collections.abc import Iterator

import torch

import train
from proxyfda.dassl import load_checkpoint
from proxyfda.experiments import layout, record
from verify.report import Check, Finding
from verify.subjects import Kit, check_kind

NAMES = ("ProxyFDACoOp", "ProxyFDAMaPLe", "PromptSRC", "ProxyFDAFineTune")
PRECISIONS = ("fp32", "amp", "bf16", "fp16")


def of_runs(kit: Kit) -> Iterator[Check]:
    """Two rows for each of some trainers and precisions."""
    first = functools.lru_cache(None)(lambda name, kind: _run(kit, name, kind))
    for name in NAMES:
        for kind in PRECISIONS:
            for title, check in (("two runs", _twice), ("resumed", _resumed)):
                yield Check(
                    f"{name}, {kind}, {title}",
                    "weights, optimiser, random numbers and accuracy the same, bit by bit",
                    functools.partial(check, kit, name, kind, first),
                )


def _run(kit: Kit, name: str, kind: str, folder: str = "") -> str:
    """Train, or go on, through the command line's own entry; the run's folder."""
    prec = check_kind(kit, name, kind)
    folder = folder or tempfile.mkdtemp(dir=kit.folder)
    train.main(train.parser().parse_args(kit.words(name, prec, folder)))
    return folder


def _twice(kit: Kit, name: str, kind: str, first) -> Finding:
    one = first(name, kind)
    return _same(one, _run(kit, name, kind), kit.sizes.epochs)


def _resumed(kit: Kit, name: str, kind: str, first) -> Finding:
    whole = first(name, kind)
    part = tempfile.mkdtemp(dir=kit.folder)
    shutil.copytree(whole, part, dirs_exist_ok=True)
    done = kit.sizes.epochs // 2
    os.unlink(osp.join(part, layout.RESULT))
    for pointer in glob.glob(osp.join(part, "*", "checkpoint")):
        saved = osp.dirname(pointer)
        for epoch in range(done + 1, kit.sizes.epochs + 1):
            os.unlink(osp.join(saved, f"model.pth.tar-{epoch}"))
        with open(pointer, "w") as file:
            file.write(f"model.pth.tar-{done}\n")
    return _same(whole, _run(kit, name, kind, part), kit.sizes.epochs)


def _same(one: str, other: str, epoch: int) -> Finding:
    """Compare the last weights of two runs."""
    gaps, count = [0.0], 0
    for path in sorted(glob.glob(osp.join(one, "*", f"model.pth.tar-{epoch}"))):
        theirs = osp.join(other, osp.relpath(path, one))
        for ours, again in zip(*(tensors(load_checkpoint(file)) for file in (path, theirs))):
            count += 1
            gaps.append(_gap(ours, again))
    accuracies = [record.read(folder)["accuracy"] for folder in (one, other)]
    good = count > 0 and max(gaps) == 0 and accuracies[0] == accuracies[1]
    return Finding(
        good,
        f"largest difference of {count} tensors {max(gaps):.1e}, accuracy {accuracies[0]:.1f} and "
        f"{accuracies[1]:.1f}",
    )


def tensors(content) -> list[torch.Tensor]:
    """All tensors of a checkpoint."""
    if isinstance(content, torch.Tensor):
        return [content]
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, (list, tuple)):
        return [tensor for part in content for tensor in tensors(part)]
    return []


def _gap(one: torch.Tensor, other: torch.Tensor) -> float:
    if one.shape != other.shape:
        return math.inf
    return (one.double() - other.double()).abs().max().item() if one.numel() else 0.0
