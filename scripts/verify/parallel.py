"""Several processes on one and several devices, and what wraps a model to use several."""

from __future__ import annotations

import contextlib
import copy
import functools
import os.path as osp
import tempfile
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F

from proxyfda import FDA, attach
from proxyfda.experiments import launchers, record
from proxyfda.experiments.jobs import DONE, FAILED, Job, Outcome
from proxyfda.utils.errors import Unusable
from verify.ranks import RANKS, STEPS, WEIGHT, Model, batch, by_hand, moved, rank
from verify.report import Check, Finding, NotApplicable
from verify.subjects import Kit


def of_processes(kit: Kit) -> Iterator[Check]:
    """The launchers, DataParallel and DistributedDataParallel."""
    same = "every run ends, with the accuracy of the same run in this process"
    yield Check("2 processes on one device", same, functools.partial(_launched, kit, 1, 2))
    count = torch.cuda.device_count() if kit.on_gpu else 0
    yield Check(
        f"a process on each of {count or 'several'} GPUs", same,
        functools.partial(_launched, kit, count, 1),
    )  # fmt: skip
    yield Check(
        "DataParallel, attached to the wrapper", "gradients of the sum written by hand",
        functools.partial(_data_parallel, kit),
    )  # fmt: skip
    yield Check(
        "DataParallel, attached inside", "refused in one sentence",
        functools.partial(_replica, kit),
    )  # fmt: skip
    yield Check(
        f"DistributedDataParallel, {RANKS} ranks",
        "the weights of one process that takes the mean over ranks",
        functools.partial(_ddp, kit),
    )


# -- launchers ------------------------------------------------------------------------------------


def _launched(kit: Kit, devices: int, workers: int) -> Finding:
    if workers == 1 and devices < 2:
        raise NotApplicable(f"needs two GPUs, there {'is 1' if devices else 'are none'}")
    names = launchers.local_devices("" if kit.on_gpu else launchers.CPU)[:devices]
    expected = _run_jobs(kit, 1, lambda chains: launchers.here(chains, quiet=True))
    found = _run_jobs(
        kit, len(names) * workers, lambda chains: launchers.local(chains, names, workers)
    )
    good = all(value == expected[0] for value in found)
    shown = ", ".join(f"{value:.1f}" if isinstance(value, float) else value for value in found)
    return Finding(good, f"{shown} (in this process {expected[0]})")


def _run_jobs(kit: Kit, count: int, launch) -> list:
    """The accuracy of as many equal runs, or why there is none."""
    folders = [tempfile.mkdtemp(dir=kit.folder) for _ in range(count)]
    chains = [
        [_job(kit, f"run {place} of {count}", folder)] for place, folder in enumerate(folders, 1)
    ]
    found = {}
    with contextlib.closing(launch(chains)) as ended:
        for chain, outcomes in ended:
            folder = chain[0].folder
            outcome = Outcome(FAILED, outcomes) if isinstance(outcomes, str) else outcomes[0]
            done = outcome.status == DONE
            found[folder] = record.read(folder)["accuracy"] if done else outcome.why
    return [found[folder] for folder in folders]


def _job(kit: Kit, name: str, folder: str) -> Job:
    flags = kit.words("ProxyFDACoOp", "fp32", folder, "OPTIM.MAX_EPOCH", 1)
    place = flags.index("--output-dir")
    return Job(name, folder, flags[:place] + flags[place + 2 :], entry="train")


# -- wrappers -------------------------------------------------------------------------------------


def _data_parallel(kit: Kit) -> Finding:
    if torch.cuda.device_count() < 2 or not kit.on_gpu:
        raise NotApplicable("needs two GPUs: with one, DataParallel only calls the module")
    model, frozen = moved()
    other = copy.deepcopy(model).cuda()
    rows, labels = (tensor.cuda() for tensor in batch(0))
    frozen.follow(model.cuda().encoder)
    by_hand(model, frozen, FDA(k=3), rows, labels).backward()
    wrapped = nn.DataParallel(other.encoder)
    with attach(wrapped, FDA(k=3), WEIGHT, anchors=frozen):
        F.cross_entropy(other.head(wrapped(rows)), labels).backward()
    gaps = [(a.grad - b.grad).abs().max().item()
            for a, b in zip(model.parameters(), other.parameters())]  # fmt: skip
    return Finding(max(gaps) < 1e-5, f"largest difference {max(gaps):.1e}")


def _replica(kit: Kit) -> Finding:
    several = kit.on_gpu and torch.cuda.device_count() > 1
    module = Model().encoder.to(kit.device)
    rows = batch(0)[0].to(kit.device)
    runs = nn.DataParallel(module) if several else module
    if not several:
        module._is_replica = True  # as DataParallel marks what it makes of the module
    note = "" if several else " (stand-in for a replica: one device)"
    try:
        with attach(module, FDA(k=3)):
            runs(rows)
    except Unusable as error:  # of a replica torch puts a traceback before the sentence
        said = str(error).splitlines()[-1]
        return Finding("attach to the DataParallel module" in said, said + note)
    return Finding(False, "it trained" + note)


def _ddp(kit: Kit) -> Finding:
    if not torch.distributed.is_available():
        raise NotApplicable("this torch has no torch.distributed")
    several = kit.on_gpu and torch.cuda.device_count() >= RANKS
    folder = tempfile.mkdtemp(dir=kit.folder)
    ranks = torch.multiprocessing.spawn(rank, (folder, kit.device.type, several), RANKS, join=False)
    try:
        while not ranks.join():
            pass
    finally:  # one that waits for another would wait for half an hour
        for process in ranks.processes:
            process.terminate()
    model, frozen = moved()
    regulariser = FDA(k=3, constants="given")  # each rank would derive its own
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(STEPS):
        optimiser.zero_grad()
        for number in range(RANKS):
            loss = by_hand(model, frozen, regulariser, *batch(RANKS * step + number))
            (loss / RANKS).backward()
        optimiser.step()
    gaps = [
        (torch.load(osp.join(folder, f"{number}.pt"))[name] - weight).abs().max().item()
        for number in range(RANKS)
        for name, weight in model.state_dict().items()
    ]
    where = "nccl, a GPU each" if several else f"gloo, both on one {kit.device.type}"
    return Finding(max(gaps) < 1e-4, f"largest difference {max(gaps):.1e} ({where})")
