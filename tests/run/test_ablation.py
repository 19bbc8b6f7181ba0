"""The ablation's table, and that its settings are ones that the plugin takes."""

import ablation
import pytest

import proxyfda
import train
from proxyfda import results


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
    study = ablation.Study("MaPLe", (ablation.Setting("better", "FDAMaPLe"),))
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
    words = ["--trainer", one.trainer, "DATASET.NAME", "ImageFolder", *one.opts]
    cfg = train.setup_cfg(train.parser().parse_args(words))
    assert proxyfda.ProxyFDAConfig.from_cfg(cfg).active


def test_a_label_means_one_thing_in_all_studies():
    """Studies share an output folder, in which trainer and label name a run."""
    meaning = {}
    for study in ablation.studies().values():
        labels = [(one.trainer, one.label) for one in study.rows]
        assert len(labels) == len(set(labels))
        for one in study.rows:
            assert meaning.setdefault((one.trainer, one.label), one) == one


def test_a_setting_is_of_its_studys_host():
    for study in ablation.studies().values():
        assert {results.plain_trainer(one.trainer)[1] for one in study.settings} == {study.host}
