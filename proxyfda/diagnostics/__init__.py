"""What a model lost: measures between its frozen and its tuned features."""

from proxyfda.diagnostics.linear_probe import LinearProbe, choose_linear_probe, fit_linear_probe
from proxyfda.diagnostics.overlap import neighbour_overlap
from proxyfda.diagnostics.probe import knn_accuracy

__all__ = [
    "LinearProbe",
    "choose_linear_probe",
    "fit_linear_probe",
    "knn_accuracy",
    "neighbour_overlap",
]
