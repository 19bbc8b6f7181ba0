"""The studies: what is compared with what, what may be claimed, and that settings can be run."""

import csv
import json
import math
from pathlib import Path

import ablation
import pytest

import train
from proxyfda.benchmarks import BUNDLED
from proxyfda.experiments import layout
from proxyfda.experiments.candidates import Candidate, plain_candidate, read_families
from proxyfda.experiments.config import load_config
from proxyfda.experiments.protocols import base2new_jobs
from proxyfda.integrations.dassl import describe_regulariser
from proxyfda.names import REFERENCE, split_run_name, trainer_and_regulariser
from proxyfda.results import paired, selection
from proxyfda.results.metrics import harmonic_mean
from proxyfda.utils.errors import BadValue, NotFound, UserError

DATASETS = ["atlas_tools", "atlas_fruits"]
HOSTS = ablation.PROJECT.hosts
FAMILIES = ablation.families_of(HOSTS, "", ablation.STUDY)
RKD = Candidate("rkd WEIGHT 1", "CoOp+rkd", (("TRAINER.PROXYFDA.WEIGHT", "1"),))


@pytest.fixture
def runs(tmp_path):
    return ablation.Runs(DATASETS, [1, 2], str(tmp_path / "data"), str(tmp_path / "out"))


def write(job, accuracy):
    """The result of a job that was never run."""
    place = layout.parse(job.folder)
    Path(job.folder).mkdir(parents=True)
    content = {"accuracy": accuracy, "subsample": place.classes}
    Path(job.folder, layout.RESULT).write_text(json.dumps(content))


def cells(text, name):
    """The cells of a Markdown table's line that begins with ``name``."""
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()]
    return next(line for line in lines if line and line[0] == name)


# -- differences run by run -----------------------------------------------------------------------

PLAIN = {("a", 1): (80.0, 50.0), ("b", 1): (60.0, 40.0)}
BETTER = {("b", 1): (58.0, 42.0), ("a", 1): (82.0, 60.0)}  # in another order


def test_differences_are_taken_run_by_run():
    assert sorted(paired.gaps(BETTER, PLAIN, paired.new)) == [2.0, 10.0]
    # +10 and +2: mean 6, standard deviation 8 / sqrt(2), standard error 8 / 2
    assert paired.written(paired.gaps(BETTER, PLAIN, paired.new)) == "+6.0 ± 4.0"
    assert paired.written(paired.gaps(BETTER, PLAIN, paired.base)) == "+0.0 ± 2.0"


def test_what_only_one_of_two_methods_has_does_not_count():
    one = {("a", 1): (82.0, 60.0), ("c", 1): (1.0, 1.0)}
    assert paired.gaps(one, PLAIN, paired.new) == [10.0]
    assert paired.written([10.0]) == "+10.0"  # one run has no standard error


@pytest.mark.parametrize("values", [[1.0, 2.0, 6.0], [-3.0, 3.0], [5.0, 5.0, 5.0, 6.0]], ids=str)
def test_the_standard_error_is_the_sample_s(values):
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    expected = (mean, spread / math.sqrt(len(values)))
    assert paired.mean_and_error(values) == pytest.approx(expected)


def test_averages_have_the_mean_of_the_runs_harmonic_means():
    found = {("a", 1): (90.0, 10.0), ("b", 1): (30.0, 30.0)}  # H is 18 and 30, that of means 30
    assert paired.averages(found) == ["60.0", "20.0", "24.0"]


def test_the_table_of_families_has_both_references():
    pull = {("a", 1): (80.0, 55.0), ("b", 1): (60.0, 41.0)}
    chosen = {"pointwise": pull, "rkd": BETTER}
    labels = {"pointwise": "w 3", "rkd": "w 1"}
    zero = {run: (50.0, 50.0) for run in PLAIN}
    text = ablation.families_table(chosen, labels, PLAIN, zero, 2)
    assert cells(text, "family")[5:] == [
        "base - plain",
        "new - plain",
        "H - plain",
        "H - pointwise",
    ]
    row = cells(text, "rkd")
    assert row[1:4] == ["w 1", "70.0", "51.0"] and row[5:7] == ["+0.0 ± 2.0", "+6.0 ± 4.0"]
    assert row[8] == paired.written(paired.gaps(BETTER, pull, harmonic_mean))
    assert cells(text, "plain")[5:8] == [""] * 3 and cells(text, "pointwise")[8] == ""
    assert cells(text, "zero-shot")[2:4] == ["50.0", "50.0"]


def test_missing_runs_are_told_in_the_table():
    chosen = {"rkd": {("a", 1): (80.0, 60.0)}, "fda": {}}
    text = ablation.families_table(chosen, {"rkd": "w 1", "fda": ""}, PLAIN, {}, 2)
    row = cells(text, "rkd (1 of 2 runs)")
    assert row[6] == "+10.0" and row[8] == ""  # one run, and no pull to compare with
    assert cells(text, "fda")[2:] == ["missing"] * 7
    assert cells(text, "zero-shot")[2:] == ["missing"] * 7


# -- what may be claimed --------------------------------------------------------------------------


def of(*pairs):
    return {("a", seed): pair for seed, pair in enumerate(pairs)}


FLAT = of((80.0, 50.0), (80.0, 50.0))
GOOD = of((80.0, 56.0), (80.0, 58.0))


def against(found, plain=FLAT, pull=FLAT, runs=2):
    return paired.failing(found, plain, {"plain": plain, "pointwise": pull}, runs)


def test_nothing_stands_against_what_is_better_in_all():
    assert against(GOOD) == []
    # H + 5.6 ± 0.6 each way; base is lower by one standard error and no more
    assert against(of((80.0, 56.0), (78.0, 58.0))) == []


@pytest.mark.parametrize(
    ("found", "plain", "pull", "phrase"),
    [
        pytest.param(of((80, 50), (80, 58)), FLAT, of((80, 40), (80, 48)), "H - plain is", id="H"),
        pytest.param(GOOD, FLAT, of((80, 56), (80, 57.8)), "H - pointwise is", id="pull"),
        pytest.param(of((79, 56), (79, 58)), FLAT, FLAT, "base - plain is -1.0 ± 0.0", id="base"),
    ],
)
def test_each_condition_fails_by_itself(found, plain, pull, phrase):
    (why,) = against(found, plain, pull)
    assert why.startswith(phrase)


@pytest.mark.parametrize(("weaker", "name"), [("plain", "plain"), ("pull", "pointwise")])
def test_one_and_a_half_standard_errors_are_not_enough(weaker, name):
    found, near, far = of((51, 51), (55, 55)), of((50, 50), (50, 50)), of((41, 41), (45, 45))
    references = {"plain": far, "pull": far, weaker: near}
    (why,) = against(found, **references)
    assert why.startswith(f"H - {name} is +3.0 ± 2.0")


def test_equal_methods_differ_by_no_more_than_their_error():
    assert [why.partition(" is ")[0] for why in against(FLAT)] == ["H - plain", "H - pointwise"]


@pytest.mark.parametrize(
    ("more", "phrase"),
    [
        ({"found": of((90, 60))}, "1 of 2 runs of the setting are missing"),
        ({"plain": of((80, 50))}, "1 of 2 runs of plain are missing"),
        ({"pull": {}}, "2 of 2 runs of pointwise are missing"),
    ],
    ids=["setting", "plain", "pull"],
)
def test_nothing_is_claimed_from_runs_that_are_not_all_there(more, phrase):
    assert against(**{"found": GOOD, **more}) == [phrase]


def test_nothing_is_claimed_from_one_run():
    one, plain = of((90.0, 60.0)), of((80.0, 50.0))
    why = "H - plain has no standard error with 1 run"
    assert paired.failing(one, plain, {"plain": plain}, 1) == [why]


def test_a_verdict_is_told_for_every_family():
    chosen = {"pointwise": FLAT, "rkd": GOOD, "fda": {}}
    told = {
        name: ablation.verdict(name, label, chosen, FLAT, 2)
        for name, label in {"pointwise": "w 3", "rkd": "w 1", "fda": ""}.items()
    }
    assert told["rkd"] == "rkd holds (w 1)"
    assert told["fda"].startswith("fda does not hold: no setting")
    # The pull is compared with the plain trainer alone.
    assert told["pointwise"] == (
        "pointwise does not hold (w 3): H - plain is +0.0 ± 0.0, not above 2 standard errors"
    )


def test_the_pull_itself_holds_by_beating_the_plain_trainer():
    assert ablation.verdict("pointwise", "w 3", {"pointwise": GOOD}, FLAT, 2).startswith(
        "pointwise holds"
    )


# -- power ----------------------------------------------------------------------------------------


def test_what_is_told_apart_is_two_standard_errors_of_paired_differences():
    same = {run: (pair[1], pair[1]) for run, pair in GOOD.items()}  # H is 56 and 58
    methods = {
        "x": same,
        "y": of((60, 60), (66, 66)),
        "z": of((50, 50), (50, 50)),
        "one": of((1, 1)),
    }
    found = paired.tells_apart(methods)
    # y - x is 4 and 8, z - x is -6 and -8, z - y is -10 and -16
    assert found == pytest.approx({("x", "y"): 4.0, ("x", "z"): 2.0, ("y", "z"): 6.0})
    text = paired.tells_apart_text(methods)
    assert "4.00 (median over 3 pairs; from 2.00 for x | z to 6.00 for y | z)" in text
    assert "(2 runs)" in text


def test_methods_without_two_common_runs_are_not_told_apart():
    assert paired.tells_apart({"x": of((1, 1)), "y": of((2, 2))}) == {}
    assert "none can be told apart" in paired.tells_apart_text({"x": of((1, 1)), "y": of((2, 2))})


# -- the calibration ------------------------------------------------------------------------------


def test_the_calibration_stands_beside_the_published_figures():
    found = {name: {} for name in ablation.METHODS}
    found[REFERENCE] = of((70.0, 60.0), (72.0, 62.0))
    found["CoOp"] = of((80.0, 50.0), (80.0, 54.0))
    found["KgCoOp"] = of((80.0, 60.0))
    text = ablation.calibration_table(found, 2)
    assert cells(text, "CoOp")[1:3] == ["80.0", "52.0"]
    assert cells(text, "CoOp")[4:] == ["-9.0 ± 1.0", "-11.0"]
    assert cells(text, "KgCoOp (1 of 2 runs)")[4:] == ["+0.0", "-0.6"]
    assert cells(text, "MaPLe")[1:] == ["missing"] * 4 + ["+0.9"]
    assert cells(text, REFERENCE)[4:] == ["", ""]


def test_the_calibration_s_gains_are_told_by_dataset():
    found = {REFERENCE: {("a", 1): (1, 50), ("b", 1): (1, 50)}}
    found["CoOp"] = {("a", 1): (1, 40), ("b", 1): (1, 55)}
    assert ablation.gaps_by_dataset(found, "CoOp") == {"a": "-10.0", "b": "+5.0"}


def test_kgcoop_is_coop_with_its_own_weight(runs):
    train_job, _ = runs.base2new(ablation.METHODS["KgCoOp"], "atlas_tools", 1)
    place = layout.parse(train_job.folder)
    assert (place.name, place.config) == ("CoOp+pointwise", "atlas-weight_8")


# -- runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", HOSTS)
def test_a_plain_run_is_where_the_script_of_base_to_new_has_it(host, runs, tmp_path):
    where = {"data": str(tmp_path / "data"), "output": str(tmp_path / "out")}
    jobs = base2new_jobs(host, "atlas_tools", 2, project=ablation.PROJECT, **where)
    assert runs.base2new(plain_candidate(host), "atlas_tools", 2) == jobs


def test_halves_are_those_of_the_base_classes_with_the_first_seed(runs):
    jobs = runs.halves([plain_candidate("CoOp"), RKD], 2, DATASETS)
    places = [layout.parse(job.folder) for job in jobs]
    assert len(jobs) == 2 * 2 * 2 * 3 and {place.protocol for place in places} == {"select"}
    assert {(place.split, place.seed) for place in places} == {(1, 1), (2, 1)}
    assert {place.config for place in places} == {"atlas", "atlas-weight_1"}


def test_only_runs_with_both_halves_of_the_classes_are_measured(runs):
    plain = plain_candidate("CoOp")
    base, new = runs.base2new(plain, "atlas_tools", 1)
    write(base, 80.0)
    write(runs.base2new(plain, "atlas_tools", 2)[0], 70.0)
    assert runs.measured(plain) == {}
    write(new, 60.0)
    assert runs.measured(plain) == {("atlas_tools", 1): (80.0, 60.0)}


def test_what_learns_nothing_is_run_once_and_stands_for_all_seeds(runs):
    jobs = runs.all_base2new([ablation.ZERO_SHOT])
    assert len(jobs) == 2 * len(DATASETS)
    for number, job in enumerate(jobs):
        write(job, 50.0 + number)
    assert runs.measured(ablation.ZERO_SHOT) == {
        ("atlas_tools", 1): (50.0, 51.0),
        ("atlas_tools", 2): (50.0, 51.0),
        ("atlas_fruits", 1): (52.0, 53.0),
        ("atlas_fruits", 2): (52.0, 53.0),
    }


def test_a_setting_on_halves_is_the_mean_over_datasets(runs):
    plain, one = plain_candidate("CoOp"), RKD
    for place, job in enumerate(runs.halves([plain, one], 2, DATASETS)):
        # of the second dataset, all are better by 10
        write(job, 50.0 + 10 * (place >= 12) + 2 * ("rkd" in job.folder))
    rows = runs.rows([plain, one], 2, selection.read(runs.output), runs.datasets)
    assert [row.seen for row in rows] == [55.0, 57.0] and rows[1].complete and rows[0].reference
    rows = runs.rows([plain, one], 2, selection.read(runs.output), ["atlas_fruits"])
    assert [row.unseen for row in rows] == [60.0, 62.0]


# -- the families ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "one"),
    [(host, one) for host in HOSTS for family in FAMILIES[host].values() for one in family],
    ids=lambda value: getattr(value, "label", value),
)
def test_every_setting_is_valid(host, one):
    assert split_run_name(one.run)[0] == host
    trainer, regulariser = trainer_and_regulariser(one.run)
    words = ["--trainer", trainer, "--regulariser", regulariser]
    words += ["DATASET.NAME", "ImageFolder", *one.words]
    cfg = load_config(train.parser().parse_args(words))
    assert describe_regulariser(cfg)["name"] == one.run.partition("+")[2]


@pytest.mark.parametrize("host", HOSTS)
def test_the_settings_of_a_host_have_folders_of_their_own(host, runs):
    settings = {one for family in FAMILIES[host].values() for one in family}
    folders = {runs.base2new(one, "atlas_tools", 1)[0].folder for one in settings}
    labels = {one.label for one in settings}
    assert len(folders) == len(labels) == len(settings)


def test_a_family_has_the_grids_of_its_host(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(
        "few: [{hosts: [CoOp], regulariser: rkd, WEIGHT: [1, 3.0]}]\n"
        "more, many:\n"
        "  - {regulariser: rkd, WEIGHT: [3, 10]}\n"
        "  - {hosts: [MaPLe], regulariser: fda, CONSTANTS: [derived], K: [4]}\n"
    )
    coop = read_families(str(path), "CoOp", HOSTS)
    assert {name: [one.variant for one in family] for name, family in coop.items()} == {
        "few": ["weight_1", "weight_3"],
        "more, many": ["weight_3", "weight_10"],
    }
    assert coop["few"][1] is coop["more, many"][0]  # one setting of two families
    maple = read_families(str(path), "MaPLe", HOSTS)
    assert list(maple) == ["more, many"] and maple["more, many"][2].run == "MaPLe+fda"


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("[]", "is no mapping of families"),
        ("few: 3", "family 'few' is 3"),
        ("few: []", "family 'few' is []"),
        ("few: [{WEIGHT: [1]}]", "family 'few' has {'WEIGHT': [1]}, which names no regulariser"),
        ("few: [{regulariser: rdk, WEIGHT: [1]}]", "family 'few': regulariser is 'rdk'"),
        ("few: [{regulariser: rkd, WEIGHT: 1}]", "family 'few' has no list of values for WEIGHT"),
        ("few: [{regulariser: rkd}]", "family 'few' has no list of values for any option"),
        ("few: [{regulariser: rkd, WEIHGT: [1]}]", "no option to try (did you mean 'WEIGHT'?)"),
        ("few: [{regulariser: rkd, ENABLED: [1]}]", "family 'few' has ENABLED, which is no option"),
        ("few: [{regulariser: rkd, K: [1]}]", "family 'few' has K, which is no option of 'rkd'"),
        ("few: [{regulariser: rkd, host: [CoOp], WEIGHT: [1]}]", "(did you mean 'hosts'?)"),
        ("few: [{regulariser: rkd, hosts: [Coop], WEIGHT: [1]}]", "(did you mean 'CoOp'?)"),
        ("few: [", "is not valid YAML"),
    ],
)
def test_faulty_families_are_refused(text, phrase, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(BadValue) as error:
        read_families(str(path), "CoOp", HOSTS)
    assert str(path) in str(error.value) and phrase in str(error.value)
    assert "\n" not in str(error.value)


def test_a_value_that_no_run_could_have_names_its_family(runs, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("few: [{regulariser: rkd, WEIGHT: [-2]}]")
    with pytest.raises(BadValue, match=r"family 'few', rkd WEIGHT -2: .*WEIGHT"):
        ablation.check_settings(read_families(str(path), "CoOp", HOSTS), runs)


def test_a_study_looks_at_its_settings_before_it_runs(runs, monkeypatch):
    monkeypatch.setattr(ablation, "run", lambda *_, **__: pytest.fail("it ran"))
    wrong = Candidate("x", "CoOp+rkd", (("TRAINER.PROXYFDA.WEIGHT", "-2"),))
    args = ablation.arguments(["CoOp", "--data", "x"])
    with pytest.raises(BadValue, match="family 'few', x: "):
        ablation.search("CoOp", {"few": [wrong]}, runs, args)


# -- the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        ("b,a", ["b", "a"]),
        ("b, a", ["b", "a"]),
        ("a, far", ["a, far"]),
        ("a,a, far,b", ["a", "a, far", "b"]),
    ],
)
def test_a_name_may_have_a_comma(text, names):
    assert ablation.names_of(text, ["a", "a, far", "b"]) == names


@pytest.mark.parametrize(
    ("words", "kind", "phrase"),
    [
        ("Coop --data {data}", BadValue, "no study 'Coop' (did you mean 'CoOp'?)"),
        ("CoOp --data {data}/x", NotFound, "there is no folder"),
        ("CoOp --data {data}", NotFound, "atlas_banners; python -m datasets.bundled"),
        ("CoOp --data {data} --datasets atlas_tool", NotFound, "did you mean 'atlas_tools'?"),
        ("CoOp --data x --choose-on atlas_tool", BadValue, "--choose-on names 'atlas_tool' (did"),
        ("CoOp --data x --tables-only --families rdk", BadValue, "'rdk' (did you mean 'rkd'?)"),
        ("CoOp --data x --tables-only --families ,", BadValue, "--families is ','"),
        ("CoOp --data x --tables-only --output {data} --csv x.csv", NotFound, "no complete runs"),
    ],
)
def test_mistakes_are_told_in_one_sentence(words, kind, phrase, tmp_path):
    with pytest.raises(kind) as error:
        ablation.main(words.format(data=tmp_path).split())
    assert isinstance(error.value, UserError)
    assert phrase in str(error.value) and "\n" not in str(error.value)


def test_a_host_without_families_is_refused(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("few: [{hosts: [MaPLe], regulariser: rkd, WEIGHT: [1]}]")
    assert list(ablation.families_of(["MaPLe"], "", str(path))["MaPLe"]) == ["few"]
    with pytest.raises(BadValue, match="CoOp has no settings in the families"):
        ablation.families_of(["MaPLe", "CoOp"], "", str(path))


def test_defaults_are_the_atlas_and_three_seeds(monkeypatch):
    asked = []
    monkeypatch.setattr(ablation, "calibrate", lambda runs, args: asked.append(runs) or (0, []))
    assert ablation.main(["calibration", "--data", "x", "--tables-only"]) == 0
    assert asked[0].datasets == list(BUNDLED) and asked[0].seeds == [1, 2, 3]


# -- a whole study, of results that were made up --------------------------------------------------


@pytest.fixture
def study(monkeypatch, tmp_path):
    """Run the study of CoOp with jobs that only write a result; gives the lists of jobs."""
    for name in DATASETS:
        (tmp_path / "data" / name).mkdir(parents=True)
    (tmp_path / "study.yaml").write_text(
        "pointwise: [{regulariser: pointwise, WEIGHT: [1, 3, 10, 30]}]\n"
        "rkd: [{regulariser: rkd, WEIGHT: [1, 3, 10, 30]}]\n"
        "fda: [{regulariser: fda, WEIGHT: [0.1, 0.3, 1, 3]}]\n"
    )
    monkeypatch.setattr(ablation, "STUDY", str(tmp_path / "study.yaml"))

    def start(*words):
        sweeps = []

        def run(jobs, *, workers, strict):
            assert strict and workers == 2
            sweeps.append(jobs)
            for job in jobs:
                if not job.complete:
                    place = layout.parse(job.folder)
                    weight = float(place.config.rpartition("_")[2] if "weight" in job.folder else 0)
                    bonus = {"FDACoOp": 1.0}.get(place.name, 0.0)
                    write(job, 60 + weight / 10 + bonus + 0.01 * place.seed * bool(weight))
            return 0

        monkeypatch.setattr(ablation, "run", run)
        monkeypatch.chdir(tmp_path)
        command = "CoOp --data data --output out --seeds 1,2"
        code = ablation.main([*command.split(), "--datasets", ",".join(DATASETS), *words])
        assert code == 0
        return sweeps

    return start


def test_a_study_runs_what_it_chose_and_again_only_what_is_missing(study, capsys, tmp_path):
    halves, final = study("--csv", "runs.csv")
    out = capsys.readouterr().out
    assert {layout.parse(job.folder).protocol for job in halves} == {"select"}
    folders = {(layout.parse(job.folder).name, layout.parse(job.folder).config) for job in final}
    assert folders == {
        (REFERENCE, "atlas"),
        ("CoOp", "atlas"),
        ("CoOp+rkd", "atlas-weight_30"),
        ("CoOp+pointwise", "atlas-weight_30"),
        ("FDACoOp", "atlas-weight_3"),
    }
    assert all(Path(job.folder).is_relative_to(tmp_path) for job in final)
    assert "CoOp: rkd does not hold (rkd WEIGHT 30): H - pointwise is +0.0 ± 0.0" in out
    assert "CoOp: pointwise holds (pointwise WEIGHT 30)" in out
    assert "median over 6 pairs" in out
    with open("runs.csv", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == ["study", "family", "setting", "dataset", "seed", "base", "new", "H"]
    assert len(lines) == 4 * 2 * 2
    (line,) = (
        line for line in lines
        if (line["family"], line["dataset"], line["seed"]) == ("fda", "atlas_tools", "2")
    )  # fmt: skip
    assert (line["study"], line["setting"]) == ("CoOp", "fda WEIGHT 3")
    assert [float(line[key]) for key in ("base", "new", "H")] == pytest.approx([61.32] * 3)
    again = study()
    assert all(job.complete for jobs in again for job in jobs)


def test_tables_alone_run_nothing_and_say_the_same(study, capsys):
    study()
    whole = capsys.readouterr().out
    assert study("--tables-only") == []
    assert capsys.readouterr().out == whole


def test_how_well_halves_predict_is_told_together_and_by_dataset(study, capsys):
    _, final = study("--predict")
    assert len({layout.parse(job.folder).config for job in final} - {"atlas"}) == 6
    line = next(x for x in capsys.readouterr().out.splitlines() if "rank correlation" in x)
    # H on halves and of base-to-new rise alike with the weight.
    assert line.endswith("over 12 of 12 settings: +1.00 (atlas_tools +1.00, atlas_fruits +1.00)")


def test_some_of_the_datasets_choose_for_all(study, capsys):
    halves, final = study("--choose-on", "atlas_fruits", "--predict")
    assert {layout.parse(job.folder).dataset for job in halves} == {"atlas_fruits"}
    assert {layout.parse(job.folder).dataset for job in final} == set(DATASETS)
    out = capsys.readouterr().out
    assert "2 splits, each the mean over atlas_fruits. " in out
    assert "settings: +1.00 (atlas_fruits +1.00)" in out


def row(label, h, **more):
    return selection.SettingRow(1, label, "CoOp+rkd", "atlas", 1.0, h=h, complete=True, **more)


def test_the_rank_correlation_is_over_settings_with_all_runs():
    keys = [("a", 1), ("b", 1)]
    final = {"x": (50, 60), "y": (60, 50), "z": (70, 40), "part": (10, 90)}
    found = {name: {key: (h, h) for key, h in zip(keys, pair)} for name, pair in final.items()}
    del found["part"]["b", 1]
    rows = [row(name, place) for place, name in enumerate(final)]
    rows.insert(0, row("plain", 99.0, reference=True))
    found["plain"] = found["x"]
    text = ablation.prediction_text(rows, {"a": rows, "b": rows}, found, keys)
    # on a they rank as on the halves, on b the other way, together all are equal
    assert text.endswith("over 3 of 4 settings: - (a +1.00, b -1.00)")
