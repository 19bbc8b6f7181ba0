"""scripts/{finetune,forgetting,continual}.sh with runs whose results are made up."""

import csv
import itertools
import json
import os
from pathlib import Path

import finetuning
import numpy as np
import pytest
import run
import yaml
from PIL import Image

import train
from proxyfda.experiments import layout
from proxyfda.experiments.strengths import Tried, choose
from proxyfda.utils.errors import BadValue

NAMES = ["ants", "bees", "cats"]
METHODS = "naive,LP-FT,WiSE-FT,FDA"
BEFORE = 60.0
# λ or α -> accuracy on the tuned dataset and Δ_LP on each other one, on validation images
MADE_UP = {"": (90.0, -6.0), "1": (89.5, -2.0), "3": (89.0, -1.0), "10": (70.0, 1.0)}
MADE_UP.update({"0.5": (89.5, -3.0), "0.2": (80.0, -1.0)})


@pytest.fixture(scope="session")
def datasets(tmp_path_factory):
    """Configs of three datasets of noise images in class folders."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    paths = []
    for name in NAMES:
        for label, i in itertools.product("ab", range(4)):
            folder = root / name / label
            folder.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 255, (8, 8, 3)).astype("uint8")
            Image.fromarray(pixels).save(folder / f"{i}.png")
        paths.append(root / f"{name}.yaml")
        paths[-1].write_text(f"DATASET: {{NAME: ImageFolder, ROOT: {root / name}}}\n")
    return [str(path) for path in paths]


@pytest.fixture
def made_up(monkeypatch):
    """Runs that write made-up results; ``made_up.ran`` has their folders in order, and
    ``made_up.stop`` may raise for one."""

    def fake_main(args):
        folder = Path(args.output_dir)
        fake_main.ran.append(str(folder))
        fake_main.stop(str(folder))
        place = layout.parse(str(folder))
        words = dict(zip(args.opts[::2], args.opts[1::2]))
        value = words.get(finetuning.finetuning.WEIGHT_KEY, "")
        value = f"{args.alpha:g}" if args.alpha not in (None, 1.0) else value
        accuracy, delta = MADE_UP[value]
        tuned = Path(args.dataset_config_file).stem
        result = {"accuracy": accuracy, "time": {"run": 0.1}}
        if args.probe:
            names = [Path(path).stem for path in args.probe.split(",")]
            after = {name: BEFORE + delta + 0.01 * place.seed for name in names}
            after[tuned] = accuracy
            if not args.model_dir:
                after = dict.fromkeys(names, BEFORE)
            more = {"zero_shot": None, "strength": 1.0, "classes": 2, "images": 4}
            result["probes"] = {n: {"linear_probe": value, **more} for n, value in after.items()}
        (folder / "result.json").write_text(json.dumps(result))

    fake_main.ran, fake_main.stop = [], lambda folder: None
    monkeypatch.setattr(train, "main", fake_main)
    monkeypatch.setattr(run, "_show_results", lambda args, jobs: None)
    monkeypatch.setattr("proxyfda.experiments.jobs._free_memory", lambda: None)  # it takes long
    return fake_main


@pytest.fixture
def forgetting(datasets, tmp_path, made_up):
    """Call forgetting.sh on two of three datasets; gives its exit code."""

    def call(*words, output="out"):
        where = ["--output", str(tmp_path / output), "--data", str(tmp_path), "--cfg", "bundled"]
        where += ["--datasets", ",".join(datasets[:2]), "--probes", ",".join(datasets)]
        made_up.ran.clear()
        more = ["--methods", METHODS, "--seeds", "1,2", "--lambdas", "1,3,10"]
        more += ["--alphas", "0.2,0.5"]
        return run.main(["forgetting", *where, *more, *words])

    return call


def results(output):
    return {
        str(path.parent.relative_to(output)): json.loads(path.read_text())
        for path in Path(output).rglob("result.json")
    }


def test_all_methods_are_tuned_chosen_and_probed(forgetting, made_up, tmp_path, capsys):
    assert forgetting() == 0
    found = results(tmp_path / "out")
    for name, method, seed in itertools.product(NAMES[:2], METHODS.split(","), (1, 2)):
        title = finetuning.METHODS[method]
        assert f"finetune/probe_test/{name}/{title}/bundled/seed{seed}" in found
    # Chosen: λ 3, one point below naive; α 0.5, since 0.2 costs ten points.
    final = found["finetune/probe_test/ants/FDAFineTune/bundled/seed2"]
    assert final["probes"]["ants"]["linear_probe"] == MADE_UP["3"][0]
    final = found["finetune/probe_test/ants/WiSEFT/bundled/seed1"]
    assert final["probes"]["cats"]["linear_probe"] == pytest.approx(BEFORE - 3 + 0.01)
    # The whole curve of α is kept, and WiSE-FT has no trainings of its own.
    assert {
        f"finetune/probe_val/bees/WiSEFT/bundled-alpha_{alpha}/seed1" for alpha in ("0.2", "0.5")
    } <= set(found)
    assert not any("train/ants/WiSEFT" in folder for folder in found)
    # λ is chosen with the first seed, and only what was chosen is trained with the others.
    trained = sorted(f for f in found if f.startswith("finetune/train/ants/FDAFineTune"))
    folder = "finetune/train/ants/FDAFineTune/bundled-weight"
    assert trained == [f"{folder}_{tail}" for tail in ("1/seed1", "10/seed1", "3/seed1", "3/seed2")]
    printed = capsys.readouterr().out
    assert "FDA on ants: λ 3 of 1, 3, 10 (accuracy 89.00 and Δ_LP -0.99; naive 90.00" in printed
    assert "WiSE-FT on bees: α 0.5 of 0.2, 0.5 (" in printed


def test_every_training_runs_once_and_before_its_probes(forgetting, made_up, tmp_path):
    forgetting()
    assert len(made_up.ran) == len(set(made_up.ran))
    place = {os.path.relpath(f, tmp_path / "out"): i for i, f in enumerate(made_up.ran)}
    for folder, number in place.items():
        parsed = layout.parse(folder)
        if parsed.part == "probe_val" and parsed.name in ("FineTune", "FDAFineTune"):
            assert place[folder.replace("probe_val", "train")] < number
    # No test image is looked at for a method with a choice before all choices are made.
    last = max(number for folder, number in place.items() if "probe_val" in folder)
    first = min(n for folder, n in place.items() if "probe_test" in folder and "/FDA" in folder)
    assert last < first
    assert sum("/Pretrained/" in folder for folder in place) == 2  # one per split


def test_the_choice_is_an_overlay_and_a_table(forgetting, tmp_path):
    forgetting()
    folder = tmp_path / "out" / layout.finetune_choice("ants", "FDAFineTune", "bundled")
    node = yaml.safe_load((folder / "choice.yaml").read_text())["TRAINER"]["PROXYFDA"]
    assert node == {"REGULARISER": "fda", "WEIGHT": 3.0}
    with open(folder / "table.csv", newline="") as file:
        naive, *rows = list(csv.DictReader(file))
    tried = [Tried(r["weight"], float(r["accuracy"]), float(r["delta"])) for r in rows]
    best = choose(tried, float(naive["accuracy"]))
    assert [r["weight"] for r in rows if r["chosen"] == "True"] == [best.value] == ["3"]
    folder = tmp_path / "out" / layout.finetune_choice("ants", "WiSEFT", "bundled")
    assert "--alpha 0.5" in (folder / "choice.yaml").read_text()


def test_the_choice_may_be_by_several_seeds(forgetting, datasets, tmp_path):
    assert forgetting("--select-seeds", "1,2", "--datasets", datasets[0]) == 0
    folder = tmp_path / "out" / layout.finetune_choice("ants", "FDAFineTune", "bundled")
    text = (folder / "choice.yaml").read_text()
    assert "over seeds 1, 2" in text and "Δ_LP -0.98" in text  # the mean of 0.01 and 0.02


def test_the_same_command_goes_on_and_runs_nothing_twice(forgetting, made_up, datasets, tmp_path):
    words = ["--datasets", datasets[0]]

    def stop(folder):
        if len(made_up.ran) == 10:
            raise KeyboardInterrupt

    made_up.stop = stop
    with pytest.raises(KeyboardInterrupt):
        forgetting(*words)
    made_up.stop = lambda folder: None
    assert forgetting(*words) == 0
    second = len(made_up.ran)
    assert len(results(tmp_path / "out")) == 9 + second
    lost = tmp_path / "out" / "finetune/probe_val/ants/FDAFineTune/bundled-weight_3/seed1"
    (lost / "result.json").unlink()
    assert forgetting(*words) == 0 and made_up.ran == [str(lost)]


def test_without_a_choice_the_others_go_on(forgetting, made_up, tmp_path, capsys):
    def stop(folder):
        if "train/ants/FDAFineTune/bundled-weight_10" in folder:
            raise BadValue("the loss is not finite; lower OPTIM.LR")

    made_up.stop = stop
    assert forgetting() == 1
    assert "FDA on ants: no choice, since runs of it failed" in capsys.readouterr().out
    found = results(tmp_path / "out")
    assert "finetune/probe_test/bees/FDAFineTune/bundled/seed2" in found
    assert "finetune/probe_test/ants/WiSEFT/bundled/seed2" in found
    assert "finetune/probe_test/ants/FDAFineTune/bundled/seed1" not in found


def test_one_lambda_is_taken_as_it_is(datasets, made_up, tmp_path, capsys):
    where = ["--output", str(tmp_path / "out"), "--data", str(tmp_path), "--cfg", "bundled"]
    where += ["--probes", ",".join(datasets)]
    words = ["finetune", "ProxyFDA", datasets[0], "2"]
    assert run.main([*words, "--lambdas", "3.0", *where]) == 0
    folder = "ants/ProxyFDAFineTune/bundled-weight_3/seed2"
    expected = {f"finetune/{part}/{folder}" for part in ("train", "probe_test")}
    before = "finetune/probe_test/pretrained/Pretrained/bundled/seed1"
    assert set(results(tmp_path / "out")) == {*expected, before}
    # Without any it is that of configs/finetune.
    assert run.main([*words, *where]) == 0
    assert f"finetune/train/{folder.replace('weight_3', 'weight_1')}" in results(tmp_path / "out")


def test_a_dry_run_says_what_is_known_before_the_choice(forgetting, made_up, tmp_path, capsys):
    assert forgetting("--dry-run") == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("to run: ")]
    # Pre-trained on both splits; by dataset: naive and LP-FT with two seeds and their probes, on
    # validation images naive's and α's, and λ's with their trainings.
    assert len(lines) == 2 + 2 * (2 * 2 * 2 + 1 + 2 + 3 * 2)
    assert "then: the choice of λ and α, and what was chosen on test images" in out
    assert not made_up.ran and not (tmp_path / "out").exists()


def test_the_table_of_the_paper_is_the_default(capsys, tmp_path):
    where = ["--output", str(tmp_path / "out"), "--dry-run", "--datasets", "bundled"]
    assert run.main(["forgetting", *where]) == 0
    lines = [one.split()[2:] for one in capsys.readouterr().out.splitlines() if one[:3] == "to "]
    for title in finetuning.PAPER:
        assert any(line[0] == finetuning.METHODS[title] for line in lines), title
    assert {line[1] for line in lines if line[0] == "LPFT"} == set(finetuning.TUNED)


@pytest.mark.parametrize("method", ["FDA", "CoOp+rkd"])
def test_a_row_of_tasks_runs_in_order(datasets, made_up, tmp_path, method):
    where = ["--output", str(tmp_path / "out"), "--data", str(tmp_path), "--cfg", "bundled"]
    where += ["--probes", ",".join(datasets)]
    assert run.main(["continual", method, ",".join(datasets[:2]), "1,2", *where]) == 0
    parts = [layout.parse(folder) for folder in made_up.ran]
    for seed in (1, 2):
        own = [p for p in parts if p.seed == seed and p.task]
        assert [p.task for p in own] == sorted(p.task for p in own)
        assert [p.part for p in own if p.task == 2][0] == "train"
    assert {p.dataset for p in parts} == {"ants+bees"} and {p.task for p in parts} == {0, 1, 2}


def test_all_datasets_that_are_missing_are_named(datasets, made_up, tmp_path, capsys):
    data = tmp_path / "none"
    words = ["finetune", "naive", f"dtd,{datasets[0]}", "1", "--data", str(data)]
    words += ["--cfg", "bundled", "--probes", f"eurosat,{datasets[1]}"]
    words += ["--output", str(tmp_path / "out")]
    with pytest.raises(FileNotFoundError) as error:
        run.main(words)
    said = str(error.value)
    assert said.startswith("2 of 4 datasets are not usable: ") and "\n" not in said
    assert str(data / "dtd") in said and str(data / "eurosat") in said
    assert not made_up.ran
    assert run.main([*words, "--skip-missing"]) == 0
    assert "2 of 4 datasets are not usable" in capsys.readouterr().out
    assert {layout.parse(folder).dataset for folder in made_up.ran} == {"ants", "pretrained"}


def test_a_dataset_without_validation_images_is_refused(forgetting, made_up, monkeypatch):
    class NoVal:
        val: list = []

    monkeypatch.setattr(finetuning, "build_dataset", lambda cfg: NoVal)
    with pytest.raises(ValueError, match="ants has no validation images"):
        forgetting()
    assert not made_up.ran


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["finetune", "LDIF", "dtd", "1"], "there is no method 'LDIF' .did you mean 'LDIFS'"),
        (["finetune", "FineTune+rdk", "dtd", "1"], "'rdk'.*rkd"),
        (["finetune", "CoOp", "dtd", "1"], "CoOp learns prompts; run it over a row"),
        (["finetune", "FDA", "nothing", "1"], "no dataset 'nothing'; use one of"),
        (
            ["finetune", "FDA", "dtd"],
            "SEEDS is not given; the usage is finetune.sh METHOD DATASETS",
        ),
        (["finetune", "FDA", "dtd", "1", "--probes", "dtd"], "and dtd is tuned on; name another"),
        (["finetune", "FDA", "dtd", "1", "--methods", "FDA"], "--methods is for forgetting"),
        (["finetune", "FDA", "dtd", "1", "--anchor", "previous"], "--anchor is for continual"),
        (["finetune", "FDA", "dtd", "1", "--lambdas", "0"], "λ is 0; use finite numbers above 0"),
        (["finetune", "FDA", "dtd", "1", "--alphas", "2"], "α is 2; use numbers from 0"),
        (["finetune", "WiSE-FT", "dtd", "1", "--alphas", "1.5"], "α is 1.5; use numbers from 0"),
        (
            ["finetune", "FDA", "dtd", "1", "TRAINER.PROXYFDA.WEIGHT", "3"],
            "WEIGHT is said by LAMBDAS",
        ),
        (["finetune", "naive", "dtd", "1", "--regulariser", "rkd"], "name the method FineTune.rkd"),
        (["forgetting", "--select-seeds", "one"], "SELECT_SEEDS is 'one'"),
        (["forgetting", "dtd"], "'dtd' is one word too many"),
        (["continual", "FDA", "dtd", "1"], "the row of tasks is dtd; name at least two"),
        (["continual", "FDA", "dtd,eurosat,dtd", "1"], "the row of tasks has dtd twice"),
        (["continual", "FDA", "dtd,eurosat", "1", "--anchor", "last"], "anchor is 'last'"),
        (["continual", "CoOp", "dtd,eurosat", "1", "--anchor", "previous"], "leave it out for CoO"),
        (["continual", "FDA", "dtd,eurosat", "1", "--lambdas", "1,3"], "takes one value for the"),
        (["continual", "CoOp+rkd", "dtd,eurosat", "1", "--lambdas", "1,3"], "takes one"),
        (["base2new", "CoOp", "dtd", "1", "--probes", "dtd"], "--probes is for tuning end to end"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_sentence_before_anything_runs(tmp_path, words, message):
    where = ["--data", str(tmp_path), "--output", str(tmp_path / "out"), "--dry-run"]
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        run.main([*words, *where])
    assert "\n" not in str(error.value)


def test_data_are_asked_for(tmp_path):
    with pytest.raises(ValueError, match="DATA=/path/to/datasets"):
        run.main(["finetune", "FDA", "bundled", "1", "--probes", "dtd,eurosat", "--dry-run"])


# -- with the real thing --------------------------------------------------------------------------


@pytest.fixture
def tiny(datasets, options, tmp_path):
    """Call run.py on the three datasets with the tiny CLIP; gives its exit code."""

    def call(*words):
        where = ["--output", str(tmp_path / "out"), "--data", str(tmp_path), "--cfg", "bundled"]
        where += ["--probes", ",".join(datasets)]
        return run.main([*words, *options, "MODEL.BACKBONE.NAME", "ViT-B/16", *where])

    return call


@pytest.mark.slow
def test_a_tuned_encoder_is_probed_and_found_again(tiny, datasets, tmp_path, capfd, monkeypatch):
    words = ["finetune", "FDA,WiSE-FT", datasets[0], "1"]
    assert tiny(*words) == 0
    found = results(tmp_path / "out")
    assert len(found) == 5
    wise = found["finetune/probe_test/ants/WiSEFT/bundled-alpha_0.5/seed1"]
    fda = found["finetune/probe_test/ants/FDAFineTune/bundled-weight_1/seed1"]
    assert (wise["alpha"], fda["alpha"], fda["regulariser"]["weight"]) == (0.5, 1.0, 1.0)
    assert set(fda["probes"]) == set(wise["probes"]) == set(NAMES)
    assert fda["accuracy"] == fda["probes"]["ants"]["linear_probe"]
    assert "Δ_LP" in capfd.readouterr().out
    monkeypatch.setattr(train, "main", lambda args: pytest.fail("run again"))
    assert tiny(*words) == 0


@pytest.mark.slow
def test_tasks_in_a_row_and_prompts_over_them_run(tiny, datasets, tmp_path):
    row = ",".join(datasets[:2])
    assert tiny("continual", "L2SP", row, "1", "--anchor", "previous") == 0
    assert tiny("continual", "CoOp", row, "1", "--shots", "1") == 0
    found = results(tmp_path / "out")
    tail = "ants+bees/task2/FineTune+l2sp/bundled-weight_0.5-previous/seed1"
    assert set(found[f"continual/probe_test/{tail}"]["probes"]) == set(NAMES)
    folder = tmp_path / "out/continual/train/ants+bees/task2/CoOp/bundled_1shots/seed1"
    said = (folder / "log.txt").read_text()
    assert "Initial values from" in said and "task1/CoOp/bundled_1shots/seed1/prompt_lea" in said
    tests = [name for name in found if name.startswith("continual/test/")]
    assert len(tests) == 3 * 3  # before, and after each of two tasks, on three datasets
