import numpy as np
import pytest
from result_trees import write_plain, write_run, write_runs

from proxyfda.results import collect, summarise, summarise_accuracy

pytest.importorskip("matplotlib")

from proxyfda.results.figures import main, save_figures  # noqa: E402
from proxyfda.results.prompt_figures import (  # noqa: E402
    base_new_figure,
    delta_new_figure,
    fewshot_figure,
    training_figure,
)

NUMBERS = {
    name: {
        "ZeroshotCLIP": ([60 + i], [55 + i]),
        "CoOp": ([80, 81, 82 + i], [40, 43, 47 - i]),
        "FDACoOp": ([79, 80, 81], [50, 51, 52]),
        "ProxyFDACoOp": ([79, 80, 80], [58, 59, 59]),
    }
    for i, name in enumerate(["apples", "a_dataset_with_a_rather_long_name"])
}


@pytest.fixture
def summary(tmp_path):
    return summarise(collect(write_runs(tmp_path / "output", NUMBERS)))


def overhang(figure):
    """By how many inches the drawn figure sticks out of its own edges."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    box = figure.get_tightbbox(canvas.get_renderer())
    width, height = figure.get_size_inches()
    return max(-box.x0, -box.y0, box.x1 - width, box.y1 - height)


def test_base_new_has_a_panel_per_dataset_and_points_at_the_means(summary):
    figure = base_new_figure(summary.rows)
    assert [axes.get_title() for axes in figure.axes] == [
        "a_dataset_with_a_rather…", "apples", "average of 2",
    ]  # fmt: skip
    for axes, dataset in zip(figure.axes, dict.fromkeys(row.dataset for row in summary.rows)):
        drawn = {
            (line.get_xdata()[0], line.get_ydata()[0])
            for line in axes.lines
            if line.get_marker() in ("*", "o", "s", "^")
        }
        assert drawn == {(r.base, r.new) for r in summary.rows if r.dataset == dataset}


def test_delta_bars_have_the_heights_of_the_table(summary):
    axes = delta_new_figure(summary.rows).axes[0]
    rows = [row for row in summary.rows if row.delta_new is not None]
    heights = sorted(bar.get_height() for bar in axes.patches)
    assert heights == pytest.approx(sorted(row.delta_new for row in rows))
    assert len({bar.get_hatch() for bar in axes.patches}) == 3


@pytest.mark.parametrize("draw", [base_new_figure, delta_new_figure])
@pytest.mark.parametrize("only", [None, "apples"])
def test_nothing_sticks_out(summary, draw, only):
    rows = [row for row in summary.rows if only in (None, row.dataset)]
    assert overhang(draw(rows)) <= 0.01


@pytest.mark.parametrize("n_datasets, n_configs", [(2, 1), (2, 12), (15, 3)])
def test_any_size_fits(tmp_path, n_datasets, n_configs):
    datasets = [f"a_dataset_with_name_{i}" for i in range(n_datasets)]
    for dataset in datasets:
        write_runs(tmp_path, {dataset: {"ZeroshotCLIP": ([60], [60])}})
        for i in range(n_configs):
            numbers = {dataset: {"ProxyFDACoOp": ([70 + i, 72], [50 - i, 52])}}
            write_runs(tmp_path, numbers, config=f"regress-text+cross-w{i}")
    rows = summarise(collect(tmp_path)).rows
    for figure in (base_new_figure(rows), delta_new_figure(rows)):
        assert overhang(figure) <= 0.01
        assert figure.get_figwidth() <= 13.5
    panels = delta_new_figure(rows).axes
    bars = [bar for axes in panels for bar in axes.patches]
    assert len(bars) == n_configs * (n_datasets + 1)
    looks = {(bar.get_facecolor(), bar.get_hatch()) for bar in bars}
    assert len(looks) == n_configs
    # In greyscale the hatches have to do: none twice.
    assert len({hatch for _, hatch in looks}) == n_configs


def fewshot_rows(root, trainers):
    for dataset in ("x", "y"):
        write_plain(root, f"ZeroshotCLIP/c/{dataset}", 40)
        for i, trainer in enumerate(trainers):
            for shots in (1, 4, 16):
                for seed in (1, 2):
                    path = f"{dataset}/{trainer}/c_{shots}shots/seed{seed}"
                    write_plain(root, path, 50 + i + shots + seed)
    return summarise_accuracy(collect(root))["fewshot"].rows


def test_fewshot_curves_go_through_the_means(tmp_path):
    rows = fewshot_rows(tmp_path, ["CoOp", "ProxyFDACoOp"])
    figure = fewshot_figure(rows)
    assert [axes.get_title() for axes in figure.axes] == ["x", "y", "average of 2"]
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "1", "4", "16"]
    drawn = {line.get_marker(): list(line.get_ydata()) for line in axes.lines}
    assert drawn["o"] == pytest.approx([52.5, 55.5, 67.5])
    assert drawn["*"] == [40]
    assert overhang(figure) <= 0.01


def test_fewshot_curves_without_zero_shot_begin_at_one(tmp_path):
    rows = [row for row in fewshot_rows(tmp_path, ["CoOp"]) if row.shots]
    (axes, *_) = fewshot_figure(rows).axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "4", "16"]


def test_plain_trainers_stand_in_one_figure(tmp_path):
    trainers = ["CoOp", "ProxyFDACoOp", "MaPLe", "PromptSRC"]
    write_runs(tmp_path, {"x": {t: ([70], [50]) for t in trainers}})
    saved = save_figures(summarise(collect(tmp_path)), tmp_path)
    assert {path.stem for path in saved} == {"base_new_CoOp", "base_new_others"}


def test_training_curves_are_means_with_bands():
    steps = np.arange(3)
    curves = {
        "CoOp": {"loss": (steps, np.array([[3.0, 2, 1], [5, 4, 3]]))},
        "ProxyFDACoOp": {
            "loss": (steps, np.array([[1.0, 1, 1]])),
            "loss_fda": (steps, np.array([[0.0, 1, 1]])),
        },
    }
    figure = training_figure(curves, "Training on x")
    assert [axes.get_title() for axes in figure.axes] == ["loss", "loss_fda"]
    first, second = figure.axes[0].lines
    assert first.get_ydata().tolist() == [4, 3, 2]
    assert first.get_linestyle() != second.get_linestyle()
    assert len(figure.axes[0].collections) == 1
    assert overhang(figure) <= 0.01
    with pytest.raises(ValueError, match="no training curves"):
        training_figure({})


def test_a_missing_run_is_marked(tmp_path):
    write_runs(tmp_path, NUMBERS)
    write_run(tmp_path, "base", "apples", "CoOp", 4, 80)
    rows = summarise(collect(tmp_path)).rows
    for figure in (base_new_figure(rows), delta_new_figure(rows)):
        assert figure.legends[0].get_title().get_text() == "* runs are missing, see the table"


def test_files(summary, tmp_path):
    folder = tmp_path / "new" / "folder"
    saved = save_figures(summary, folder)
    assert sorted(path.name for path in saved) == [
        "base_new.png", "base_new.svg", "delta_new.png", "delta_new.svg",
    ]  # fmt: skip
    assert (folder / "base_new.png").read_bytes().startswith(b"\x89PNG")
    assert ">ProxyFDACoOp</text>" in (folder / "base_new.svg").read_text(encoding="utf-8")


def test_each_host_has_its_figures(tmp_path):
    write_runs(tmp_path, {"x": {t: ([70], [50]) for t in ("CoOp", "ProxyFDACoOp", "MaPLe")}})
    saved = save_figures(summarise(collect(tmp_path)), tmp_path)
    assert {path.stem for path in saved} == {"base_new_CoOp", "base_new_MaPLe"}


def test_without_zero_shot_one_figure_is_left_out(tmp_path, capsys):
    write_runs(tmp_path, {"x": {"CoOp": ([70], [50])}})
    assert main([str(tmp_path), "--out", str(tmp_path / "figures")]) == 0
    out = capsys.readouterr().out
    assert "Left out delta_new: no row has a Δnew; add ZeroshotCLIP" in out
    assert "base_new.svg" in out
