"""Time training steps side by side: ``python scripts/bench.py CoOp FDACoOp ProxyFDACoOp``.

All trainers get the same frozen encoders (random weights are enough for timing), the same images in
memory and class-balanced batches, and take turns step by step in one process, so that the machine's
moods hit all alike. Printed: the median step, and the median over rounds of its ratio to the first
trainer's step in the same round.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import os.path as osp
import statistics
import sys
import tempfile
import time
from types import SimpleNamespace

ROOT = osp.dirname(osp.dirname(osp.abspath(__file__)))
sys.path.insert(0, ROOT)

import torch
from tabulate import tabulate

import train
from proxyfda.clip import load_clip
from proxyfda.dassl import TRAINER_REGISTRY
from proxyfda.errors import tell_mistakes


class _Images(torch.utils.data.Dataset):
    """Random images, as many per class as a batch needs."""

    def __init__(self, classes: int, per_class: int, size: int) -> None:
        self.data_source = [
            SimpleNamespace(label=label) for label in range(classes) for _ in range(per_class)
        ]
        self.pixels = torch.randn(8, 3, size, size)

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, index: int) -> dict:
        return {"img": self.pixels[index % 8], "label": self.data_source[index].label}


class _Data:
    """Stands in for the data manager."""

    def __init__(self, classes: int) -> None:
        names = [f"thing number {i}" for i in range(classes)]
        self.dataset = SimpleNamespace(classnames=names, template=None)


def build(name: str, args: argparse.Namespace, weights: str, size: int):
    """A trainer of that name on images in memory."""
    base = TRAINER_REGISTRY.get(name)

    class OnMemory(base):
        def build_data_loader(self):
            self.dm = _Data(args.classes)
            self.num_classes, self.lab2cname = args.classes, dict.fromkeys(range(args.classes), "")
            images = _Images(args.classes, max(1, args.batch // args.classes), size)
            self.train_loader_x = torch.utils.data.DataLoader(images, args.batch)
            self.val_loader = self.test_loader = None

    words = ["--trainer", name, "DATASET.NAME", "ImageFolder", "INPUT.SIZE", f"({size},{size})"]
    words += ["MODEL.BACKBONE.NAME", args.backbone, "MODEL.BACKBONE.WEIGHTS", weights]
    words += ["TRAINER.COOP.PREC", args.prec, "TRAINER.COOP.CTX_INIT", "a photo of a"]
    words += ["USE_CUDA", str(torch.cuda.is_available()), "OPTIM.NAME", "sgd", *args.opts]
    cfg = train.setup_cfg(train.parser().parse_args(words))
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = OnMemory(cfg)
    trainer.num_batches = 10**9
    trainer.set_model_mode("train")
    return trainer


def main() -> int:
    """Print the table of step times."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trainers", nargs="+", help="the first is what the others are compared to")
    parser.add_argument("--backbone", default="ViT-B/16", help="ViT-Bundled: the bundled CLIP")
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7, help="measured steps of each trainer")
    parser.add_argument("--prec", default="fp32", choices=["fp32", "fp16", "amp"])
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: all)")
    parser.add_argument(
        "--opt", dest="opts", nargs=2, action="append", default=[], help="KEY VALUE"
    )
    args = parser.parse_args()
    args.opts = [word for pair in args.opts for word in pair]
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        weights, size = "bundled", 32
        if args.backbone != "ViT-Bundled":
            import open_clip

            torch.manual_seed(0)
            name = args.backbone.replace("/", "-")
            model = open_clip.create_model(name, pretrained=None)
            weights = osp.join(folder, "random.pt")
            torch.save(model.state_dict(), weights)
            size = model.visual.image_size
            size = size[0] if isinstance(size, tuple) else size
            del model
        with contextlib.redirect_stdout(io.StringIO()):
            load_clip(args.backbone, weights)  # a wrong name is told before anything is built
        trainers = {name: build(name, args, weights, size) for name in args.trainers}
    batch = next(iter(next(iter(trainers.values())).train_loader_x))
    times: dict[str, list[float]] = {name: [] for name in trainers}
    for _ in range(args.rounds + 1):
        for name, trainer in trainers.items():
            trainer.batch_idx = 0
            start = time.perf_counter()
            trainer.forward_backward(batch)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    first = times[args.trainers[0]][1:]  # the first round warms up
    rows = []
    for name, values in times.items():
        ratio = statistics.median(value / own for value, own in zip(values[1:], first))
        rows.append([name, 1000 * statistics.median(values[1:]), 100 * (ratio - 1)])
    print(f"{args.backbone}, {args.classes} classes, batch {args.batch}, {args.prec}")
    print(f"{args.rounds} rounds, {torch.get_num_threads()} threads, {os.uname().machine}")
    print(tabulate(rows, ["trainer", "step (ms)", f"over {args.trainers[0]} (%)"], floatfmt=".1f"))
    return 0


if __name__ == "__main__":
    tell_mistakes()
    sys.exit(main())
