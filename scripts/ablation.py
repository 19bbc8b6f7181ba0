"""The ablation behind docs/ablation.md: ``python scripts/ablation.py STUDY ... --data DATA``.

Every setting is trained on the base classes of the bundled datasets with three seeds and measured
on the validation split of base and new classes; the test split is not touched. A study is a list of
settings; all are compared, dataset by dataset and seed by seed, with plain CoOp on random batches.
"""

from __future__ import annotations

import argparse
import math
import os.path as osp
import statistics
import sys
from dataclasses import dataclass

import jobs
from tabulate import tabulate

from proxyfda.errors import tell_mistakes
from proxyfda.metrics import harmonic_mean
from proxyfda.results import collect

HOST = {"M": 0, "N": 0, "MINING": False}
BALANCED = {"M": 16, "N": 4, "MINING": False}
MINED = {"M": 16, "N": 4, "MINING": True}
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


def _studies() -> dict[str, list[Setting]]:
    studies = {
        "baselines": [
            setting("balanced", MODE="sampler", batches=BALANCED),
            setting("mined", MODE="sampler", batches=MINED),
            *(
                setting(f"pointwise-w{w:g}", MODE="pointwise", SPACES=("text",), WEIGHT=w)
                for w in (1.0, 3.0, 10.0, 30.0, 100.0)
            ),
        ],
        "forms": [
            setting(f"{form}-{name}-w{w:g}", FORM=form, SPACES=spaces, WEIGHT=w, K=3)
            for form in FORMS
            for name, spaces in SPACES.items()
            for w in (1.0, 10.0)
        ],
    }
    return studies


def run(
    settings: list[Setting],
    datasets: list[str],
    seeds: list[int],
    data: str,
    output: str,
    workers: int,
) -> int:
    """Run what is missing of the settings; the exit code."""
    todo = [
        job
        for one in settings
        for dataset in datasets
        for seed in seeds
        for job in jobs.base2new_jobs(
            one.trainer,
            dataset,
            seed,
            cfg="bundled",
            data=data,
            output=output,
            opts=one.opts,
            label=one.label,
            split="val",
        )
    ]
    return jobs.run(todo, workers=workers)


def measured(output: str) -> dict[tuple[str, str], dict[tuple[str, int], tuple[float, float]]]:
    """(trainer, label) -> (dataset, seed) -> (base, new) on the validation split."""
    parts: dict = {}
    for record in collect(output, split="val"):
        if record.accuracy is not None:
            key = (record.trainer, record.config), (record.dataset, record.seed)
            parts.setdefault(key, {})[record.part] = record.accuracy
    found: dict = {}
    for (one, run), both in parts.items():
        if len(both) == 2:
            found.setdefault(one, {})[run] = (both["base"], both["new"])
    return found


def _with_error(values: list[float]) -> str:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):+.1f} ± {error:.1f}"


def table(settings: list[Setting], found: dict) -> str:
    """Markdown: averages, and differences to plain CoOp, mean ± standard error over all runs."""
    plain = found.get((PLAIN.trainer, PLAIN.label), {})
    rows = []
    for one in settings:
        runs = found.get((one.trainer, one.label), {})
        shared = sorted(set(runs) & set(plain))
        if not shared:
            rows.append([one.label, *["missing"] * 6])
            continue
        base, new = (statistics.mean(runs[key][i] for key in shared) for i in (0, 1))
        gaps = [[runs[key][i] - plain[key][i] for key in shared] for i in (0, 1)]
        h_gaps = [harmonic_mean(*runs[key]) - harmonic_mean(*plain[key]) for key in shared]
        note = "" if len(shared) == len(plain) else f" ({len(shared)} of {len(plain)} runs)"
        rows.append(
            [one.label + note, f"{base:.1f}", f"{new:.1f}", f"{harmonic_mean(base, new):.1f}"]
            + [_with_error(values) for values in (*gaps, h_gaps)]
        )
    headers = ["setting", "base", "new", "H", "base - CoOp", "new - CoOp", "H - CoOp"]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def main() -> int:
    """Run studies and print their tables."""
    studies = _studies()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("studies", nargs="+", choices=[*studies, "all"], metavar="STUDY")
    parser.add_argument("--data", required=True, help="folder with the bundled datasets")
    parser.add_argument("--output", default="output/ablation", help="where the runs are kept")
    parser.add_argument("--datasets", default="", help="names joined by commas (default: bundled)")
    parser.add_argument("--seeds", default="1,2,3", help="joined by commas")
    parser.add_argument("--workers", type=int, default=2, help="jobs at a time")
    parser.add_argument(
        "--tables-only", action="store_true", help="print what is there, run nothing"
    )
    args = parser.parse_args()
    names = list(studies) if "all" in args.studies else args.studies
    datasets = args.datasets.split(",") if args.datasets else jobs.bundled_datasets()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    data, output = osp.abspath(args.data), osp.abspath(args.output)
    code = 0
    for name in names:
        settings = [ZERO_SHOT, PLAIN, *studies[name]]
        if not args.tables_only:
            code |= run(settings, datasets, seeds, data, output, args.workers)
        print(f"\n### {name}\n\n{table(settings, measured(output))}\n")
    return code


if __name__ == "__main__":
    tell_mistakes()
    sys.exit(main())
