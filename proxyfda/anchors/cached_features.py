"""The frozen side as features that were computed once."""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from proxyfda.anchors.cache import cached_tensors, fingerprint
from proxyfda.anchors.frozen_copy import FrozenCopy
from proxyfda.anchors.outputs import tensor_of
from proxyfda.utils.errors import BadType, BadValue, Unusable

__all__ = ["CachedFeatures"]

_CHUNK = 1 << 22  # numbers of a batch that are hashed at a time
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_MIX = (0x9E3779B97F4A7C15 - (1 << 64), 0xBF58476D1CE4E5B9 - (1 << 64))


class CachedFeatures:
    """Frozen features of a data set, computed once; no frozen forward pass in training.

    Of a batch the sample that each row is has to be known. The row itself tells: features are kept
    under a key made of what the module is called with, bit for bit, on any device. So nothing has
    to hand indices through loaders, workers, samplers or ranks, and a random transform, whose
    images were never seen before, is refused instead of being given the features of another view::

        cached = CachedFeatures.of(encoder, loader, path="anchors.pt")
        handle = proxyfda.attach(encoder, regulariser, anchors=cached)

    Args:
        features: [N_data, d], or of any form whose first dimension counts samples.
        index: for those who know the number of each sample: called with what the module is called
            with, gives the rows of ``features``, integers [N]. None: made by :meth:`of`.

    Raises:
        BadType: no tensor of floating numbers.
    """

    def __init__(
        self,
        features: Tensor,
        index: Optional[Callable[..., Union[Tensor, Sequence[int]]]] = None,
        *,
        _keys: Optional[Tensor] = None,
    ) -> None:
        if not isinstance(features, Tensor) or not features.is_floating_point():
            raise BadType(
                f"features is a {type(features).__name__}; give a tensor of numbers [N_data, d]."
            )
        if (index is None) == (_keys is None):
            raise BadType(
                "index is missing; give a function of what the module is called with that gives "
                "the rows, or make the features by CachedFeatures.of(module, loader)."
            )
        self.features = features.detach()
        self._index = index
        if _keys is not None:
            self._keys, self._rows = _keys.cpu().sort()

    def __len__(self) -> int:
        return len(self.features)

    @classmethod
    def of(
        cls,
        module: nn.Module,
        batches: Union[Dataset[Any], Iterable[Any]],
        *,
        path: str = "",
        inputs: Optional[Callable[[Any], Any]] = None,
        output: Union[int, str, None] = None,
        features: Optional[Callable[[Tensor], Tensor]] = None,
    ) -> CachedFeatures:
        """The features that a module has for a data set now, as :class:`FrozenCopy` gives them.

        Args:
            module: as it is before training, on the device that is to compute.
            batches: a loader over the data set with the transform of the training, which has to be
                deterministic, in any order; or a data set of samples.
            path: a file that keeps them; it is used again for the same weights and the same number
                of samples, and written anew otherwise. After another change of data or transform
                delete it.
            inputs: what of a batch the module is called with: one value, a tuple of arguments, or a
                mapping of keywords. None: the batch, or the first part of a tuple or list.
            output, features: see :func:`proxyfda.attach`; they are applied before anything is kept.

        Raises:
            BadType: a batch that is a mapping, without ``inputs``.
            BadValue: a module that gives other than one feature per sample, or no batches.
        """
        if isinstance(batches, Dataset):
            batches = DataLoader(batches, batch_size=64)
        frozen = FrozenCopy(module)

        def compute() -> Dict[str, Tensor]:
            found: List[Tensor] = []
            keys: List[Tensor] = []
            device = next((p.device for p in frozen.parameters()), torch.device("cpu"))
            with torch.no_grad():
                for batch in batches:
                    args, kwargs = _arguments(_moved(_inputs_of(batch, inputs), device))
                    made = tensor_of(frozen(*args, **kwargs), output)
                    made = made if features is None else features(made)
                    found.append(made.cpu())
                    keys.append(_keys_of(_largest(args, kwargs)).cpu())
                    if len(keys[-1]) != len(made):
                        raise BadValue(
                            f"the module gave {len(made)} features for {len(keys[-1])} samples; "
                            "features can be cached where each sample has one."
                        )
            if not found:
                raise BadValue("batches is empty; give a loader over the data set.")
            return {"features": torch.cat(found), "keys": torch.cat(keys)}

        data: Any = getattr(batches, "dataset", batches)
        size = len(data) if hasattr(data, "__len__") else None
        key = fingerprint(frozen, [str(size), repr(output), str(features is not None)])
        kept = cached_tensors(path, key, compute)
        return cls(kept["features"], _keys=kept["keys"])

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """The features of a batch, [N, d], on its device.

        Args:
            args, kwargs: what the module is called with.

        Raises:
            Unusable: a sample that is not among those cached.
            BadValue: an index out of range.
        """
        batch = _largest(args, kwargs)
        if self._index is None:
            keys = _keys_of(batch).cpu()
            places = torch.searchsorted(self._keys, keys).clamp_(max=len(self._keys) - 1)
            unknown = int((self._keys[places] != keys).sum())
            if unknown:
                raise Unusable(
                    f"{unknown} of {len(keys)} samples of a batch are not among the {len(self)} "
                    "whose features are cached: the transform is random, or data, transform or "
                    "precision have changed since; cache them anew, or give anchors='copy'"
                )
            rows = self._rows[places]
        else:
            rows = torch.as_tensor(self._index(*args, **kwargs)).reshape(-1).cpu()
            if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
                raise BadValue(
                    f"index gave rows from {int(rows.min())} to {int(rows.max())} of {len(self)} "
                    "cached features; give the number of each sample, counted from 0."
                )
        found = self.features[rows.to(self.features.device)]
        return found.to(batch.device, non_blocking=True)


def _inputs_of(batch: Any, inputs: Optional[Callable[[Any], Any]]) -> Any:
    if inputs is not None:
        return inputs(batch)
    if isinstance(batch, Mapping):
        raise BadType(
            f"a batch is a {type(batch).__name__}; say by inputs= what of it the module is called "
            "with, such as lambda batch: {'pixel_values': batch['pixel_values']}."
        )
    return batch[0] if isinstance(batch, (tuple, list)) else batch


def _arguments(given: Any) -> Tuple[Tuple[Any, ...], Dict[str, Any]]:
    if isinstance(given, Mapping):
        return (), dict(given)
    return (given if isinstance(given, tuple) else (given,)), {}


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _moved(found, device) for key, found in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_moved(found, device) for found in value)
    return value


def _largest(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """The tensor that is the sample: of several, the largest."""
    tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.dim()]
    if not tensors:
        raise BadType(
            "the module is called without a tensor, so its samples cannot be told apart; attach to "
            "the module that gets the images, or give anchors='copy'."
        )
    return max(tensors, key=lambda x: x.numel())


def _keys_of(batch: Tensor) -> Tensor:
    """A number of 64 bits for each row of a batch [N, ...], made of its bits: integers [N]."""
    rows = batch.detach().reshape(len(batch), -1).contiguous()
    rows = rows.to(torch.uint8) if rows.dtype == torch.bool else rows
    if rows.is_floating_point():
        rows = rows.view(_INTEGERS[rows.element_size()])
    places = torch.arange(1, rows.shape[1] + 1, device=rows.device)
    odd = (places * _MIX[0]) | 1
    keys = []
    for part in rows.split(max(1, _CHUNK // max(1, rows.shape[1]))):
        mixed = (part.long() + places) * odd
        mixed = (mixed ^ (mixed >> 29)) * _MIX[1]
        keys.append((mixed ^ (mixed >> 32)).sum(1))
    return torch.cat(keys) if keys else places.new_empty(0)
