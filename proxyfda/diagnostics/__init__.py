"""What a model lost: measures between its frozen and its tuned features."""

from proxyfda.diagnostics.overlap import neighbour_overlap
from proxyfda.diagnostics.probe import knn_accuracy

__all__ = ["knn_accuracy", "neighbour_overlap"]
