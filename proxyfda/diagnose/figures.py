"""Figures of a comparison, and of measures against forgetting."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Iterable, Sequence

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from proxyfda.diagnose.comparison import Comparison
from proxyfda.diagnose.samples import Encoded, Sample
from proxyfda.neighbours.cosines import unit_rows
from proxyfda.results.drawing import REFERENCE_STYLE, STYLES, handle_of, point, styles_of
from proxyfda.utils.errors import BadValue

__all__ = ["class_figure", "layer_figure", "map_figure", "neighbour_figure", "scatter_figure"]

MAPS = ("pca", "tsne")
_CLASSES = 10  # that a map tells apart
_SHOWN = 30  # classes of a bar chart


def layer_figure(title: str, comparisons: dict[str, Comparison]) -> Figure:
    """Drift per layer: mean distance of the tokens' mean, of length 1, against the block.

    Args:
        title: of the figure.
        comparisons: by name of the tuned model.

    Raises:
        BadValue: no model has layers.
    """
    drawn = {name: found for name, found in comparisons.items() if found.layers}
    if not drawn:
        raise BadValue("no model has layers that could be compared")
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axes = figure.subplots()
    for (name, found), style in zip(drawn.items(), _styles(drawn)):
        places, values = zip(*sorted(found.layers.items()))
        axes.plot(
            places, values, label=name, linestyle=style["line"], markeredgecolor="black",
            **point(style),
        )  # fmt: skip
    axes.set(title=title, xlabel="blocks or stages passed", ylabel="drift of the tokens' mean")
    axes.set_xticks(sorted({at for found in drawn.values() for at in found.layers}))
    axes.set_ylim(bottom=0)
    _legend(figure, drawn)
    return figure


def map_figure(
    sample: Sample, frozen: Encoded, tuned: dict[str, Encoded], kind: str = "pca", seed: int = 0
) -> Figure:
    """Frozen and tuned features side by side, in two dimensions each.

    Args:
        kind: ``pca`` of each set of features by itself, or ``tsne``.
        seed: of t-SNE.

    Raises:
        BadValue: another kind, or fewer images than t-SNE takes.
    """
    if kind not in MAPS:
        raise BadValue(f"--map is {kind!r}; use one of {', '.join(MAPS)}")
    encodings = {"frozen": frozen, **tuned}
    figure = Figure(figsize=(3.4 * len(encodings), 4.0), layout="constrained")
    panels = figure.subplots(1, len(encodings), squeeze=False)[0]
    counts = torch.bincount(sample.labels)
    shown = counts.argsort(descending=True, stable=True)[:_CLASSES].tolist()
    shown = sorted(label for label in shown if counts[label])
    rest = ~torch.isin(sample.labels, torch.tensor(shown))
    for axes, (name, encoded) in zip(panels, encodings.items()):
        points = _plane(unit_rows(encoded.features), kind, seed)
        axes.scatter(*points[rest].t(), s=6, color="0.8", linewidths=0)
        for label, style in zip(shown, STYLES):
            axes.scatter(
                *points[sample.labels == label].t(), s=16, color=style["color"],
                marker=style["marker"], linewidths=0.3, edgecolors="black",
            )  # fmt: skip
        axes.set(xticks=[], yticks=[])
        axes.set_title(textwrap.fill(name, 36), fontsize=10)
    names = [_short(sample.classnames[at], 18) for at in shown]
    handles = [handle_of(name, style) for name, style in zip(names, STYLES)]
    if rest.any():
        handles.append(handle_of("other classes", {**STYLES[-1], "color": "0.8", "marker": "."}))
    figure.suptitle(f"{sample.name}, {len(sample.labels)} images, {_MAP_TITLES[kind]}", fontsize=10)
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


_MAP_TITLES = {"pca": "first two principal components", "tsne": "t-SNE"}


def _plane(features: Tensor, kind: str, seed: int) -> Tensor:
    if kind == "tsne":
        from sklearn.manifold import TSNE

        around = min(30.0, (len(features) - 1) / 3)
        made = TSNE(perplexity=around, init="pca", random_state=seed)
        return torch.as_tensor(made.fit_transform(features.numpy()))
    centred = features - features.mean(0)
    found: Tensor = centred @ torch.linalg.svd(centred, full_matrices=False)[2][:2].t()
    return found


def neighbour_figure(
    sample: Sample, frozen: Encoded, tuned: Encoded, comparison: Comparison, title: str,
    *, queries: int = 6, shown: int = 5,
) -> Figure:  # fmt: skip
    """Images that lost most neighbours: the image, its frozen and its tuned neighbours.

    One image of a class, while there are classes. Neighbours that both have are framed; those of
    another class than the image's have their class written in bold.
    """
    near = [_nearest(encoded.features, shown) for encoded in (frozen, tuned)]
    shown = near[0].shape[1]
    # Of those that are shown, and among equals of all K.
    kept = (near[0][:, :, None] == near[1][:, None]).any(2).double().mean(1)
    chosen = _one_of_each(kept + 1e-3 * comparison.kept, sample.labels, queries)
    figure = Figure(figsize=(1.05 * (2 * shown + 2), 1.35 * len(chosen) + 0.75))
    widths = [1, 0.25, *([1] * shown), 0.25, *([1] * shown)]
    grid = figure.add_gridspec(
        len(chosen), len(widths), width_ratios=widths, left=0.01, right=0.99, bottom=0.06,
        top=1 - 0.8 / figure.get_figheight(), hspace=0.45, wspace=0.08,
    )  # fmt: skip
    for row, query in enumerate(chosen):
        columns = [(0, query, "query" if row == 0 else "")]
        for start, title_of, places in (
            (2, "frozen neighbours", near[0]),
            (3 + shown, "tuned neighbours", near[1]),
        ):
            for at, place in enumerate(places[query].tolist()):
                heading = title_of if row == 0 and at == shown // 2 else ""
                columns.append((start + at, place, heading))
        both = set(near[0][query].tolist()) & set(near[1][query].tolist())
        for column, place, heading in columns:
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(sample.image(place))
            axes.set(xticks=[], yticks=[])
            same = sample.labels[place] == sample.labels[query]
            axes.set_xlabel(
                _short(sample.classnames[sample.labels[place]]), fontsize=7, labelpad=2,
                fontweight="normal" if same else "bold",
            )  # fmt: skip
            if heading:
                axes.set_title(heading, fontsize=9)
            for spine in axes.spines.values():
                spine.set_linewidth(2.5 if place in both else 0.5)
    note = "thick frame: neighbour in both; bold: another class than the query's"
    figure.suptitle(f"{title}\n{note}", fontsize=10)
    return figure


def _short(text: str, most: int = 15) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _one_of_each(kept: Tensor, labels: Tensor, count: int) -> list[int]:
    """Places of the least values, of as many classes as there are."""
    order = kept.argsort(stable=True).tolist()
    first, seen = [], set()
    for place in order:
        if int(labels[place]) not in seen:
            seen.add(int(labels[place]))
            first.append(place)
    others = [place for place in order if place not in set(first)]
    return (first + others)[:count]


def _nearest(features: Tensor, k: int) -> Tensor:
    unit = unit_rows(features)
    cosines = (unit @ unit.t()).fill_diagonal_(-2)
    return cosines.topk(min(k, len(unit) - 1), dim=1).indices


def class_figure(sample: Sample, comparisons: dict[str, Comparison]) -> Figure:
    """Neighbours kept per class as bars, the classes that lost most first."""
    labels = sample.labels.unique().tolist()
    means = {
        name: {at: found.kept[sample.labels == at].mean().item() for at in labels}
        for name, found in comparisons.items()
    }
    labels.sort(key=lambda at: statistics.fmean(one[at] for one in means.values()))
    labels = labels[:_SHOWN]
    figure = Figure(figsize=(6.0, 1.2 + 0.32 * len(labels)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(means)
    for place, ((name, one), style) in enumerate(zip(means.items(), _styles(means))):
        at = [row + (place - (len(means) - 1) / 2) * height for row in range(len(labels))]
        axes.barh(
            at, [one[label] for label in labels], 0.92 * height, label=name, color=style["color"],
            hatch=style["hatch"], edgecolor="white" if style["hatch"] else "black", linewidth=0.6,
        )  # fmt: skip
    names = [_short(sample.classnames[label], 28) for label in labels]
    axes.set_yticks(range(len(labels)), names, fontsize=8)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set(xlim=(0, 1), xlabel="share of neighbours kept", title=sample.name)
    _legend(figure, means)
    return figure


def scatter_figure(
    points: Sequence[dict], titles: dict[str, str], names: dict[str, str], notes: dict[str, str]
) -> Figure:
    """Each measure against forgetting, a point for each run.

    Args:
        points: measures and ``delta`` by name, and ``name`` of the run.
        titles: measure -> what its axis is called, in the order of the panels.
        names: name of the run -> what the legend calls it.
        notes: measure -> a line above its panel.
    """
    styles = styles_of({name: name for name in names})
    figure = Figure(figsize=(3.1 * len(titles), 3.9), layout="constrained")
    panels = figure.subplots(1, len(titles), sharey=True, squeeze=False)[0]
    for axes, (measure, title) in zip(panels, titles.items()):
        for name, style in styles.items():
            own = [one for one in points if one["name"] == name]
            axes.scatter(
                [one[measure] for one in own], [one["delta"] for one in own], s=34,
                color=style["color"], marker=style["marker"], edgecolors="black", linewidths=0.5,
            )  # fmt: skip
        axes.axhline(0, color="0.7", linewidth=0.8, zorder=0)
        axes.set_xlabel(title)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_title(notes[measure], fontsize=8)
    panels[0].set_ylabel("Δ_LP (points)")
    handles = [handle_of(names[name], style) for name, style in styles.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return figure


def _legend(figure: Figure, names: Iterable[str]) -> None:
    """A legend below everything, in as many columns as its longest name leaves room for."""
    each = 0.65 + 0.08 * max(map(len, names))  # inches of an entry
    columns = max(1, min(3, int(figure.get_figwidth() / each)))
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def _styles(names: dict) -> list[dict]:
    return [STYLES[place % len(STYLES)] for place in range(len(names))] or [REFERENCE_STYLE]
