"""Regularisers against forgetting: one file each, found by name.

Every file of this folder is imported and registers what it holds; a new one needs no line here.

>>> from proxyfda import regularisers
>>> regularisers.names()[:2], regularisers.find("fda").__name__
(['fda', 'proxy_fda'], 'FDA')
"""

import importlib
import pkgutil

from proxyfda.regularisers.base import REGULARISERS, Options, Regulariser, create, find, names
from proxyfda.regularisers.constants import derive_constants
from proxyfda.regularisers.correlation import Correlation, correlation_loss
from proxyfda.regularisers.fda import FDA, FDAOptions, fda_loss
from proxyfda.regularisers.kl import KL, KLOptions, kl_loss
from proxyfda.regularisers.l2sp import L2SP, l2sp_loss
from proxyfda.regularisers.ldifs import LDIFS, LDIFSOptions, ldifs_loss
from proxyfda.regularisers.match import Match, MatchOptions, match_loss
from proxyfda.regularisers.pointwise import Pointwise, pointwise_loss
from proxyfda.regularisers.proxy_fda import ProxyFDA, ProxyFDAOptions, proxy_fda_loss
from proxyfda.regularisers.rkd import RKD, RKDOptions, rkd_loss

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "FDA",
    "KL",
    "L2SP",
    "LDIFS",
    "REGULARISERS",
    "RKD",
    "Correlation",
    "FDAOptions",
    "KLOptions",
    "LDIFSOptions",
    "Match",
    "MatchOptions",
    "Options",
    "Pointwise",
    "ProxyFDA",
    "ProxyFDAOptions",
    "RKDOptions",
    "Regulariser",
    "correlation_loss",
    "create",
    "derive_constants",
    "fda_loss",
    "find",
    "kl_loss",
    "l2sp_loss",
    "ldifs_loss",
    "match_loss",
    "names",
    "pointwise_loss",
    "proxy_fda_loss",
    "rkd_loss",
]
