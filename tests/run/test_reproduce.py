"""scripts/reproduce.sh: choose, run, and say whether it is the paper's table."""

import json
import re

import dataset_trees
import pytest
import reproducing
import run

from proxyfda.benchmarks import BENCHMARKS
from proxyfda.utils.errors import BadValue, NotFound


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    root = tmp_path_factory.mktemp("data root")
    for name in ("EuroSAT", "Caltech101"):
        dataset_trees.make_tree(root, name, images="noise", per_class=6)
    return root


@pytest.fixture
def words(trees, options, tmp_path):
    """Words after the protocol: two datasets, one epoch of a tiny CLIP."""
    where = ["--data", str(trees), "--output", str(tmp_path / "out"), "--seeds", "1"]
    where += ["--datasets", "eurosat,caltech101"]
    return [*options, *where]


@pytest.fixture
def few_settings(monkeypatch, tmp_path):
    """One setting to choose from, on one split."""
    path = tmp_path / "settings.yaml"
    path.write_text("- {label: weak, options: {WEIGHT: 0.3}}\n")
    monkeypatch.setenv("SETTINGS", str(path))
    monkeypatch.setenv("SPLITS", "1")


def names_of(text):
    """Names of the jobs of a dry run."""
    return [line.partition(": ")[2] for line in text.splitlines() if line.startswith("to run: ")]


def test_the_whole_is_seven_runs_on_eleven_datasets_with_three_seeds():
    args = run._parse(["reproduce", "--no-select", "--data", "/data"])
    names = [job.name for job in reproducing.Plan(args, run.PROJECT).final_jobs()]
    assert len(names) == len(set(names)) == 11 * 2 * (1 + 3 * 6)
    assert {name.split()[0] for name in names} == set(run.REPRODUCED.split(","))
    assert {name.split()[1].rstrip(",") for name in names} == set(BENCHMARKS)


def test_settings_are_chosen_for_what_has_none_yet(capsys, tmp_path, few_settings, words):
    choice = tmp_path / "out/select/eurosat/shots_16/FDACoOp/choice.yaml"
    choice.parent.mkdir(parents=True)
    choice.write_text("TRAINER: {PROXYFDA: {REGULARISER: fda, WEIGHT: 7.0}}\n")
    assert run.main(["reproduce", "CoOp,FDACoOp,ProxyFDACoOp", *words, "--dry-run"]) == 0
    text = capsys.readouterr().out
    chosen = {tuple(name.split()[:2]) for name in names_of(text) if " split " in name}
    assert ("FDACoOp", "caltech101") in chosen and ("FDACoOp", "eurosat") not in chosen
    assert {("ProxyFDACoOp", name) for name in ("caltech101", "eurosat")} < chosen
    final = [line for line in text.splitlines() if "out/base2new/train_base/eurosat" in line]
    final = [line for line in final if "--eval-only" not in line]
    with_it = [line for line in final if str(choice) in line]
    assert len(final) == 3 and len(with_it) == 1 and "/FDACoOp/selected/seed1" in with_it[0]


@pytest.mark.slow
def test_it_chooses_runs_and_judges_and_goes_on(capsys, tmp_path, few_settings, words):
    words = ["reproduce", "CoOp,FDACoOp", *words, "--datasets", "eurosat"]
    assert run.main(words) == 0
    text, out = capsys.readouterr().out, tmp_path / "out"
    assert (out / "select/eurosat/shots_16/FDACoOp/choice.yaml").is_file()
    with_choice = out / "base2new/test_new/eurosat/shots_16/FDACoOp/selected/seed1/result.json"
    assert json.loads(with_choice.read_text())["regulariser"]["weight"] == 0.3
    assert "EuroSAT: it has 30 train images instead of 13,500" in text
    assert re.search(r"^EuroSAT +CoOp +[\d.]+ +92.19 +(above|below) by", text, re.M)
    assert re.search(r"^ +FDACoOp +[\d.]+ +- +-", text, re.M) and "0 missing" in text
    before = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    with_choice.unlink()
    assert run.main(words) == 0
    after = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    assert [path for path in before if after[path] != before[path]] == [with_choice]


def test_missing_data_and_weights_are_told_before_anything_runs(tmp_path, words):
    more = ["--datasets", "eurosat,dtd,ucf101"]
    with pytest.raises(NotFound, match=r"2 of 3 datasets are not usable: .*dtd.*ucf101"):
        run.main(["reproduce", "CoOp", *words, *more])
    words[words.index("MODEL.BACKBONE.WEIGHTS") + 1] = "/no/such/ViT-B-16.pt"
    with pytest.raises(NotFound, match="the weights file /no/such/ViT-B-16.pt does not exist"):
        run.main(["reproduce", "CoOp", *words])
    assert not (tmp_path / "out").exists()


def test_estimate_counts_what_is_left_and_takes_given_seconds(
    capsys, tmp_path, few_settings, words
):
    words = ["reproduce", "CoOp,FDACoOp,ProxyFDACoOp", *words, "--estimate"]
    assert run.main([*words, "--seconds-per-step", "3600"]) == 0
    rows = {
        tuple(line.split()[:2]): line.split()[2:] for line in capsys.readouterr().out.splitlines()
    }
    # Two datasets, one seed, a batch each; an hour for a step
    assert rows["final", "FDACoOp"][:3] == ["2", "4", "2"]
    assert rows["choosing", "FDACoOp"][:3] == ["2", "6", "2"]  # one setting on two datasets
    assert rows["choosing", "CoOp"][:3] == ["2", "6", "2"]  # one plain run for both
    steps, tested, hours = (float(rows["final", "CoOp"][i]) for i in (2, 4, 5))
    assert hours == pytest.approx(steps + tested / 32, abs=0.06)
    assert not (tmp_path / "out").exists()


def test_estimate_measures_steps_with_the_runs_own_config(capsys, words):
    words = ["reproduce", "ZeroshotCLIP,FDACoOp", *words, "--estimate", "--no-select"]
    assert run.main(words) == 0
    text = capsys.readouterr().out
    step = re.search(r"FDACoOp: ([\d.]+) s a step, ([\d.]+) ms an image", text)
    assert all(float(number) > 0 for number in step.groups())
    assert "ZeroshotCLIP: 0.000 s a step" in text and "device hours" in text


def test_estimate_needs_no_data(capsys):
    words = ["reproduce", "CoOp", "--no-select", "--estimate", "--seconds-per-step", "0.1"]
    assert run.main([*words, "--datasets", "dtd", "--seeds", "1"]) == 0
    final = next(line for line in capsys.readouterr().out.splitlines() if "CoOp" in line)
    assert final.split()[2:5] == ["1", "2", "2,400"]  # 24 classes x 16 shots / 32 x 200 epochs


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reproduce", "--seconds-per-step", "1"], "--seconds-per-step is for --estimate"),
        (
            ["reproduce", "--estimate", "--seconds-per-step", "0"],
            "--seconds-per-step is 0; use a finite number above 0",
        ),
        (["reproduce", "--overlay", "paper"], "take the place of a choice; add --no-select"),
        (["select", "FDACoOp", "dtd", "--estimate"], "--estimate is not for select; leave it"),
        (["base2new_all", "CoOp", "--no-select"], "--no-select is for reproduce; leave it out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_flags_that_do_not_fit(words, message):
    with pytest.raises(BadValue, match=message):
        run.main([*words, "--data", "/data"])
