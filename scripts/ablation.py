"""The ablation behind docs/ablation.md: ``python scripts/ablation.py STUDY ... --data DATA``.

Every setting is trained on the base classes of the bundled datasets with three seeds and measured
on the validation split of base and new classes; the test split is not touched. A study is a list of
settings; all are compared, dataset by dataset and seed by seed, with plain CoOp on random batches.
"""

from __future__ import annotations

import argparse
import json
import math
import os.path as osp
import statistics
import sys
from dataclasses import dataclass

import jobs
from tabulate import tabulate

from proxyfda.errors import tell_mistakes
from proxyfda.metrics import harmonic_mean

HOST = {"M": 0, "N": 0, "MINING": False}
BALANCED = {"M": 16, "N": 4, "MINING": False}
MINED = {"M": 16, "N": 4, "MINING": True}
DEFAULT = {"FORM": "regress", "SPACES": ("text", "cross"), "WEIGHT": 1.0, "K": 8}
PAPER = {"FORM": "paper", "SPACES": ("cross",), "WEIGHT": 1.0, "K": 8}
FORMS = ("paper", "standardised", "match", "kl", "regress", "correlation")
SPACES = {"text": ("text",), "cross": ("cross",), "text+cross": ("text", "cross")}


@dataclass(frozen=True)
class Setting:
    """A trainer with options of ``TRAINER.PROXYFDA``; ``label`` is its config folder."""

    label: str
    trainer: str
    options: tuple = ()

    @property
    def opts(self) -> list[str]:
        """Trailing options of train.py."""
        return [
            word for key, value in self.options for word in (f"TRAINER.PROXYFDA.{key}", str(value))
        ]


def setting(label: str, trainer: str = "FDACoOp", batches: dict = HOST, **options) -> Setting:
    """A setting from keyword options, in the trainer's own batches unless said otherwise."""
    return Setting(label, trainer, tuple({**batches, **options}.items()))


PLAIN = Setting("plain", "CoOp")
ZERO_SHOT = Setting("zero-shot", "ZeroshotCLIP")


def studies() -> dict[str, list[Setting]]:
    """Study -> settings, beside zero-shot CLIP and plain CoOp."""
    return {
        "baselines": [
            setting("balanced", MODE="sampler", batches=BALANCED),
            setting("mined", MODE="sampler", batches=MINED),
            *(
                setting(f"pointwise-w{w:g}", MODE="pointwise", SPACES=("text",), WEIGHT=w)
                for w in (1.0, 3.0, 10.0, 30.0)
            ),
        ],
        "forms": [
            setting(f"{form}-{name}-w1", FORM=form, SPACES=SPACES[name], WEIGHT=1.0, K=3)
            for form in FORMS
            for name in ("text", "cross")
        ],
        "weights": [
            setting("paper-text-w10", FORM="paper", SPACES=("text",), WEIGHT=10.0, K=3),
            *(
                setting(f"{form}-{name}-w{w:g}", FORM=form, SPACES=SPACES[name], WEIGHT=w, K=3)
                for name, w in (("text", 3.0), ("text+cross", 1.0))
                for form in ("correlation", "regress", "kl")
            ),
        ],
        "neighbours": [
            setting(f"paper-cross-k{k}", FORM="paper", SPACES=("cross",), WEIGHT=1.0, K=k)
            for k in (1, 6)
        ],
        "confirm": [
            setting("pointwise-w1", MODE="pointwise", SPACES=("text",), WEIGHT=1.0),
            setting("pointwise-w10", MODE="pointwise", SPACES=("text",), WEIGHT=10.0),
            setting("paper-cross-w1", FORM="paper", SPACES=("cross",), WEIGHT=1.0, K=3),
            *(
                setting(f"{form}-{name}-w{w:g}", FORM=form, SPACES=SPACES[name], WEIGHT=w, K=3)
                for form, name, w in (
                    ("regress", "text+cross", 1.0),
                    ("kl", "text+cross", 1.0),
                    ("correlation", "text", 3.0),
                    ("regress", "text", 1.0),
                )
            ),
        ],
        "batches": [
            setting("balanced", MODE="sampler", batches=BALANCED),
            setting("mined", MODE="sampler", batches=MINED),
            setting("fda-balanced", batches=BALANCED, **DEFAULT),
            setting("proxy", "ProxyFDACoOp", **DEFAULT),
            setting("paper-preset", "ProxyFDACoOp", batches=MINED, **PAPER),
        ],
    }


class Runs:
    """Where the jobs of a setting are, and what they gave.

    Args:
        datasets, seeds: what every setting is run on.
        data, output: folders of the datasets and of the results.
    """

    def __init__(self, datasets: list[str], seeds: list[int], data: str, output: str) -> None:
        self.keys = [(dataset, seed) for dataset in datasets for seed in seeds]
        self.where = {"data": data, "output": output}

    def jobs(self, one: Setting, dataset: str, seed: int) -> list[jobs.Job]:
        """Training, and the evaluations of base and of new classes."""
        return jobs.base2new_jobs(
            one.trainer,
            dataset,
            seed,
            cfg="bundled",
            opts=one.opts,
            label=one.label,
            split="val",
            **self.where,
        )

    def measured(self, one: Setting) -> dict[tuple[str, int], tuple[float, float]]:
        """(dataset, seed) -> (base, new) accuracy, of what is complete."""
        found = {}
        for key in self.keys:
            *_, base, new = self.jobs(one, *key)
            if base.complete and new.complete:
                found[key] = (accuracy(base), accuracy(new))
        return found


def accuracy(job: jobs.Job) -> float:
    """Of a complete job, in percent."""
    with open(osp.join(job.folder, "result.json")) as file:
        return json.load(file)["accuracy"]


def _with_error(values: list[float]) -> str:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):+.1f} ± {error:.1f}"


def table(settings: list[Setting], runs: Runs) -> str:
    """Markdown: averages, and differences to plain CoOp, mean ± standard error over all runs."""
    plain = runs.measured(PLAIN)
    rows = []
    for one in settings:
        found = runs.measured(one)
        shared = sorted(set(found) & set(plain))
        if not shared:
            rows.append([one.label, *["missing"] * 6])
            continue
        base, new = (statistics.mean(found[key][i] for key in shared) for i in (0, 1))
        gaps = [[found[key][i] - plain[key][i] for key in shared] for i in (0, 1)]
        h_gaps = [harmonic_mean(*found[key]) - harmonic_mean(*plain[key]) for key in shared]
        note = "" if len(shared) == len(plain) else f" ({len(shared)} of {len(plain)} runs)"
        rows.append(
            [one.label + note, f"{base:.1f}", f"{new:.1f}", f"{harmonic_mean(base, new):.1f}"]
            + [_with_error(values) for values in (*gaps, h_gaps)]
        )
    headers = ["setting", "base", "new", "H", "base - CoOp", "new - CoOp", "H - CoOp"]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def main() -> int:
    """Run studies and print their tables."""
    known = studies()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("studies", nargs="+", choices=[*known, "all"], metavar="STUDY")
    parser.add_argument("--data", required=True, help="folder with the bundled datasets")
    parser.add_argument("--output", default="output/ablation", help="where the runs are kept")
    parser.add_argument("--datasets", default="", help="names joined by commas (default: bundled)")
    parser.add_argument("--seeds", default="1,2,3", help="joined by commas")
    parser.add_argument("--workers", type=int, default=2, help="jobs at a time")
    parser.add_argument(
        "--tables-only", action="store_true", help="print what is there, run nothing"
    )
    args = parser.parse_args()
    names = list(known) if "all" in args.studies else args.studies
    datasets = args.datasets.split(",") if args.datasets else jobs.bundled_datasets()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    runs = Runs(datasets, seeds, osp.abspath(args.data), osp.abspath(args.output))
    code = 0
    for name in names:
        settings = [ZERO_SHOT, PLAIN, *known[name]]
        if not args.tables_only:
            todo = [job for one in settings for key in runs.keys for job in runs.jobs(one, *key)]
            code |= jobs.run(todo, workers=args.workers)
        print(f"\n### {name}\n\n{table(settings, runs)}\n", flush=True)
    return code


if __name__ == "__main__":
    tell_mistakes()
    sys.exit(main())
