"""Training curves from the event files that trainers write with tensorboard."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from proxyfda.experiments.layout import TENSORBOARD
from proxyfda.results.cells import names_of
from proxyfda.results.names import PROTOCOL_TITLES, shots_title

_POINTS = 100  # of a curve, each the mean over as many steps as it takes


def read_curves(records, points=_POINTS):
    """Curves of all training runs.

    Args:
        records: what :func:`proxyfda.results.collect` returns; evaluations have no curves.
        points: steps are averaged in bins so that no more than this many are left.

    Returns:
        Dict by dataset (its title, and the protocol in brackets where it was trained on in
        several) of dicts by trainer (its name in tables) of dicts by quantity
        (``loss`` first, then its terms and ``acc``; not the learning rate) of the pair of steps [T]
        and values [seeds, T]. Seeds whose runs have another number of steps are left out with a
        line on stderr that says so.
    """
    runs = [
        (name, record)
        for name, record in names_of(records)
        if record.part in ("base", "all") and (Path(record.folder) / TENSORBOARD).is_dir()
    ]
    protocols, shots = {}, {}
    for name, record in runs:
        protocols.setdefault(record.title, set()).add(record.protocol)
        shots.setdefault((record.title, record.protocol, name), set()).add(record.shots)
    together = {}
    shown = runs
    if sys.stderr.isatty():
        from tqdm import tqdm

        shown = tqdm(runs, desc="event files", unit="run", leave=False)
    for name, record in shown:
        title = record.title
        if len(shots[title, record.protocol, name]) > 1:
            name = f"{name} {shots_title(record.shots)}"
        if len(protocols[title]) > 1:
            title += f" ({PROTOCOL_TITLES.get(record.protocol, record.protocol)})"
        found = together.setdefault(title, {}).setdefault(name, {})
        for tag, (steps, values) in read_events(Path(record.folder) / TENSORBOARD).items():
            found.setdefault(tag, []).append((*_binned(steps, values, points), record.folder))
    return {
        dataset: {
            name: {tag: _stacked(tags[tag]) for tag in sorted(tags, key=lambda t: (t != "loss", t))}
            for name, tags in trainers.items()
        }
        for dataset, trainers in together.items()
    }


def read_events(folder):
    """Steps and values by quantity of the ``train/`` scalars in a folder of event files.

    Where a run was resumed, a step that was done twice counts as it was done last.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    found = {}
    for tag in events.Tags()["scalars"]:
        if tag.startswith("train/") and tag != "train/lr":
            by_step = {event.step: event.value for event in events.Scalars(tag)}
            steps = np.array(sorted(by_step))
            found[tag[len("train/") :]] = steps, np.array([by_step[step] for step in steps])
    return found


def _binned(steps, values, points):
    bins = np.array_split(np.arange(len(steps)), min(points, len(steps)))
    return (
        np.array([steps[own].mean() for own in bins]),
        np.array([values[own].mean() for own in bins]),
    )


def _stacked(runs):
    """Steps [T] and values [seeds, T] of the runs that are as long as the longest."""
    longest = max(runs, key=lambda run: run[0][-1])[0]
    alike = [run for run in runs if np.array_equal(run[0], longest)]
    for *_, folder in (run for run in runs if not np.array_equal(run[0], longest)):
        print(f"{folder} has fewer training steps than others; not in the curves", file=sys.stderr)
    return longest, np.stack([run[1] for run in alike])
