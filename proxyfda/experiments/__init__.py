"""Experiments: one run, the protocols that runs make up, and where they are written and run.

Importing this package imports nothing else. ``names`` and ``layout`` (what runs are called and
where they lie) and ``record`` (what ``result.json`` holds) need the standard library only, and are
what :mod:`proxyfda.results` reads runs with. ``config`` and ``run`` are one run; ``project``,
``protocols``, ``jobs``, ``sweep``, ``launchers`` and ``lock`` run many.
"""
