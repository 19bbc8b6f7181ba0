"""Proxy-FDA: feature distribution alignment with proxies for few-shot CLIP.

Huang et al., "Proxy-FDA: Proxy-based Feature Distribution Alignment for Fine-tuning Vision
Foundation Models without Forgetting", ICML 2025, arXiv 2505.24088. An independent implementation.

Everything here needs torch only. The parts that need more (``proxyfda.clip``, ``proxyfda.dassl``,
``proxyfda.engine``, ``proxyfda.results``, ``proxyfda.figures``) are imported by their own names.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "NeighbourGraph": "proxyfda.fda",
    "fda_loss": "proxyfda.fda",
    "pointwise_loss": "proxyfda.fda",
    "ProxyGenerator": "proxyfda.proxies",
    "proxy_loss": "proxyfda.proxies",
    "proxy_fda_loss": "proxyfda.proxies",
    "ClassBalancedBatchSampler": "proxyfda.sampler",
    "class_similarity": "proxyfda.sampler",
    "harmonic_mean": "proxyfda.metrics",
    "ProxyFDAConfig": "proxyfda.config",
    "extend_cfg": "proxyfda.config",
    "ProxyFDAMixin": "proxyfda.plugin",
    "make_trainer": "proxyfda.plugin",
    "register": "proxyfda.plugin",
}

__all__ = sorted(_HOMES)


def __getattr__(name):
    # Lazy, so that tools that only read results do not wait for torch.
    if name not in _HOMES:
        raise AttributeError(f"module 'proxyfda' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(set(globals()) | set(_HOMES))
