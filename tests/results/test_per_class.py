"""Classes that a row does badly on."""

import pytest
from full_output import BEFORE, CLASSES
from result_trees import write_run

from proxyfda.results import collect
from proxyfda.results.per_class import ClassCounts, counts_of, parts


@pytest.fixture
def output(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path, "base", "dtd", "CoOp", seed, 60, per_class=CLASSES)
    write_run(tmp_path, "base", "dtd", "ZeroshotCLIP", 1, 60, per_class=BEFORE)
    write_run(tmp_path, "new", "dtd", "CoOp", 1, 60)
    return tmp_path


def test_counts_are_summed_over_seeds(output):
    ((place, rows),) = counts_of(collect(output)).items()
    assert place == ("base2new", "dtd", "DescribableTextures", "base")
    counts = rows["CoOp"]
    assert counts.images == {"otter": 80, "beaver": 40, "mink": 20}
    assert counts.correct == {"otter": 40, "beaver": 36, "mink": 20}
    assert counts.mistakes["otter", "beaver"] == 30
    assert counts.accuracy("beaver") == 90


def test_the_worst_the_best_the_lost_and_the_confused_are_shown(output):
    (html,) = parts(collect(output))
    assert "DescribableTextures, base to new, base classes" in html
    cells = "<td>CoOp</td><td>otter: 50.0</td><td>mink: 100.0</td><td>otter: −25.0</td>"
    assert f"{cells}<td>otter → beaver: 37.5</td>" in html
    assert "<td>ZeroshotCLIP</td><td>otter: 75.0</td><td>mink: 100.0</td><td></td>" in html
    assert html.index("ZeroshotCLIP") < html.index("<td>CoOp")


def test_zero_shot_on_all_classes_is_the_reference_of_few_shot_runs(tmp_path):
    from result_trees import write_plain

    write_plain(tmp_path, "dtd/CoOp/cfg_4shots/seed1", 60, trainer="CoOp", seed=1, shots=4,
                per_class=CLASSES)  # fmt: skip
    write_plain(tmp_path, "ZeroshotCLIP/cfg/dtd", 60, trainer="ZeroshotCLIP", per_class=BEFORE)
    html = "".join(parts(collect(tmp_path)))
    assert "<td>otter: −25.0</td>" in html


def test_runs_without_counts_have_no_part(tmp_path):
    write_run(tmp_path, "base", "dtd", "CoOp", 1, 60)
    assert parts(collect(tmp_path)) == []


def test_names_are_escaped(tmp_path):
    one = {"name": "<b>", "images": 2, "accuracy": 50.0, "taken_for": {"<i>": 1}}
    write_run(tmp_path, "base", "dtd", "CoOp", 1, 60, per_class=[one])
    (html,) = parts(collect(tmp_path))
    assert "&lt;b&gt; → &lt;i&gt;: 50.0" in html and "<b>" not in html and "<i>" not in html


def test_two_classes_of_one_name_are_put_together():
    counts = ClassCounts()
    counts.add([CLASSES[0], {**CLASSES[1], "name": "otter"}])
    assert counts.accuracy("otter") == pytest.approx(100 * 38 / 60)
