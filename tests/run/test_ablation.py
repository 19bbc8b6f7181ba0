"""The ablation's table, and that its settings are ones that the plugin takes."""

import ablation
import pytest

import proxyfda
import train


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
    better = ablation.Setting("better", "FDACoOp")
    cells = [c.strip() for c in ablation.table([better], runs).splitlines()[-1].split("|")[1:-1]]
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
    text = ablation.table([ablation.Setting("half", "F"), ablation.Setting("none", "F")], runs)
    assert "half (1 of 2 runs)" in text and "missing" in text


@pytest.mark.parametrize(
    ("study", "one"),
    [(name, one) for name, settings in ablation.studies().items() for one in settings],
    ids=lambda value: getattr(value, "label", value),
)
def test_every_setting_is_valid(study, one):
    words = ["--trainer", one.trainer, "DATASET.NAME", "ImageFolder", *one.opts]
    cfg = train.setup_cfg(train.parser().parse_args(words))
    assert proxyfda.ProxyFDAConfig.from_cfg(cfg).active


def test_labels_are_unique():
    for settings in ablation.studies().values():
        labels = [(one.trainer, one.label) for one in settings]
        assert len(labels) == len(set(labels))
