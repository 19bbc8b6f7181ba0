"""The ablation behind docs/ablation.md: ``python scripts/ablation.py STUDY ... --data DATA``.

Every setting is trained on the base classes of the bundled datasets with three seeds and measured
on the validation split of base and new classes; the test split is not touched. A study is a host
trainer and a list of settings; all are compared, dataset by dataset and seed by seed, with the
plain host on random batches.
"""

from __future__ import annotations

import argparse
import math
import os.path as osp
import statistics
import sys
from dataclasses import dataclass

from tabulate import tabulate

ROOT = osp.dirname(osp.dirname(osp.abspath(__file__)))
sys.path[:0] = [] if ROOT in sys.path else [ROOT]  # it is started from anywhere

from counts import count, seeds

from proxyfda.experiments.jobs import Job
from proxyfda.experiments.project import Project
from proxyfda.experiments.protocols import base2new_jobs
from proxyfda.experiments.sweep import run
from proxyfda.results.metrics import harmonic_mean
from proxyfda.utils.errors import NotFound, show_user_errors

PROJECT = Project(ROOT, entry="train")
SPACES = ("image", "text", "cross")
BALANCED = {"M": 16, "N": 4}
MINED = {**BALANCED, "MINING": True}
# Name in the tables -> the regulariser, and the options that make it. The names are those of the
# runs behind docs/ablation.md.
FORMS = {
    "paper": ("fda", {}),
    "standardised": ("fda", {"UNITS": "frozen"}),
    "match": ("match", {}),
    "kl": ("kl", {}),
    "regress": ("rkd", {}),
    "correlation": ("correlation", {}),
}
WITH_PROXIES = {"fda": "proxy_fda", "rkd": "proxy_rkd"}


@dataclass(frozen=True)
class Setting:
    """A run with options of train.py; ``label`` is its config folder in the output."""

    label: str
    run: str
    options: tuple = ()

    @property
    def opts(self) -> list[str]:
        """Trailing options of train.py."""
        return [word for key, value in self.options for word in (key, str(value))]


@dataclass(frozen=True)
class Study:
    """Settings to compare with the plain ``host`` (its config ``bundled``) and zero-shot CLIP."""

    host: str
    settings: tuple[Setting, ...]

    @property
    def plain(self) -> Setting:
        """What the differences are taken to."""
        return Setting("plain", self.host)

    @property
    def rows(self) -> list[Setting]:
        """All settings of the table, the references first."""
        return [ZERO_SHOT, self.plain, *self.settings]


ZERO_SHOT = Setting("zero-shot", "ZeroshotCLIP")


def regularised(host: str, regulariser: str, label: str, **options) -> Setting:
    """The host with a regulariser, in its own batches unless M and N say otherwise."""
    pairs = tuple((f"TRAINER.PROXYFDA.{key}", value) for key, value in options.items())
    return Setting(label, f"{host}+{regulariser}", pairs)


def term(
    host: str,
    form: str,
    spaces: str,
    weight: float = 1.0,
    label: str = "",
    proxies: bool = False,
    **more,
) -> Setting:
    """One form of :data:`FORMS` on some spaces (joined by +) with λ ``weight``."""
    regulariser, options = FORMS[form]
    if proxies:
        regulariser = WITH_PROXIES[regulariser]
    words = {**options, "SPACES": tuple(spaces.split("+")), "WEIGHT": weight, **more}
    return regularised(host, regulariser, label or f"{form}-{spaces}-w{weight:g}", **words)


def pull(host: str, spaces: str, weight: float) -> Setting:
    """The point-wise pull to the frozen features."""
    words = {"SPACES": tuple(spaces.split("+")), "WEIGHT": weight}
    return regularised(host, "pointwise", f"pointwise-{spaces}-w{weight:g}", **words)


def samplers(host: str) -> list[Setting]:
    """The batches alone, without any term."""
    return [
        regularised(host, "none", "balanced", **BALANCED),
        regularised(host, "none", "mined", **MINED),
    ]


def coop() -> dict[str, list[Setting]]:
    """CoOp: the image encoder is frozen, relations of class texts and of images to them."""
    host, default = "CoOp", {"form": "regress", "spaces": "text+cross", "K": 8}
    return {
        "baselines": [*samplers(host), *(pull(host, "text", w) for w in (1, 3, 10, 30))],
        "forms": [term(host, form, space, K=3) for form in FORMS for space in ("text", "cross")],
        "weights": [
            term(host, "paper", "text", 10, K=3),
            *(
                term(host, form, spaces, w, K=3)
                for spaces, w in (("text", 3), ("text+cross", 1))
                for form in ("correlation", "regress", "kl")
            ),
        ],
        "neighbours": [
            term(host, "paper", "cross", K=k, label=f"paper-cross-k{k}") for k in (1, 6)
        ],
        "confirm": [
            pull(host, "text", 1),
            pull(host, "text", 10),
            term(host, "paper", "cross", K=3),
            term(host, "regress", "text+cross", K=3),
            term(host, "kl", "text+cross", K=3),
            term(host, "correlation", "text", 3, K=3),
            term(host, "regress", "text", K=3),
        ],
        "batches": [
            *samplers(host),
            term(host, label="fda-balanced", **default, **BALANCED),
            term(host, label="proxy", proxies=True, **default),
            term(host, "paper", "cross", label="paper-preset", proxies=True, K=8, **MINED),
        ],
    }


def schedule(host: str, batch: int, epochs: int, lr: float) -> Setting:
    """The plain trainer with another batch size, number of epochs and learning rate."""
    options = (
        ("DATALOADER.TRAIN_X.BATCH_SIZE", batch),
        ("OPTIM.MAX_EPOCH", epochs),
        ("OPTIM.LR", lr),
    )
    if host == "PromptSRC":  # the average over epochs stays at three quarters of the run
        options += (("TRAINER.PROMPTSRC.GPA_MEAN", 0.75 * epochs),)
        options += (("TRAINER.PROMPTSRC.GPA_STD", 0.05 * epochs),)
    return Setting(f"batch{batch}-ep{epochs}-lr{lr:g}", host, options)


def maple() -> dict[str, list[Setting]]:
    """MaPLe; without the term it has nothing against forgetting."""
    host = "MaPLe"
    return {
        "schedules": [
            schedule(host, 4, 5, 0.0035),  # upstream's
            schedule(host, 48, 5, 0.0035),
            *(schedule(host, 48, 30, lr) for lr in (0.0035, 0.012, 0.042)),
        ],
        "baselines": [
            *samplers(host),
            *(pull(host, "image", w) for w in (1, 3, 10)),
            *(pull(host, "image+text", w) for w in (1, 3, 10)),
        ],
        "spaces": [
            term(host, "regress", spaces)
            for spaces in [*SPACES, "image+text", "image+cross", "image+text+cross"]
        ],
        "forms": [term(host, form, "image") for form in FORMS if form != "regress"],
        "weights": [
            *(
                term(host, "regress", spaces, w)
                for w in (3, 10)
                for spaces in ("image", "cross", "image+text", "text+cross", "image+text+cross")
                if (spaces, w) != ("image+text", 10)
            ),
            term(host, "match", "image", 3),
            term(host, "kl", "image", 3),
        ],
        "confirm": [
            regularised(host, "none", "balanced", **BALANCED),
            pull(host, "image", 3),
            term(host, "regress", "image"),
            term(host, "regress", "image", label="proxy", proxies=True),
            term(host, "paper", "image", label="paper-preset", proxies=True, K=8, **MINED),
        ],
    }


def promptsrc() -> dict[str, list[Setting]]:
    """PromptSRC: the term on top of its own consistency terms."""
    host = "PromptSRC"
    return {
        "schedules": [
            schedule(host, 4, 20, 0.0025),  # upstream's
            *(schedule(host, 48, 20, lr) for lr in (0.0025, 0.009, 0.015, 0.03)),
            schedule(host, 48, 40, 0.005),
            schedule(host, 48, 60, 0.0025),
        ],
        "terms": [
            *samplers(host),
            pull(host, "image", 3),
            *(term(host, "regress", space) for space in SPACES),
            term(host, "regress", "image", 3),
            term(host, "match", "image"),
            term(host, "paper", "image"),
        ],
    }


def cocoop() -> dict[str, list[Setting]]:
    """CoCoOp: the image encoder is frozen, and every image has class texts of its own."""
    host = "CoCoOp"
    return {
        "schedules": [
            schedule(host, 1, 10, 0.002),  # upstream's
            schedule(host, 4, 10, 0.004),
            *(schedule(host, 48, 10, lr) for lr in (0.002, 0.014, 0.05, 0.1)),
        ],
    }


def studies() -> dict[str, Study]:
    """All studies by name, ``<host in small letters>-<study>``; those of CoOp without a host."""
    hosts = {"CoOp": coop(), "CoCoOp": cocoop(), "MaPLe": maple(), "PromptSRC": promptsrc()}
    return {
        name if host == "CoOp" else f"{host.lower()}-{name}": Study(host, tuple(settings))
        for host, named in hosts.items()
        for name, settings in named.items()
    }


class Runs:
    """Where the jobs of a setting are, and what they gave.

    Args:
        datasets, seeds: what every setting is run on.
        data, output: folders of the datasets and of the results.
    """

    def __init__(self, datasets: list[str], seeds: list[int], data: str, output: str) -> None:
        self.keys = [(dataset, seed) for dataset in datasets for seed in seeds]
        self.where = {"project": PROJECT, "data": data, "output": output}

    def jobs(self, one: Setting, dataset: str, seed: int) -> list[Job]:
        """Training, and the evaluations of base and of new classes."""
        return base2new_jobs(
            one.run,
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
                found[key] = (base.result["accuracy"], new.result["accuracy"])
        return found


def _with_error(values: list[float]) -> str:
    mean = f"{statistics.mean(values):+.1f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values) / math.sqrt(len(values)):.1f}"


def table(study: Study, runs: Runs) -> str:
    """Markdown: averages, and differences to the plain host, mean ± standard error over runs."""
    plain = runs.measured(study.plain)
    rows = []
    for one in study.rows:
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
    headers = ["setting", "base", "new", "H"]
    headers += [f"{name} - {study.host}" for name in ("base", "new", "H")]
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
    parser.add_argument("--seeds", type=seeds, default="1,2,3", help="joined by commas")
    parser.add_argument("--workers", type=count, default=2, help="jobs at a time")
    parser.add_argument(
        "--tables-only", action="store_true", help="print what is there, run nothing"
    )
    args = parser.parse_args()
    if not osp.isdir(args.data):
        raise NotFound(
            f"--data: there is no folder {args.data}; python -m datasets.bundled --root "
            f"{args.data} makes it"
        )
    names = list(known) if "all" in args.studies else args.studies
    datasets = args.datasets.split(",") if args.datasets else PROJECT.bundled_datasets
    runs = Runs(datasets, args.seeds, osp.abspath(args.data), osp.abspath(args.output))
    code = 0
    for name in names:
        study = known[name]
        if not args.tables_only:
            todo = [job for one in study.rows for key in runs.keys for job in runs.jobs(one, *key)]
            code |= run(todo, workers=args.workers)
        print(f"\n### {name}\n\n{table(study, runs)}\n", flush=True)
    return code


if __name__ == "__main__":
    show_user_errors()
    sys.exit(main())
