"""A look at what tuning did to an encoder: ``python -m proxyfda.diagnose``.

Measures between a frozen and a tuned encoder on images (:mod:`proxyfda.diagnose.comparison`), their
figures, and how well each measure goes with forgetting over the runs of a sweep
(:mod:`proxyfda.diagnose.sweep`). The measures themselves are :mod:`proxyfda.diagnostics`.
"""

from proxyfda.diagnose.comparison import Comparison, compare
from proxyfda.diagnose.correlation import Correlation, correlate
from proxyfda.diagnose.encoders import encode, load_encoder
from proxyfda.diagnose.samples import Encoded, Sample, read_sample

__all__ = [
    "Comparison",
    "Correlation",
    "Encoded",
    "Sample",
    "compare",
    "correlate",
    "encode",
    "load_encoder",
    "read_sample",
]
