"""What a model lost: measures between its frozen and its tuned features."""

from proxyfda.diagnostics.alignment import cka
from proxyfda.diagnostics.drift import l2_drift
from proxyfda.diagnostics.linear_probe import LinearProbe, choose_linear_probe, fit_linear_probe
from proxyfda.diagnostics.monitor import Monitor
from proxyfda.diagnostics.overlap import neighbour_overlap
from proxyfda.diagnostics.probe import knn_accuracy
from proxyfda.diagnostics.transport import otdd

__all__ = [
    "LinearProbe",
    "Monitor",
    "choose_linear_probe",
    "cka",
    "fit_linear_probe",
    "knn_accuracy",
    "l2_drift",
    "neighbour_overlap",
    "otdd",
]
