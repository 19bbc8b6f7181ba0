"""Random numbers of images."""

from __future__ import annotations

import contextlib
import hashlib
import random

import numpy as np
import torch


class ImageSeeds:
    """Random numbers of an image that follow from seed, epoch and its place in the list alone.

    So augmentation is the same with any number of loader workers, kept or new ones, and in a run
    that goes on after an interruption. The random streams of the process are left as they were.

    Args:
        seed: of the run; below 0 (not seeded) one that differs from process to process.
    """

    def __init__(self, seed):
        self.seed = seed if seed >= 0 else torch.initial_seed()
        self._epoch = torch.full((), -1, dtype=torch.int64)
        self._chosen = False

    epoch = property(lambda self: int(self._epoch), doc="That of the images given now.")

    def share(self):
        """Let loader workers that are started from now on follow `set_epoch`."""
        self._epoch.share_memory_()

    def set_epoch(self, epoch):
        """Choose the epoch of the next pass over the images."""
        self._epoch.fill_(epoch)
        self._chosen = True

    def begin_pass(self):
        """Go on to the next epoch, unless one was chosen."""
        if not self._chosen:
            self._epoch.add_(1)
        self._chosen = False

    @contextlib.contextmanager
    def of(self, place):
        """Within it python, numpy and torch (on the CPU) draw the numbers of an image."""
        words = f"{self.seed} {self.epoch} {place}".encode()
        seed = int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little")
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs too
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])
