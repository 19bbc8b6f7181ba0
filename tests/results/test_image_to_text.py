"""The tables of captioning and VQA, against numbers by hand."""

import pytest

from proxyfda.experiments import layout, record
from proxyfda.results.command import main
from proxyfda.results.image_to_text import read_image_to_text, summarise_image_to_text

RUN = {
    "split": "test", "shots": -1, "subsample": "all", "epoch": 3, "engine": "transformers",
    "versions": {}, "time": {}, "backbone": {"name": "bundled", "weights": "bundled"},
}  # fmt: skip
BEFORE = {"a": 10.0, "b": 50.0, "c": 30.0}
NAIVE = {1: {"a": 80.0, "b": 20.0, "c": 20.0}, 2: {"a": 84.0, "b": 30.0, "c": 22.0}}
FDA = {1: {"a": 79.0, "b": 40.0, "c": 26.0}, 2: {"a": 81.0, "b": 42.0, "c": 30.0}}


def write(root, name, scores, seed=1, config="bundled", family="a", protocol="vqa", **more):
    folder = root / layout.image_to_text(protocol, "" if name == "Pretrained" else family,
                                         name, config, seed)  # fmt: skip
    weight = 1.0 if "weight_" in config else None
    content = {
        **RUN, "accuracy": 50.0, "protocol": protocol, "dataset": family, "source": family,
        "target": family, "name": name, "trainer": name, "config": config, "seed": seed,
        "regulariser": {"name": "fda", "weight": weight} if weight else None,
        "cfg": {"epochs": 3, "seed": seed},
        "scores": {f: {"score": s, "exact": 1.0, "examples": 9} for f, s in scores.items()},
        "probes": {f: {"linear_probe": min(s, 100.0), "zero_shot": None, "strength": 1e-4,
                       "classes": 2, "images": 9} for f, s in scores.items()},
        **more,
    }  # fmt: skip
    folder.mkdir(parents=True)
    record.write(str(folder), content)
    return folder


@pytest.fixture
def output(tmp_path):
    write(tmp_path, "Pretrained", BEFORE)
    for seed in NAIVE:
        write(tmp_path, "FineTune", NAIVE[seed], seed)
        write(tmp_path, "FDAFineTune", FDA[seed], seed, "bundled-weight_1")
    return tmp_path


def rows_of(output, protocol="vqa"):
    summary = summarise_image_to_text(read_image_to_text(str(output)), protocol)
    return summary, {(row.name, row.dataset): row for row in summary.rows}


def test_numbers_by_hand(output):
    summary, rows = rows_of(output)
    naive, fda = rows["naive", "others"], rows["FDA", "others"]
    # before: (50 + 30) / 2 = 40; naive: 20 and 26; FDA: 33 and 36
    assert (naive.delta, fda.delta) == (-17.0, -5.5)
    assert naive.delta_std == pytest.approx(18**0.5)  # of -20 and -14
    assert (naive.gain, fda.gain) == (None, 11.5)  # 13 and 10
    assert fda.gain_std == pytest.approx(4.5**0.5)
    assert (fda.linear_probe_delta, fda.weight, naive.weight) == (-5.5, 1.0, None)
    assert (rows["FDA", "a"].score, rows["FDA", "a"].delta) == (80.0, 70.0)
    assert rows["Pretrained", "others"].score == 40.0
    assert rows["FDA", "b"].delta == -9.0
    assert all(row.complete for row in summary.rows) and summary.uniform and not summary.notes


def test_the_command_prints_both_tables(output, capsys):
    write(output, "Pretrained", {"a": 100.0, "b": 500.0}, protocol="captioning")
    write(output, "FineTune", {"a": 700.0, "b": 250.0}, protocol="captioning")
    assert main([str(output)]) == 0
    said = capsys.readouterr().out
    assert "Visual question answering, bundled, tuned on a" in said
    assert "Captioning, bundled, tuned on a" in said and "-250.00" in said
    line = next(line for line in said.splitlines() if line.split()[:2] == ["FDA", "1"])
    assert "80.00 ± 1.41" in line and "+11.50 ± 2.12" in line
    assert main([str(output), "--protocol", "captioning", "--csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 3 * 2


def test_a_seed_that_is_missing_is_named_and_the_row_is_not_complete(output, capsys):
    (output / layout.image_to_text("vqa", "a", "FDAFineTune", "bundled-weight_1", 2)
     / "result.json").unlink()  # fmt: skip
    summary, rows = rows_of(output)
    assert not rows["FDA", "others"].complete and rows["naive", "others"].complete
    assert "Missing: FDA, seed 2." in summary.notes
    assert main([str(output), "--strict"]) == 1


def test_without_the_pretrained_model_there_is_no_change(tmp_path):
    write(tmp_path, "FineTune", NAIVE[1])
    summary, rows = rows_of(tmp_path)
    assert rows["naive", "others"].delta is None and not rows["naive", "others"].complete
    assert "No Δ" in summary.notes[0]


def test_runs_with_other_options_are_not_one_table_silently(output):
    write(output, "FineTune", NAIVE[1], 3, cfg={"epochs": 9, "seed": 3})
    summary, _ = rows_of(output)
    assert not summary.uniform
    assert any("differ in epochs" in note for note in summary.notes)


def test_a_copied_folder_is_no_result(output):
    folder = output / layout.image_to_text("vqa", "a", "FineTune", "bundled", 2)
    copy = folder.with_name("seed3")
    copy.mkdir()
    (copy / "result.json").write_text((folder / "result.json").read_text())
    summary, _ = rows_of(output)
    assert any("its seed is 2" in note for note in summary.notes)


def test_families_that_not_all_were_asked_about_are_left_out(output):
    write(output, "FineTune+rkd", {"a": 1.0, "b": 2.0}, 1, "bundled-weight_10")
    summary, rows = rows_of(output)
    assert rows["naive", "others"].n_datasets == 1  # b alone
    assert any("asked about c" in note for note in summary.notes)


@pytest.mark.parametrize("fault", [{"score": -1.0}, {"score": float("nan")}, {"examples": 0}])
def test_a_score_that_cannot_be_is_refused(tmp_path, fault):
    folder = write(tmp_path, "FineTune", NAIVE[1])
    found = record.read(str(folder))
    found["scores"]["a"].update(fault)
    with pytest.raises(ValueError, match="has scores"):
        record.check(found)
