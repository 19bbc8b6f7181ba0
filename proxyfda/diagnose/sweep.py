"""Measures of the runs of a sweep, beside what they have forgotten."""

from __future__ import annotations

import functools
import os.path as osp
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from proxyfda.diagnose.comparison import MEASURES, Comparison, compare
from proxyfda.diagnose.encoders import encode, load_encoder, pretrained_of
from proxyfda.diagnose.samples import Encoded, Sample
from proxyfda.names import PRETRAINED
from proxyfda.results.forgetting import changes
from proxyfda.results.probes import ALPHA, ProbedRun, by_backbone, read_probes, reference_of
from proxyfda.utils.errors import BadValue

__all__ = ["SWEPT", "measure_runs"]

SWEPT = {**MEASURES, "otdd_beyond": "OTDD beyond frozen"}
"""Measures of a run -> what tables call them. Runs that were tuned on different datasets are
measured on different ones, and so the OTDD of their frozen halves differs."""


def measure_runs(
    output: str,
    sample_of: Callable[[str], Sample],
    *,
    split: str = "test",
    datasets: Sequence[str] = (),
    tuned: Sequence[str] = (),
    k: int = 8,
    seed: int = 0,
    device: str = "cpu",
    say: Callable[[str], Any] = print,
) -> list[dict]:
    """Δ_LP and all measures of each run of an output that was tuned end to end and probed.

    Both are means over the probed datasets that the run was not tuned on.

    Args:
        output: folder of the scripts.
        sample_of: dataset (its config's name) -> the images that it is measured on.
        split: of the probes.
        datasets: to measure on; none for all that were probed.
        tuned: datasets that were tuned on; none for all.
        k, seed: see :func:`~proxyfda.diagnose.compare`.
        device: of the encoders.
        say: gets a line about each run.

    Returns:
        Dicts with ``folder``, ``dataset``, ``name``, ``seed``, ``datasets``, ``delta`` (points) and
        the measures.

    Raises:
        BadValue: there is no run with probes, or none of the pre-trained backbone.
        NotFound: the output does not exist.
    """
    runs = [r for r in read_probes(output) if r.record.protocol == "finetune" and r.split == split]
    for run in runs:
        if not run.probes:
            say(f"left out {run.record.folder}: {run.record.fault}")
    groups, _ = by_backbone([run for run in runs if run.probes])
    sample_of = functools.lru_cache(maxsize=None)(sample_of)
    found: list[dict] = []
    for own in groups.values():
        pretrained = [run for run in own if run.record.trainer == PRETRAINED]
        beside = _Beside(sample_of, k, seed, device)
        for run in own:
            if run.record.trainer == PRETRAINED or (tuned and run.record.dataset not in tuned):
                continue
            reference = reference_of(run, pretrained) if pretrained else None
            shared = _others(run, reference, datasets)
            fault = _fault(run, reference, shared)
            if reference is None or fault:
                say(f"left out {run.record.folder}: {fault}")
                continue
            delta = changes(run.probes, reference.probes, shared)["delta"]
            found.append({**_said(run, len(shared)), "delta": delta, **beside.means(run, shared)})
            values = ", ".join(f"{SWEPT[m]} {found[-1][m]:.3f}" for m in SWEPT)
            say(f"{run.record.folder}: Δ_LP {delta:+.2f}, {values}")
    if not found:
        raise BadValue(
            f"{output} has no run that was tuned end to end and probed on {split}, with its "
            "training and the probes of the pre-trained backbone; scripts/forgetting.sh makes such"
        )
    return found


def _others(
    run: ProbedRun, reference: ProbedRun | None, datasets: Sequence[str]
) -> tuple[str, ...]:
    """The datasets that both were probed on and the run was not tuned on."""
    both = [] if reference is None else [d for d in reference.probes if d in run.probes]
    return tuple(d for d in both if d != run.record.dataset and (not datasets or d in datasets))


def _fault(run: ProbedRun, reference: ProbedRun | None, shared: Sequence[str]) -> str:
    """Why a run cannot be measured; empty if it can."""
    if reference is None:
        return "nothing is pre-trained there"
    if not osp.isdir(run.training):
        return f"its training is not in {run.training}"
    return "" if shared else "no other dataset was probed"


def _said(run: ProbedRun, count: int) -> dict:
    record = run.record
    return {
        "folder": record.folder,
        "dataset": record.dataset,
        "name": record.trainer,
        "seed": record.seed,
        "datasets": count,
    }


class _Beside:
    """Runs of one backbone beside it as it was pre-trained, which encodes each dataset once."""

    def __init__(self, sample_of: Callable[[str], Sample], k: int, seed: int, device: str) -> None:
        self._sample_of, self._k, self._seed, self._device = sample_of, k, seed, device
        self._base: Any = None
        self._frozen: dict[str, Encoded] = {}

    def means(self, run: ProbedRun, datasets: Sequence[str]) -> dict[str, float]:
        """The measures of a run, means over datasets."""
        self._base = self._base or pretrained_of(run.training, self._device)
        alpha = run.weight if run.symbol == ALPHA and run.weight is not None else 1.0
        model = load_encoder(run.training, self._device, alpha=alpha)
        rows = [self._one(model, dataset) for dataset in datasets]
        return {name: statistics.fmean(getattr(row, name) for row in rows) for name in SWEPT}

    def _one(self, model: Any, dataset: str) -> Comparison:
        sample = self._sample_of(dataset)
        if dataset not in self._frozen:
            self._frozen[dataset] = encode(self._base, sample)
        before, after = self._frozen[dataset], encode(model, sample)
        return compare(dataset, before, after, sample.labels, k=self._k, seed=self._seed)
