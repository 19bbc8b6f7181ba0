"""Tables of results: ``python -m proxyfda.results OUTPUT``.

Reads the ``result.json`` of every run below ``OUTPUT``, in the layouts of
:mod:`proxyfda.results.runs`; a run of ours without a valid one is incomplete, whatever else its
folder holds. Of other codebases' runs it reads the last evaluation in ``log.txt``, which has one
decimal: their rows are said to be rounded, and never mixed with others in one.

How numbers are made:

* base, new, accuracy: mean over seeds, for base and new over those that have both; ± is the sample
  standard deviation over seeds (n - 1 in the denominator; ``parse_test_res.py`` of Dassl prints the
  population's, which is smaller by a factor of 0.82 for three seeds). A single seed, and zero-shot
  CLIP, which does not depend on the seed, have none.
* H: harmonic mean of the two means, as published tables have it; its ± is over the H of each seed.
* Δnew, Δ: minus the accuracy of ``ZeroshotCLIP`` on the same classes of the same dataset.
* average: mean over datasets seed by seed, then as above, so its H is that of the averages and its
  ± is over the per-seed averages. It takes only datasets on which every row has results, and for
  each row only seeds complete on all of these; what is left out is named below the table.
* A row is a trainer with a config. Configs of a trainer that nowhere meet make one row, since CoOp
  trains less long on ImageNet; the table says so, and it says where runs of one config differ.
"""

from proxyfda.results.names import PREFIXES, REFERENCE, is_zero_shot, plain_trainer
from proxyfda.results.published import Comparison, compare
from proxyfda.results.runs import Record, collect
from proxyfda.results.summary import (
    AVERAGE,
    AccuracyRow,
    Row,
    Summary,
    summarise,
    summarise_accuracy,
)
from proxyfda.results.tables import CAPTION, table

__all__ = [
    "AVERAGE",
    "CAPTION",
    "PREFIXES",
    "REFERENCE",
    "AccuracyRow",
    "Comparison",
    "Record",
    "Row",
    "Summary",
    "collect",
    "compare",
    "is_zero_shot",
    "main",
    "plain_trainer",
    "summarise",
    "summarise_accuracy",
    "table",
]


def main(argv=None):
    """The command line, see :func:`proxyfda.results.command.main`."""
    from proxyfda.results import command

    return command.main(argv)
