"""The ablation's table, and that its settings are ones that the plugin takes."""

import ablation
import pytest

import train
from proxyfda.experiments.config import load_config
from proxyfda.integrations.dassl import describe_regulariser
from proxyfda.names import run_name, split_run_name, trainer_and_regulariser


class FakeRuns:
    def __init__(self, found):
        self.found = found

    def measured(self, one):
        return self.found.get(one.label, {})


def test_differences_are_taken_run_by_run():
    runs = FakeRuns(
        {
            "plain": {("a", 1): (80.0, 50.0), ("b", 1): (60.0, 40.0)},
            "better": {("a", 1): (82.0, 60.0), ("b", 1): (58.0, 42.0)},
        }
    )
    study = ablation.Study("MaPLe", (ablation.Setting("better", "MaPLe+rkd"),))
    lines = [
        [c.strip() for c in x.split("|")[1:-1]] for x in ablation.table(study, runs).splitlines()
    ]
    assert lines[0][4:] == ["base - MaPLe", "new - MaPLe", "H - MaPLe"]
    cells = lines[-1]
    # new: +10 and +2, mean 6, standard error of two values 8/2 = 4
    assert cells[:4] == ["better", "70.0", "51.0", "59.0"]
    assert cells[4:6] == ["+0.0 ± 2.0", "+6.0 ± 4.0"]


def test_a_setting_with_missing_runs_says_so():
    runs = FakeRuns(
        {
            "plain": {("a", 1): (80.0, 50.0), ("b", 1): (60.0, 40.0)},
            "half": {("a", 1): (80.0, 60.0)},
        }
    )
    study = ablation.Study("CoOp", (ablation.Setting("half", "F"), ablation.Setting("none", "F")))
    text = ablation.table(study, runs)
    assert "half (1 of 2 runs)" in text and "missing" in text
    half = next(line for line in text.splitlines() if line.startswith("| half"))
    assert "±" not in half  # one run has no standard error


@pytest.mark.parametrize(
    ("study", "one"),
    [(name, one) for name, study in ablation.studies().items() for one in study.settings],
    ids=lambda value: getattr(value, "label", value),
)
def test_every_setting_is_valid(study, one):
    trainer, regulariser = trainer_and_regulariser(one.run)
    words = ["--trainer", trainer, "--regulariser", regulariser]
    cfg = load_config(train.parser().parse_args([*words, "DATASET.NAME", "ImageFolder", *one.opts]))
    assert (describe_regulariser(cfg) is None) == ("+" not in one.run)


def test_a_label_means_one_thing_in_all_studies():
    """Studies share an output folder, in which the run's name and the label make a folder."""
    meaning = {}
    for study in ablation.studies().values():
        places = [(run_name(*trainer_and_regulariser(one.run)), one.label) for one in study.rows]
        assert len(places) == len(set(places))
        for place, one in zip(places, study.rows):
            assert meaning.setdefault(place, one) == one


def test_a_setting_is_of_its_studys_host():
    for study in ablation.studies().values():
        assert {split_run_name(one.run)[0] for one in study.settings} == {study.host}


@pytest.mark.parametrize(
    ("study", "label", "run", "options"),
    [
        ("confirm", "regress-text+cross-w1", "CoOp+rkd", {"SPACES": ("text", "cross")}),
        ("batches", "proxy", "CoOp+proxy_rkd", {"K": 8}),
        ("batches", "paper-preset", "CoOp+proxy_fda", {"M": 16, "MINING": True}),
        ("forms", "standardised-cross-w1", "CoOp+fda", {"UNITS": "frozen"}),
        ("maple-confirm", "pointwise-image-w3", "MaPLe+pointwise", {"WEIGHT": 3}),
        ("maple-confirm", "balanced", "MaPLe+none", {"M": 16, "N": 4}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_of_the_documented_ablation(study, label, run, options):
    (one,) = [one for one in ablation.studies()[study].settings if one.label == label]
    assert one.run == run
    assert {f"TRAINER.PROXYFDA.{k}": v for k, v in options.items()}.items() <= dict(
        one.options
    ).items()
