"""Run a protocol of the CoOp family: the Python behind the scripts of this folder.

TRAINER is a trainer, such as CoOp, FDACoOp and ProxyFDACoOp, or one with any other regulariser,
such as CoOp+rkd; several are joined by commas, and `all` are those of scripts/bundled.sh. METHOD
is a way of tuning end to end: naive, LP-FT, WiSE-FT, L2SP, LDIFS, RKD, FDA, Proxy-FDA (together
`all`), FLYP, or FineTune+<regulariser>; over a row of tasks also a trainer of prompts. What is
complete is skipped, what was interrupted goes on from its last checkpoint when the same command
runs again, and failures are reported at the end (exit code 1).
"""

from __future__ import annotations

import argparse
import math
import os
import os.path as osp
import re
import signal
import subprocess
import sys

ROOT = osp.dirname(osp.dirname(osp.abspath(__file__)))
sys.path[:0] = [] if ROOT in sys.path else [ROOT]  # the scripts are started from anywhere

from proxyfda.benchmarks import BENCHMARKS, SHIFTED, dataset_key
from proxyfda.experiments import launchers, protocols, sweep, time_left
from proxyfda.experiments.jobs import Job
from proxyfda.experiments.project import Project
from proxyfda.names import PREFIXES, REFERENCE, is_zero_shot, trainer_and_regulariser
from proxyfda.utils.errors import BadValue, show_user_errors
from proxyfda.utils.words import listed, whole_numbers

PROJECT = Project(ROOT, entry="train")

# What each protocol takes before the KEY VALUE pairs; words in brackets may be left out.
WORDS = {
    "base2new": "TRAINER DATASETS SEEDS [SHOTS]",
    "base2new_all": "TRAINER [SHOTS]",
    "reproduce": "[TRAINER] [SHOTS]",
    "select": "TRAINER DATASETS [SHOTS]",
    "fewshot": "TRAINER [DATASETS] [SHOTS]",
    "cross_dataset": "TRAINER [SHOTS]",
    "domain_generalization": "TRAINER [SHOTS]",
    "zeroshot": "[DATASETS]",
    "finetune": "METHOD DATASETS SEEDS",
    "forgetting": "",
    "continual": "METHOD ROW SEEDS",
}
END_TO_END = ("finetune", "forgetting", "continual")
REPRODUCED = "ZeroshotCLIP,CoOp,FDACoOp,ProxyFDACoOp,PromptSRC,FDAPromptSRC,ProxyFDAPromptSRC"
HELP = {
    "DATA": "folder of the datasets",
    "OUTPUT": "folder of the results (default: output)",
    "DATASETS": "joined by commas; bundled: nine of this repository, without downloads; of tuning "
    "end to end three others (default: the 11 benchmarks)",
    "SOURCE": "dataset to train on (default: imagenet)",
    "TARGETS": "datasets to test on, joined by commas (default: the other ten; the shifted ones; "
    "for a rendered source the others of its world)",
    "SEEDS": "joined by commas or spaces (default: 1,2,3)",
    "SHOTS": "images per class (default: 16; few-shot: 1,2,4,8,16)",
    "CFG": "config of the trainer (default: configs/defaults.yaml)",
    "REGULARISER": "what trainers train with whose names say nothing (none: the batches of "
    "TRAINER.PROXYFDA.M and N alone)",
    "OVERLAY": "config of configs/regularisers, or a YAML file such as select writes, on top of "
    "that of trainers with a regulariser",
    "LABEL": "name of the config's folder in the output, for runs with KEY VALUE options",
    "WORKERS": "jobs at a time on each device (default: 1)",
    "DEVICES": "GPUs joined by commas, or cpu (default: all GPUs, else cpu)",
    "LAUNCHER": "local, ray or slurm (default: local)",
}
# Options that say what a run of a protocol is; as KEY VALUE pairs they would contradict its folder.
OF_PROTOCOL = {
    "SEED": "give SEEDS (--seeds)",
    "OUTPUT_DIR": "give OUTPUT (--output)",
    "RESUME": "leave it out, what was interrupted goes on by itself",
    "TRAINER.NAME": "give TRAINER, the first word",
    "DATASET.NAME": "give DATASETS (--datasets)",
    "DATASET.NUM_SHOTS": "give SHOTS (--shots)",
    "DATASET.SUBSAMPLE_CLASSES": "leave it out",
    "TEST.NO_TEST": "leave it out, every run is evaluated",
}
# Of the protocol select alone.
HELP_SELECT = {
    "REGULARISERS": "to choose among, joined by commas (default: the trainer's own)",
    "SETTINGS": "YAML file with a list of settings: label, regulariser, options",
    "SPLITS": "splits of the base classes into a seen and an unseen half (default: 2)",
}
# Of the protocols that tune end to end.
HELP_FINETUNE = {
    "METHODS": "of forgetting: joined by commas (default: all)",
    "PROBES": "datasets to probe, joined by commas (default: the ten of LDIFS; for bundled ones "
    "those); of continual: the held-out ones",
    "LAMBDAS": "λ to choose from, joined by commas; one alone is taken as it is; grid: those of "
    "configs/finetune (default of forgetting); default: the one there (default of the others)",
    "ALPHAS": "α of WiSE-FT in the same way",
    "SELECT_SEEDS": "seeds to choose λ and α by (default: the first)",
    "ANCHOR": "of continual: what a task is held to, pretrained (default) or previous",
}
FLAGS_SELECT = {
    "--no-final": "choose, and leave the run with the choice on all base classes out",
    "--shared": "one choice for all datasets together, besides one for each",
    "--evaluate-all": "base2new with all settings, and how well halves predicted it",
}


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    args = _parse(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what runs ends with us
    if args.launcher == "local" and args.devices:
        launchers.see_alone(launchers.local_devices(args.devices), args.workers)
    if args.protocol == "reproduce":
        from reproducing import reproduce

        return reproduce(args, PROJECT, lambda: _prepared(args), main, _select_jobs)
    if args.protocol == "select":
        from selecting import select

        return select(args, PROJECT, lambda: _prepared(args))
    if args.protocol in END_TO_END:
        from finetuning import finetune

        return finetune(
            args, PROJECT, lambda: _prepared(args), lambda jobs: _show_results(args, jobs)
        )
    jobs = _jobs(args)
    if args.estimate:
        print(time_left.table(jobs, launchers.at_once(args.launcher, args.workers, args.devices)))
        return 0
    if not args.dry_run:
        _render_bundled(args)
    code = sweep.run(jobs, dry_run=args.dry_run, **({} if args.dry_run else _where(args)))
    if not args.dry_run:
        _show_results(args, jobs)
    return code


# -- the command line -----------------------------------------------------------------------------


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="run.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="protocols:\n"
        + "\n".join(f"  {name} {words} [KEY VALUE ...]" for name, words in WORDS.items())
        + "\n\nEach flag with a value can be given as an environment variable in capitals.",
    )
    parser.add_argument("protocol", choices=list(WORDS), metavar="PROTOCOL")
    parser.add_argument("words", nargs="*", metavar="WORD", help="see protocols, below")
    for name, text in HELP.items():
        parser.add_argument(f"--{name.lower()}", default=os.environ.get(name, ""), help=text)
    parser.add_argument(
        "--launcher-opt",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of ray: address, gpus, cpus (per job); of slurm: parameters of submitit's executor, "
        "such as slurm_partition=gpu timeout_min=600",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would run")
    parser.add_argument(
        "--no-cache",
        action="store_true",
        help="of frozen image features, keep none on the disk and read none",
    )
    _add_reproduce(parser)
    only = parser.add_argument_group("of the protocol select")
    only.add_argument(
        "--try",
        dest="tries",
        action="append",
        default=[],
        metavar="KEY=V1,V2,...",
        help="values of an option, in place of those of configs/select; several are combined",
    )
    for name, text in HELP_SELECT.items():
        only.add_argument(f"--{name.lower()}", default=os.environ.get(name, ""), help=text)
    for flag, text in FLAGS_SELECT.items():
        only.add_argument(flag, action="store_true", help=text)
    only = parser.add_argument_group("of the protocols finetune, forgetting and continual")
    for name, text in HELP_FINETUNE.items():
        only.add_argument(_flag(name), default=os.environ.get(name, ""), help=text)
    only.add_argument(
        "--skip-missing",
        action="store_true",
        help="go on without the datasets that are not there, naming them",
    )
    args, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        raise BadValue(
            f"{unknown[0]!r} is no option of this script; try --help, or KEY VALUE pairs"
        )
    _take_words(args)
    args.seeds = whole_numbers("SEED", args.seeds or "1,2,3")
    _take_finetune(args, argv)
    shots = {"fewshot": "1,2,4,8,16", **dict.fromkeys(END_TO_END, "")}.get(args.protocol, "16")
    # Tuning end to end takes all images where no number is given.
    args.shots = whole_numbers("SHOTS", args.shots or shots) if args.shots or shots else []
    (args.workers,) = whole_numbers("--workers", args.workers or "1")[:1]
    if min(args.seeds) < 0:
        raise BadValue(f"SEED is {min(args.seeds)}; use at least 0")
    for name, values in (("SHOTS", args.shots), ("--workers", [args.workers])):
        if values and min(values) < 1:
            raise BadValue(f"{name} is {min(values)}; use at least 1")
    if args.protocol != "fewshot" and len(args.shots) > 1:
        raise BadValue(f"SHOTS is {args.shots}; {args.protocol} takes one number")
    _take_reproduce(args)
    _take_select(args, argv)
    args.launcher = args.launcher or "local"
    if args.launcher not in ("local", "ray", "slurm"):
        raise BadValue(f"--launcher is {args.launcher!r}; use local, ray or slurm")
    if args.launcher_opt and args.launcher == "local":
        raise BadValue(
            f"--launcher-opt {args.launcher_opt[0]} is for ray and slurm; give --launcher, or leave"
            " it out"
        )
    _find_folders(args)
    return args


def _take_words(args: argparse.Namespace) -> None:
    """Sort the words of the command line into arguments of the protocol and KEY VALUE pairs."""
    words = list(args.words)
    args.trainer = "" if "TRAINER" in WORDS[args.protocol] else "ZeroshotCLIP"
    args.method = args.row = ""
    for place in WORDS[args.protocol].split():
        name, optional = place.strip("[]").lower(), place.startswith("[")
        given = words and not (optional and _is_key(words[0]))
        if given and optional and (name == "shots") != words[0].lstrip("-")[:1].isdigit():
            given = False
        if given:
            setattr(args, name, words.pop(0))
        elif not optional and not getattr(args, name):
            usage = f"{args.protocol}.sh {WORDS[args.protocol]} [KEY VALUE ...]"
            raise BadValue(f"{name.upper()} is not given; the usage is {usage}")
    if args.protocol == "reproduce" and not args.trainer:
        args.trainer = REPRODUCED
    if args.protocol not in END_TO_END:
        args.runs = _runs(args.trainer, args.regulariser)
    args.opts = words
    for key in words[::2]:
        if key in OF_PROTOCOL:
            raise BadValue(f"{key} is chosen by the protocol; {OF_PROTOCOL[key]}")
    if words and _is_key(words[0]) and len(words) % 2:
        raise BadValue(
            f"options come in pairs KEY VALUE, but there are {len(words)} words: {' '.join(words)}"
        )
    if words and not _is_key(words[0]):
        raise BadValue(
            f"{words[0]!r} is one word too many; the usage is {args.protocol}.sh "
            f"{WORDS[args.protocol]} [KEY VALUE ...]"
        )
    if args.no_cache:
        args.opts = [*words, "PROBE.CACHE", ""]


def _add_reproduce(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--estimate",
        action="store_true",
        help="say how much time is left for trainings and for evaluations, by those that are "
        "complete; of reproduce: what would run, and what it would cost",
    )
    only = parser.add_argument_group("of the protocol reproduce")
    only.add_argument(
        "--seconds-per-step",
        type=float,
        metavar="S",
        help="with --estimate, in place of steps measured here",
    )
    only.add_argument(
        "--no-select", action="store_true", help="the default settings, without choosing any"
    )


def _take_reproduce(args: argparse.Namespace) -> None:
    """Flags of the protocol reproduce, which no other one takes."""
    args.select = not args.no_select
    if args.protocol == "reproduce":
        if args.seconds_per_step is not None and not args.estimate:
            raise BadValue("--seconds-per-step is for --estimate; give both")
        if args.seconds_per_step is not None and not 0 < args.seconds_per_step < math.inf:
            raise BadValue(
                f"--seconds-per-step is {args.seconds_per_step:g}; use a finite number above 0"
            )
        if args.select and (args.overlay or args.label):
            raise BadValue("--overlay and --label take the place of a choice; add --no-select")
        return
    if args.estimate and args.protocol in ("select", *END_TO_END):
        raise BadValue(f"--estimate is not for {args.protocol}; leave it out, and see its progress")
    for flag in ("seconds_per_step", "no_select"):
        if getattr(args, flag):
            raise BadValue(f"--{flag.replace('_', '-')} is for reproduce; leave it out")


def _take_select(args: argparse.Namespace, argv: list[str] | None) -> None:
    """Flags of the protocol select, which no other one takes."""
    if args.protocol != "select":
        flags = ["--try", *(f"--{name.lower()}" for name in HELP_SELECT), *FLAGS_SELECT]
        for word in sys.argv[1:] if argv is None else argv:
            if word.partition("=")[0] in flags:
                raise BadValue(f"{word.partition('=')[0]} is for select; leave it out")
        return
    args.regularisers = listed(args.regularisers)
    (count,) = whole_numbers("--splits", args.splits or "2")[:1]
    if count < 1:
        raise BadValue(f"--splits is {count}; use at least 1")
    args.splits = list(range(1, count + 1))
    args.final = not args.no_final
    if args.no_final and args.evaluate_all:
        raise BadValue("--no-final and --evaluate-all contradict each other; leave one out")


def _take_finetune(args: argparse.Namespace, argv: list[str] | None) -> None:
    """Flags of the protocols that tune end to end, which no other one takes."""
    if args.protocol in END_TO_END:
        from finetuning import take

        args.select_seeds = whole_numbers("SELECT_SEEDS", args.select_seeds or str(args.seeds[0]))
        take(args, PROJECT)
        return
    flags = ["--skip-missing", *map(_flag, HELP_FINETUNE)]
    for word in sys.argv[1:] if argv is None else argv:
        if word.partition("=")[0] in flags:
            raise BadValue(f"{word.partition('=')[0]} is for tuning end to end; leave it out")


def _flag(name: str) -> str:
    return "--" + name.lower().replace("_", "-")


def _runs(words: str, regulariser: str) -> list[str]:
    """The runs to make: trainers, with ``+<regulariser>`` where their names do not say it."""
    runs: list[str] = []
    for word in listed(words):
        runs += _all_runs() if word == "all" else [word]
    if not runs:
        raise BadValue(f"TRAINER is {words!r}, which names none; give one, such as CoOp")
    if regulariser:
        plain = [run for run in runs if "+" not in run and not is_zero_shot(run)]
        runs = [f"{run}+{regulariser}" if run in plain else run for run in runs]
    for run in runs:
        trainer_and_regulariser(run)  # refuses what does not fit
    return list(dict.fromkeys(runs))


def _all_runs() -> list[str]:
    """Zero-shot CLIP, and every host plain, with FDA, with Proxy-FDA, and with the rivals."""
    runs = [REFERENCE]
    for host in PROJECT.hosts:
        runs += [host, *(prefix + host for prefix in PREFIXES), f"{host}+rkd", f"{host}+pointwise"]
    return runs


def _is_key(word: str) -> bool:
    """Whether a word looks like an option of the config, such as OPTIM.MAX_EPOCH."""
    return re.fullmatch(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*", word) is not None


def _find_folders(args: argparse.Namespace) -> None:
    """Datasets to run on, and absolute folders of data and output."""
    bundled = PROJECT.bundled_datasets
    if args.protocol not in END_TO_END:
        args.datasets = _names(args.datasets or ",".join(BENCHMARKS), bundled)
    args.source = _names(args.source or "imagenet", bundled)[0]
    if args.targets:
        args.targets = _names(args.targets, bundled)
    else:
        shifted = args.protocol == "domain_generalization"
        named = SHIFTED if shifted else BENCHMARKS
        args.targets = PROJECT.rendered_targets(args.source) or list(named)
    args.targets = [name for name in args.targets if name != args.source]
    moving = args.protocol in ("cross_dataset", "domain_generalization")
    args.used = [args.source, *args.targets] if moving else args.datasets
    if args.protocol in END_TO_END:
        args.used = [*args.datasets, *args.probes]
    if not args.data:
        if not set(args.used) <= set(PROJECT.rendered_datasets) and not args.estimate:
            raise BadValue(
                "the folder of the datasets is not given; use DATA=/path/to/datasets or --data"
            )
        args.data = osp.join(ROOT, "data")
    args.data = osp.abspath(osp.expanduser(args.data))
    args.output = osp.abspath(osp.expanduser(args.output or "output"))


def _names(words: str, bundled: list[str]) -> list[str]:
    names = [bundled if word == "bundled" else [word] for word in listed(words)]
    found = list(dict.fromkeys(name for group in names for name in group))
    if not found:
        raise BadValue(f"{words!r} names no dataset; give one, or several joined by commas")
    return found


# -- what to run, and where -----------------------------------------------------------------------


def _jobs(args: argparse.Namespace) -> list[Job]:
    keys = ("data", "output", "cfg", "overlay", "label", "opts")
    where = {"project": PROJECT, **{key: getattr(args, key) for key in keys}}
    jobs: dict[str, Job] = {}  # by folder: zero-shot CLIP does not depend on seed and shots
    for seed in args.seeds:
        for run in args.runs:
            if is_zero_shot(run) and seed != args.seeds[0]:
                continue
            for job in _jobs_of(args, run, seed, where):
                jobs.setdefault(job.folder, job)
    return list(jobs.values())


def _jobs_of(args: argparse.Namespace, run: str, seed: int, where: dict) -> list[Job]:
    if args.protocol in ("cross_dataset", "domain_generalization"):
        return protocols.transfer_jobs(
            run, args.source, args.targets, seed, shots=args.shots[0], **where
        )
    each = []
    for dataset in args.datasets:
        if args.protocol == "zeroshot":
            each += protocols.zeroshot_jobs(dataset, run=run, **where)
            continue
        make = protocols.fewshot_jobs if args.protocol == "fewshot" else protocols.base2new_jobs
        for shots in args.shots:
            each += make(run, dataset, seed, shots=shots, **where)
    return each


def _prepared(args: argparse.Namespace) -> dict:
    _render_bundled(args)
    return _where(args)


def _select_jobs(argv: list[str]) -> list[Job]:
    """The jobs of a command line of the protocol select, but for those with the choice."""
    from selecting import Search

    args = _parse(argv)
    return [job for run in args.runs for job in Search(args, PROJECT, run).jobs()]


def _where(args: argparse.Namespace) -> dict:
    """Keyword arguments of ``sweep.run`` for the launcher of the command line."""
    options = _launcher_options(args.launcher_opt)
    if args.launcher == "ray":
        return {"launch": lambda chains: launchers.on_ray(chains, options, [ROOT])}
    if args.launcher == "slurm":
        folder = osp.join(args.output, "slurm")
        return {"launch": lambda chains: launchers.on_slurm(chains, options, folder, [ROOT])}
    if options:
        raise BadValue(f"--launcher-opt {next(iter(options))} needs --launcher ray or slurm")
    devices = launchers.local_devices(args.devices)
    quiet = args.protocol not in ("base2new", "finetune")
    return {"launch": launchers.on_devices(devices, args.workers, quiet)}


def _launcher_options(pairs: list[str]) -> dict:
    options: dict[str, str | int | float] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise BadValue(f"--launcher-opt is {pair!r}; give KEY=VALUE")
        for kind in (int, float, str):
            try:
                options[key] = kind(value)
                break
            except ValueError:
                continue
    return options


def _render_bundled(args: argparse.Namespace) -> None:
    from datasets.bundled.build import SPLIT_FILE, render_all
    from proxyfda.results.targets import check_folder
    from proxyfda.utils.files import writing

    check_folder("OUTPUT (--output)", args.output)  # not job by job
    folders = [name for name in args.used if name in PROJECT.rendered_datasets]
    if not all(osp.isfile(osp.join(args.data, name, SPLIT_FILE)) for name in folders):
        check_folder("DATA (--data)", args.data)
        with writing(within=args.data):
            render_all(args.data, folders)


def _show_results(args: argparse.Namespace, jobs: list[Job]) -> None:
    print(f"results in {args.output}", flush=True)
    if not any(job.complete for job in jobs):
        return
    if args.protocol == "base2new":
        _show_base_to_new(args)
        return
    kind = {"base2new_all": "base2new", "forgetting": "finetune"}.get(args.protocol, args.protocol)
    if kind == "domain_generalization" and not set(args.targets) <= set(SHIFTED):
        kind = "cross_dataset"
    if kind not in ("base2new", *END_TO_END) and all(map(is_zero_shot, args.runs)):
        kind = "zeroshot"
    command = [sys.executable, "-m", "proxyfda.results", args.output, "--protocol", kind]
    subprocess.run(command, cwd=ROOT, check=False)


def _show_base_to_new(args: argparse.Namespace) -> None:
    """The table of what this command ran, and of zero-shot CLIP on the same datasets."""
    from proxyfda.results import collect, summarise, table

    datasets, names = {*map(dataset_key, args.datasets)}, {*args.runs, REFERENCE}
    records = [
        record
        for record in collect(args.output, required=False)
        if record.dataset in datasets
        and record.trainer in names
        and (record.shots in args.shots or is_zero_shot(record.trainer))
    ]
    print(f"\n{table(summarise(records))}", flush=True)


if __name__ == "__main__":
    show_user_errors()
    sys.exit(main())
