"""Figures of probes: forgetting by tuning end to end, over λ and over α, and rows of tasks."""

from __future__ import annotations

import re
from collections import Counter

from matplotlib.lines import Line2D

from proxyfda.benchmarks import TITLES
from proxyfda.names import METHODS, PRETRAINED, WISE_FT
from proxyfda.results.drawing import (
    add_legend,
    drawn,
    handle_of,
    label_edges,
    panels_of,
    point,
    point_with_errors,
    styles_of,
)
from proxyfda.results.forgetting import summarise_forgetting
from proxyfda.results.matrix import summarise_matrix
from proxyfda.results.names import learns_nothing, title_of
from proxyfda.results.summary import AVERAGE
from proxyfda.utils.errors import BadValue

__all__ = [
    "against_forgetting",
    "continual_figure",
    "forgetting_figure",
    "pareto_front",
    "probe_figures",
    "strengths_figure",
    "wise_figure",
]

_AXES = {"accuracy": "A_LP (%)", "delta": "Δ_LP (points)", "delta_zero_shot": "ΔZS (points)"}
_NAIVE = METHODS["naive"]


def probe_figures(runs, split="test"):
    """All figures of probes that there are runs for.

    Args:
        runs: what :func:`proxyfda.results.probes.read_probes` returns.
        split: of the probes; those of the choice of λ are always on ``val``.

    Yields:
        (name, figure), or (name, sentence) for one that there are no numbers for. The backbone, or
        the row of tasks, is appended to names where there are several.
    """
    rows = overall(summarise_forgetting(runs, split).rows)
    tuned = {
        one: overall(summarise_forgetting(runs, one, apart=True).rows) for one in ("val", split)
    }
    for tail, own in _by_backbone(rows):
        yield f"forgetting{tail}", drawn(forgetting_figure, own)
    # What was chosen is what test images were looked at with.
    chosen = Counter(
        (row.backbone, row.trainer, row.weight)
        for row in summarise_forgetting(runs, "test").rows
        if row.dataset != AVERAGE and row.seeds
    )
    for tail, own in _by_backbone(tuned["val"]):
        if any(len(weights) > 1 for weights in _weights(own).values()):
            yield f"strengths{tail}", drawn(strengths_figure, own, chosen)
    of_alpha = max(tuned.values(), key=lambda rows: len([r for r in rows if r.trainer == WISE_FT]))
    for tail, own in _by_backbone(of_alpha):
        if any(row.trainer == WISE_FT for row in own):
            yield f"wise_ft{tail}", drawn(wise_figure, own)
    matrix = summarise_matrix(runs, "continual", split).rows
    places = dict.fromkeys((r.backbone, r.tested, r.dataset) for r in matrix if r.dataset)
    for backbone, tested, dataset in places:
        own = [r for r in matrix if (r.backbone, r.tested) == (backbone, tested)]
        own = [r for r in own if r.dataset in ("", dataset)]
        several = f"_{dataset}_{backbone}{'_prompts' * tested}" * (len(places) > 1)
        yield f"continual{several}", drawn(continual_figure, own)


def overall(rows):
    """Of each backbone the rows of the average, or of the only dataset that was tuned on."""
    averaged = {row.backbone for row in rows if row.dataset == AVERAGE}
    datasets = {}
    for row in rows:
        datasets.setdefault(row.backbone, set()).add(row.dataset)
    return [
        row
        for row in rows
        if row.dataset == AVERAGE
        or (row.backbone not in averaged and len(datasets[row.backbone]) == 1)
    ]


def _by_backbone(rows):
    backbones = dict.fromkeys(row.backbone for row in rows)
    for backbone in backbones:
        tail = "_" + re.sub(r"[^\w.-]+", "_", backbone).strip("_")
        yield tail * (len(backbones) > 1), [row for row in rows if row.backbone == backbone]


def _styles(rows):
    return styles_of({row.name: row.trainer for row in rows})


def pareto_front(points):
    """The points that no other one beats in both numbers, by the first one, rising.

    >>> pareto_front([(1, 5), (2, 3), (2, 4), (3, 1), (0, 5)])
    [(1, 5), (2, 4), (3, 1)]
    """
    points = sorted(set(points))
    return [
        p
        for p in points
        if not any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in points)
    ]  # fmt: skip


def forgetting_figure(rows):
    """A_LP against Δ_LP, and against ΔZS where there is any: one point per method.

    Args:
        rows: of one backbone and set of tuned datasets, of
            :func:`proxyfda.results.forgetting.summarise_forgetting`.

    Returns:
        A matplotlib ``Figure``. Above and to the right is better; the grey line is the Pareto
        front of the means.

    Raises:
        ValueError: no row has a difference to the pre-trained backbone.
    """
    if not any(row.delta is not None for row in rows):
        raise BadValue("no method has a Δ_LP; probe the pre-trained backbone too")
    measures = ["delta"]
    measures += ["delta_zero_shot"] * any(row.delta_zero_shot is not None for row in rows)
    panels = {}
    for measure in measures:
        points = []
        for row in rows:
            at = row.accuracy, 0.0 if row.trainer == PRETRAINED else getattr(row, measure)
            points.append((row.name, at, (row.accuracy_std, getattr(row, f"{measure}_std"))))
        panels[f"forgetting, {_AXES[measure]}"] = points
    label = f"accuracy on the tuned dataset, {_AXES['accuracy']}"
    return against_forgetting(rows, label, panels)


def against_forgetting(rows, label, panels):
    """What was learned against what was forgotten, with the Pareto front of the means.

    Args:
        rows: all that are shown.
        label: of what was learned.
        panels: by what is called forgetting in them, lists of a row's name, its point and the
            errors of that; a point with a ``None`` is left out.
    """
    styles = _styles(rows)
    figure, axes_of = panels_of(list(panels), width=4.6)
    for forgetting, axes in axes_of.items():
        points = [point for point in panels[forgetting] if None not in point[1]]
        for name, at, errors in points:
            point_with_errors(axes, at, errors, styles[name])
        axes.axhline(0, color="0.75", linewidth=0.9, linestyle=":", zorder=0)
        axes.margins(0.12)
        axes.autoscale_view()
        _draw_front(axes, pareto_front([at for _, at, _ in points]))
        _plain(axes)
        axes.set_xlabel(label)
        axes.set_ylabel(forgetting)
    handles = [handle_of(name, style) for name, style in styles.items()]
    handles.append(Line2D([], [], color="0.6", linewidth=1.0, label="Pareto front"))
    add_legend(figure, handles, rows)
    return figure


def _draw_front(axes, front):
    (left, _), (bottom, _) = axes.get_xlim(), axes.get_ylim()
    x = [left, *(at[0] for at in front), front[-1][0]]
    y = [front[0][1], *(at[1] for at in front), bottom]
    limits = axes.get_xlim(), axes.get_ylim()
    axes.plot(x, y, color="0.6", linewidth=1.0, drawstyle="steps-pre", zorder=1, label="front")
    axes.set_xlim(limits[0])
    axes.set_ylim(limits[1])


def _plain(axes):
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _weights(rows):
    """Rows by trainer, those with a λ above 0 and all others left out."""
    found = {}
    for row in rows:
        if row.trainer != WISE_FT and row.weight and row.weight > 0 and row.delta is not None:
            found.setdefault(row.trainer, []).append(row)
    return {name: sorted(own, key=lambda row: row.weight) for name, own in found.items()}


def strengths_figure(rows, chosen=None):
    """A_LP and Δ_LP over λ, one line per method, and one against the other.

    Args:
        rows: of one backbone, one per config, on the validation split.
        chosen: on how many tuned datasets a (backbone, trainer, λ) was chosen; it is circled and
            the number stands beside it.

    Returns:
        A matplotlib ``Figure``; plain fine-tuning is dotted.

    Raises:
        ValueError: no method has a λ.
    """
    lines, chosen = _weights(rows), chosen or {}
    if not lines:
        raise BadValue("no method has validation probes with a λ; finish the runs first")
    naive = [row for row in rows if row.trainer == _NAIVE and row.delta is not None]
    styles = styles_of({trainer: trainer for trainer in (_NAIVE, *lines)})
    figure, panels = panels_of(["accuracy", "delta", "both"], width=3.8)
    for trainer, own in lines.items():
        style = styles[trainer]
        weights = [row.weight for row in own]
        for measure in ("accuracy", "delta"):
            values = [getattr(row, measure) for row in own]
            errors = [getattr(row, f"{measure}_std") or 0.0 for row in own]
            _line(panels[measure], weights, values, errors, style)
        accuracies, deltas = [row.accuracy for row in own], [row.delta for row in own]
        _line(panels["both"], accuracies, deltas, None, style)
        for row in own:
            count = chosen.get((row.backbone, trainer, row.weight))
            if count:
                for axes, at in (
                    (panels["accuracy"], (row.weight, row.accuracy)),
                    (panels["delta"], (row.weight, row.delta)),
                    (panels["both"], (row.accuracy, row.delta)),
                ):
                    axes.plot(*at, "o", ms=13, mfc="none", mec="black", mew=1.3)
                    axes.annotate(
                        str(count), at, xytext=(7, 7), textcoords="offset points", fontsize=7
                    )
    for row in naive[:1]:
        for measure in ("accuracy", "delta"):
            panels[measure].axhline(
                getattr(row, measure), color=styles[_NAIVE]["color"], linestyle=":", linewidth=1.6
            )
        point_with_errors(panels["both"], (row.accuracy, row.delta), (None, None), styles[_NAIVE])
    for measure in ("accuracy", "delta"):
        panels[measure].set_xscale("log")
        panels[measure].set_xlabel("λ")
        panels[measure].set_ylabel(f"{_AXES[measure]}, validation")
    panels["both"].set_xlabel(_AXES["accuracy"])
    panels["both"].set_ylabel(_AXES["delta"])
    for axes in panels.values():
        _plain(axes)
    used = [name for name in styles if name in lines or naive]
    handles = [handle_of(title_of(name), styles[name], line=name in lines) for name in used]
    if chosen:
        label = "chosen, on so many tuned datasets"
        circle = {"marker": "o", "ls": "", "ms": 11, "mfc": "none", "mec": "black", "mew": 1.3}
        handles.append(Line2D([], [], label=label, **circle))
    add_legend(figure, handles, [row for own in lines.values() for row in own])
    return figure


def _line(axes, x, y, errors, style):
    axes.errorbar(
        x,
        y,
        yerr=errors,
        linestyle=style["line"],
        capsize=2,
        elinewidth=0.9,
        markeredgecolor="black",
        markeredgewidth=0.7,
        **point(style),
    )


def wise_figure(rows):
    """A_LP, Δ_LP and ΔZS over α, from the pre-trained weights (0) to the tuned ones (1).

    Args:
        rows: of one backbone, one per config.

    Returns:
        A matplotlib ``Figure``; the ends are the pre-trained backbone and plain fine-tuning.

    Raises:
        ValueError: there is no α between the ends.
    """
    by_alpha = {row.weight: row for row in rows if row.trainer == WISE_FT}
    if not by_alpha:
        raise BadValue("there are no probes of interpolated weights; run WiSE-FT")
    for alpha, trainer in ((0.0, PRETRAINED), (1.0, _NAIVE)):
        end = next((row for row in rows if row.trainer == trainer), None)
        if end is not None:
            by_alpha.setdefault(alpha, end)
    measures = ["accuracy", "delta"]
    measures += ["delta_zero_shot"] * any(r.delta_zero_shot is not None for r in by_alpha.values())
    name = title_of(WISE_FT)
    style = styles_of({name: WISE_FT})[name]
    figure, panels = panels_of(measures, width=3.6)
    for measure, axes in panels.items():
        points = []
        for alpha, row in sorted(by_alpha.items()):
            none = row.trainer == PRETRAINED and measure != "accuracy"
            value = 0.0 if none else getattr(row, measure)
            if value is not None:
                points.append((alpha, value, getattr(row, f"{measure}_std") or 0.0))
        _line(axes, *zip(*points), style)
        axes.set_ylabel(_AXES[measure])
        axes.set_xlabel("α")
        _plain(axes)
    add_legend(figure, [handle_of(name, style, line=True)], list(by_alpha.values()))
    return figure


def continual_figure(rows):
    """Accuracy on every task, and on what is none, after each task of a row.

    Args:
        rows: of one row of tasks and backbone, of
            :func:`proxyfda.results.matrix.summarise_matrix`.

    Returns:
        A matplotlib ``Figure``, a panel per task and one with the mean over all other datasets; the
        dotted line in a panel is where its task is learned.

    Raises:
        ValueError: no task is finished.
    """
    learned = [row for row in rows if row.dataset]
    if not learned:
        raise BadValue("no task of the row is finished; finish the runs first")
    tasks = learned[0].dataset.split("+")
    others = [d for d in dict.fromkeys(row.probed for row in learned) if d not in tasks]
    titles = {task: TITLES.get(task, task) for task in tasks}
    figure, panels = panels_of([*tasks, *["held out"] * bool(others)])
    styles = _styles(learned)
    before = {row.probed: row.linear_probe for row in rows if learns_nothing(row.trainer)}
    for name, style in styles.items():
        own = {(row.task, row.probed): row for row in learned if row.name == name}
        for panel, axes in panels.items():
            datasets = others if panel == "held out" else [panel]
            points = []
            if all(d in before for d in datasets):
                points.append((0, sum(before[d] for d in datasets) / len(datasets), 0.0))
            for task in range(1, len(tasks) + 1):
                here = [own[task, d] for d in datasets if (task, d) in own]
                if len(here) == len(datasets):
                    mean = sum(row.linear_probe for row in here) / len(here)
                    # The spread of a mean over datasets is not that of one of them.
                    std = here[0].linear_probe_std if len(here) == 1 else None
                    points.append((task, mean, std or 0.0))
            if points:
                _line(axes, *zip(*points), style)
    for panel, axes in panels.items():
        if panel in titles:
            axes.axvline(tasks.index(panel) + 1, color="0.75", linestyle=":", zorder=0)
        count = f"{len(others)} other dataset{'s' * (len(others) > 1)}"
        axes.set_title(titles.get(panel, count), fontsize=10)
        axes.set_xticks(range(len(tasks) + 1), ["before", *map(str, range(1, len(tasks) + 1))])
        _plain(axes)
    label_edges(panels, "after task", "accuracy (%)")
    handles = [handle_of(name, style, line=True) for name, style in styles.items()]
    add_legend(figure, handles, learned)
    return figure
