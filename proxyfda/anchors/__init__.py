"""Where the frozen side comes from: a copy, cached features, a host's own weights."""

from proxyfda.anchors.cache import cached_tensor, fingerprint
from proxyfda.anchors.cached_features import CachedFeatures
from proxyfda.anchors.frozen_copy import FrozenCopy

__all__ = ["CachedFeatures", "FrozenCopy", "cached_tensor", "fingerprint"]
