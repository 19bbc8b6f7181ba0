"""Time and memory of trainers, beside the bare cost of what cannot be avoided.

    python scripts/bench.py CoOp FDACoOp CoOp+rkd --classes 500 --batch 32

For each trainer: a training step, the evaluation of an image, and the peak memory of a step. Beside
them stand the bare costs, measured with the same encoders and nothing around them: forward and
backward pass of the class texts, forward pass of the images (and backward where prompts are in
them), the frozen forward pass where the trainer needs one; for evaluation the forward pass of the
images without prompts. With ``--grid S`` also a step of S settings of CoOp in one pass.

All trainers get the same random frozen encoders, the same images in memory and class-balanced
batches. For times everything takes turns within a process, so that the machine's moods hit all
alike: printed are medians over the rounds, and ratios are medians of the ratios within a round. The
class texts of an evaluation are encoded before it, once (those of CoCoOp belong to the images and
are part of it). Memory is what a step takes on top of model and batch, in a process of its own.

With ``--study`` it is the whole of scripts/base2new.sh instead, see scripts/bench_study.py.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import os
import os.path as osp
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

ROOT = osp.dirname(osp.dirname(osp.abspath(__file__)))
sys.path[:0] = [ROOT, osp.join(ROOT, "scripts")]

import open_clip
import torch
from bench_study import study
from counts import count
from tabulate import tabulate

import train
from proxyfda.backbones.clip import PRECISIONS, load_clip
from proxyfda.dassl import TRAINER_REGISTRY
from proxyfda.experiments.config import default_config, load_config
from proxyfda.names import trainer_and_regulariser
from proxyfda.utils.errors import BadValue, show_user_errors
from proxyfda.utils.suggest import did_you_mean
from trainers.cocoop import ConditionalCLIP
from trainers.coop_grid import CoOpGrid

BUNDLED = "ViT-Bundled"


class _Images(torch.utils.data.Dataset):
    """Random images, as many per class as a batch needs."""

    def __init__(self, classes: int, per_class: int, size: int) -> None:
        self.data_source = [
            SimpleNamespace(label=label, impath=f"{label}/{number}")
            for label in range(classes)
            for number in range(per_class)
        ]
        self.pixels = torch.randn(8, 3, size, size)

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, index: int) -> dict:
        label = self.data_source[index].label
        return {"img": self.pixels[index % 8], "label": label, "index": index}


def class_names(count: int) -> list[str]:
    """ImageNet's class names, as many as there are, then numbered ones."""
    names = list(open_clip.IMAGENET_CLASSNAMES[:count])
    return names + [f"{names[i % len(names)]} {i}" for i in range(len(names), count)]


def random_weights(backbone: str, folder: str) -> str:
    """A file with random weights of that backbone; the bundled one brings its own."""
    if backbone == BUNDLED:
        return "bundled"
    torch.manual_seed(0)
    known = open_clip.list_models()
    if backbone.replace("/", "-") not in known:
        raise BadValue(
            f"--backbone is {backbone!r}{did_you_mean(backbone, known)}; use {BUNDLED}, ViT-B/16 or"
            " another name of open_clip.list_models()"
        )
    model = open_clip.create_model(backbone.replace("/", "-"), pretrained=None)
    torch.save(model.state_dict(), osp.join(folder, "random.pt"))
    return osp.join(folder, "random.pt")


def image_size(backbone: str, weights: str) -> int:
    """Side of the images that a backbone takes."""
    with contextlib.redirect_stdout(io.StringIO()):
        size = load_clip(backbone, weights).visual.image_size
    return size[0] if isinstance(size, (tuple, list)) else size


def prompt_nodes() -> list[str]:
    """The config's nodes of trainers that learn prompts."""
    nodes = default_config().TRAINER
    return [name for name, node in nodes.items() if isinstance(node, dict) and "CTX_INIT" in node]


def on_memory(base: type, classes: int, per_class: int = 0) -> type:
    """A trainer class with images in memory, whatever the dataset of its config.

    Args:
        base: the trainer.
        classes: number of classes, with ImageNet's names.
        per_class: images of each; 0: as many as a batch needs.
    """

    class OnMemory(base):
        def build_data_loader(self):
            batch = self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE
            names = class_names(classes)
            self.dm = SimpleNamespace(dataset=SimpleNamespace(classnames=names, template=None))
            self.num_classes, self.lab2cname = classes, dict(enumerate(names))
            images = _Images(classes, per_class or -(-batch // classes), self.cfg.INPUT.SIZE[0])
            self.train_loader_x = torch.utils.data.DataLoader(images, batch)
            self.val_loader = self.test_loader = None

    return OnMemory


def trainer_on_memory(cfg, classes: int, per_class: int = 0):
    """The trainer of a config as :func:`on_memory` makes it, in the middle of an epoch."""
    base = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    with contextlib.redirect_stdout(io.StringIO()):
        return ready(on_memory(base, classes, per_class)(cfg))


def config(name: str, args: argparse.Namespace, weights: str, size: int):
    """The config of a trainer; the name may end in ``+<regulariser>``."""
    trainer_name, regulariser = trainer_and_regulariser(name)
    words = ["--trainer", trainer_name, "--regulariser", regulariser]
    words += ["DATASET.NAME", "ImageFolder", "INPUT.SIZE", f"({size},{size})"]
    words += ["MODEL.BACKBONE.NAME", args.backbone, "MODEL.BACKBONE.WEIGHTS", weights]
    words += ["DATALOADER.TRAIN_X.BATCH_SIZE", str(args.batch)]
    for node in prompt_nodes():
        words += [f"TRAINER.{node}.PREC", args.prec, f"TRAINER.{node}.CTX_INIT", "a photo of a"]
    words += ["USE_CUDA", str(torch.cuda.is_available()), "OPTIM.NAME", "sgd"]
    words += ["TRAINER.PROXYFDA.CONSTANTS", "given"]  # derived ones cost the same once settled
    words += [word for pair in args.opts for word in pair]
    return load_config(train.parser().parse_args(words))


def images_per_class(args: argparse.Namespace) -> int:
    """Images of each class in memory."""
    return max(1, args.batch // args.classes)


def build(name: str, args: argparse.Namespace, weights: str, size: int):
    """A trainer on images in memory."""
    cfg = config(name, args, weights, size)
    return trainer_on_memory(cfg, args.classes, images_per_class(args))


def build_grid(args: argparse.Namespace, weights: str, size: int) -> CoOpGrid:
    """``args.grid`` settings in one pass: the trainers in turn, each on images in memory."""

    class OnMemoryGrid(CoOpGrid):
        def trainer_class(self, cfg):
            return on_memory(super().trainer_class(cfg), args.classes, images_per_class(args))

    names = [args.trainers[i % len(args.trainers)] for i in range(args.grid)]
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere):
        cfgs = [config(name, args, weights, size) for name in names]
        grid = OnMemoryGrid(cfgs, [nowhere] * args.grid)
    for member in grid.members:
        ready(member)
    return grid


def ready(trainer):
    """The trainer in the middle of an epoch."""
    trainer.epoch, trainer.batch_idx, trainer.num_batches = 0, 0, 10**9
    trainer.set_model_mode("train")
    return trainer


# -- what is measured -----------------------------------------------------------------------------


def step(trainer, batch: dict) -> None:
    """One training step."""
    trainer.batch_idx = 0
    trainer.forward_backward(batch)


def needs_frozen_images(trainer, batch: dict) -> bool:
    """Whether a step of the trainer runs the image encoder without prompts besides."""
    encoder, calls = trainer.model.image_encoder, []
    encode = encoder.encode
    encoder.encode = lambda images: calls.append(1) or encode(images)
    step(trainer, batch)
    del encoder.encode
    return bool(calls)


def bare_step(trainer, batch: dict, frozen_images: bool) -> None:
    """The encoders' part of a step, in the trainer's precision and without its way around them."""
    model, learner = trainer.model, trainer.model.prompt_learner
    images = batch["img"].to(trainer.device)
    with trainer.autocast():
        if frozen_images:
            model.image_encoder.encode(images)
        features = model.image_encoder(images, *learner.image_prompts())
        if isinstance(model, ConditionalCLIP):
            contexts = learner.contexts(features)
            prompts, deep = learner.class_prompts(contexts.unsqueeze(1)), ()
        else:
            prompts, deep = learner.text_prompts()
        texts = model.text_encoder(prompts, learner.tokenized_prompts, deep, learner.shared_tokens)
        outputs = [out.float().sum() for out in (features, texts) if out.requires_grad]
    torch.autograd.backward(outputs)


@torch.no_grad()
def evaluation(trainer, images: torch.Tensor) -> None:
    """Logits of a batch of images."""
    trainer.model_inference(images)


@torch.no_grad()
def bare_evaluation(trainer, images: torch.Tensor) -> None:
    """The image encoder without prompts."""
    trainer.model.image_encoder.encode(images)


# -- time -----------------------------------------------------------------------------------------


def take_turns(jobs: dict, args: argparse.Namespace) -> dict:
    """Seconds of each job in each round, after one that warms up."""
    clock = time.process_time if args.cpu_time else time.perf_counter
    times = {name: [] for name in jobs}
    for _ in range(args.rounds + 1):
        for name, job in jobs.items():
            start = clock()
            job()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(clock() - start)
    return {name: values[1:] for name, values in times.items()}


def ratio(values: list[float], base: list[float]) -> float:
    """Median over the rounds of the ratio within a round."""
    return statistics.median(value / other for value, other in zip(values, base))


def time_steps(trainers: dict, grid, batch: dict, args: argparse.Namespace) -> list[list]:
    """Rows: trainer, step and bare step in ms, their ratio, ratio to the first trainer's step; for
    the grid, if there is one, its whole step."""
    jobs = {}
    for name, trainer in trainers.items():
        frozen = needs_frozen_images(trainer, batch)
        jobs[name, "step"] = lambda t=trainer: step(t, batch)
        jobs[name, "bare"] = lambda t=trainer, f=frozen: bare_step(t, batch, f)
    if grid:
        jobs["grid"] = lambda: grid.steps(batch)
    times = take_turns(jobs, args)
    first = times[next(iter(trainers)), "step"]
    rows = []
    for name in trainers:
        whole, bare = times[name, "step"], times[name, "bare"]
        medians = [1000 * statistics.median(values) for values in (whole, bare)]
        rows.append([name, *medians, ratio(whole, bare), ratio(whole, first)])
    if grid:
        whole = times["grid"]
        name = f"grid of {args.grid}"
        rows.append([name, 1000 * statistics.median(whole), None, None, ratio(whole, first)])
    return rows


def time_evaluation(trainers: dict, images: torch.Tensor, args: argparse.Namespace) -> list[list]:
    """Rows: trainer, evaluation and bare forward pass in ms per image, their ratio."""
    jobs = {}
    for name, trainer in trainers.items():
        jobs[name, "eval"] = lambda t=trainer: evaluation(t, images)
        jobs[name, "bare"] = lambda t=trainer: bare_evaluation(t, images)
    times = take_turns(jobs, args)
    rows = []
    for name in trainers:
        whole, bare = times[name, "eval"], times[name, "bare"]
        medians = [1000 * statistics.median(values) / len(images) for values in (whole, bare)]
        rows.append([name, *medians, ratio(whole, bare)])
    return rows


# -- memory ---------------------------------------------------------------------------------------


def peak_memory(job) -> float:
    """MiB that ``job()`` takes at its peak, on top of what is there before it.

    On a GPU torch's allocator tells; on a CPU Linux does: its high-water mark of resident memory is
    reset before the job.

    Raises:
        OSError: on systems without Linux's ``/proc``.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        job()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def resident(key: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith(key))

    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    job()
    return resident("VmHWM") - before


def child_memory(name: str, what: str, args: argparse.Namespace) -> float | None:
    """:func:`peak_memory` of a trainer's ``step`` or ``bare`` step, in a process of its own."""
    words = [name, "--memory-of", what]
    for flag in ("backbone", "weights", "classes", "batch", "prec", "threads"):
        words += [f"--{flag}", str(getattr(args, flag))]
    words += [word for pair in args.opts for word in ("--opt", *pair)]
    return number_of_child(__file__, words, f"memory of {name} ({what})")


def number_of_child(script: str, words: list[str], what: str) -> float | None:
    """The last word that a script prints, as a number; None, and a line that says why, if it fails.

    What it frees goes back to the system, so that what is resident is what is in use.
    """
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, script, *words]
    result = subprocess.run(command, env=env, capture_output=True, text=True)
    if result.returncode:
        reason = result.stderr.strip().splitlines()[-1:] or ["it was killed"]
        print(f"no {what}: {reason[0]}", file=sys.stderr)
        return None
    return float(result.stdout.split()[-1])


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("trainers", nargs="+", help="the others are compared to the first; CoOp+rkd and the like")
    add("--what", default="step,eval,memory", help="any of step, eval, memory (default: all)")
    add("--backbone", default="ViT-B/16", help=f"size of the encoders; {BUNDLED}: the bundled CLIP")
    add("--weights", default="", help="file for the backbone, in place of random weights")
    add("--classes", type=count, default=50)
    add("--batch", type=count, default=32, help="images in a training step")
    add("--eval-batch", type=count, default=100, help="images in a batch of the evaluation")
    add("--grid", type=int, default=0, help="settings of CoOp in one pass, the trainers in turn")
    add("--rounds", type=count, default=5, help="measured runs of each, after one that warms up")
    add("--prec", default="fp32", choices=PRECISIONS)
    add("--threads", type=int, default=0, help="CPU threads (default: torch's choice)")
    add(
        "--cpu-time",
        action="store_true",
        help="processor time of all threads, steadier than the clock on a shared machine",
    )
    add("--opt", dest="opts", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"),
        help="option of the config, for all trainers; may be repeated")  # fmt: skip
    whole = parser.add_argument_group("of --study, which also takes all sizes above")
    whole.add_argument("--study", action="store_true", help="time base2new of the trainers")
    whole.add_argument(
        "--against", default="", metavar="PATH", help="another checkout, run in turns with this one"
    )
    whole.add_argument("--seeds", default="1", help="joined by commas")
    whole.add_argument("--shots", type=count, default=16, help="training images of each class")
    whole.add_argument("--tested", type=count, default=20, help="test images of each class")
    whole.add_argument("--epochs", type=count, default=2)
    add("--memory-of", choices=["step", "bare"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.what = args.what.split(",")
    unknown = set(args.what) - {"step", "eval", "memory"}
    if unknown:
        parser.error(f"--what {','.join(sorted(unknown))}: use any of step, eval, memory")
    if args.against and not args.study:
        parser.error("--against is for --study; give both")
    if args.study and args.classes < 2:
        parser.error(f"--study halves the classes: --classes is {args.classes}; use at least 2")
    return args


def main() -> int:
    """Print the tables."""
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        weights = args.weights or random_weights(args.backbone, folder)
        size = image_size(args.backbone, weights)
        if args.study:
            print(study(args, folder, weights, size))
            return 0
        wanted = args.trainers if args.memory_of or set(args.what) & {"step", "eval"} else []
        trainers = {name: build(name, args, weights, size) for name in wanted}
        grid = build_grid(args, weights, size) if args.grid else None
    if args.memory_of:
        trainer = trainers[args.trainers[0]]
        batch = next(iter(trainer.train_loader_x))
        job = {
            "step": lambda: step(trainer, batch),
            "bare": lambda: bare_step(trainer, batch, frozen_images=False),
        }[args.memory_of]
        print(peak_memory(job))
        return 0

    threads = torch.get_num_threads()
    print(f"{args.backbone}, {args.classes} classes, {args.prec}, {threads} threads", end=", ")
    clock = "processor time" if args.cpu_time else "wall-clock time"
    print(f"{args.rounds} rounds, {clock}, torch {torch.__version__}")
    if "step" in args.what:
        batch = next(iter(trainers[args.trainers[0]].train_loader_x))
        rows = time_steps(trainers, grid, batch, args)
        head = ["step", "ms", "bare ms", "step / bare", f"step / {args.trainers[0]}"]
        print(f"\nbatch {args.batch}")
        print(tabulate(rows, head, floatfmt=("", ".1f", ".1f", ".3f", ".3f")))
    if "eval" in args.what:
        device = next(iter(trainers.values())).device
        images = torch.randn(args.eval_batch, 3, size, size, device=device)
        for trainer in trainers.values():
            trainer.set_model_mode("eval")
        rows = time_evaluation(trainers, images, args)
        head = ["evaluation", "ms / image", "bare ms / image", "evaluation / bare"]
        print(f"\nbatch {args.eval_batch}")
        print(tabulate(rows, head, floatfmt=("", ".2f", ".2f", ".3f")))
    if "memory" in args.what:
        rows = [
            [name, *(child_memory(name, what, args) for what in ("step", "bare"))]
            for name in args.trainers
        ]
        print(f"\nbatch {args.batch}")
        head = ["peak memory", "step, MiB", "bare step, MiB"]
        print(tabulate(rows, head, floatfmt=("", ".0f", ".0f")))
    return 0


if __name__ == "__main__":
    show_user_errors()
    sys.exit(main())
