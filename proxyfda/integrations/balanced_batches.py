"""Class-balanced batches with hard class mining, for any trainer with Dassl's hooks."""

from __future__ import annotations

import os.path as osp
from typing import Any, Callable, Dict, Iterator, List, Optional

import torch
from torch import Tensor

from proxyfda.anchors.cache import cached_tensor, fingerprint
from proxyfda.integrations.dassl_options import PluginOptions
from proxyfda.names import NONE
from proxyfda.sampling import ClassBalancedBatchSampler, class_similarity

__all__ = ["BalancedBatches"]


class BalancedBatches:
    """Put before a trainer: its batches become m classes x n images where the options say so.

    A subclass sets ``_plugin`` and calls :meth:`_replace_batches` while it builds its model, calls
    :meth:`_notice_unused_batches` in each step, and for mining defines
    :meth:`_frozen_image_encoder` and :meth:`_frozen_image_weights`.

    Mining follows Huang et al., ICML 2025, arXiv 2505.24088: classes that are close in the frozen
    feature space share a batch, by a class similarity that is computed once.
    """

    _plugin: Optional[PluginOptions] = None
    _balanced: Any = None
    _mined = False

    def _frozen_image_encoder(self) -> Callable[..., Tensor]:
        """What gives the frozen features [B, d] of images [B, 3, H, W]."""
        raise NotImplementedError

    def _frozen_image_weights(self) -> Dict[str, Tensor]:
        """What the frozen image features depend on and training leaves alone; empty if unknown."""
        raise NotImplementedError

    @property
    def _seed(self) -> int:
        """The run's seed, of everything that is drawn here."""
        return max(self.cfg.SEED, 0)  # type: ignore[attr-defined]

    def _replace_batches(self, options: PluginOptions) -> None:
        """Give the training loader m classes x n images in a batch."""
        loader = self.train_loader_x  # type: ignore[has-type]
        k = options.settings.get("k", 0)
        sampler = _CountingSampler(
            [item.label for item in loader.dataset.data_source],
            options.m,
            options.n,
            seed=self._seed,
            # A neighbourhood is to cross the border of its class: K > n.
            most_per_class=k - 1 if options.n < k else None,
        )
        self._balanced = sampler
        self.train_loader_x = _with_batches(loader, sampler)
        if getattr(self, "dm", None) is not None:
            self.dm.train_loader_x = self.train_loader_x  # type: ignore[attr-defined]
        how = "hard class mining" if options.mining else "classes at random"
        print(f"Proxy-FDA batches: {sampler.m} classes x {sampler.n} images, {how}")
        if sampler.shape_note:
            print(f"Proxy-FDA batches: {sampler.shape_note}")

    def before_train(self) -> None:
        """Mine classes, once: their similarities need the features of all training images."""
        super().before_train()  # type: ignore[misc]
        if self._plugin is None or not (self._plugin.has_batches and self._plugin.mining):
            return
        if not getattr(self, "start_epoch", 0):
            # The first seeded runs took a number from torch's stream here: theirs are reproduced.
            torch.empty((), dtype=torch.int64).random_()
        self.train_loader_x.batch_sampler.mine(self._class_similarity())
        self._mined = True

    def _class_similarity(self) -> Tensor:
        """Cosine similarities between the mean frozen image features of the classes, [C, C].

        Kept in the output folder, so that a resumed run does not encode all images again.
        """
        source = self.train_loader_x.dataset.data_source
        weights = self._frozen_image_weights()
        folder = self.cfg.OUTPUT_DIR if weights else ""  # type: ignore[attr-defined]
        words = [f"{item.impath} {item.label}" for item in source]
        words.append(str(self.cfg.INPUT))  # type: ignore[attr-defined]

        def compute() -> Tensor:
            print(f"Proxy-FDA mining: frozen features of {len(source)} training images")
            features = torch.cat([batch.cpu() for batch in self._frozen_training_features()])
            return class_similarity(features, torch.tensor([item.label for item in source]))

        path = osp.join(folder, "class_similarity.pt") if folder else ""
        return cached_tensor(path, fingerprint(weights, words), compute)

    @torch.no_grad()
    def _frozen_training_features(self) -> Any:
        encode = self._frozen_image_encoder()
        for batch in self._training_images():
            yield encode(batch["img"].to(self.device)).float()  # type: ignore[attr-defined]

    def _training_images(self) -> Any:
        """Batches of all training images in their order, prepared as in a test: without
        augmentation."""
        train, test = self.train_loader_x.dataset, self.test_loader.dataset  # type: ignore[attr-defined]
        return torch.utils.data.DataLoader(
            type(train)(self.cfg, train.data_source, transform=test.transform),  # type: ignore[attr-defined]
            batch_size=self.cfg.DATALOADER.TEST.BATCH_SIZE,  # type: ignore[attr-defined]
            num_workers=self.train_loader_x.num_workers,
            # Its own, so that a run that reads the file draws the same numbers afterwards.
            generator=torch.Generator(),
        )

    def before_epoch(self) -> None:
        """Draw the batches of the epoch."""
        super().before_epoch()  # type: ignore[misc]
        sampler = getattr(self.train_loader_x, "batch_sampler", None)
        if isinstance(sampler, ClassBalancedBatchSampler):
            sampler.set_epoch(self.epoch)  # type: ignore[attr-defined]
        if self._balanced is not None:  # what was drawn before was no step's batch
            self._balanced.drawn = 0

    def _notice_needless_batches(self, options: PluginOptions) -> None:
        """Say that batches are asked for and nothing that they would be for."""
        if options.m and options.enabled and not options.has_batches:
            print(
                f"TRAINER.PROXYFDA.M {options.m} has no effect without a regulariser; for the "
                f"balanced batches alone set TRAINER.PROXYFDA.REGULARISER {NONE}"
            )

    def _notice_unused_batches(self) -> None:
        """Say once, at the first step, if the batch comes from elsewhere than our sampler."""
        sampler, self._balanced = self._balanced, None
        if sampler is not None and not sampler.drawn and self._plugin is not None:
            print(
                f"TRAINER.PROXYFDA.M {self._plugin.m}, N {self._plugin.n} have no effect: "
                f"{type(self).__name__} takes its batches from elsewhere than "
                "self.train_loader_x; set M 0 and N 0, and the batches by its own options"
            )


class _CountingSampler(ClassBalancedBatchSampler):
    """Counts the batches that were drawn from it in an epoch."""

    drawn = 0

    def __iter__(self) -> Iterator[List[int]]:
        for batch in super().__iter__():
            self.drawn += 1
            yield batch


def _with_batches(loader: Any, sampler: ClassBalancedBatchSampler) -> Any:
    """The same loader with other batches: everything but the choice of images stays the host's."""
    make = getattr(loader, "alike", torch.utils.data.DataLoader)
    names = ["in_order"] if hasattr(loader, "in_order") else []  # from torch 2.6 on
    if loader.num_workers:
        names += ["persistent_workers", "prefetch_factor", "multiprocessing_context"]
    return make(
        loader.dataset,
        batch_sampler=sampler,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        pin_memory_device=loader.pin_memory_device,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        generator=loader.generator,
        timeout=loader.timeout,
        **{name: getattr(loader, name) for name in names},
    )
