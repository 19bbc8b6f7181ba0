"""The loops of a trainer: over the batches of an epoch, and over those of an evaluation.

They are mixins, so that the trainers of the embedded engine and those of an installed Dassl
(:mod:`proxyfda.dassl.adapter`) run the same loops and offer the same hooks. Both expect a class
with the attributes and methods of Dassl's `SimpleTrainer`.
"""

from __future__ import annotations

import datetime
import time
from collections import defaultdict

import torch
from tqdm import tqdm

from proxyfda.utils.errors import BadType, NotFinite

from .evaluation import per_class
from .registry import check_availability
from .utils import AverageMeter, MetricMeter


class Summaries:
    """What the steps since the last log line returned: names with numbers or one-element tensors.

    Tensors stay on their device, so that a step does not wait for it, until `fetch` brings those of
    all steps over together.
    """

    def __init__(self):
        self._held = []

    def add(self, summary):
        """Hold what `forward_backward` returned, a dict or None, but not its autograd graph."""
        if not isinstance(summary, (dict, type(None))):
            raise BadType(
                "forward_backward must return a dict of metrics or None, "
                f"not a {type(summary).__name__}"
            )
        self._held.append(
            {
                name: value.detach().reshape(()) if isinstance(value, torch.Tensor) else value
                for name, value in (summary or {}).items()
            }
        )

    def fetch(self):
        """The held summaries as `{name: number}` in the order of the steps, no longer held.

        One transfer for all tensors of one device and type, which in practice is one altogether.
        """
        groups = defaultdict(list)
        for summary in self._held:
            for value in summary.values():
                if isinstance(value, torch.Tensor):
                    groups[value.device, value.dtype].append(value)
        numbers = {
            id(tensor): number
            for tensors in groups.values()
            for tensor, number in zip(tensors, torch.stack(tensors).tolist())
        }
        fetched = [
            {name: numbers.get(id(value), value) for name, value in summary.items()}
            for summary in self._held
        ]
        self._held = []
        return fetched


class EpochLog:
    """What the steps of an epoch leave behind: log lines, TensorBoard curves, the trainer's hooks.

    The values that a step returns as tensors are fetched from the device for a log line only, every
    TRAIN.PRINT_FREQ batches and after the last one; the steps in between wait for nothing.

    Args:
        trainer: with `epoch` and `max_epoch`; gets `num_batches`, and `batch_idx` with every step.
        num_batches: of the epoch.
    """

    def __init__(self, trainer, num_batches):
        self._trainer = trainer
        trainer.num_batches = num_batches
        self._losses, self._summaries, self._rates = MetricMeter(), Summaries(), []
        self._batch_time, self._data_time = AverageMeter(), AverageMeter()
        self._end = time.time()

    def begin_step(self, batch_idx):
        """To be called when the batch is there."""
        self._trainer.batch_idx = batch_idx
        self._data_time.update(time.time() - self._end)

    def end_step(self, summary):
        """Take what `forward_backward` returned."""
        trainer, losses, rates = self._trainer, self._losses, self._rates
        self._summaries.add(summary)
        done, print_freq = trainer.batch_idx + 1, trainer.cfg.TRAIN.PRINT_FREQ
        is_last = done == trainer.num_batches
        has_line = done % print_freq == 0 or trainer.num_batches < print_freq
        fetched = self._summaries.fetch() if has_line or is_last else []
        first = done - len(fetched)
        for batch_idx, values in enumerate(fetched, first):
            trainer.check_step(batch_idx, values)
        if is_last:
            trainer.end_of_epoch()
        self._batch_time.update(time.time() - self._end)
        rates.append(trainer.get_current_lr())
        for batch_idx, values in enumerate(fetched, first):
            losses.update(values)
            step = trainer.epoch * trainer.num_batches + batch_idx
            for name, meter in losses.meters.items():
                trainer.write_scalar(f"train/{name}", meter.avg, step)
            trainer.write_scalar("train/lr", rates[batch_idx], step)
        if has_line:
            left = (trainer.max_epoch - trainer.epoch) * trainer.num_batches - done
            print(
                f"epoch [{trainer.epoch + 1}/{trainer.max_epoch}]",
                f"batch [{done}/{trainer.num_batches}]",
                f"time {self._batch_time.val:.3f} ({self._batch_time.avg:.3f})",
                f"data {self._data_time.val:.3f} ({self._data_time.avg:.3f})",
                losses,
                f"lr {rates[-1]:.4e}",
                f"eta {datetime.timedelta(seconds=int(self._batch_time.avg * left))}",
            )
        self._end = time.time()


def choose_epoch(loader, epoch):
    """Let the images of the next pass be augmented as in that epoch, if their dataset can."""
    set_epoch = getattr(getattr(loader, "dataset", None), "set_epoch", None)
    if set_epoch is not None:
        set_epoch(epoch)


class EpochLoop:
    """`run_epoch` over `train_loader_x`, with what :class:`EpochLog` makes of it.

    During an epoch `batch_idx` and `num_batches` tell where it stands.
    """

    def end_of_epoch(self):
        """Hook: called after the last step of an epoch, before its log line and `after_epoch`.

        The place to step learning rates and running averages: what `after_epoch` saves and
        evaluates has seen it. Trainers written for Dassl call `update_lr` in their last step
        instead, so the engine itself does not step the schedules.
        """

    def check_step(self, batch_idx, values):
        """Hook: called with every step's values (`{name: number}`) when they have been fetched.

        An exception stops the run before anything more is saved. Steps may have followed the one
        in question, at most up to the next log line.
        """

    def run_epoch(self):
        self.set_model_mode("train")
        choose_epoch(self.train_loader_x, self.epoch)
        log = EpochLog(self, len(self.train_loader_x))
        for batch_idx, batch in enumerate(self.train_loader_x):
            log.begin_step(batch_idx)
            log.end_step(self.forward_backward(batch))


class EvaluationLoop:
    """`evaluate`, which gives the whole result, and `test`, which gives Dassl's one number.

    Attributes:
        last_result: what the last `test` found, as `evaluate` returns it; None before.
    """

    last_result = None

    @torch.no_grad()
    def evaluate(self, split=None):
        """Evaluate in eval mode on "val" or "test" (TEST.SPLIT by default).

        Returns a dict: the evaluator's figures, not rounded (accuracy, error_rate and macro_f1 in
        per cent; accuracy, or whatever the evaluator reports first, comes first), `split` ("test"
        where there is no validation split), the numbers `correct` and `total` of images, and
        `per_class`, see :func:`~proxyfda.engine.evaluation.per_class`.

        Raises:
            NotFinite: an output of the model is infinite or no number, so its rank says nothing.
        """
        self.set_model_mode("eval")
        self.evaluator.reset()
        split = split or self.cfg.TEST.SPLIT
        check_availability(split, ["val", "test"], "TEST.SPLIT")
        if self.val_loader is None:
            split = "test"
        print(f"Evaluate on the *{split}* set")
        loader = self.val_loader if split == "val" else self.test_loader
        finite = []  # fetched from the device once
        for batch in tqdm(self.evaluation_batches(loader)):
            input, label = self.parse_batch_test(batch)
            output = self.model_inference(input)
            finite.append(torch.isfinite(output).all())
            self.evaluator.process(output, label)
        if finite and not torch.stack(finite).all():
            raise NotFinite(
                f"The model gives infinite or NaN outputs on the {split} set, so it is not "
                "evaluated: use sound weights, a lower OPTIM.LR or precision fp32"
            )
        figures = self.evaluator.evaluate()
        for name, value in figures.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        result = {name: float(value) for name, value in figures.items()}
        result["split"] = split
        for name in ("correct", "total"):
            if hasattr(self.evaluator, f"_{name}"):  # so Dassl names them; others may not count
                result[name] = int(getattr(self.evaluator, f"_{name}"))
        if hasattr(self.evaluator, "_y_pred"):
            seen = self.evaluator._y_true, self.evaluator._y_pred
            result["per_class"] = per_class(*seen, getattr(self.evaluator, "_lab2cname", None))
        return result

    def evaluation_batches(self, loader):
        """Hook: what an evaluation iterates over; its batches go to `parse_batch_test`."""
        return loader

    def test(self, split=None):
        """`evaluate`, kept as `last_result`; returns the evaluator's first figure, the accuracy."""
        self.last_result = self.evaluate(split)
        return next(iter(self.last_result.values()))

    def parse_batch_test(self, batch):
        """Images [B, 3, H, W] and labels [B] on the trainer's device."""
        return tuple(batch[key].to(self.device, non_blocking=True) for key in ("img", "label"))
