"""Figures of probes: what is drawn is what the tables say."""

from pathlib import Path

import pytest
from result_trees import probe_values, write_probes

from proxyfda.results import main as results
from proxyfda.results.forgetting import summarise_forgetting
from proxyfda.results.probes import read_probes

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure  # noqa: E402

from proxyfda.results.figures import main  # noqa: E402
from proxyfda.results.matrix import summarise_matrix  # noqa: E402
from proxyfda.results.probe_figures import (  # noqa: E402
    continual_figure,
    forgetting_figure,
    overall,
    pareto_front,
    probe_figures,
    strengths_figure,
    wise_figure,
)

PROBED = ["dtd", "apples", "birds"]
TUNED = PROBED[:2]


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """Test probes of what was chosen, validation probes of what it was chosen from, and a row."""
    root = tmp_path_factory.mktemp("figures")

    def write(part, tuned, name, config, seed, shift, **more):
        path = f"finetune/{part}/{tuned}/{name}/{config}/seed{seed}"
        found = probe_values(f"{name} {config} {tuned} {seed}", PROBED, shift)
        write_probes(root, path, found, split=part.rpartition("_")[2], **more)

    for part in ("probe_val", "probe_test"):
        write(part, "pretrained", "Pretrained", "cfg", 1, 0)
        for tuned in TUNED:
            for seed in (1, 2):
                write(part, tuned, "FineTune", "cfg", seed, -4)
    for tuned, chosen in zip(TUNED, (1.0, 3.0)):
        for seed in (1, 2):
            for weight in (1.0, 3.0, 10.0):
                more = {"regulariser": {"name": "fda", "weight": weight}}
                write("probe_val", tuned, "FDAFineTune", f"cfg-weight_{weight:g}", seed, -1, **more)
                if weight == chosen:
                    write("probe_test", tuned, "FDAFineTune", "cfg", seed, -1, **more)
            for alpha in (0.25, 0.5):
                config = f"cfg-alpha_{alpha}"
                write("probe_val", tuned, "WiSEFT", config, seed, -2, alpha=alpha)
            write("probe_test", tuned, "WiSEFT", "cfg", seed, -2, alpha=0.5)
    for task in (1, 2):
        for seed in (1, 2):
            path = f"continual/probe_test/dtd+apples/task{task}/LPFT/cfg/seed{seed}"
            write_probes(root, path, probe_values(f"{task} {seed}", PROBED))
    return root


def points(axes):
    """Places of all markers."""
    return {
        (x, y)
        for line in axes.lines
        if line.get_marker() not in ("None", "", None)
        for x, y in zip(line.get_xdata(), line.get_ydata())
    }


def test_all_that_there_are_runs_for(output):
    found = dict(probe_figures(read_probes(output)))
    assert list(found) == ["forgetting", "strengths", "wise_ft", "continual"]
    assert not any(isinstance(figure, str) for figure in found.values())


def test_forgetting_has_a_point_per_method_and_the_front(output):
    rows = overall(summarise_forgetting(read_probes(output)).rows)
    axes = forgetting_figure(rows).axes[0]
    assert {r.name for r in rows} == {"Pretrained", "naive", "WiSE-FT", "FDA"}
    expected = {(r.accuracy, 0.0 if r.delta is None else r.delta) for r in rows}
    # Whiskers end in markers of their own, which stand at no method.
    assert expected <= points(axes)
    (front,) = [line for line in axes.lines if line.get_label() == "front"]
    drawn = set(zip(front.get_xdata(), front.get_ydata()))
    assert set(pareto_front(expected)) <= drawn
    assert not (expected - set(pareto_front(expected))) & drawn


def test_the_front_is_what_nothing_beats():
    some = [(1, 1), (2, 2), (3, 0), (2, 1), (0, 3), (3, -1)]
    beaten = {
        p for p in some for q in some if q != p and q[0] >= p[0] and q[1] >= p[1]
    }  # fmt: skip
    assert set(pareto_front(some)) == set(some) - beaten == {(2, 2), (3, 0), (0, 3)}


def test_without_a_reference_there_is_a_sentence(output):
    rows = [r for r in overall(summarise_forgetting(read_probes(output)).rows) if r.delta is None]
    with pytest.raises(ValueError, match="probe the pre-trained backbone too"):
        forgetting_figure(rows)


def test_strengths_are_of_validation_and_what_was_chosen_is_circled(output):
    runs = read_probes(output)
    rows = overall(summarise_forgetting(runs, "val", apart=True).rows)
    figure = dict(probe_figures(runs))["strengths"]
    fda = [r for r in rows if r.trainer == "FDAFineTune"]
    assert [r.weight for r in fda] == [1.0, 3.0, 10.0]
    accuracy, delta, both = figure.axes
    assert {(r.weight, r.accuracy) for r in fda} <= points(accuracy)
    assert {(r.weight, r.delta) for r in fda} <= points(delta)
    assert {(r.accuracy, r.delta) for r in fda} <= points(both)
    assert [(text.get_text(), text.xy) for text in delta.texts] == [
        ("1", (r.weight, r.delta)) for r in fda[:2]
    ]
    naive = next(r for r in rows if r.name == "naive")
    assert any(set(line.get_ydata()) == {naive.delta} for line in delta.lines)


def test_no_strengths(output):
    rows = [r for r in overall(summarise_forgetting(read_probes(output)).rows) if not r.weight]
    with pytest.raises(ValueError, match="no method has validation probes with a λ"):
        strengths_figure(rows)


def test_wise_goes_from_the_pretrained_to_the_tuned_weights(output):
    rows = overall(summarise_forgetting(read_probes(output), "val", apart=True).rows)
    by_name = {(r.trainer, r.weight): r for r in rows}
    figure = dict(probe_figures(read_probes(output)))["wise_ft"]
    line = max(figure.axes[0].lines, key=lambda line: len(line.get_xdata()))
    ends = by_name["Pretrained", None], by_name["FineTune", None]
    assert list(line.get_xdata()) == [0.0, 0.25, 0.5, 1.0]
    assert list(line.get_ydata()) == [
        ends[0].accuracy, by_name["WiSEFT", 0.25].accuracy, by_name["WiSEFT", 0.5].accuracy,
        ends[1].accuracy,
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no probes of interpolated weights"):
        wise_figure([ends[0]])


def test_continual_has_a_panel_per_task_and_one_of_the_rest(output):
    rows = summarise_matrix(read_probes(output), "continual").rows
    figure = continual_figure(rows)
    assert [axes.get_title() for axes in figure.axes] == [
        "DescribableTextures", "apples", "1 other dataset",
    ]  # fmt: skip
    for axes, probed in zip(figure.axes, PROBED):
        assert {(r.task, r.linear_probe) for r in rows if r.probed == probed} <= points(axes)


def test_files(output, tmp_path, monkeypatch, capsys):
    # How a figure is drawn in its files is tested with the others' (test_figures.py).
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: Path(path).write_text("drawn"))
    assert main([str(output), "--out", str(tmp_path)]) == 0
    names = ("forgetting", "strengths", "wise_ft", "continual")
    expected = {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert {path.name for path in tmp_path.iterdir()} == expected
    assert "Left out" not in capsys.readouterr().out


def test_page(output, tmp_path):
    page = tmp_path / "page.html"
    assert results([str(output), "--html", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    for words in (
        "Forgetting, ViT-Bundled (bundled)",
        "Tasks in a row",
        "over λ on the validation",
        "Accuracy after each task of a row",
        "17 of 17 runs that were begun",
    ):
        assert words in text, words
    assert text.count("<figure>") == 4
