"""The training loop, its hooks, and resuming."""

from __future__ import annotations

import datetime
import functools
import os
import shutil
import time
from collections import OrderedDict

import numpy as np
import torch

from proxyfda.utils.errors import BadModel, BadValue, NotFinite, NotFound, UserError, sentence
from proxyfda.utils.files import write_atomically

from .checkpoint import (
    BEST,
    find_checkpoint,
    load_checkpoint,
    load_weights,
    restore,
    save_checkpoint,
    weights_in,
)
from .data import DataManager
from .loops import EpochLoop, EvaluationLoop
from .optim import scheduler_state
from .registry import build_evaluator, check_availability
from .sound import common_checkpoints, places
from .utils import get_rng_state, set_rng_state
from .writers import Writers


class TrainerBase:
    """Holds models with their optimisers and schedules, saves and restores them, loops over epochs.

    Two hooks carry what a trainer or a mixin keeps beside its models, saved under the key `extra`
    of the first model's checkpoint: `extra_state()` and `load_extra_state(state)`.
    """

    def __init__(self):
        self._models = OrderedDict()
        self._optims = OrderedDict()
        self._scheds = OrderedDict()
        self._writer = None

    # ---- models

    def register_model(self, name="model", model=None, optim=None, sched=None):
        """Put a model under the trainer's care; its folder in the output is called `name`."""
        if "_models" not in self.__dict__:
            raise BadModel("Call super().__init__() before register_model()")
        if name in self._models:
            raise BadValue(f'A model named "{name}" is registered already: choose another name')
        self._models[name] = model
        self._optims[name] = optim
        self._scheds[name] = sched

    def get_model_names(self, names=None):
        """`names` as a list after a check, or the names of all models."""
        if names is None:
            return list(self._models)
        names = [names] if isinstance(names, str) else list(names)
        for name in names:
            check_availability(name, self._models, "model")
        return names

    def set_model_mode(self, mode="train", names=None):
        """Put models into `train` or `eval` (also `test`) mode."""
        check_availability(mode, ["train", "eval", "test"], "mode")
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    # ---- checkpoints

    def extra_state(self):
        """State to save beyond the models: a dict of tensors, numbers, strings, lists and dicts.

        An override extends what `super().extra_state()` returns. (Ours; Dassl ignores the key.)
        """
        return {}

    def load_extra_state(self, state):
        """Restore what `extra_state` returned; tensors arrive on the CPU.

        Called when resuming, with `{}` where the checkpoint has none.
        """

    def check_beside(self, directory, epoch):
        """Hook: raise a `UserError` if what a mixin keeps in files of its own below `directory`
        after `epoch` epochs is damaged; an older checkpoint is gone on from then."""

    def save_model(self, epoch, directory, is_best=False, val_result=None, model_name=""):
        """Save every model after epoch `epoch` (0-based) to `directory/<model name>/`."""
        for position, name in enumerate(self.get_model_names()):
            optim, sched = self._optims[name], self._scheds[name]
            state = {
                "state_dict": self._models[name].state_dict(),
                "epoch": epoch + 1,
                "optimizer": None if optim is None else optim.state_dict(),
                "scheduler": None if sched is None else scheduler_state(sched),
                "val_result": val_result,
            }
            if position == 0:
                scaler = getattr(self, "scaler", None)  # loss scaling under amp, where there is one
                state["scaler"] = None if scaler is None else scaler.state_dict()
                state["best_result"] = float(getattr(self, "best_result", -np.inf))
                state["rng"] = get_rng_state()
                state["extra"] = self.extra_state()
            folder = os.path.join(directory, name)
            save_checkpoint(state, folder, is_best=is_best, model_name=model_name)

    def resume_model_if_exist(self, directory):
        """Restore models, optimisers, schedules, random generators and extra state.

        Returns the epoch to start with. Training goes on as if it had never stopped. Files that
        are damaged or not finite are passed over in favour of older ones, with a line for each.

        Raises:
            BadValue: a checkpoint is of another model, or none can be gone on with any more.
        """
        names, tried = self.get_model_names(), False
        for epoch, found in common_checkpoints(places(self, directory)):
            first_path, first = found[0]
            try:
                self.load_extra_state(first.get("extra") or {})
            except UserError:
                raise
            except Exception as error:  # whatever a trainer makes of a damaged state
                print(f"Not going on from {first_path}: its extra is damaged ({sentence(error)})")
                tried = True
                continue
            print(f"Found checkpoint at {directory} (will resume training)")
            for name, (path, checkpoint) in zip(names, found):
                restore(
                    checkpoint, path, self._models[name], self._optims[name], self._scheds[name]
                )
            if first.get("scaler") and getattr(self, "scaler", None) is not None:
                self.scaler.load_state_dict(first["scaler"])
            self.best_result = first.get("best_result", -np.inf)
            if first.get("rng"):  # last, as restoring the rest may draw numbers
                set_rng_state(first["rng"])
            return epoch
        if tried:  # what they left in the trainer is not the state of a new run
            raise BadValue(
                f'No checkpoint in "{directory}" has a sound extra state: restore one, or remove '
                "the folder to train anew"
            )
        print("No checkpoint found, train from scratch")
        return 0

    def load_model(self, directory, epoch=None):
        """Load weights for evaluation from a run's folder.

        Without an epoch: model-best.pth.tar or else the last checkpoint saved.
        """
        if not directory:
            print("Note that load_model() is skipped as no pretrained model is given")
            return
        for name in self.get_model_names():
            path = find_checkpoint(directory, name, epoch)
            checkpoint = load_checkpoint(path)
            weights = weights_in(checkpoint, path)
            print(f'Loading weights to {name} from "{path}" (epoch = {checkpoint.get("epoch")})')
            load_weights(self._models[name], weights, path)

    # ---- curves

    def init_writer(self, log_dir):
        """Open what LOG.WRITERS names; `log_dir` is where TensorBoard's files go, below the run."""
        if self._writer is None:
            self._writer = Writers(os.path.dirname(log_dir), getattr(self, "cfg", None))

    def close_writer(self):
        if self._writer is not None:
            self._writer.close()

    def write_scalar(self, tag, scalar_value, global_step=None):
        """Add a point to a curve; nothing without a writer, as in evaluation."""
        if self._writer is not None:
            self._writer.add_scalar(tag, scalar_value, global_step)

    # ---- the loop and what subclasses fill in

    def train(self, start_epoch, max_epoch):
        self.start_epoch = start_epoch
        self.max_epoch = max_epoch
        self.before_train()  # may raise start_epoch by resuming
        self.epoch = max(self.start_epoch - 1, 0)
        for self.epoch in range(self.start_epoch, self.max_epoch):  # noqa: B020
            self.before_epoch()
            self.run_epoch()
            self.after_epoch()
        self.after_train()

    def before_train(self):
        pass

    def after_train(self):
        pass

    def before_epoch(self):
        pass

    def after_epoch(self):
        pass

    def run_epoch(self):
        raise NotImplementedError

    def test(self):
        raise NotImplementedError

    def parse_batch_train(self, batch):
        raise NotImplementedError

    def parse_batch_test(self, batch):
        raise NotImplementedError

    def forward_backward(self, batch):
        raise NotImplementedError

    def model_inference(self, input):
        raise NotImplementedError

    # ---- one step

    def detect_anomaly(self, loss):
        """Raise FloatingPointError, naming epoch and batch, if the loss is not finite."""
        if torch.isfinite(loss).all():
            return
        where = ""
        if hasattr(self, "batch_idx"):
            where = f" in epoch {self.epoch + 1}, batch {self.batch_idx + 1}"
        raise NotFinite(
            f"Loss is infinite or NaN{where} (loss {loss.detach().flatten().tolist()[0]}): "
            "lower OPTIM.LR or use precision fp32"
        )

    def model_zero_grad(self, names=None):
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].zero_grad()

    def model_backward(self, loss):
        self.detect_anomaly(loss)
        loss.backward()

    def model_update(self, names=None):
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].step()

    def model_backward_and_update(self, loss, names=None):
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)

    def update_lr(self, names=None):
        for name in self.get_model_names(names):
            if self._scheds[name] is not None:
                self._scheds[name].step()

    def get_current_lr(self, names=None):
        """Learning rate of the first (named) model's first parameter group."""
        return self._optims[self.get_model_names(names)[0]].param_groups[0]["lr"]


class SimpleTrainer(EvaluationLoop, TrainerBase):
    """Builds data, model and evaluator from the config; saves, resumes and tests.

    Attributes: cfg, device, output_dir, dm, train_loader_x, val_loader, test_loader, num_classes,
    lab2cname, evaluator, best_result, last_result, epoch, start_epoch, max_epoch.
    """

    def __init__(self, cfg):
        super().__init__()
        check_availability(cfg.TEST.FINAL_MODEL, ["last_step", "best_val"], "TEST.FINAL_MODEL")
        self.check_cfg(cfg)
        use_cuda = torch.cuda.is_available() and cfg.USE_CUDA
        self.device = torch.device("cuda" if use_cuda else "cpu")
        self.start_epoch = self.epoch = 0
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.output_dir = cfg.OUTPUT_DIR
        self.cfg = cfg
        self.build_data_loader()
        self.build_model()
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)
        self.best_result = -np.inf

    def check_cfg(self, cfg):
        """Refuse settings that the trainer cannot work with (to be overridden)."""

    def build_data_loader(self):
        """Set `dm` and, from it, the loaders and what is known about the classes."""
        self.dm = DataManager(self.cfg)
        self.train_loader_x = self.dm.train_loader_x
        self.train_loader_u = self.dm.train_loader_u
        self.val_loader = self.dm.val_loader
        self.test_loader = self.dm.test_loader
        self.num_classes = self.dm.num_classes
        self.num_source_domains = self.dm.num_source_domains
        self.lab2cname = self.dm.lab2cname

    def build_model(self):
        """Build a model, its optimiser and schedule, and register them (to be overridden)."""
        raise NotImplementedError(f"{type(self).__name__} must define build_model()")

    def train(self):
        super().train(self.start_epoch, self.max_epoch)

    def before_train(self):
        directory = self.cfg.RESUME or self.output_dir
        self.start_epoch = self.resume_model_if_exist(directory)
        self._check_start(directory)
        self._keep_best_of(directory)
        self._complete(directory)
        self.init_writer(os.path.join(self.output_dir, "tensorboard"))
        self.time_start = time.time()

    def _check_start(self, directory):
        if self.cfg.RESUME and not self.start_epoch:
            raise NotFound(
                f"--resume {directory} has no checkpoint to go on from: give the output folder of "
                "a training of this trainer"
            )
        if self.start_epoch > self.max_epoch:
            raise BadValue(
                f"the checkpoint in {directory} is of epoch {self.start_epoch}, past "
                f"OPTIM.MAX_EPOCH {self.max_epoch}: raise it, or go on from another checkpoint"
            )

    def _complete(self, directory):
        """Save what a kill between the best model and that of the epoch has left out."""
        if self.start_epoch and self._is_due(self.start_epoch) and directory == self.output_dir:
            name = f"model.pth.tar-{self.start_epoch}"
            folders = [os.path.join(directory, model) for model in self.get_model_names()]
            if not all(os.path.isfile(os.path.join(folder, name)) for folder in folders):
                self.save_model(self.start_epoch - 1, directory)

    def _is_due(self, done):
        """Whether a checkpoint is kept after so many epochs."""
        freq = self.cfg.TRAIN.CHECKPOINT_FREQ
        return done == self.max_epoch or (freq > 0 and done % freq == 0)

    def _keep_best_of(self, directory):
        """Bring the best model along when continuing another folder's run under best_val."""
        for name in self.get_model_names() if self.start_epoch else ():
            source = os.path.join(directory, name, BEST)
            target = os.path.join(self.output_dir, name, BEST)
            if os.path.isfile(source) and not os.path.exists(target):
                write_atomically(target, functools.partial(shutil.copyfile, source))

    def after_epoch(self):
        if self.cfg.TEST.FINAL_MODEL == "best_val" and not self.cfg.TEST.NO_TEST:
            result = self.test(split="val")
            if result > self.best_result:
                self.best_result = result
                self.save_model(self.epoch, self.output_dir, val_result=result, model_name=BEST)
        if self._is_due(self.epoch + 1):
            self.save_model(self.epoch, self.output_dir)

    def after_train(self):
        print("Finish training")
        if not self.cfg.TEST.NO_TEST:
            if self.cfg.TEST.FINAL_MODEL == "best_val":
                print("Deploy the model with the best val performance")
                self.load_model(self.output_dir)
            else:
                print("Deploy the last-epoch model")
            self.test()
        elapsed = datetime.timedelta(seconds=round(time.time() - self.time_start))
        print(f"Elapsed: {elapsed}")
        self.close_writer()

    def model_inference(self, input):
        return self.model(input)


class TrainerX(EpochLoop, SimpleTrainer):
    """A trainer on labelled images; subclasses define build_model and forward_backward."""

    def parse_batch_train(self, batch):
        """Images [B, 3, H, W], labels [B] and domains [B] on the trainer's device."""
        keys = ("img", "label", "domain")
        return tuple(batch[key].to(self.device, non_blocking=True) for key in keys)
