"""How backbones and their weights are named, whatever library they come from."""

from __future__ import annotations

TIMM = "timm:"
"""What the names of timm's models begin with."""

FLAVA = ("flava", "facebook/flava-full")
"""The names of FLAVA; the second is the repository of its weights."""

HUB = "hub"
"""The weights that timm or transformers downloads for a name."""

RANDOM = "random"
"""Weights that are drawn and not pre-trained. Results carry the name, and a line is printed."""
