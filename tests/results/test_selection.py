"""What is chosen, against a naive formula; and that halves stay out of other tables."""

import csv
import io
import itertools
import json
import math
import random
import statistics
from pathlib import Path

import pytest
import yaml
from result_trees import write_runs

import train
from proxyfda.experiments import layout
from proxyfda.experiments.config import load_config
from proxyfda.results import collect, summarise
from proxyfda.results.drawing import save_figure
from proxyfda.results.prompt_figures import selection_figure
from proxyfda.results.selection import (
    Measured,
    average,
    choose,
    overlay_text,
    read,
    rows_of,
    table,
    verdict,
)

ROOT = Path(train.__file__).parent
RUNS = list(itertools.product((1, 2), (1, 2, 3)))


def harmonic(a, b):
    return 2 / (1 / a + 1 / b)


def measured(name, pairs, weight=1.0, runs=RUNS, **more):
    values = {run: (a, b, harmonic(a, b)) for run, (a, b) in zip(runs, pairs)}
    return Measured(name, "cfg", values, weight=weight, label=f"{name} {weight}", **more)


def drawn(seed, count=5):
    rng = random.Random(seed)
    return [
        measured("CoOp+rkd", [(rng.uniform(60, 90), rng.uniform(40, 80)) for _ in RUNS], weight)
        for weight in range(count)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_the_choice_has_the_highest_mean_h(seed):
    plain, *settings = drawn(seed)
    rows = rows_of(plain, settings, RUNS)
    naive = []
    for one in settings:
        pairs = [one.runs[run][:2] for run in RUNS]
        naive.append(sum(2 * a * b / (a + b) for a, b in pairs) / len(pairs))
    assert [row.chosen for row in rows[1:]] == [h == max(naive) for h in naive]
    assert not rows[0].chosen and rows[0].reference
    for row, one, h in zip(rows[1:], settings, naive):
        assert row.h == pytest.approx(h)
        assert row.seen == pytest.approx(sum(one.runs[run][0] for run in RUNS) / 6)
        gaps = [one.runs[run][2] - plain.runs[run][2] for run in RUNS]
        spread = math.sqrt(sum((gap - sum(gaps) / 6) ** 2 for gap in gaps) / 5)
        assert row.gain == pytest.approx(sum(gaps) / 6)
        assert row.gain_error == pytest.approx(spread / math.sqrt(6))


def test_the_plain_trainer_is_not_chosen_and_it_is_said_that_nothing_pays():
    plain = measured("CoOp", [(90, 90)] * 6, 0.0)
    rows = rows_of(plain, [measured("CoOp+rkd", [(80, 80)] * 6)], RUNS)
    assert [row.chosen for row in rows] == [False, True]
    assert verdict(rows) == (
        "Chosen: CoOp+rkd 1.0, with CoOp+rkd; H over the plain trainer -10.00 ± 0.00, so no "
        "setting pays here."
    )


def test_of_equal_ones_the_smaller_weight_is_chosen():
    pairs = [(71.3, 62.9), (80.1, 55.5), (64.4, 70.2), (77.7, 58.1), (69.9, 66.6), (75.2, 61.0)]
    plain = measured("CoOp", [(50, 50)] * 6, 0.0)
    # The same runs in another order: their mean differs in the last digit.
    settings = [measured("CoOp+rkd", pairs, 3.0), measured("FDACoOp", pairs[::-1], 1.0)]
    for order in (settings, settings[::-1]):
        assert choose(rows_of(plain, order, RUNS)).weight == 1.0
    same = [measured(name, pairs) for name in ("CoOp+rkd", "CoOp+kl")]
    assert choose(rows_of(plain, same, RUNS)).name == "CoOp+rkd"


def test_what_lacks_runs_is_not_chosen():
    plain = measured("CoOp", [(50, 50)] * 6, 0.0)
    short = measured("CoOp+rkd", [(90, 90)] * 5)
    rows = rows_of(plain, [short, measured("CoOp+kl", [(60, 60)] * 6)], RUNS)
    assert [row.chosen for row in rows] == [False, False, True]
    text = table(rows, "T", "2 splits x 3 seeds")
    assert "1*" in text and "2>" in text and "runs are missing" in text
    rows = rows_of(plain, [short], RUNS)
    assert choose(rows) is None and verdict(rows).startswith("Nothing can be chosen")
    rows = rows_of(Measured("CoOp", "cfg"), [measured("CoOp+kl", [(60, 60)] * 6)], RUNS)
    assert rows[0].h is None and rows[1].gain is None and rows[1].chosen


def test_only_the_asked_runs_count():
    plain, one = measured("CoOp", [(50, 50)] * 6, 0.0), measured("CoOp+rkd", [(60, 60)] * 6)
    one.runs[3, 1] = (0.0, 0.0, 0.0)
    assert rows_of(plain, [one], RUNS)[1].h == pytest.approx(60)
    (_, row) = rows_of(plain, [one], RUNS[:1])
    assert (row.runs, row.h_error) == (1, None)


def test_one_choice_for_several_datasets_has_the_highest_mean_over_them():
    per_dataset = [drawn(seed) for seed in (7, 8, 9)]
    plain, *settings = [average(list(column)) for column in zip(*per_dataset)]
    rows = rows_of(plain, settings, RUNS)
    naive = [
        statistics.fmean(one.runs[run][2] for one in column for run in RUNS)
        for column in list(zip(*per_dataset))[1:]
    ]
    assert [row.chosen for row in rows[1:]] == [h == max(naive) for h in naive]
    assert [row.h for row in rows[1:]] == pytest.approx(naive)
    # The error is that over splits and seeds, not over datasets.
    means = [statistics.fmean(column[2].runs[run][2] for column in per_dataset) for run in RUNS]
    assert rows[2].h_error == pytest.approx(statistics.stdev(means) / math.sqrt(6))


# -- trees ----------------------------------------------------------------------------------------


def write_half(root, part, name, split, seed, accuracy, config="cfg", dataset="dtd", **result):
    folder = Path(root, layout.select(part, dataset, 16, name, config, split, seed))
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "accuracy": accuracy,
        "subsample": layout.parse(str(folder)).classes,
        "split": "val",
        "time": {"build": 1.0, "run": 5.0},
        **result,
    }
    (folder / "result.json").write_text(json.dumps(content))
    return folder


def write_setting(root, name, pairs, config="cfg", weight=None, dataset="dtd"):
    """``pairs``: (seen, unseen) of splits 1, 2, ... with seed 1."""
    result = {"config": config, "dataset": dataset}
    result["regulariser"] = None if weight is None else {"name": "rkd", "weight": weight}
    for split, (seen, unseen) in enumerate(pairs, 1):
        for part, accuracy in (("train", 99.0), ("seen", seen), ("unseen", unseen)):
            write_half(root, part, name, split, 1, accuracy, **result)


def test_runs_are_read_by_their_folders(tmp_path):
    write_setting(tmp_path, "CoOp", [(80, 60), (70, 50)])
    write_setting(tmp_path, "CoOp+rkd", [(81, 61)], "cfg-weight_3", weight=3.0)
    term = {"name": "rkd", "weight": 3.0}  # the unseen half of this one is missing
    write_half(tmp_path, "seen", "CoOp+rkd", 2, 1, 55.0, "cfg-weight_3", regulariser=term)
    write_half(tmp_path, "unseen", "CoOp", 3, 1, 55.0, subsample="unseen@1")  # a copy
    write_half(tmp_path, "seen", "CoOp", 3, 1, 55.0)
    (write_half(tmp_path, "seen", "CoOp", 4, 1, 1.0) / "result.json").write_text("{")
    found = read(str(tmp_path))
    plain = found["dtd", 16, "CoOp", "cfg"]
    assert plain.runs == {
        (1, 1): (80, 60, pytest.approx(harmonic(80, 60))),
        (2, 1): (70, 50, pytest.approx(harmonic(70, 50))),
    }
    assert (plain.seconds, plain.weight) == (10.0, 0.0)
    rkd = found["dtd", 16, "CoOp+rkd", "cfg-weight_3"]
    assert set(rkd.runs) == {(1, 1)} and (rkd.seconds, rkd.weight) == (5.0, 3.0)
    assert len(found) == 2


def test_halves_are_in_no_other_table(tmp_path):
    write_runs(tmp_path, {"dtd": {"CoOp": ([80], [60])}}, config="cfg")
    before = summarise(collect(tmp_path))
    write_setting(tmp_path, "CoOp", [(1, 1), (2, 2)])
    write_setting(tmp_path, "CoOp+rkd", [(1, 1), (2, 2)], "cfg-weight_3", weight=3.0)
    records = collect(tmp_path)
    assert summarise(records) == before and len(records) == 2
    with pytest.raises(FileNotFoundError, match="no runs in another layout"):
        collect(tmp_path / "select", split="val")


# -- what is written ------------------------------------------------------------------------------


def test_the_csv_is_unrounded():
    plain, *settings = drawn(1)
    rows = rows_of(plain, settings, RUNS)
    lines = list(csv.DictReader(io.StringIO(table(rows, "", "", "csv"))))
    assert [float(line["h"]) for line in lines] == [row.h for row in rows]
    assert [line["chosen"] for line in lines].count("True") == 1 and lines[0]["gain"] == ""


def test_an_overlay_gives_the_options_that_it_was_made_of(tmp_path):
    options = {
        "TRAINER.PROXYFDA.REGULARISER": "fda",
        "TRAINER.PROXYFDA.SPACES": ("text", "cross"),
        "TRAINER.PROXYFDA.WEIGHT": 0.3,
        "OPTIM.LR": 0.004,
    }
    path = tmp_path / "choice.yaml"
    path.write_text(overlay_text(options, ["Chosen: so, and: so.", "twice"]))
    assert path.read_text().startswith("# Chosen: so, and: so.\n# twice\n")
    assert set(yaml.safe_load(path.read_text())) == {"TRAINER", "OPTIM"}
    words = ["--trainer", "CoOp", "--dataset-config-file", str(ROOT / "configs/datasets/dtd.yaml")]
    config = str(ROOT / "configs/trainers/CoOp/vit_b16.yaml")
    parse = train.parser().parse_args
    cfg = load_config(parse([*words, "--config-file", config, str(path)]))
    pairs = [(key, ",".join(v) if isinstance(v, tuple) else str(v)) for key, v in options.items()]
    asked = [word for pair in pairs for word in pair]
    assert cfg == load_config(parse([*words, "--config-file", config, *asked]))
    assert cfg.TRAINER.PROXYFDA.SPACES == ("text", "cross") and cfg.OPTIM.LR == 0.004


def test_the_figure_has_every_setting_and_one_circle(tmp_path):
    plain, *settings = drawn(3)
    rows = rows_of(plain, settings, RUNS)
    figure = selection_figure({"dtd": rows, "average": rows})
    for axes in figure.axes:
        assert [text.get_text() for text in axes.texts if text.get_text() in "01234"] == [*"01234"]
        (circle,) = [line for line in axes.lines if line.get_markersize() == 15]
        best = next(row for row in rows if row.chosen)
        assert (circle.get_xdata()[0], circle.get_ydata()[0]) == (best.seen, best.unseen)
    assert "chosen" in [text.get_text() for text in figure.legends[0].texts]
    assert [path.suffix for path in save_figure(figure, tmp_path / "f")] == [".png", ".svg"]
    with pytest.raises(ValueError, match="no setting has results on both halves"):
        selection_figure({"dtd": rows_of(Measured("CoOp", "cfg"), [], RUNS)})
