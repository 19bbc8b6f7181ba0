"""Verdicts on our base-to-new figures beside the published ones."""

import math

import pytest
from result_trees import write_runs
from test_published import ELEVEN

from proxyfda.results import verdicts
from proxyfda.results.published import published

CELLS = ("base", "new", "h")


@pytest.fixture
def close(tmp_path):
    """An output in which CoOp is as published, and Proxy-FDA 1 point better than CoOp in both."""
    numbers = {}
    for dataset, title in ELEVEN.items():
        base, new, _ = published()["CoOp", title]
        zero = published()["CLIP", title][:2]
        spread = (-0.4, 0.0, 0.4)
        numbers[dataset] = {
            "CoOp": [[value + step for step in spread] for value in (base, new)],
            "ProxyFDACoOp": [[value + 1] * 3 for value in (base, new)],
            "ZeroshotCLIP": [[value] for value in zero],
        }
    return write_runs(tmp_path, numbers)


def lines(root, runs, datasets=ELEVEN):
    records = verdicts.collect(str(root))
    summary = verdicts.summarise(records)
    found, _ = verdicts.compare(summary, records)
    return {
        (line.title, line.name): dict(zip(CELLS, line.cells))
        for line in verdicts.lines_of(summary.rows, found, runs, list(datasets))
    }


def test_the_rule_is_two_standard_errors_of_the_difference_or_half_a_point():
    for spread, seeds in ((1.0, 3), (0.7, 5), (2.5, 1)):
        width = 2 * spread * math.sqrt(1 / seeds + 1 / 3)
        assert verdicts.judge(50 + width - 0.01, 50.0, spread, seeds).verdict == "reproduced"
        assert verdicts.judge(50 - width + 0.01, 50.0, spread, seeds).verdict == "reproduced"
        found = verdicts.judge(50 - width - 0.06, 50.0, spread, seeds).verdict
        assert found == f"below by {width + 0.06:.1f}"
    assert verdicts.judge(50.49, 50.0, 0.0, 3).verdict == "reproduced"
    assert verdicts.judge(50.6, 50.0, 0.0, 3).verdict == "above by 0.6"
    assert verdicts.judge(50.6, None, 0.0, 3).verdict == "-"


def test_figures_as_published_are_reproduced(close):
    found = lines(close, ["ZeroshotCLIP", "CoOp", "ProxyFDACoOp"])
    for run in ("ZeroshotCLIP", "CoOp"):
        for title in ("average", *ELEVEN.values()):
            cells = found[title, run]
            assert {cell.verdict for cell in cells.values()} == {"reproduced"}, (run, title)
    average = found["average", "CoOp"]
    assert average["base"].published == 82.69 and average["h"].published == pytest.approx(
        71.66, abs=0.01
    )
    assert average["new"].ours == pytest.approx(63.22, abs=0.01)


def test_proxy_fda_is_compared_on_average_and_by_its_gain(close):
    found = lines(close, ["ZeroshotCLIP", "CoOp", "ProxyFDACoOp"])
    average = found["average", "ProxyFDACoOp"]
    # Published: 83.16 / 73.67; ours CoOp's 82.69 / 63.22 and 1 point, without any spread.
    assert average["base"].verdict == "above by 0.5"
    assert average["new"].verdict == "below by 9.4"
    assert {cell.verdict for cell in found["EuroSAT", "ProxyFDACoOp"].values()} == {"-"}
    gain = found["average", "ProxyFDACoOp - CoOp"]
    assert gain["new"].ours == pytest.approx(1.0, abs=0.01)
    assert gain["new"].published == pytest.approx(73.67 - 63.22)
    assert gain["new"].verdict == "below by 9.4"
    # The gain has CoOp's spread of 0.4, and with it 0.65 points to either side.
    assert gain["base"].published == pytest.approx(0.47) and gain["base"].verdict == "reproduced"


def test_what_was_not_run_is_missing_and_makes_the_average_missing(close):
    for part in ("train_base", "test_new"):
        for seed in (1, 2, 3):
            path = close / "base2new" / part / "dtd" / "shots_16" / "CoOp" / "cfg"
            (path / f"seed{seed}" / "result.json").unlink()
    found = lines(close, ["CoOp", "ProxyFDACoOp", "PromptSRC"])
    assert {cell.verdict for cell in found["DescribableTextures", "CoOp"].values()} == {"missing"}
    assert found["average", "CoOp"]["base"].verdict == "missing"
    assert found["average", "CoOp"]["base"].published == 82.69
    assert found["average", "PromptSRC"]["new"] == verdicts.Cell(None, 76.10, "missing")
    assert not any(" - " in name for _, name in found)  # no gain without an average
    assert found["EuroSAT", "CoOp"]["base"].verdict == "reproduced"


def test_with_one_seed_the_spread_is_taken_to_be_a_point(tmp_path):
    root = write_runs(tmp_path, {"dtd": {"CoOp": [[79.44 + 2.2], [41.18 - 2.4]]}})
    found = lines(root, ["CoOp"], ["dtd"])["DescribableTextures", "CoOp"]
    assert 2.2 < 2 * math.sqrt(1 + 1 / 3) < 2.4
    assert (found["base"].verdict, found["new"].verdict) == ("reproduced", "below by 2.4")


def test_report_counts_cells_and_says_the_rule_and_what_is_not_compared(close, capsys):
    assert verdicts.main([str(close)]) == 0
    text = capsys.readouterr().out
    # CLIP and CoOp on 11 datasets and on average, three numbers each, and one gain
    assert "Cells: 73 reproduced, 1 above, 4 below, 0 missing." in text
    assert "s · sqrt(1/n + 1/3)" in text
    assert "the average over the eleven benchmarks alone is published" in text
    assert verdicts.main([str(close), "--markdown"]) == 0
    assert capsys.readouterr().out.startswith("| dataset")
