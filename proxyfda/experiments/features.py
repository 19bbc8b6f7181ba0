"""Features of images, computed once for the same weights, images and transform, and kept in files.

A file is named by the content that its features depend on, so that all runs share it and nothing
in it ever goes out of date: all bytes of the encoder's weights, its architecture, the parameters of
the transform, and the images. Of an image file these are path, size and time of the last change (a
change that keeps both would not be noticed); of one that a reader holds in memory, its pixels.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from proxyfda.backbones import ImageBackbone
from proxyfda.backbones.zero_shot import class_texts, zero_shot_weights
from proxyfda.experiments import layout
from proxyfda.utils.errors import CannotWrite, NotFound
from proxyfda.utils.files import remove_partial, write_atomically

__all__ = ["FeatureCache", "Features", "cache_of"]

_SUFFIX = ".safetensors"
_DAY = 24 * 3600.0
_KEPT_BYTES = 1 << 29
_kept: dict[str, list[Tensor]] = {}  # batches of images as the encoder takes them


class FeatureCache:
    """Tensors in files of one folder, of a bounded size, for any number of processes.

    A file that is damaged is computed again; where the folder cannot be written, everything goes on
    without. Either is said in one line.

    Args:
        folder: made if it does not exist; empty keeps nothing.
        gigabytes: 10⁹ bytes that the files may have together; those that have not been used for the
            longest time are removed first.
    """

    def __init__(self, folder: str, gigabytes: float = 20.0):
        self.folder, self.bytes = folder, gigabytes * 1e9
        self._said = False

    def get(self, key: str, compute: Callable[[], Tensor]) -> Tensor:
        """``compute()``, or what it gave before for the same key, in any process.

        Of several processes that ask at the same time one computes and the others wait.
        """
        if not self.folder:
            return compute()
        path = os.path.join(self.folder, key + _SUFFIX)
        found = self._read(path)
        if found is not None:
            return found
        with self._lock(key) as lock:
            if lock is not None:  # so that nobody else writes this file
                remove_partial(self.folder, of=key)
            found = self._read(path, quiet=True)  # another process may have been faster
            if found is None:
                found = compute()
                self._write(path, found)
        return found

    def _read(self, path: str, quiet: bool = False) -> Tensor | None:
        if not os.path.isfile(path):
            return None
        try:
            with safe_open(path, framework="pt") as file:
                value: Tensor = file.get_tensor("value")
                checksum = file.metadata()["sha256"]
            if _digest(_bytes(value)) != checksum:
                raise ValueError("its checksum differs")
        except Exception as error:  # safetensors' own, torch's or the system's
            if not quiet and not isinstance(error, FileNotFoundError):
                print(f"{path} is damaged ({_line(error)}), so its features are computed again")
            return None
        with suppress(OSError):
            os.utime(path)  # of the oldest use, see _trim
        return value

    def _write(self, path: str, value: Tensor) -> None:
        value = value.contiguous()
        size = value.nbytes
        if size > self.bytes:
            self._say(
                f"features of {size / 1e9:.2g} GB are more than PROBE.CACHE_GB {self.bytes / 1e9:g}"
            )
            return
        content = save({"value": value}, {"sha256": _digest(_bytes(value))})

        def write(partial: str) -> None:
            # By ourselves: safetensors makes files that only their owner may read.
            with open(partial, "wb") as file:
                file.write(content)

        try:
            write_atomically(path, write)
            self._trim(path)
        except CannotWrite as error:
            self._say(str(error))
        except OSError as error:
            self._say(f"{self.folder} cannot be written ({_line(error)})")

    def _lock(self, key: str) -> AbstractContextManager[Any]:
        folder = os.path.join(self.folder, "locks")
        try:
            os.makedirs(folder, exist_ok=True)
            # A few files that stay: removing a lock while others wait for it lets two in.
            lock = FileLock(os.path.join(folder, key[:2]))
            try:
                return lock.acquire(timeout=0)
            except Timeout:
                print("Waiting for features that another process computes")
                return lock.acquire()
        except (NotImplementedError, OSError) as error:
            self._say(f"{folder} cannot be locked ({_line(error)})")
            return nullcontext()

    def _trim(self, new: str) -> None:
        """Remove the files of the oldest use until the rest is within the bound."""
        files = []
        for entry in os.scandir(self.folder):
            with suppress(OSError):  # removed by another process
                found = entry.stat()
                if entry.name.endswith(_SUFFIX):
                    files.append((found.st_mtime, found.st_size, entry.path))
                elif entry.name.endswith(".tmp") and found.st_mtime < time.time() - _DAY:
                    os.remove(entry.path)  # of a process that was killed
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.bytes:
                return
            if path != new:
                with suppress(OSError):
                    os.remove(path)
                total -= size

    def _say(self, why: str) -> None:
        if not self._said:
            print(f"{why}, so the next run computes features again")
        self._said = True


def cache_of(cfg: Any, alone: bool = False) -> FeatureCache:
    """Where a run keeps features: ``PROBE.CACHE``, by default in the output that it is part of.

    Args:
        cfg: of the run; one without the node ``PROBE`` keeps nothing.
        alone: keep them also beside a run that is part of no output.
    """
    node = cfg.get("PROBE", {})
    folder = node.get("CACHE", "")
    if folder == "auto":
        output = layout.output_of(cfg.OUTPUT_DIR)
        if alone and not output:
            output = os.path.dirname(os.path.abspath(cfg.OUTPUT_DIR))
        folder = os.path.join(output, layout.FEATURES) if output else ""
    return FeatureCache(folder, node.get("CACHE_GB", 20.0))


class Features:
    """The features of one encoder as it is now, by way of a cache.

    Args:
        backbone: whose weights stay what they are from now on; for :meth:`of` alone any module that
            has ``encode``, images [B, 3, H, W] -> features [B, d].
        transform: of the images, with a ``repr`` that names all of its parameters.
        batches: items -> batches of them in their order, each with images [B, 3, H, W] as ``img``.
        cache: where features are kept.
        conditions: whatever else features depend on, by which files are told apart.
        digests: takes what was computed from the weights, for others with the same backbone.
        keep_images: keep small images in memory for other encoders.
    """

    def __init__(
        self,
        backbone: ImageBackbone | nn.Module,
        transform: object,
        batches: Callable[[Sequence[Any]], Iterable[Any]],
        cache: FeatureCache,
        conditions: Sequence[str] = (),
        digests: dict[str, str] | None = None,
        keep_images: bool = True,
    ):
        self.backbone: Any = backbone
        self.batches, self.cache, self.conditions = batches, cache, conditions
        self.transform = _without_addresses(repr(transform))
        self.keep_images = keep_images
        self._keys = {} if digests is None else digests

    def of(self, items: Sequence[Any]) -> Tensor:
        """Features [N, d] of a dataset's items, fp32 on the CPU, not normalised. In a file they
        have the type that the encoder gives."""
        if not self.cache.folder:
            return self._encode(items, "").float()
        images = images_digest(items)
        key = _digest("image", self._encoder(), self.transform, images, *self.conditions)
        return self.cache.get(key, lambda: self._encode(items, images)).float()

    def texts(self, classnames: Sequence[str], templates: Sequence[str]) -> Tensor:
        """What :func:`~proxyfda.backbones.zero_shot.zero_shot_weights` gives, on the CPU."""

        @torch.no_grad()
        def compute() -> Tensor:
            return zero_shot_weights(self.backbone, classnames, templates).cpu()

        listed = (text for template in templates for text in class_texts(template, classnames))
        return self.cache.get(_digest("text", self._texts(), *listed), compute)

    def _encoder(self) -> str:
        if "image" not in self._keys:
            self._keys["image"] = encoder_digest(self.backbone)
        return self._keys["image"]

    def _texts(self) -> str:
        if "text" not in self._keys:
            tower: Any = self.backbone.text_tower
            self._keys["text"] = _digest(self.backbone.name, _module_digest(tower))
        return self._keys["text"]

    def _encode(self, items: Sequence[Any], images: str) -> Tensor:
        device = next(self.backbone.parameters()).device
        if not self.keep_images:
            given = (batch["img"] for batch in self.batches(items))
            return torch.cat([self.backbone.encode(batch.to(device)).cpu() for batch in given])
        key = _digest(self.transform, images or images_digest(items))
        batches: Iterable[Tensor]
        batches = _kept.get(key) or (batch["img"] for batch in self.batches(items))
        # Several encoders of one process see the same images; small ones are kept.
        room = _KEPT_BYTES - sum(batch.nbytes for kept in _kept.values() for batch in kept)
        found: list[Tensor] = []
        seen: list[Tensor] = []
        for batch in batches:
            found.append(self.backbone.encode(batch.to(device)).cpu())
            room -= batch.nbytes
            seen.append(batch)
            if room < 0:
                seen.clear()
        if room >= 0:
            _kept.setdefault(key, seen)
        return torch.cat(found)


# -- what features depend on ----------------------------------------------------------------------


def encoder_digest(backbone: ImageBackbone | nn.Module) -> str:
    """A text that differs where weights or architecture of an image encoder differ."""
    name = str(getattr(backbone, "name", ""))
    weights = _module_digest(backbone, without="text_tower.")
    return _digest(type(backbone).__name__, name, weights)


def images_digest(items: Sequence[Any]) -> str:
    """A text that differs where the images of a dataset's items differ, or their order.

    Raises:
        NotFound: an image file has gone.
    """
    digest = hashlib.sha256()
    for item in items:
        if hasattr(item, "read"):  # its path is only a name
            image = item.read()
            digest.update(_joined([image.mode, str(image.size)]))
            digest.update(image.tobytes())
        else:
            try:
                found = os.stat(item.impath)
            except FileNotFoundError:
                raise NotFound(
                    f'Image "{item.impath}" is missing: put it back or check DATASET.ROOT'
                ) from None
            words = [os.path.abspath(item.impath), str(found.st_size), str(found.st_mtime_ns)]
            digest.update(_joined(words))
    return digest.hexdigest()


def _module_digest(module: nn.Module, without: str = "\0") -> str:
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        if not name.startswith(without) and name != "logit_scale":
            digest.update(_joined([name, str(tuple(value.shape)), str(value.dtype)]))
            digest.update(_bytes(value))
    # The names of activations and the like, which no weight tells.
    for name, part in module.named_modules():
        if name and not f"{name}.".startswith(without) and not list(part.children()):
            digest.update(_joined([name, _without_addresses(repr(part))]))
    return digest.hexdigest()


def _bytes(value: Tensor) -> memoryview:
    flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return memoryview(flat.numpy())


def _digest(*parts: str | memoryview) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(_joined([part]) if isinstance(part, str) else part)
    return digest.hexdigest()


def _joined(words: Iterable[str]) -> bytes:
    """Words with their lengths, so that no two lists give the same bytes."""
    text = "".join(f"{len(word)} {word}\n" for word in words)
    return text.encode("utf-8", "surrogateescape")


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:150] or type(error).__name__
