"""Figures of base-to-new results: ``python -m proxyfda.figures OUTPUT --out DIR``.

``base_new``: base against new accuracy per dataset and on average, with arrows from the plain
trainer to the same trainer with FDA and Proxy-FDA. ``delta_new``: new accuracy relative to
zero-shot CLIP as bars. Both as PNG and SVG; markers and hatches tell the trainers apart without
colour. The numbers are those of :mod:`proxyfda.results`, the whiskers its standard deviations.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from proxyfda.errors import tell_mistakes
from proxyfda.results import (
    AVERAGE,
    PREFIXES,
    collect,
    is_zero_shot,
    plain_trainer,
    summarise,
)

# From light to dark, so that the order survives in greyscale.
_STYLES = (
    {"color": "#f0b429", "marker": "o", "hatch": ""},
    {"color": "#2a9d8f", "marker": "s", "hatch": "///"},
    {"color": "#1d3557", "marker": "^", "hatch": "xxx"},
    {"color": "#c8553d", "marker": "D", "hatch": "\\\\\\"},
    {"color": "#9fb8ad", "marker": "v", "hatch": "..."},
    {"color": "#6d597a", "marker": "P", "hatch": "++"},
)
_ZERO_SHOT = {"color": "black", "marker": "*"}
_LONGEST_TITLE = 24
_FOOTNOTE = "* runs are missing, see the table"


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
        raise ValueError("no row has both base and new accuracy; finish the runs first")
    panels = list(dict.fromkeys(row.dataset for row in rows))
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    # A single panel is as wide as two, so that the legend fits below it.
    width = 3.0 * max(columns, 2)
    figure = Figure(figsize=(width, 2.9 * lines + 0.7), layout="constrained")
    styles = _styles(rows)
    for place, dataset in enumerate(panels):
        axes = figure.add_subplot(lines, columns, place + 1)
        _panel(axes, [row for row in rows if row.dataset == dataset], styles)
        if place % columns == 0:
            axes.set_ylabel("new accuracy (%)")
        if place + columns >= len(panels):
            axes.set_xlabel("base accuracy (%)")
    handles = [
        Line2D([], [], linestyle="", label=name, markeredgecolor="black", **_point(style))
        for name, style in styles.items()
    ]
    handles.append(Line2D([], [], color="0.7", linewidth=0.8, label="equal H"))
    _legend(figure, handles, rows)
    return figure


def delta_new_figure(rows):
    """New accuracy minus zero-shot CLIP's, bars per dataset and trainer.

    Args and Returns as for :func:`base_new_figure`.

    Raises:
        ValueError: no row has a difference to zero-shot CLIP.
    """
    rows = [row for row in rows if row.delta_new is not None]
    if not rows:
        raise ValueError("no row has a Δnew; add ZeroshotCLIP runs to the same output")
    datasets = list(dict.fromkeys(row.dataset for row in rows))
    styles = _styles(rows)
    slot = 0.8 / len(styles)
    figure = Figure(figsize=(max(6.0, 1.6 + 1.1 * len(datasets)), 3.9), layout="constrained")
    axes = figure.add_subplot()
    bars = {}
    for i, (name, style) in enumerate(styles.items()):
        for row in (row for row in rows if row.name == name):
            x = datasets.index(row.dataset) + (i - (len(styles) - 1) / 2) * slot
            bars[name] = axes.bar(
                x,
                row.delta_new,
                0.92 * slot,
                yerr=row.delta_new_std,
                color=style["color"],
                hatch=style["hatch"],
                edgecolor="white" if style["hatch"] else "black",
                linewidth=0.6,
                error_kw={"capsize": 2.5, "elinewidth": 1.0, "ecolor": "black"},
                label=name,
            )
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
    axes.margins(y=0.1)
    spare = 0.5 if len(datasets) > 1 else 1.0
    axes.set_xlim(-spare, len(datasets) - 1 + spare)
    if AVERAGE in datasets:
        axes.axvline(datasets.index(AVERAGE) - 0.5, color="0.6", linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(datasets)), [_title(rows, dataset) for dataset in datasets])
    longest = max(len(_title(rows, dataset)) for dataset in datasets)
    if longest > 16:
        axes.tick_params(axis="x", rotation=25)
        for label in axes.get_xticklabels():
            label.set_ha("right")
            label.set_rotation_mode("anchor")
    axes.set_ylabel("Δnew to zero-shot CLIP (points)")
    axes.spines[["top", "right"]].set_visible(False)
    _legend(figure, list(bars.values()), rows)
    return figure


def save_figures(summary, folder):
    """Save all figures of a :class:`proxyfda.results.Summary` in a folder, made if missing.

    Names are ``base_new`` and ``delta_new``, with the host trainer and the number of shots
    appended where there are several. A figure for which there are no numbers is left out with a
    line that says so.

    Returns:
        Paths of the files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shots = list(dict.fromkeys(row.shots for row in summary.rows))
    hosts = list(
        dict.fromkeys(
            plain_trainer(row.trainer)[1] for row in summary.rows if not is_zero_shot(row.trainer)
        )
    )
    saved = []
    for k in shots:
        for host in hosts or [None]:
            rows = [row for row in summary.rows if row.shots == k and _belongs(row, host)]
            tail = f"_{host}" * (len(hosts) > 1) + f"_{k}shots" * (len(shots) > 1)
            for name, draw in (("base_new", base_new_figure), ("delta_new", delta_new_figure)):
                try:
                    figure = draw(rows)
                except ValueError as error:
                    print(f"Left out {name}{tail}: {error}")
                    continue
                saved += _save(figure, folder / f"{name}{tail}")
    return saved


def _belongs(row, host):
    return is_zero_shot(row.trainer) or plain_trainer(row.trainer)[1] == host


def _save(figure, stem):
    # Text stays text in the SVG; a fixed salt and no date make it the same file every time.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "proxyfda"}):
        figure.savefig(f"{stem}.png", dpi=160)
        figure.savefig(f"{stem}.svg", metadata={"Date": None})
    return [Path(f"{stem}.png"), Path(f"{stem}.svg")]


def _styles(rows):
    """Style by row name: that of the term if each occurs once, otherwise in the order of rows."""
    trainers = {row.name: row.trainer for row in rows}
    learned = [name for name, trainer in trainers.items() if not is_zero_shot(trainer)]
    terms = [PREFIXES.index(plain_trainer(trainers[name])[0]) for name in learned]
    if len(set(terms)) < len(terms):
        terms = range(len(learned))
    styles = {name: _STYLES[term % len(_STYLES)] for name, term in zip(learned, terms)}
    return {name: styles.get(name, _ZERO_SHOT) for name in trainers}


def _point(style):
    size = 11 if style["marker"] == "*" else 7
    return {"marker": style["marker"], "color": style["color"], "markersize": size}


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
    plain = next((row for row in learned if not plain_trainer(row.trainer)[0]), None)
    for row in rows:
        axes.errorbar(
            row.base,
            row.new,
            xerr=row.base_std,
            yerr=row.new_std,
            ecolor="0.55",
            elinewidth=0.9,
            capsize=2,
            zorder=3,
            markeredgecolor="black",
            markeredgewidth=0.7,
            **_point(styles[row.name]),
        )
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
    bold = "bold" if rows[0].dataset == AVERAGE else "normal"
    axes.set_title(_title(rows, rows[0].dataset), fontsize=10, fontweight=bold)
    axes.tick_params(labelsize=8)


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


def _legend(figure, handles, rows):
    title = None if all(row.complete for row in rows) else _FOOTNOTE
    per_line = max(1, int(figure.get_figwidth() / 1.45))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), per_line),
        frameon=False,
        fontsize=9,
        title=title,
        title_fontsize=8,
    )


def main(argv=None):
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m proxyfda.figures", description="Figures of base-to-new results."
    )
    parser.add_argument("outputs", nargs="+", metavar="OUTPUT", help="output folder of base2new.sh")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the figures")
    parser.add_argument("--split", default="test", choices=("test", "val"), help="results on it")
    args = parser.parse_args(argv)
    for path in save_figures(summarise(collect(*args.outputs, split=args.split)), args.out):
        print(f"Saved {path}")
    return 0


if __name__ == "__main__":
    tell_mistakes()
    sys.exit(main())
