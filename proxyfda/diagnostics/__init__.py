"""What a model lost: measures between its frozen and its tuned features."""

from proxyfda.diagnostics.overlap import neighbour_overlap

__all__ = ["neighbour_overlap"]
