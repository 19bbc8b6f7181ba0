"""Figures of runs that learn prompts: accuracies, settings to choose from, training curves."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from proxyfda.names import is_zero_shot, split_run_name
from proxyfda.results.drawing import (
    add_legend,
    handle_of,
    label_edges,
    panels_of,
    point,
    point_with_errors,
    styles_of,
)
from proxyfda.results.summary import AVERAGE
from proxyfda.utils.errors import BadValue

__all__ = [
    "base_new_figure", "delta_new_figure", "fewshot_figure", "selection_figure", "training_figure",
]  # fmt: skip

_LONGEST_TITLE = 24
_WIDEST = 12.0  # inches of a figure with many datasets, before it goes on below


def base_new_figure(rows):
    """Base against new accuracy, one panel per dataset.

    Args:
        rows: rows of a :class:`proxyfda.results.Summary`, of one host trainer and number of shots.

    Returns:
        A matplotlib ``Figure``. Grey lines join points of equal H.

    Raises:
        ValueError: no row has both accuracies.
    """
    rows = [row for row in rows if row.base is not None and row.new is not None]
    if not rows:
        raise BadValue("no row has both base and new accuracy; finish the runs first")
    figure, panels = panels_of(list(dict.fromkeys(row.dataset for row in rows)))
    styles = _styles(rows)
    for dataset, axes in panels.items():
        _panel(axes, [row for row in rows if row.dataset == dataset], styles)
    label_edges(panels, "base accuracy (%)", "new accuracy (%)")
    handles = [handle_of(name, style) for name, style in styles.items()]
    handles.append(Line2D([], [], color="0.7", linewidth=0.8, label="equal H"))
    add_legend(figure, handles, rows)
    return figure


def delta_new_figure(rows):
    """New accuracy minus zero-shot CLIP's, bars per dataset and trainer.

    Args and Returns as for :func:`base_new_figure`.

    Raises:
        ValueError: no row has a difference to zero-shot CLIP.
    """
    rows = [row for row in rows if row.delta_new is not None]
    if not rows:
        raise BadValue("no row has a Δnew; add ZeroshotCLIP runs to the same output")
    datasets = list(dict.fromkeys(row.dataset for row in rows))
    styles = _styles(rows)
    # Inches that a dataset takes, and how many stand beside each other.
    pitch = max(1.25, 0.4 + 0.17 * len(styles))
    lines = -(-len(datasets) // max(1, int(_WIDEST / pitch)))
    per_line = -(-len(datasets) // lines)
    figure = Figure(
        figsize=(max(6.0, 1.6 + pitch * per_line), 0.9 + 3.0 * lines), layout="constrained"
    )
    panels = figure.subplots(lines, 1, sharey=True, squeeze=False)[:, 0]
    for line, axes in enumerate(panels):
        here = datasets[line * per_line : (line + 1) * per_line]
        _bars(axes, rows, here, styles, pitch)
        # Lines are equally long, so that all bars are equally wide.
        spare = 0.5 if len(datasets) > 1 else 1.0
        axes.set_xlim(-spare, per_line - 1 + spare)
        axes.set_ylabel("Δnew to zero-shot CLIP (points)" if lines == 1 else "Δnew (points)")
    panels[0].margins(y=0.1)
    if len(here) == 1 and lines > 1:
        panels[-1].set_xlim(-0.5, per_line - 0.5)
    handles = [
        Patch(
            facecolor=style["color"],
            hatch=style["hatch"],
            edgecolor="white" if style["hatch"] else "black",
            linewidth=0.6,
            label=name,
        )
        for name, style in styles.items()
    ]
    add_legend(figure, handles, rows)
    return figure


def _bars(axes, rows, datasets, styles, pitch):
    slot = 0.8 / len(styles)
    numbers = slot * pitch > 0.26  # inches that one takes
    for i, (name, style) in enumerate(styles.items()):
        for row in (row for row in rows if row.name == name and row.dataset in datasets):
            x = datasets.index(row.dataset) + (i - (len(styles) - 1) / 2) * slot
            axes.bar(
                x,
                row.delta_new,
                0.92 * slot,
                yerr=row.delta_new_std,
                color=style["color"],
                hatch=style["hatch"],
                edgecolor="white" if style["hatch"] else "black",
                linewidth=0.6,
                error_kw={"capsize": 2.5, "elinewidth": 1.0, "ecolor": "black"},
            )
            if not numbers:
                continue
            reach = row.delta_new_std or 0.0
            above = row.delta_new >= 0
            axes.annotate(
                f"{row.delta_new:+.1f}".replace("-", "\N{MINUS SIGN}"),
                (x, row.delta_new + (reach if above else -reach)),
                xytext=(0, 3 if above else -3),
                textcoords="offset points",
                ha="center",
                va="bottom" if above else "top",
                fontsize=7,
            )
    axes.axhline(0, color="black", linewidth=1.0)
    axes.use_sticky_edges = False
    if AVERAGE in datasets and len(datasets) > 1:
        axes.axvline(datasets.index(AVERAGE) - 0.5, color="0.6", linewidth=0.8, linestyle=":")
    titles = [_title(rows, dataset) for dataset in datasets]
    axes.set_xticks(range(len(datasets)), titles)
    axes.tick_params(axis="x", labelsize=9)
    if len(datasets) > 1 and 0.08 * max(map(len, titles)) > pitch:
        axes.tick_params(axis="x", rotation=20)
        for label in axes.get_xticklabels():
            label.set_ha("right")
            label.set_rotation_mode("anchor")
    axes.spines[["top", "right"]].set_visible(False)


def fewshot_figure(rows):
    """Accuracy against images per class, one panel per dataset.

    Args:
        rows: few-shot rows of :func:`proxyfda.results.summarise_accuracy`.

    Returns:
        A matplotlib ``Figure``; zero-shot CLIP stands at 0 images.

    Raises:
        ValueError: no row has an accuracy.
    """
    rows = [row for row in rows if row.accuracy is not None]
    if not rows:
        raise BadValue("no few-shot run is finished; finish the runs first")
    # Equal steps for doubled numbers, as few-shot curves are shown.
    places = {shots: place for place, shots in enumerate(sorted({row.shots for row in rows}))}
    styles = _styles(rows)
    figure, panels = panels_of(list(dict.fromkeys(row.dataset for row in rows)))
    for dataset, axes in panels.items():
        here = [row for row in rows if row.dataset == dataset]
        for name, style in styles.items():
            own = [row for row in here if row.name == name]
            if own:
                axes.errorbar(
                    [places[row.shots] for row in own],
                    [row.accuracy for row in own],
                    yerr=[row.accuracy_std or 0.0 for row in own],
                    linestyle=style["line"],
                    capsize=2,
                    elinewidth=0.9,
                    markeredgecolor="black",
                    markeredgewidth=0.7,
                    **point(style),
                )
        axes.set_xticks(list(places.values()), list(places))
        axes.set_xlim(-0.4, len(places) - 0.6)
        axes.grid(axis="y", color="0.9", linewidth=0.7)
        axes.set_axisbelow(True)
        _panel_title(axes, here, dataset)
    label_edges(panels, "images per class", "accuracy (%)")
    add_legend(figure, [handle_of(name, style, line=True) for name, style in styles.items()], rows)
    return figure


def selection_figure(panels):
    """Accuracy on the seen against that on the unseen half of the base classes.

    Args:
        panels: rows of :func:`proxyfda.results.selection.rows_of` by title. Numbers beside the
            points are those of the table, the plain trainer's is 0; a circle marks what is chosen.

    Returns:
        A matplotlib ``Figure``; grey lines join points of equal H. Whiskers are the standard errors
        of the differences to the plain trainer, since one half is harder than another for all.

    Raises:
        ValueError: no setting has both accuracies.
    """
    panels = {title: [r for r in rows if r.h is not None] for title, rows in panels.items()}
    every = [row for rows in panels.values() for row in rows]
    if not every:
        raise BadValue("no setting has results on both halves; finish the runs first")
    figure, axes_of = panels_of(list(panels), width=4.2)
    styles = styles_of({row.name: row.name for row in every})
    for title, axes in axes_of.items():
        for row in panels[title]:
            errors = (row.gain_seen_error, row.gain_unseen_error)
            point_with_errors(axes, (row.seen, row.unseen), errors, styles[row.name])
            if row.chosen:
                axes.plot(row.seen, row.unseen, "o", ms=15, mfc="none", mec="black", mew=1.4)
            axes.annotate(
                row.number,
                (row.seen, row.unseen),
                xytext=(6, 5),
                textcoords="offset points",
                fontsize=7,
                zorder=4,
            )
        axes.margins(0.14)
        axes.autoscale_view()
        _equal_h(axes)
        axes.set_title(title, fontsize=10)
        axes.tick_params(labelsize=8)
    label_edges(axes_of, "accuracy on seen classes (%)", "accuracy on unseen classes (%)")
    handles = [handle_of(name, style) for name, style in styles.items()]
    handles.append(
        Line2D([], [], marker="o", ls="", ms=12, mfc="none", mec="black", mew=1.4, label="chosen")
    )
    handles.append(Line2D([], [], color="0.7", linewidth=0.8, label="equal H"))
    add_legend(figure, handles, every)
    return figure


def training_figure(curves, title=""):
    """Curves of training on one dataset, one panel per quantity.

    Args:
        curves: by trainer, by quantity (``loss``, ``loss_fda``, ...) the pair of epochs or steps
            [T] and values [seeds, T], as :func:`proxyfda.results.curves.read_curves` has them per
            dataset.
        title: what the figure is called.

    Returns:
        A matplotlib ``Figure``: means over seeds, their range as a band.

    Raises:
        ValueError: there are no curves.
    """
    quantities = list(dict.fromkeys(tag for found in curves.values() for tag in found))
    if not quantities:
        raise BadValue("there are no training curves; the event files are missing")
    styles = styles_of({name: name.split(" ")[0] for name in curves})
    figure, panels = panels_of(quantities, width=3.6)
    for tag, axes in panels.items():
        for name, found in curves.items():
            if tag in found:
                steps, values = found[tag]
                style = styles[name]
                axes.plot(
                    steps, values.mean(0), color=style["color"], linestyle=style["line"], lw=1.5
                )
                if len(values) > 1:
                    band = values.min(0), values.max(0)
                    axes.fill_between(steps, *band, color=style["color"], alpha=0.18, lw=0)
        axes.set_title(tag, fontsize=10)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    label_edges(panels, "step", "")
    handles = [
        Line2D([], [], color=style["color"], linestyle=style["line"], lw=1.8, label=name)
        for name, style in styles.items()
    ]
    if title:
        figure.suptitle(title, fontsize=11)
    add_legend(figure, handles, ())
    return figure


def _panel_title(axes, rows, dataset):
    bold = "bold" if dataset == AVERAGE else "normal"
    axes.set_title(_title(rows, dataset), fontsize=10, fontweight=bold)
    axes.tick_params(labelsize=8)


def _styles(rows):
    return styles_of({row.name: row.trainer for row in rows})


def _title(rows, dataset):
    here = [row for row in rows if row.dataset == dataset]
    title = here[0].title
    if len(title) > _LONGEST_TITLE:
        title = title[: _LONGEST_TITLE - 1] + "…"
    if dataset == AVERAGE:
        title += f" of {here[0].n_datasets}"
    return title + "*" * any(not row.complete for row in here)


def _panel(axes, rows, styles):
    zero = next((row for row in rows if is_zero_shot(row.trainer)), None)
    learned = [row for row in rows if not is_zero_shot(row.trainer)]
    plain = next((row for row in learned if not split_run_name(row.trainer)[1]), None)
    for row in rows:
        errors = (row.base_std, row.new_std)
        point_with_errors(axes, (row.base, row.new), errors, styles[row.name])
    start = plain or zero
    for row in learned:
        if row is start or start is None:
            continue
        _arrow(axes, start, row, styles[row.name]["color"], "-")
    if plain and zero:
        _arrow(axes, zero, plain, "0.45", ":")
    axes.margins(0.14)
    axes.autoscale_view()
    _equal_h(axes)
    _panel_title(axes, rows, rows[0].dataset)


def _arrow(axes, start, end, color, line):
    axes.annotate(
        "",
        (end.base, end.new),
        (start.base, start.new),
        zorder=2,
        arrowprops={
            "arrowstyle": "-|>",
            "color": color,
            "linewidth": 1.4,
            "linestyle": line,
            "shrinkA": 5,
            "shrinkB": 5,
        },
    )


def _equal_h(axes):
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    base, new = np.meshgrid(
        np.linspace(max(left, 0.1), right, 40), np.linspace(max(bottom, 0.1), top, 40)
    )
    h = 2 * base * new / (base + new)
    low, high = h.min(), h.max()
    step = next((s for s in (1, 2, 5, 10, 20) if (high - low) / s <= 6), 50)
    levels = np.arange(np.ceil(low / step) * step, high, step)
    if len(levels):
        lines = axes.contour(base, new, h, levels, colors="0.82", linewidths=0.7, zorder=0)
        axes.clabel(lines, fmt="%g", fontsize=6, colors="0.6")
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
