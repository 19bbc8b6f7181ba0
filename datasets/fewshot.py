"""Few-shot choices: the images that a run with ``NUM_SHOTS`` takes, and the files that keep them.

A choice is what the CoOp family draws for the same seed, from a stream of its own that starts at
``cfg.SEED``: it depends neither on what drew from Python's global ``random`` before nor on whether
there was a file, and the global stream is left as it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
from collections import Counter

from datasets.entry import PARTS, Entry
from datasets.upstream_cache import read_upstream_cache
from proxyfda.utils.errors import BadValue
from proxyfda.utils.files import write_json

MAX_VAL_SHOTS = 4
CACHE_FORMAT = 1
DRAWN_PARTS = PARTS[:2]


@contextlib.contextmanager
def seeded_random(seed):
    """Python's global random stream, started at ``seed``, and put back as it was afterwards; with
    a seed below 0 the stream is used as it is."""
    state = random.getstate()
    if seed >= 0:
        random.seed(seed)
    try:
        yield
    finally:
        if seed >= 0:
            random.setstate(state)


def draw(dataset, parts, shots, seed):
    """Draw ``shots`` images per class of train and ``min(shots, 4)`` of val.

    Args:
        dataset: a ``DatasetBase``, whose sampler is used; it draws from Python's global stream.
        parts: the whole dataset, ``{"train": [Entry, ...], "val": [...], "test": [...]}``.

    Returns:
        The same with fewer entries; test is not sampled.
    """
    with seeded_random(seed):
        return {
            "train": dataset.generate_fewshot_dataset(parts["train"], num_shots=shots),
            "val": dataset.generate_fewshot_dataset(
                parts["val"], num_shots=min(shots, MAX_VAL_SHOTS)
            ),
            "test": parts["test"],
        }


class FewShotCache:
    """The file that keeps the choice for one number of shots and one seed.

    ``shot_{K}-seed_{SEED}.json`` holds the images drawn, before base/new subsampling, so that base
    and new runs share it, and two checksums. ``split_sha256`` is that of the lists from which the
    shots were drawn; a choice from others is not used. ``fingerprint_sha256`` allows to tell
    without these lists that the choice still holds, see :meth:`load_unchanged`; only datasets with
    a ``fingerprint`` have it.

    Where there is no such file, upstream's ``shot_{K}-seed_{SEED}.pkl`` is taken if it fits.

    With ``held_out`` training images serve as validation images, so that other lists are drawn
    from; these choices have files of their own, ``shot_{K}-seed_{SEED}-held_out.json``. So
    have those from another ``split`` than the usual one (``-ldifs``).
    """

    def __init__(self, folder, shots, seed, held_out=False, split=""):
        self.shots, self.seed = shots, seed
        ending = (f"-{split}" if split else "") + "-held_out" * held_out
        stem = os.path.join(folder, f"shot_{shots}-seed_{seed}{ending}")
        self.path, self.upstream_path = f"{stem}.json", f"{stem}.pkl"

    def load_unchanged(self, fingerprint):
        """The choice, if it was drawn from a dataset with this fingerprint.

        Returns:
            ``{"train": [Entry, ...], "val": [...]}``; ``None`` if the dataset has another
            fingerprint or none, or the file is missing or damaged.
        """
        if not fingerprint or not os.path.exists(self.path):
            return None
        try:
            content = _read(self.path)
        except (OSError, ValueError):
            return None
        chosen = content["chosen"]
        if content["fingerprint_sha256"] != _fingerprint_checksum(fingerprint, chosen):
            return None
        print(f"Loading preprocessed few-shot data from {self.path}")
        return chosen

    def load(self, parts, checksum, fingerprint=""):
        """The choice, if it was drawn from these parts; otherwise ``None``, and a line says why.

        Args:
            parts: the whole dataset.
            checksum: their :func:`checksum_of`.
            fingerprint: of the dataset; the file is brought up to date with it.
        """
        for path in (self.path, self.upstream_path):
            if not os.path.exists(path):
                continue
            try:
                if path == self.path:
                    content = _read(path)
                    if content["split_sha256"] != checksum:
                        raise BadValue("it was drawn from another split")
                    chosen = content["chosen"]
                else:
                    chosen = read_upstream_cache(path, parts)
                _check_choice(chosen, parts, self.shots)
            except (OSError, ValueError) as error:
                print(f"Few-shot cache {path} is not used ({error}); sampling again")
                continue
            print(f"Loading preprocessed few-shot data from {path}")
            if path != self.path:
                self.save(chosen, checksum, fingerprint)
            elif fingerprint:
                with contextlib.suppress(OSError):  # the next run then reads the lists again
                    self._write(chosen, checksum, fingerprint)
            return chosen
        return None

    def save(self, chosen, checksum, fingerprint=""):
        """Keep a choice. Where nothing can be written a line says so."""
        try:
            self._write(chosen, checksum, fingerprint)
            print(f"Saved few-shot data to {self.path}")
        except OSError as error:
            print(f"Few-shot cache not written ({error}); the same shots are drawn every time")

    def _write(self, chosen, checksum, fingerprint):
        content = {"format": CACHE_FORMAT, "split_sha256": checksum}
        if fingerprint:
            content["fingerprint_sha256"] = _fingerprint_checksum(fingerprint, chosen)
        content.update(shots=self.shots, seed=self.seed)
        content.update((part, chosen[part]) for part in DRAWN_PARTS)
        write_json(self.path, content)


def _read(path):
    """The checksums and the choice in one of our files; ValueError says why it is none."""
    with open(path, encoding="utf-8") as file:
        content = json.load(file)
    if not isinstance(content, dict) or content.get("format") != CACHE_FORMAT:
        raise BadValue("another format")
    try:
        chosen = {part: [Entry(*entry) for entry in content[part]] for part in DRAWN_PARTS}
    except (KeyError, TypeError):
        raise BadValue("its lists are damaged") from None
    checksums = {key: content.get(key) for key in ("split_sha256", "fingerprint_sha256")}
    return {**checksums, "chosen": chosen}


def checksum_of(parts):
    """SHA-256 of what the shots are drawn from: the train and val lists in their order."""
    digest = hashlib.sha256()
    for part in DRAWN_PARTS:
        digest.update(f"{part}\n".encode())
        for path, label, classname in parts[part]:
            line = f"{path}\t{label}\t{classname}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _fingerprint_checksum(fingerprint, chosen):
    """SHA-256 of a dataset's fingerprint and of a choice, so that a damaged choice is noticed."""
    return hashlib.sha256(f"{fingerprint} {checksum_of(chosen)}".encode()).hexdigest()


def _check_choice(chosen, parts, shots):
    """Raise ValueError unless ``chosen`` is a few-shot choice from ``parts``."""
    for part, most in (("train", shots), ("val", min(shots, MAX_VAL_SHOTS))):
        try:
            unknown = set(chosen[part]).difference(parts[part])
        except TypeError:
            raise BadValue(f"its {part} list is damaged") from None
        if unknown:
            raise BadValue(f"its {part} list names images that the split does not have")
        wanted = {label: min(most, n) for label, n in count_labels(parts[part]).items()}
        if count_labels(set(chosen[part])) != wanted or len(chosen[part]) != sum(wanted.values()):
            raise BadValue(f"its {part} list does not have {most} images per class")


def count_labels(entries):
    """``{label: number of entries}``."""
    return Counter(entry.label for entry in entries)
