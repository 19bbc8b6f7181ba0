"""The runner behind the scripts: protocols give lists of jobs, launchers run them.

A job (:mod:`runner.job`) is one call of ``train.main``; a protocol (:mod:`runner.protocols`) says
which jobs make an experiment; :mod:`runner.sweep` skips what is complete, shows progress and tells
failures; :mod:`runner.launchers` has the places where jobs can run.
"""

import os.path as osp
import sys

ROOT = osp.dirname(osp.dirname(osp.dirname(osp.abspath(__file__))))
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)  # the scripts are started from anywhere
