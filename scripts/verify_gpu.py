"""Checks of everything on this machine's GPUs against the CPU, in ten minutes; one report.

    bash scripts/verify_gpu.sh
    bash scripts/verify_gpu.sh --only trainers,runs --output report.md

Every row says what was looked at, what was expected, what was found, and ``pass``, ``fail`` or
``not applicable`` with the reason. The report is Markdown, with the same as JSON beside it. A check
that breaks is a row that failed, and the others go on; each section has a budget, and what it left
no time for is a row that says so. Ctrl-C leaves a report of what there is. The exit code is 1 if a
check failed. ``--device cpu`` runs the same checks at tiny sizes, to see that they work: what needs
a GPU is not applicable there, and times, memory and kernels have stand-ins that are marked.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import os.path as osp
import platform
import sys

ROOT = osp.dirname(osp.dirname(osp.abspath(__file__)))
sys.path[:0] = [folder for folder in (ROOT, osp.join(ROOT, "scripts")) if folder not in sys.path]

from proxyfda.utils.errors import AlreadyExists, BadValue, Unusable, show_user_errors
from proxyfda.utils.suggest import did_you_mean
from proxyfda.utils.words import listed

BUDGETS = {
    "trainers": 150,
    "regularisers": 60,
    "runs": 80,
    "processes": 70,
    "steps": 60,
    "launches": 60,
    "compile": 60,
    "overhead": 60,
}
"""Section -> seconds; ten minutes in all, unless ``--minutes`` says otherwise."""
MINUTES = 10
TITLES = {
    "trainers": "every trainer, in every precision, against the CPU",
    "regularisers": "every regulariser, in every precision, against the CPU",
    "runs": "two runs equal, and a resumed one",
    "processes": "several processes, one and several GPUs, DataParallel and DDP",
    "steps": "time and memory of a step beside the bare encoders",
    "launches": "kernels of a step, and waits for the device",
    "compile": "torch.compile",
    "overhead": "what FDA and Proxy-FDA add to a step",
}


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    args = _parse(argv)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own lines
    import torch

    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # what is reused asks for a GPU by itself
        torch.set_num_threads(1)
    elif not torch.cuda.is_available():
        raise Unusable(
            f"there is no GPU: torch {torch.__version__} (CUDA {torch.version.cuda}) finds none; "
            "run this on a machine with one, or give --device cpu to try the checks themselves"
        )
    from verify import report, running, subjects

    device = torch.device(args.device)
    written = report.Report(_machine(device))
    written.write(args.output)  # without a row, to find out now whether it can be
    kit = subjects.Kit(device, subjects.Sizes() if device.type == "cuda" else subjects.TINY)
    try:
        running.run(
            _sections(kit, args.only, args.minutes), written, lambda: written.write(args.output)
        )
    finally:
        kit.close()
        print(f"{written.summary()}: {args.output}", flush=True)
    return 1 if written.failed else 0


def _sections(kit, only: list[str], minutes: float) -> list:
    from verify import agreement, parallel, runs, speed
    from verify.running import Section

    checks = {
        "trainers": agreement.of_trainers,
        "regularisers": agreement.of_regularisers,
        "runs": runs.of_runs,
        "processes": parallel.of_processes,
        "steps": speed.of_steps,
        "launches": speed.of_launches,
        "compile": speed.of_compile,
        "overhead": speed.of_overhead,
    }
    return [
        Section(name, BUDGETS[name] * minutes / MINUTES, lambda make=checks[name]: make(kit))
        for name in BUDGETS
        if name in only
    ]


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="verify_gpu.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="sections:\n" + "\n".join(f"  {name}: {text}" for name, text in TITLES.items()),
    )
    add = parser.add_argument
    add("--device", default="cuda", choices=("cuda", "cpu"), help="default: cuda")
    add("--only", default="", metavar="SECTIONS", help="joined by commas (default: all)")
    add("--minutes", type=float, default=MINUTES, help=f"for everything (default: {MINUTES})")
    add("--output", default="", metavar="REPORT.md",
        help="the report (default: verify_gpu-<device>-<time>.md here)")  # fmt: skip
    args = parser.parse_args(argv)
    args.only = listed(args.only) or list(BUDGETS)
    for name in args.only:
        if name not in BUDGETS:
            raise BadValue(
                f"--only is {name!r}{did_you_mean(name, BUDGETS)}; use any of {', '.join(BUDGETS)}"
            )
    if not 0 < args.minutes < math.inf:
        raise BadValue(f"--minutes is {args.minutes:g}; use a number above 0")
    now = datetime.datetime.now().strftime("%Y-%m-%d-%H-%M-%S")
    args.output = args.output or f"verify_gpu-{args.device}-{now}.md"
    if not args.output.endswith(".md"):
        raise BadValue(f"--output is {args.output}; the report is Markdown, so use a name.md")
    for path in (args.output, osp.splitext(args.output)[0] + ".json"):
        if osp.exists(path):
            raise AlreadyExists(f"{path} is there already; give another --output")
    return args


def _machine(device) -> dict[str, str]:
    import torch

    found = {
        "date": datetime.date.today().isoformat(),
        "system": f"{platform.platform()}, Python {platform.python_version()}",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}",
    }
    if device.type != "cuda":
        return {
            "device": "CPU (a trial of the checks; no GPU was seen)",
            **found,
            "threads": str(torch.get_num_threads()),
        }
    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    names = [f"{c.name}, {c.total_memory / 2**30:.0f} GiB, {c.major}.{c.minor}" for c in cards]
    return {
        "device": "; ".join(names),
        **found,
        "cuDNN": str(torch.backends.cudnn.version()),
        "threads": str(torch.get_num_threads()),
    }


if __name__ == "__main__":
    show_user_errors()
    sys.exit(main())
