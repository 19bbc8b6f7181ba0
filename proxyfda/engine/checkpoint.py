"""Checkpoints: `<model name>/model.pth.tar-<epoch>`, `model-best.pth.tar`, and `checkpoint`.

Files are written whole or not at all, and read without running anything that they contain.
"""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile

import torch

from proxyfda.utils.errors import BadValue, NotFinite, NotFound, Unusable
from proxyfda.utils.files import write_atomically, write_binary, write_text
from proxyfda.utils.finite import all_finite

from .optim import fast_forward, steps_taken

BEST = "model-best.pth.tar"
POINTER = "checkpoint"  # its one line names the file saved last


class Inert:
    """Stands in for a pickled object of a class that is not loaded: keeps its attributes only."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        if isinstance(state, dict):
            self.__dict__.update(state)


def _plain_dict(*_):
    return {}


def _load_with_inert_objects(fpath):
    """Load a file that pickles objects, such as Dassl's warm-up schedulers, as `Inert` ones.

    Still torch's weights_only reader: every class or function that it does not know is replaced by
    name, none is imported or called, and modules such as `os` stay forbidden.
    """
    if not hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):
        raise Unusable("it pickles objects, which torch reads safely from 2.6 on")
    names = torch.serialization.get_unsafe_globals_in_checkpoint(fpath)
    stand_ins = [
        (_plain_dict if name == "collections.defaultdict" else Inert, name) for name in names
    ]
    try:
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(fpath, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise Unusable(f"it would run or build {', '.join(names)}") from None


def load_checkpoint(fpath):
    """Load a checkpoint's dict to the CPU.

    Raises FileNotFoundError for a missing file, ValueError for one that cannot be read.
    """
    if not fpath or not os.path.isfile(fpath):
        raise NotFound(f'No checkpoint file at "{fpath}": check the folder and the epoch')
    try:
        _refuse_compressed(fpath)
        try:
            return torch.load(fpath, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            return _load_with_inert_objects(fpath)
    except Exception as error:  # torch raises half a dozen kinds for truncated or foreign files
        reason = " ".join(str(error).split()).split(". ")[0]
        if "weights_only" in reason.lower().replace(" ", "_"):  # torch advises to read it unsafely
            reason = "it holds more than tensors, numbers and texts"
        raise BadValue(
            f'"{fpath}" cannot be read as a checkpoint ({type(error).__name__}: {reason[:150]}): '
            "delete it or restore it from a copy"
        ) from error


def _refuse_compressed(fpath):
    """What torch saves is not compressed; a small file may unpack to more than the memory holds."""
    if zipfile.is_zipfile(fpath):
        with zipfile.ZipFile(fpath) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise Unusable("it is a compressed archive, which torch does not write")


def weights_in(checkpoint, path):
    """The state dict of a checkpoint.

    Raises:
        BadValue: it has none.
        NotFinite: a weight is infinite or no number.
    """
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(
        isinstance(value, torch.Tensor) for value in state.values()
    ):
        raise BadValue(
            f'"{path}" holds no weights of a trainer (no state_dict of tensors): delete it or '
            "restore it from a copy"
        )
    check_finite(state, f'"{path}"')
    return state


def check_finite(weights, what, remedy="delete it or restore it from a copy"):
    """Refuse weights that are infinite or no number.

    Args:
        weights: name -> tensor.
        what: has them, for the error.
        remedy: the end of its sentence.

    Raises:
        NotFinite: naming the first ones.
    """
    bad = [
        name
        for name, value in weights.items()
        if value.is_floating_point() and not all_finite(value)
    ]
    if bad:
        more = f" and {len(bad) - 2} more" if len(bad) > 2 else ""
        raise NotFinite(
            f"{what} has weights that are infinite or NaN ({', '.join(bad[:2])}{more}): {remedy}"
        )


def save_checkpoint(state, save_dir, is_best=False, remove_module_from_keys=True, model_name=""):
    """Save `state` (with keys state_dict and epoch) as `model_name` or model.pth.tar-<epoch>.

    The pointer file follows once the checkpoint is in place; an interruption at any moment leaves
    the previous one valid.

    Raises:
        NotFinite: a weight is infinite or no number; nothing is written.
        CannotWrite: the disk is full, or the like; what was there stays.
    """
    if remove_module_from_keys:
        weights = {
            key[len("module.") :] if key.startswith("module.") else key: value
            for key, value in state["state_dict"].items()
        }
        state = {**state, "state_dict": weights}
    check_finite(
        state["state_dict"],
        f"The model after epoch {state['epoch']}",
        "it is not saved; lower OPTIM.LR or use precision fp32",
    )
    model_name = model_name or f"model.pth.tar-{state['epoch']}"
    fpath = os.path.join(save_dir, model_name)

    write_binary(fpath, lambda file: torch.save(state, file))
    print(f"Checkpoint saved to {fpath}")
    write_text(os.path.join(save_dir, POINTER), f"{model_name}\n")
    if is_best:
        best = os.path.join(save_dir, BEST)
        write_atomically(best, lambda path: shutil.copyfile(fpath, path))
        print(f'Best checkpoint saved to "{best}"')


def last_saved(folder):
    """Name of the file saved last in a model's folder; None if there is none."""
    try:
        with open(os.path.join(folder, POINTER), encoding="utf-8", errors="replace") as f:
            return f.readline().strip() or None
    except FileNotFoundError:
        return None


def find_checkpoint(directory, name, epoch=None):
    """Path of the checkpoint of model `name` under a run's folder `directory`.

    With an epoch, that one; otherwise model-best.pth.tar, or else the last one saved, which is then
    printed. Raises FileNotFoundError naming what the folder holds.
    """
    folder = os.path.join(directory, name)
    model_file = BEST if epoch is None else f"model.pth.tar-{epoch}"
    if epoch is None and not os.path.isfile(os.path.join(folder, BEST)):
        model_file = last_saved(folder) or BEST
        if model_file != BEST:
            print(f'No {BEST} in "{folder}", taking the last checkpoint saved: {model_file}')
    path = os.path.join(folder, model_file)
    if not os.path.isfile(path):
        files = os.listdir(folder) if os.path.isdir(folder) else []
        found = sorted(f for f in files if ".pth.tar" in f and not f.endswith(".tmp"))
        raise NotFound(
            f'Model not found at "{path}" (there: {", ".join(found) or "no checkpoint"}): give '
            "the output folder of a training run, and an epoch that it saved"
        )
    return path


def load_weights(model, state_dict, origin, strict=True):
    """`model.load_state_dict` with a mismatch as one sentence (ValueError)."""
    try:
        return model.load_state_dict(state_dict, strict=strict)
    except RuntimeError as error:
        details = " ".join(str(error).split())[:300]
        raise BadValue(
            f'The weights in "{origin}" do not fit the model; was it trained with another config? '
            f"({details})"
        ) from error


def restore(checkpoint, path, model, optimizer=None, scheduler=None):
    """Put a checkpoint, the content of the file `path`, into model, optimiser and schedule."""
    load_weights(model, weights_in(checkpoint, path), path)
    print(f'Loaded model weights from "{path}"')
    rates = []
    if scheduler is not None and checkpoint.get("scheduler"):
        fast_forward(scheduler, steps_taken(checkpoint["scheduler"]))
        rates = scheduler.get_last_lr()  # of this config, which may have more epochs than the saved
        print("Loaded scheduler")
    if optimizer is not None and checkpoint.get("optimizer"):
        optimizer.load_state_dict(checkpoint["optimizer"])
        for group, lr in zip(optimizer.param_groups, rates):
            group["lr"] = lr
        print("Loaded optimizer")
    print(f"Previous epoch: {checkpoint['epoch']}")


def load_pretrained_weights(model, weight_path):
    """Load what agrees in name and size with `model`; ValueError if nothing does."""
    checkpoint = load_checkpoint(weight_path)
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        checkpoint = {"state_dict": checkpoint}
    own = model.state_dict()
    matched, discarded = {}, []
    for key, value in weights_in(checkpoint, weight_path).items():
        key = key[len("module.") :] if key.startswith("module.") else key
        if key in own and own[key].shape == value.shape:
            matched[key] = value
        else:
            discarded.append(key)
    if not matched:
        raise BadValue(
            f'Nothing in "{weight_path}" agrees with the model in name and size '
            f"(model: {', '.join(list(own)[:3])}; file: {', '.join(discarded[:3])})"
        )
    model.load_state_dict({**own, **matched})
    print(f"Successfully loaded pretrained weights from {weight_path}")
    if discarded:
        print(f"Layers discarded due to unmatched keys or size: {discarded}")
