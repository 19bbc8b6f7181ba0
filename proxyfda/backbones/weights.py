"""Files of weights: reading them without running code from them, what does not fit, what cannot be
fetched, and random weights for tests and dry runs."""

from __future__ import annotations

import pickle
import urllib.error
import urllib.request
import warnings
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Sequence

import torch
from torch import Tensor

from proxyfda.utils.errors import BadValue, NotFinite
from proxyfda.utils.finite import all_finite

__all__ = [
    "ArchiveDict", "cached", "first_line", "mismatches", "quiet_transformers",
    "random_weights", "read_state_dict", "unreachable",
]  # fmt: skip

WRAPPERS = ("state_dict", "model")
"""Entries in which checkpoints keep their weights, beside others."""


class ArchiveDict(dict):
    """A state dict that came out of a TorchScript archive."""


def read_state_dict(path: Path, what: str = "CLIP checkpoint") -> dict[str, Tensor]:
    """Weights of a safetensors file, a TorchScript archive or a file of ``torch.save``.

    No code of the file is unpickled. Wrappers around the weights (``{"state_dict": ...}``,
    ``{"model": ...}``, a ``module.`` prefix) are taken off.

    Args:
        path: an existing file.
        what: what the file should be, for the error.

    Raises:
        BadValue: the file holds no weights or is damaged.
        NotFinite: a weight is infinite or no number.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(str(path))
        elif is_torchscript(path):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                archive = torch.jit.load(str(path), map_location="cpu")
            state = ArchiveDict(archive.state_dict())
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip, safetensors and torch all raise their own kinds
        reason = first_line(error)
        if isinstance(error, pickle.UnpicklingError):  # torch's advice is to run the file's code
            reason = "it holds other things than weights, which are not loaded"
        raise BadValue(
            f"{path} is damaged or not a {what} ({reason}); fetch it again or set "
            f"MODEL.BACKBONE.WEIGHTS to another file."
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not any(isinstance(v, Tensor) for v in state.values()):
        raise BadValue(
            f"{path} holds no weights (a {type(state).__name__}); set MODEL.BACKBONE.WEIGHTS to a "
            f"{what}."
        )
    if all(key.startswith("module.") for key in state):
        state = type(state)((key[len("module.") :], value) for key, value in state.items())
    for key, value in state.items():
        if isinstance(value, Tensor) and not all_finite(value):
            raise NotFinite(
                f"{path} has weights that are infinite or NaN ({key}); fetch it again or set "
                "MODEL.BACKBONE.WEIGHTS to another file."
            )
    return state


def is_torchscript(path: Path) -> bool:
    """Whether a file is a zip archive with TorchScript code in it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(entry.endswith("constants.pkl") for entry in archive.namelist())


def mismatches(wanted: dict[str, Tensor], given: dict[str, Tensor], limit: int = 4) -> str:
    """What separates two state dicts, in words: missing and unexpected names, unequal shapes.

    Returns an empty string if names and shapes agree.
    """

    def listed(names: list[str]) -> str:
        rest = f" and {len(names) - limit} more" if len(names) > limit else ""
        return ", ".join(names[:limit]) + rest

    missing = [key for key in wanted if key not in given]
    unexpected = [key for key in given if key not in wanted]
    shapes = [
        f"{key} is {tuple(given[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted
        if key in given and given[key].shape != wanted[key].shape
    ]
    parts = [("missing", missing), ("unexpected", unexpected), ("unequal shapes", shapes)]
    return "; ".join(f"{what}: {listed(names)}" for what, names in parts if names)


def first_line(error: BaseException) -> str:
    """The first line of a library's message, without its full stop."""
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__


@contextmanager
def random_weights(name: str) -> Iterator[None]:
    """Models made within get the same random weights whenever they are made, whatever was drawn
    before, and nothing that is drawn afterwards changes; a line says that they are random."""
    print(f"Random weights for {name}: nothing is pre-trained, results mean nothing")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' tables of weights that are not used, and its progress bars."""
    from transformers import logging as said

    before, bars = said.get_verbosity(), said.is_progress_bar_enabled()
    said.set_verbosity_error()
    said.disable_progress_bar()
    try:
        yield
    finally:
        said.set_verbosity(before)
        if bars:
            said.enable_progress_bar()


# -- the hub ----------------------------------------------------------------------------------


def cached(repo: str, files: Sequence[str]) -> Path | None:
    """The first of a Hugging Face repository's files that is in the local cache."""
    import huggingface_hub

    for file in files:
        found: Any = huggingface_hub.try_to_load_from_cache(repo, file)
        if isinstance(found, str):
            return Path(found)
    return None


def unreachable(address: str, timeout: float = 10.0) -> str | None:
    """Why a server cannot be reached, or None if it answers (with whatever status).

    The hub's client by itself retries for a minute when there is no network.
    """
    try:
        urllib.request.urlopen(
            urllib.request.Request(address, method="HEAD"), timeout=timeout
        ).close()
    except urllib.error.HTTPError:
        return None
    except (OSError, ValueError) as error:
        host = address.split("/")[2]
        return f"{host} cannot be reached: {getattr(error, 'reason', error)}"
    return None
