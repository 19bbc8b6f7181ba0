"""Measures of the runs of a sweep, beside what they have forgotten."""

from __future__ import annotations

import os.path as osp
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from proxyfda.diagnose.comparison import MEASURES, compare
from proxyfda.diagnose.encoders import encode, load_encoder, pretrained_of
from proxyfda.diagnose.samples import Encoded, Sample
from proxyfda.names import PRETRAINED
from proxyfda.results.forgetting import changes
from proxyfda.results.probes import ALPHA, by_backbone, read_probes, reference_of
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
    runs = [r for r in runs if r.probes]
    groups, _ = by_backbone(runs)
    found: list[dict] = []
    samples: dict[str, Sample] = {}
    for own in groups.values():
        pretrained = [r for r in own if r.record.trainer == PRETRAINED]
        frozen: dict[str, Encoded] = {}
        base = None
        for run in own:
            if run.record.trainer == PRETRAINED:
                continue
            reference = reference_of(run, pretrained) if pretrained else None
            if not osp.isdir(run.training) or reference is None:
                why = f"its training is not in {run.training}"
                why = why if reference else "nothing is pre-trained there"
                say(f"left out {run.record.folder}: {why}")
                continue
            others = [d for d in reference.probes if d in run.probes and d != run.record.dataset]
            others = [d for d in others if not datasets or d in datasets]
            if not others:
                say(f"left out {run.record.folder}: no other dataset was probed")
                continue
            base = base or pretrained_of(run.training, device)
            alpha = run.weight if run.symbol == ALPHA else 1.0
            tuned = load_encoder(run.training, device, alpha=alpha)
            rows = []
            for dataset in others:
                if dataset not in samples:
                    samples[dataset] = sample_of(dataset)
                sample = samples[dataset]
                if dataset not in frozen:
                    frozen[dataset] = encode(base, sample)
                made = encode(tuned, sample)
                rows.append(compare(dataset, frozen[dataset], made, sample.labels, k=k, seed=seed))
            point = {
                "folder": run.record.folder,
                "dataset": run.record.dataset,
                "name": run.record.trainer,
                "seed": run.record.seed,
                "datasets": len(others),
                "delta": changes(run.probes, reference.probes, others)["delta"],
            }
            for measure in SWEPT:
                point[measure] = statistics.fmean(getattr(row, measure) for row in rows)
            found.append(point)
            values = ", ".join(f"{SWEPT[m]} {point[m]:.3f}" for m in SWEPT)
            say(f"{run.record.folder}: Δ_LP {point['delta']:+.2f}, {values}")
    if not found:
        raise BadValue(
            f"{output} has no run that was tuned end to end and probed on {split}, with its "
            "training and the probes of the pre-trained backbone; scripts/forgetting.sh makes such"
        )
    return found
