"""The runner behind the scripts: jobs are data, complete ones are skipped, failures are told.

A job is one call of ``train.main`` with an output folder; it is complete when that folder holds a
``result.json``. Jobs that build on another one (evaluation of new classes on the trained prompt)
run after it. What was interrupted goes on from its last checkpoint when the same command runs
again, and failures are told at the end.
"""

from __future__ import annotations

import argparse
import concurrent.futures as futures
import contextlib
import io
import multiprocessing
import os
import os.path as osp
import shlex
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field

import yaml
from tqdm import tqdm

ROOT = osp.dirname(osp.dirname(osp.abspath(__file__)))
sys.path.insert(0, ROOT)

from proxyfda.errors import is_told, sentence, tell_mistakes
from proxyfda.results import is_zero_shot, plain_trainer

CONFIGS = osp.join(ROOT, "configs")


@dataclass
class Job:
    """One call of train.py.

    Attributes:
        name: what the progress display and messages call it.
        folder: its output folder.
        flags: command line of train.py without ``--output-dir``.
        after: folder of the job whose checkpoint it evaluates, or empty.
    """

    name: str
    folder: str
    flags: list[str] = field(default_factory=list)
    after: str = ""

    @property
    def complete(self) -> bool:
        """Whether the result is there (a folder alone says nothing)."""
        return osp.isfile(osp.join(self.folder, "result.json"))

    @property
    def argv(self) -> list[str]:
        """The command line of train.py."""
        return ["--output-dir", self.folder, *self.flags]


def default_config(trainer: str, dataset: str) -> str:
    """Name of the config that the scripts take where none is given.

    The published settings for base-to-new on real data (ViT-B/16; fewer epochs on ImageNet), and
    ``bundled`` on the bundled datasets.
    """
    if dataset.startswith("bundled"):
        return "bundled"
    with open(osp.join(CONFIGS, "base2new.yaml")) as file:
        names = yaml.safe_load(file)
    choice = names.get(trainer) or names.get(plain_trainer(trainer)[1])
    if choice is None:
        raise ValueError(f"no default config for trainer {trainer!r}; name one with --cfg or CFG=")
    return choice.get(dataset, choice["*"])


def find_config(trainer: str, cfg: str) -> str:
    """Path of ``configs/trainers/<trainer>/<cfg>.yaml``, or of the same for its host."""
    # Zero-shot runs take CoOp's preprocessing and backbone, as upstream's scripts do.
    host = "CoOp" if is_zero_shot(trainer) else plain_trainer(trainer)[1]
    names = dict.fromkeys([trainer, host])
    folders = sorted(os.listdir(osp.join(CONFIGS, "trainers")))
    if not set(names) & set(folders):
        raise ValueError(f"no configs for trainer {trainer!r}; there are {', '.join(folders)}")
    tried = [osp.join(CONFIGS, "trainers", name, f"{cfg}.yaml") for name in names]
    for path in tried:
        if osp.isfile(path):
            return path
    raise FileNotFoundError(
        f"no config {cfg!r} for trainer {trainer!r} (looked for "
        f"{' and '.join(osp.relpath(path) for path in tried)}); "
        "name one of that folder with --cfg or CFG="
    )


def bundled_datasets() -> list[str]:
    """Names of the bundled datasets' configs."""
    names = sorted(os.listdir(osp.join(CONFIGS, "datasets")))
    return [name[: -len(".yaml")] for name in names if name.startswith("bundled_")]


def dataset_config(dataset: str) -> str:
    """Path of ``configs/datasets/<dataset>.yaml``, or of a YAML file given as it is."""
    if osp.isfile(dataset) and dataset.endswith((".yaml", ".yml")):
        return osp.abspath(dataset)
    path = osp.join(CONFIGS, "datasets", f"{dataset}.yaml")
    if not osp.isfile(path):
        known = sorted(f[:-5] for f in os.listdir(osp.dirname(path)) if f.endswith(".yaml"))
        raise FileNotFoundError(
            f"no dataset {dataset!r}; use one of {', '.join(known)}, or a YAML file of yours"
        )
    return path


def base2new_jobs(
    trainer: str,
    dataset: str,
    seed: int,
    *,
    shots: int = 16,
    cfg: str = "",
    data: str,
    output: str,
    opts: list[str] | None = None,
    label: str = "",
    split: str = "test",
) -> list[Job]:
    """Train on the base classes and test on them, then test on the new classes.

    Args:
        label: name of the config folder in the output, where ``opts`` make it differ from ``cfg``.
        split: split to evaluate on; ``val`` for choosing settings.
    """
    cfg = cfg or default_config(trainer, dataset)
    dataset_file = dataset_config(dataset)
    dataset = osp.splitext(osp.basename(dataset_file))[0]
    config_file = find_config(trainer, cfg)
    tail = osp.join(dataset, f"shots_{shots}", trainer, label or cfg, f"seed{seed}")
    name = f"{trainer} {dataset} seed {seed}" + (f" ({label})" if label else "")
    flags = ["--root", data, "--seed", str(seed), "--trainer", trainer]
    flags += ["--dataset-config-file", dataset_file, "--config-file", config_file]

    def job(part: str, classes: str, *words: str, k: int = shots, after: str = "") -> Job:
        rest = ["DATASET.NUM_SHOTS", str(k), "TEST.SPLIT", split, *(opts or [])]
        rest += ["DATASET.SUBSAMPLE_CLASSES", classes]
        folder = osp.join(output, "base2new", part, tail)
        return Job(f"{name}, {part}", folder, [*flags, *words, *rest], after)

    if split == "val":
        # Few-shot sampling cuts the validation split to min(shots, 4) images per class, too few to
        # choose by: train first, then evaluate both halves on the whole of it.
        train = [] if is_zero_shot(trainer) else [job("train", "base")]
        source = ["--model-dir", train[0].folder] if train else []
        after = train[0].folder if train else ""
        return train + [
            job(part, classes, "--eval-only", *source, k=-1, after=after)
            for part, classes in (("train_base", "base"), ("test_new", "new"))
        ]
    if is_zero_shot(trainer):
        return [
            job("train_base", "base", "--eval-only"),
            job("test_new", "new", "--eval-only"),
        ]
    base = job("train_base", "base")
    new = job("test_new", "new", "--eval-only", "--model-dir", base.folder, after=base.folder)
    return [base, new]


@contextlib.contextmanager
def _own_streams(quiet: bool):
    # The logger of a run replaces sys.stdout: give the next job a fresh one.
    before = sys.stdout, sys.stderr
    try:
        if quiet:
            sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
        yield
    finally:
        sys.stdout, sys.stderr = before


def run_job(job: Job, quiet: bool) -> str:
    """Run a job in this process; gives an empty string, or what went wrong in one line."""
    import train

    try:
        with _own_streams(quiet):
            train.main(train.parser().parse_args(job.argv))
    except SystemExit as error:
        return f"wrong options for train.py (exit code {error.code})"
    except Exception as error:
        if is_told(error):
            return sentence(error)
        path = osp.join(job.folder, "error.txt")
        os.makedirs(job.folder, exist_ok=True)
        with open(path, "w") as file:
            traceback.print_exc(file=file)
        return f"{type(error).__name__}: {error} (see {path})"
    return "" if job.complete else "it ended without a result.json (TEST.NO_TEST?)"


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _start_worker(threads: int) -> None:
    # Ctrl-C is the parent's to handle; a parent that was killed cannot, so look after it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    import torch

    # The thread count is part of what a number depends on.
    torch.set_num_threads(threads)


def run(jobs: list[Job], *, workers: int = 1, dry_run: bool = False) -> int:
    """Run jobs; returns the exit code.

    With one worker the jobs run here and print as train.py does; with several each has a process of
    its own with one thread, and a progress bar shows how many are done.
    """
    done = [job for job in jobs if job.complete]
    todo = [job for job in jobs if not job.complete]
    if dry_run:
        for job in jobs:
            print(f"{'complete' if job.complete else 'to run'}: {job.name}")
            print("    python train.py " + shlex.join(job.argv))
        return 0
    failed: list[tuple[Job, str]] = []
    if done:
        print(f"{len(done)} of {len(jobs)} jobs are complete already")
        failed += [(job, why) for job in done if (why := _of_another_config(job))]
    if workers == 1:
        for job in todo:
            print(f"== {job.name}")
            why = _blocked(job, failed) or run_job(job, quiet=False)
            if why:
                failed.append((job, why))
    else:
        _run_parallel(todo, workers, failed)
    for job, why in failed:
        print(f"error: {job.name}: {why}", file=sys.stderr)
    if failed:
        print(
            f"error: {len(failed)} of {len(jobs)} jobs failed; the same command runs them again",
            file=sys.stderr,
        )
    return 1 if failed else 0


def _of_another_config(job: Job) -> str:
    import train

    try:
        train.check_output(train.parser().parse_args(job.argv))
    except FileExistsError as error:
        return sentence(error)
    return ""


def _blocked(job: Job, failed: list[tuple[Job, str]]) -> str:
    if job.after and any(other.folder == job.after for other, _ in failed):
        return "the training that it evaluates failed"
    return ""


def _run_parallel(todo: list[Job], workers: int, failed: list[tuple[Job, str]]) -> None:
    context = multiprocessing.get_context("spawn")
    pool = futures.ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(1,)
    )
    waiting = list(todo)
    running: dict[futures.Future, Job] = {}
    unfinished = {job.folder for job in todo}
    with tqdm(total=len(todo), unit="job", smoothing=0.1, dynamic_ncols=True) as bar:
        try:
            while waiting or running:
                for job in list(waiting):
                    if len(running) >= workers:
                        break
                    why = _blocked(job, failed)
                    if not why and job.after in unfinished:
                        continue
                    waiting.remove(job)
                    if why:
                        failed.append((job, why))
                        unfinished.discard(job.folder)
                        bar.update()
                        continue
                    running[pool.submit(run_job, job, True)] = job
                if not running:
                    continue
                bar.set_postfix_str(next(iter(running.values())).name, refresh=False)
                ready, _ = futures.wait(running, timeout=1.0, return_when=futures.FIRST_COMPLETED)
                for future in ready:
                    job = running.pop(future)
                    unfinished.discard(job.folder)
                    why = future.result()
                    if why:
                        failed.append((job, why))
                    bar.update()
        except BaseException:
            for process in list(pool._processes.values()):
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    pool.shutdown()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trainers", help="trainer, or several joined by commas")
    parser.add_argument(
        "datasets", help="dataset, or several joined by commas; bundled: all of those"
    )
    parser.add_argument("seeds", help="seed, or several joined by commas")
    parser.add_argument(
        "rest",
        nargs="*",
        metavar="[shots] [KEY VALUE ...]",
        help="images per class (default 16); config options",
    )
    parser.add_argument(
        "--data", default=os.environ.get("DATA", ""), help="folder of the datasets (or DATA=)"
    )
    parser.add_argument(
        "--output", default=os.environ.get("OUTPUT", "output"), help="results (or OUTPUT=)"
    )
    parser.add_argument("--cfg", default=os.environ.get("CFG", ""), help="config name (or CFG=)")
    parser.add_argument("--workers", type=int, default=1, help="jobs at a time")
    parser.add_argument("--dry-run", action="store_true", help="say what would run")
    args, unknown = parser.parse_known_args()
    opts = args.rest + unknown
    shots = 16
    if opts and opts[0].lstrip("-").isdigit():
        shots, opts = int(opts[0]), opts[1:]
    if shots < 1:
        raise ValueError(f"SHOTS is {shots}; use at least 1 image per class")
    if not args.data:
        raise ValueError(
            "the folder of the datasets is not given; use DATA=/path/to/datasets or --data"
        )
    for option in opts:
        if option.startswith("-") and not _is_number(option):
            raise ValueError(
                f"{option!r} is no option of this script; try --help, or KEY VALUE pairs"
            )
    try:
        seeds = [int(seed) for seed in args.seeds.split(",")]
    except ValueError:
        raise ValueError(
            f"SEED is {args.seeds!r}; give a whole number, or several joined by commas"
        ) from None
    data, output = osp.abspath(osp.expanduser(args.data)), osp.abspath(osp.expanduser(args.output))
    if args.workers < 1:
        raise ValueError(f"--workers is {args.workers}; use at least 1")
    # Zero-shot CLIP does not depend on the seed: one run of it stands for all.
    jobs = [
        job
        for seed in seeds
        for dataset in _datasets(args.datasets)
        for trainer in args.trainers.split(",")
        if seed == seeds[0] or not is_zero_shot(trainer)
        for job in base2new_jobs(
            trainer, dataset, seed, shots=shots, cfg=args.cfg, data=data, output=output, opts=opts
        )
    ]
    started = time.time()
    code = run(jobs, workers=args.workers, dry_run=args.dry_run)
    if not args.dry_run:
        print(f"results in {output} ({time.time() - started:.0f} s)")
    return code


def _datasets(words: str) -> list[str]:
    names = [bundled_datasets() if word == "bundled" else [word] for word in words.split(",")]
    return [name for group in names for name in group]


def _is_number(word: str) -> bool:
    with contextlib.suppress(ValueError):
        float(word)
        return True
    return False


if __name__ == "__main__":
    tell_mistakes()
    sys.exit(main())
