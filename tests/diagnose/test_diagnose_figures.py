"""Labels of the figures are whole, however long the names are, and marks are told apart in grey."""

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from proxyfda.diagnose import Encoded, Sample, compare
from proxyfda.diagnose import figures as drawn
from proxyfda.diagnostics.overlap import neighbours_kept

pytest.importorskip("ot")
LABELS = torch.arange(24) % 3
NAMES = [f"naive (a dataset with a long name, seed {seed})" for seed in range(1, 5)]


@pytest.fixture(scope="module")
def parts():
    """A sample, its frozen encoding, and four tuned ones with their comparisons."""
    stream = torch.Generator().manual_seed(0)

    def encoded(noise):
        x = torch.eye(3, 6)[LABELS] + noise * torch.randn(24, 6, generator=stream)
        return Encoded(x, {0: x, 4: x})

    names = ["a class whose name has no end", "b", "c"]
    sample = Sample("toy", [None] * 24, LABELS, names, ["{}"], 24)
    sample.image = lambda place: Image.new("RGB", (4, 4))
    frozen, tuned = encoded(0.1), {name: encoded(0.5) for name in NAMES}
    found = {name: compare("toy", frozen, one, LABELS, k=3) for name, one in tuned.items()}
    return sample, frozen, tuned, found


def is_whole(figure):
    """Whether all that is drawn, labels included, lies within the figure."""
    FigureCanvasAgg(figure).draw()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    return min(box.x0, box.y0, width - box.x1, height - box.y1) > -0.02


@pytest.mark.parametrize("kind", ["layers", "map", "classes", "neighbours"])
def test_labels_are_whole(kind, parts):
    sample, frozen, tuned, found = parts
    figure = {
        "layers": lambda: drawn.layer_figure("toy", found),
        "map": lambda: drawn.map_figure(sample, frozen, tuned),
        "classes": lambda: drawn.class_figure(sample, found),
        "neighbours": lambda: drawn.neighbour_figure(
            sample, frozen, tuned[NAMES[0]], found[NAMES[0]], f"toy, {NAMES[0]}: {60 * 'x'}"
        ),
    }[kind]()
    assert is_whole(figure)


def test_titles_of_a_map_do_not_run_into_each_other(parts):
    sample, frozen, tuned, _ = parts
    figure = drawn.map_figure(sample, frozen, tuned)
    FigureCanvasAgg(figure).draw()
    boxes = [axes.title.get_window_extent() for axes in figure.axes]
    assert all(left.x1 < right.x0 for left, right in zip(boxes, boxes[1:]))


def test_lines_and_bars_are_told_apart_without_colours(parts):
    _, _, _, found = parts
    (axes,) = drawn.layer_figure("toy", found).axes
    assert len({(line.get_marker(), line.get_linestyle()) for line in axes.lines}) == 4
    (axes,) = drawn.class_figure(parts[0], found).axes
    assert len({bars[0].get_hatch() for bars in axes.containers}) == 4


def test_the_images_shown_are_those_that_lost_most_of_the_neighbours_shown(parts):
    sample, frozen, tuned, _ = parts
    one = NAMES[0]
    of_all = compare("toy", frozen, tuned[one], LABELS, k=16)
    figure = drawn.neighbour_figure(sample, frozen, tuned[one], of_all, "toy", queries=3, shown=2)
    rows = [figure.axes[at : at + 5] for at in range(0, 15, 5)]

    def thick(axes):
        return axes.spines["top"].get_linewidth() > 1

    kept = neighbours_kept(frozen.features, tuned[one].features, 2)
    least = sorted(kept[sample.labels == label].min().item() for label in range(3))
    assert [sum(map(thick, row[1:3])) / 2 for row in rows] == least
