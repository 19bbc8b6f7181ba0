"""Neighbour graphs of frozen features, and the proxies that enrich them."""

from proxyfda.neighbours.graph import NeighbourGraph, Relations
from proxyfda.neighbours.proxies import Proxies, ProxyGenerator, proxy_loss

__all__ = ["NeighbourGraph", "Proxies", "ProxyGenerator", "Relations", "proxy_loss"]
