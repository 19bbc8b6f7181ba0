"""What all figures have in common: styles, panels, points with whiskers, the legend, files.

Figures have a white ground of their own, so that they read the same on a dark page.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from proxyfda.names import METHODS, PREFIXES, split_run_name, tunes_end_to_end
from proxyfda.results.names import learns_nothing
from proxyfda.utils.files import write_atomically

# Each trio runs from light to dark, so that the order survives in greyscale; what is equally light
# differs in marker, hatch and line.
STYLES = tuple(
    {"color": color, "marker": marker, "hatch": hatch, "line": line}
    for color, marker, hatch, line in (
        ("#f0b429", "o", "", "-"),
        ("#2a9d8f", "s", "///", "--"),
        ("#1d3557", "^", "xxx", "-."),
        ("#c8553d", "D", "\\\\\\", ":"),
        ("#b9d3c6", "v", "...", (0, (6, 1))),
        ("#6d597a", "P", "++", (0, (3, 1, 1, 1, 1, 1))),
        ("#e9c7d4", "X", "oo", (0, (1, 1))),
        ("#4f9bd9", "<", "||", (0, (8, 2, 2, 2))),
        ("#264d1f", ">", "--", (0, (2, 3))),
        ("#d0a77b", "p", "**", (0, (5, 4))),
        ("#8f2d56", "h", "OO", (0, (10, 2))),
        ("#5c5c5c", "d", "//", (0, (4, 1, 1, 1))),
    )
)
REFERENCE_STYLE = {"color": "black", "marker": "*", "hatch": "", "line": ":"}
DPI = 160
"""Dots per inch of figures that are saved."""
_FOOTNOTE = "* runs are missing, see the table"


def styles_of(trainers):
    """Style by name: that of the method if each occurs once, else in the order of names.

    Plain, FDA and Proxy-FDA look the same in every figure, with whatever else is in it.

    Args:
        trainers: dict of the runs' names by the names that are shown.
    """
    learned = [name for name, trainer in trainers.items() if not learns_nothing(trainer)]
    methods = [_method(trainers[name]) for name in learned]
    places = range(len(learned))
    if len(set(methods)) == len(methods):
        known = ["", *PREFIXES.values()]
        if all(tunes_end_to_end(trainers[name]) for name in learned):
            known += map(_method, METHODS.values())  # one style per method in all figures
        known = list(dict.fromkeys([*known, *methods]))
        places = [known.index(method) for method in methods]
    styles = {name: STYLES[place % len(STYLES)] for name, place in zip(learned, places)}
    return {name: styles.get(name, REFERENCE_STYLE) for name in trainers}


def _method(trainer):
    """The regulariser, or what a method without any is: a plain fine-tuning is like plain CoOp."""
    host, regulariser = split_run_name(trainer)
    plain = not tunes_end_to_end(trainer) or host == METHODS["naive"]
    return regulariser or ("" if plain else host)


def panels_of(names, width=3.0):
    """A figure with a panel per name, and the axes by name."""
    columns = _columns(len(names))
    lines = -(-len(names) // columns)
    # A single panel is as wide as two, so that the legend fits below it.
    size = (width * max(columns, 2), 2.9 * lines + 0.7)
    figure = Figure(figsize=size, layout="constrained")
    return figure, {
        name: figure.add_subplot(lines, columns, place + 1) for place, name in enumerate(names)
    }


def _columns(panels):
    return 3 if panels in (5, 6, 9) else min(4, panels)


def label_edges(panels, x, y):
    """Label the outer axes of a grid of panels."""
    columns = _columns(len(panels))
    for place, axes in enumerate(panels.values()):
        if place % columns == 0:
            axes.set_ylabel(y)
        if place + columns >= len(panels):
            axes.set_xlabel(x)


def point(style):
    """Options of a marker."""
    size = 11 if style["marker"] == "*" else 7
    return {"marker": style["marker"], "color": style["color"], "markersize": size}


def handle_of(name, style, line=False):
    """A line of the legend."""
    return Line2D(
        [], [], linestyle=style["line"] if line else "", label=name, markeredgecolor="black",
        **point(style),
    )  # fmt: skip


def point_with_errors(axes, at, errors, style):
    """Draw a point with whiskers; ``None`` for an error draws none."""
    axes.errorbar(
        *at,
        xerr=errors[0],
        yerr=errors[1],
        ecolor="0.55",
        elinewidth=0.9,
        capsize=2,
        zorder=3,
        markeredgecolor="black",
        markeredgewidth=0.7,
        **point(style),
    )


def add_legend(figure, handles, rows):
    """Put the legend below the panels; it says so where one of the rows is not complete."""
    title = None if all(row.complete for row in rows) else _FOOTNOTE
    longest = max(len(handle.get_label()) for handle in handles)
    per_line = max(1, int(figure.get_figwidth() / max(1.45, 0.55 + 0.085 * longest)))
    more = -(-len(handles) // per_line) - 1
    figure.set_figheight(figure.get_figheight() + 0.2 * more)
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), per_line),
        frameon=False,
        fontsize=9,
        title=title,
        title_fontsize=8,
    )


def save_figure(figure, stem):
    """Save a figure as ``<stem>.png`` and ``<stem>.svg``, whole or not at all; returns both."""
    # Text stays text in the SVG; a fixed salt and no date make it the same file every time.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "proxyfda"}):
        write_atomically(f"{stem}.png", lambda path: figure.savefig(path, format="png", dpi=DPI))
        write_atomically(
            f"{stem}.svg", lambda path: figure.savefig(path, format="svg", metadata={"Date": None})
        )
    return [Path(f"{stem}.png"), Path(f"{stem}.svg")]


def drawn(draw, *args):
    """The figure, or the sentence on why there is none."""
    try:
        return draw(*args)
    except ValueError as error:
        return str(error)
