"""Captioning and visual question answering: what models that speak forget when they are tuned on
one family of images. The Python behind captioning.sh and vqa.sh.

METHODS are naive, L2SP, LDIFS, RKD, point-wise, FDA, Proxy-FDA, or FineTune+<regulariser>. Without
DATA the rendered families are used (banners, creatures, fruits, scenes, toys, stripes; banners are
tuned on, whose names the model does not know), and the bundled model without MODEL. DATA is a
folder in the official layout of COCO captions or VQAv2; its families are the supercategories, or
the types of answers.
"""

from __future__ import annotations

import argparse
import os
import os.path as osp
import signal
import subprocess
import sys

ROOT = osp.dirname(osp.dirname(osp.abspath(__file__)))
sys.path[:0] = [] if ROOT in sys.path else [ROOT]  # the scripts are started from anywhere

from proxyfda.experiments import launchers, layout, sweep
from proxyfda.experiments.jobs import Job
from proxyfda.experiments.project import Project
from proxyfda.experiments.strengths import strengths_of
from proxyfda.names import METHODS, PRETRAINED, finetune_run, method_title, split_run_name
from proxyfda.utils.errors import BadValue, show_user_errors
from proxyfda.utils.suggest import did_you_mean
from proxyfda.utils.words import listed, whole_numbers

PROJECT = Project(ROOT, entry="train")
ENTRY = "trainers.image_to_text.entry"
BUNDLED = "bundled"
DEFAULT = "default"
TUNED_ON = "banners"
LISTED = "naive,L2SP,LDIFS,RKD,point-wise,FDA,Proxy-FDA"
HELP = {
    "METHODS": f"joined by commas (default: {LISTED})",
    "SEEDS": "joined by commas (default: 1,2,3)",
    "LAMBDAS": "λ, joined by commas, each a run of its own (default: that of configs/finetune)",
    "TUNE_ON": f"family to tune on (default: {TUNED_ON} of the rendered ones)",
    "EVALUATE_ON": "families joined by commas (default: all)",
    "MODEL": "folder of transformers, or a name on the hub: GIT or BLIP (default: bundled)",
    "DATA": "folder in the layout of COCO captions or VQAv2 (default: bundled)",
    "OUTPUT": "folder of the results (default: output)",
    "WORKERS": "jobs at a time on each device (default: 1; bundled on the CPU: 2)",
    "DEVICES": "GPUs joined by commas, or cpu (default: all GPUs, else cpu)",
}
OPTIONS = {
    "EPOCHS": "(default: 3)",
    "BATCH_SIZE": "(default: 64)",
    "ACCUMULATE": "batches of one step (default: 1)",
    "LR": "learning rate (default: 2e-4 for the bundled model, 1e-5 for others)",
    "PRECISION": "fp32 or bf16 (default: fp32)",
    "TRAIN_SPLIT": "of the file names (default: train2017, or train2014 for VQAv2)",
    "TEST_SPLIT": "of the file names (default: val2017, or val2014 for VQAv2; rendered: test)",
    "KINDS": "of VQAv2: what families are, answer_type (default) or question_type",
    "LOADER_WORKERS": "processes that read the images that a run is tuned on (default: 0)",
    "LIMIT": "examples of a family at most (rendered: pictures of a class)",
}
"""Passed on to each run."""


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    args = _parse(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what runs ends with us
    devices = launchers.local_devices(args.devices)
    launchers.see_alone(devices, args.workers)
    jobs = _jobs(args)
    if args.dry_run:
        return sweep.run(jobs, dry_run=True)

    code = sweep.run(jobs, launch=launchers.on_devices(devices, args.workers, quiet=True))
    print(f"results in {args.output}", flush=True)
    if any(job.complete for job in jobs):
        command = [sys.executable, "-m", "proxyfda.results", args.output]
        subprocess.run([*command, "--protocol", args.protocol], cwd=ROOT, check=False)
    return code


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="image_to_text.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Each flag with a value can be given as an environment variable in capitals.",
    )
    parser.add_argument("protocol", choices=layout.IMAGE_TO_TEXT, metavar="captioning|vqa")
    for name, text in {**HELP, **OPTIONS}.items():
        flag = "--" + name.lower().replace("_", "-")
        parser.add_argument(flag, default=os.environ.get(name, ""), help=text)
    parser.add_argument("--dry-run", action="store_true", help="say what would run")
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        raise BadValue(f"{unknown[0]!r} is no option of {args.protocol}.sh; try --help")
    args.model, args.data = args.model or BUNDLED, args.data or BUNDLED
    args.seeds = whole_numbers("SEEDS", args.seeds or "1,2,3")
    on_cpu = args.devices == launchers.CPU or not args.devices
    default = min(2, os.cpu_count() or 1) if args.model == BUNDLED and on_cpu else 1
    (args.workers,) = whole_numbers("WORKERS", args.workers or str(default))[:1]
    if args.workers < 1:
        raise BadValue(f"WORKERS is {args.workers}; use at least 1")
    args.output = osp.abspath(osp.expanduser(args.output or "output"))
    for name in ("model", "data"):
        place = osp.expanduser(getattr(args, name))
        setattr(args, name, osp.abspath(place) if osp.isdir(place) else place)
    args.lr = args.lr or ("" if args.model == BUNDLED else "1e-5")
    args.runs = _runs(args.methods or LISTED)
    if args.model != BUNDLED:
        from trainers.image_to_text.models import ImageToText

        ImageToText.check_place(args.model, questions=args.protocol == "vqa")
    _take_families(args)
    return args


def _runs(words: str) -> list[str]:
    """Names of the runs of some methods.

    Raises:
        BadValue: a method that does not fit here.
    """
    runs = [finetune_run(word) for word in listed(words)]
    for run, word in zip(runs, listed(words)):
        if split_run_name(run)[0] != METHODS["naive"]:
            raise BadValue(f"{word} does not tune a model that speaks; use some of {LISTED}")
    return list(dict.fromkeys(runs))


def _take_families(args: argparse.Namespace) -> None:
    """The family to tune on, and those to ask about with it among them.

    Raises:
        BadValue: none is named where the data are no rendered ones, one that there is not, or
            none that could show what is forgotten.
    """
    known = _source(args).names
    args.tune_on = args.tune_on or (TUNED_ON if args.data == BUNDLED else "")
    if not args.tune_on:
        raise BadValue(
            f"the family to tune on is not given; name one of {', '.join(known)} in TUNE_ON "
            "(--tune-on)"
        )
    asked = [word.strip() for word in args.evaluate_on.split(",") if word.strip()] or known
    for family in [args.tune_on, *asked]:
        if family not in known:
            raise BadValue(
                f"there is no family {family!r}{did_you_mean(family, known)}; there are "
                f"{', '.join(known)}"
            )
    args.families = [args.tune_on, *(family for family in asked if family != args.tune_on)]
    if len(args.families) < 2:
        raise BadValue(
            f"only {args.tune_on} is asked about, and tuned on; name another family in EVALUATE_ON "
            "(--evaluate-on) that shows what is forgotten"
        )


def _source(args: argparse.Namespace):
    """The data.

    Raises:
        BadValue: an option of a run that is none.
        UserError: what is wrong with the data.
    """
    from trainers.image_to_text.data import source_of
    from trainers.image_to_text.entry import parser

    needed = ["--output-dir", "", "--method", "", "--evaluate-on", "", "--protocol", args.protocol]
    try:
        return source_of(parser().parse_args([*needed, *_passed_on(args)]))
    except argparse.ArgumentError as error:
        raise BadValue(f"{error}; see --help") from None


def _passed_on(args: argparse.Namespace) -> list[str]:
    words = ["--model", args.model, "--data", args.data]
    for name in OPTIONS:
        value = getattr(args, name.lower())
        words += ["--" + name.lower().replace("_", "-"), value] if value else []
    return words


def _jobs(args: argparse.Namespace) -> list[Job]:
    config = osp.basename(osp.normpath(args.model))
    jobs = [_job(args, PRETRAINED, "", config, 1)]
    for seed in args.seeds:
        for run in args.runs:
            found = strengths_of(run, PROJECT, [w for w in listed(args.lambdas) if w != DEFAULT])
            if not found:
                jobs.append(_job(args, run, args.tune_on, config, seed))
                continue
            values = (
                found.values if listed(args.lambdas) not in ([], [DEFAULT]) else [found.default]
            )
            for value in values:
                name = layout.config_name(config, [f"weight_{value}"])
                jobs.append(_job(args, run, args.tune_on, name, seed, ["--weight", value]))
    return jobs


def _job(args: argparse.Namespace, run: str, family: str, config: str, seed: int, more=()) -> Job:
    words = ["--protocol", args.protocol, "--method", run, "--seed", str(seed)]
    words += ["--tune-on", family, "--evaluate-on", ",".join(args.families), *more]
    return Job(
        f"{method_title(run)}{', λ ' + more[1] if more else ''}, seed {seed}",
        osp.join(args.output, layout.image_to_text(args.protocol, family, run, config, seed)),
        [*words, *_passed_on(args)],
        entry=ENTRY,
    )


if __name__ == "__main__":
    show_user_errors()
    sys.exit(main())
