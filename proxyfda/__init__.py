"""Proxy-FDA and its rivals: regularisers against forgetting in fine-tuning.

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
    # regularisers: modules, and the losses as functions
    "FDA": "proxyfda.regularisers",
    "FDAOptions": "proxyfda.regularisers",
    "ProxyFDA": "proxyfda.regularisers",
    "ProxyFDAOptions": "proxyfda.regularisers",
    "RKD": "proxyfda.regularisers",
    "Pointwise": "proxyfda.regularisers",
    "LDIFS": "proxyfda.regularisers",
    "L2SP": "proxyfda.regularisers",
    "fda_loss": "proxyfda.regularisers",
    "proxy_fda_loss": "proxyfda.regularisers",
    "derive_constants": "proxyfda.regularisers",
    "rkd_loss": "proxyfda.regularisers",
    "pointwise_loss": "proxyfda.regularisers",
    "ldifs_loss": "proxyfda.regularisers",
    "l2sp_loss": "proxyfda.regularisers",
    # what they are made of
    "NeighbourGraph": "proxyfda.neighbours",
    "ProxyGenerator": "proxyfda.neighbours",
    "proxy_loss": "proxyfda.neighbours",
    "FrozenCopy": "proxyfda.anchors",
    "CachedFeatures": "proxyfda.anchors",
    "attach": "proxyfda.integrations.loop",
    "ClassBalancedBatchSampler": "proxyfda.sampling",
    "class_similarity": "proxyfda.sampling",
    "harmonic_mean": "proxyfda.results.metrics",
    # the plugin for codebases on Dassl
    "RegularisedTrainer": "proxyfda.integrations.dassl",
    "extend_cfg": "proxyfda.integrations.dassl",
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
