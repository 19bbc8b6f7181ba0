"""Proxy-FDA: feature distribution alignment with proxies for few-shot CLIP.

Huang et al., "Proxy-FDA: Proxy-based Feature Distribution Alignment for Fine-tuning Vision
Foundation Models without Forgetting", ICML 2025, arXiv 2505.24088. An independent implementation.

Everything here needs torch only. The parts that need more (``proxyfda.backbones``,
``proxyfda.dassl``, ``proxyfda.engine``, ``proxyfda.experiments``, ``proxyfda.results``) are
imported by their own names.
"""

import importlib

from proxyfda.utils.errors import BadModel

__version__ = "0.1.0"

_HOMES = {
    "NeighbourGraph": "proxyfda.neighbours.graph",
    "fda_loss": "proxyfda.neighbours.graph",
    "pointwise_loss": "proxyfda.neighbours.graph",
    "ProxyGenerator": "proxyfda.neighbours.proxies",
    "proxy_loss": "proxyfda.neighbours.proxies",
    "proxy_fda_loss": "proxyfda.neighbours.proxies",
    "ClassBalancedBatchSampler": "proxyfda.sampling",
    "class_similarity": "proxyfda.sampling",
    "harmonic_mean": "proxyfda.results.metrics",
    "ProxyFDAConfig": "proxyfda.integrations.dassl_options",
    "extend_cfg": "proxyfda.integrations.dassl_options",
    "ProxyFDAMixin": "proxyfda.integrations.dassl",
    "make_trainer": "proxyfda.integrations.dassl",
    "register": "proxyfda.integrations.dassl",
}

__all__ = sorted(_HOMES)


def __getattr__(name):
    # Lazy, so that tools that only read results do not wait for torch.
    if name not in _HOMES:
        raise BadModel(f"module 'proxyfda' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(set(globals()) | set(_HOMES))
