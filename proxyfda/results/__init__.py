"""Tables of results: ``python -m proxyfda.results OUTPUT``.

Reads the ``result.json`` of every run below ``OUTPUT``, in the layouts of
:mod:`proxyfda.experiments.layout`; a run of ours without a valid one is incomplete, whatever else
its folder holds. Of other codebases' runs it reads the last evaluation in ``log.txt``, which has
one decimal: their rows are said to be rounded, and never mixed with others in one.

How numbers are made:

* base, new, accuracy: mean over seeds, for base and new over those that have both; ± is the sample
  standard deviation over seeds (n - 1 in the denominator; ``parse_test_res.py`` of Dassl prints the
  population's, which is smaller by a factor of 0.82 for three seeds). A single seed, and zero-shot
  CLIP, which does not depend on the seed, have none.
* H: harmonic mean of the two means, as published tables have it; its ± is over the H of each seed.
* Δnew, Δ: minus the accuracy of ``ZeroshotCLIP`` on the same classes of the same dataset with the
  same backbone and weights; a note says where there is none.
* average: mean over datasets seed by seed, then as above, so its H is that of the averages and its
  ± is over the per-seed averages. It takes only datasets on which every row has results, and for
  each row only seeds complete on all of these; what is left out is named below the table.
* Probes of encoders that were tuned end to end (``finetune``), and rows of tasks (``continual``),
  have tables of their own: :mod:`proxyfda.results.forgetting` and
  :mod:`proxyfda.results.continual` say how their numbers are made.
* A row is a trainer with a config. Configs of a trainer that nowhere meet make one row, since CoOp
  trains less long on ImageNet; the table says so, and it says where runs of one config differ.
"""

import importlib

_HOMES = {
    "Comparison": "published",
    "compare": "published",
    "Record": "runs",
    "collect": "runs",
    "AVERAGE": "summary",
    "AccuracyRow": "summary",
    "Row": "summary",
    "Summary": "summary",
    "summarise": "summary",
    "summarise_accuracy": "summary",
    "CAPTION": "tables",
    "table": "tables",
    "main": "command",
}

__all__ = sorted(_HOMES)


def __getattr__(name):
    # Lazy: the metrics serve where nothing else of a table's needs is installed.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(set(globals()) | set(_HOMES))
