"""Where the frozen side comes from: a copy, a host's own weights, a file."""

from proxyfda.anchors.cache import cached_tensor, fingerprint
from proxyfda.anchors.frozen_copy import FrozenCopy

__all__ = ["FrozenCopy", "cached_tensor", "fingerprint"]
