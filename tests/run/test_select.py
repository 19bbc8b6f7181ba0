"""scripts/select.sh on a small folder of images and a tiny CLIP, and its command line."""

import csv
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import run
import selecting
import yaml
from PIL import Image

from proxyfda.engine import data as engine_data
from proxyfda.experiments import layout, protocols
from proxyfda.experiments.config import load_config

CLASSES = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen"]
NEW = CLASSES[4:]


def lay_out(root, classes=CLASSES):
    """A dataset config of class folders with noise images, tinted by class."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(classes):
        for part, count in (("train", 4), ("val", 3), ("test", 2)):
            folder = root / "birds" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (32, 32, 3)) + 15 * np.array([label, 8 - label, 3])
                Image.fromarray(pixels.astype("uint8")).save(folder / f"{i}.png")
    path = root / "birds.yaml"
    path.write_text(f"DATASET: {{NAME: ImageFolder, ROOT: {root / 'birds'}}}\n")
    return str(path)


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    return lay_out(tmp_path_factory.mktemp("data"))


TRIES = ["--splits", "1", "--try", "WEIGHT=1,30", "--try", "SPACES=text+cross"]


@pytest.fixture(scope="module")
def command(birds, options):
    """Call run.py on the birds; 1 shot count, 1 seed."""

    def call(output, *words, trainer="CoOp+rkd", dataset=birds):
        where = ["--data", os.path.dirname(birds), "--output", str(output), "--seeds", "1"]
        return run.main(["select", trainer, dataset, "2", *options, *where, *words])

    return call


@pytest.fixture(scope="module")
def chosen(command, tmp_path_factory):
    """Output of a choice, and the paths of all images that were read for it."""
    output = tmp_path_factory.mktemp("out")
    read = []
    whole = engine_data.read_image
    engine_data.read_image = lambda path: (read.append(path), whole(path))[1]
    try:
        assert command(output, "--no-final", *TRIES) == 0
    finally:
        engine_data.read_image = whole
    return output, read


def stamps(output):
    return {path: path.stat().st_mtime_ns for path in Path(output).rglob("result.json")}


@pytest.mark.slow
def test_only_training_and_validation_images_of_base_classes_are_read(chosen):
    _, read = chosen
    parts = {(Path(path).parents[1].name, Path(path).parent.name) for path in read}
    assert {name for _, name in parts} == set(CLASSES[:4])
    assert {part for part, _ in parts} == {"train", "val"}
    # All validation images of these classes, although the shots are fewer.
    assert len({path for path in read if "/val/" in path}) == 4 * 3


@pytest.mark.slow
def test_settings_of_coop_are_trained_in_one_pass(chosen):
    output, _ = chosen
    results = [json.loads(path.read_text()) for path in Path(output).rglob("result.json")]
    assert sum("grid" in result for result in results) == 3  # plain and two settings
    assert {result["grid"] for result in results if "grid" in result} == {3}


@pytest.mark.slow
def test_the_choice_is_an_overlay_with_the_options_of_the_best_setting(chosen, birds, options):
    output, _ = chosen
    folder = Path(output, layout.selection("birds", 2, "CoOp+rkd"))
    text = (folder / "choice.yaml").read_text()
    node = yaml.safe_load(text)["TRAINER"]["PROXYFDA"]
    assert text.startswith("# Chosen by scripts/select.sh for CoOp+rkd on birds from 2 settings")
    assert set(node) == {"REGULARISER", "WEIGHT", "SPACES"} and node["REGULARISER"] == "rkd"
    with open(folder / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    (best,) = [row for row in rows if row["chosen"] == "True"]
    assert float(best["h"]) == max(float(row["h"]) for row in rows[1:]) and len(rows) == 3
    assert f"weight_{node['WEIGHT']:g}" in best["config"]
    assert (folder / "seen_unseen.png").is_file()
    where = {"project": run.PROJECT, "data": "", "output": str(output), "shots": 2}
    where["opts"] = options
    path = str(folder / "choice.yaml")
    with_overlay = protocols.base2new_jobs("CoOp+rkd", birds, 1, overlay=path, **where)[0]
    words = ["TRAINER.PROXYFDA.WEIGHT", str(node["WEIGHT"])]
    words += ["TRAINER.PROXYFDA.SPACES", ",".join(node["SPACES"])]
    where["opts"] = [*options, *words]
    with_options = protocols.base2new_jobs("CoOp+rkd", birds, 1, **where)[0]
    one, other = (load_config(job.parsed()) for job in (with_overlay, with_options))
    one.defrost()
    one.OUTPUT_DIR = other.OUTPUT_DIR
    assert one == other


@pytest.mark.slow
def test_the_same_command_goes_on_and_ends_with_base2new(chosen, command, capfd):
    output, _ = chosen
    before = stamps(output)
    lost = sorted(before)[0]
    lost.unlink()
    capfd.readouterr()
    assert command(output, "--evaluate-all", *TRIES) == 0
    printed = capfd.readouterr().out
    after = stamps(output)
    assert {path: after[path] for path in before if path != lost} == {
        path: stamp for path, stamp in before.items() if path != lost
    }
    assert lost in after and "8 of 9 jobs are complete already" in printed
    new = {str(path.relative_to(output)).split("/")[0] for path in set(after) - set(before)}
    assert new == {"base2new"} and len(set(after) - set(before)) == 2 * (1 + 1 + 2)
    assert "final run: bash scripts/base2new.sh CoOp+rkd" in printed
    assert "Base-to-new, 2 shots" in printed and "Δnew" in printed
    assert "How well halves of the base classes predict base-to-new" in printed
    # The final run and that of all settings are the same run.
    assert command(output, *TRIES) == 0 and stamps(output) == after


@pytest.mark.slow
def test_one_choice_for_several_datasets(birds, command, tmp_path, capfd, monkeypatch):
    whole, final = selecting.sweep.run, []

    def first_alone(jobs, strict=False, **where):
        if strict:
            return whole(jobs, strict=True, **where)
        final.extend(jobs)
        return 0

    monkeypatch.setattr(selecting.sweep, "run", first_alone)
    monkeypatch.setattr(selecting, "subprocess", SimpleNamespace(run=lambda *_, **__: None))
    other = Path(birds).with_name("bugs.yaml")
    other.write_text(Path(birds).read_text())
    words = ["--shared", "--splits", "1", "--try", "WEIGHT=30"]
    assert command(tmp_path, *words, trainer="CoOp+kl", dataset=f"{birds},{other}") == 0
    printed = capfd.readouterr().out
    for name in ("birds", "bugs", "shared"):
        folder = tmp_path / layout.selection(name, 2, "CoOp+kl")
        assert (folder / "choice.yaml").is_file() and (folder / "seen_unseen.svg").is_file()
    expected = {("ZeroshotCLIP", False), ("CoOp", False), ("CoOp+kl", True)}
    for name in ("birds", "bugs"):
        own = [job for job in final if f"/{name}/" in job.folder]
        places = [layout.parse(job.folder) for job in own]
        shared = [str(folder / "choice.yaml") in job.flags for job in own]
        assert {(place.name, is_shared) for place, is_shared in zip(places, shared)} == expected
        assert places[-1].config.endswith("-weight_30") and len(own) == 6
    assert "each the mean over birds, bugs" in printed


def test_runs_of_other_options_are_not_compared(chosen, command):
    output, _ = chosen
    with pytest.raises(FileExistsError, match="OPTIM.LR is .* there and 0.1 here"):
        command(output, "OPTIM.LR", "0.1", *TRIES)


def test_a_dry_run_lists_the_jobs_of_all_settings_and_writes_nothing(tmp_path, capsys, birds):
    where = ["--data", "/data", "--output", str(tmp_path / "out"), "--dry-run", "--seeds", "1,2"]
    words = ["--regularisers", "rkd,pointwise", "--try", "WEIGHT=1,3", "--splits", "4"]
    assert run.main(["select", "CoOp,MaPLe", f"dtd,{birds}", *words, *where]) == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("to run: ")]
    assert len(lines) == 2 * 2 * 4 * 2 * (1 + 4) * 3
    assert "then: the choice, and with it base2new" in out and not (tmp_path / "out").exists()
    # Plain MaPLe is compared under the config of its settings, with their batches.
    assert "trainers/MaPLe/vit_b16_c2_ep20_batch64_2ctx.yaml" in out
    assert "batch4" not in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["CoOp+rkd", "nothing"], "no dataset 'nothing'; use one of"),
        (["CoOp", "dtd"], "CoOp says nothing to choose among"),
        (["CoOp", "dtd", "--regularisers", "rkt"], "--regularisers is 'rkt'"),
        (["CoOp+rkd", "dtd", "--try", "WEIGT=1"], "'TRAINER.PROXYFDA.WEIGT' is no option; did"),
        (["CoOp+rkd", "dtd", "--try", "WEIGHT=-2"], "TRAINER.PROXYFDA.WEIGHT is -2.0"),
        (["CoOp+rkd", "dtd", "--splits", "0"], "--splits is 0"),
        (["CoOp+rkd", "dtd", "--no-final", "--evaluate-all"], "contradict each other"),
        (["CoOp+rkd", "dtd", "TRAINER.PROXYFDA.WEIGHT", "3"], "WEIGHT is among the settings and"),
        (["CoOp+rkd"], "DATASETS is not given; the usage is select.sh TRAINER DATASETS"),
        (["ZeroshotCLIP", "dtd"], "trains nothing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_reported_before_anything_runs(tmp_path, words, message):
    where = ["--data", str(tmp_path), "--output", str(tmp_path / "out"), "--dry-run"]
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        run.main(["select", *words, *where])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("flag", ["--try", "--regularisers", "--splits", "--shared"])
def test_other_protocols_take_no_flags_of_this_one(flag):
    words = [flag] if flag == "--shared" else [flag, "K=3"]
    with pytest.raises(ValueError, match=f"{flag} is for select; leave it out"):
        run.main(["base2new", "CoOp", "dtd", "1", *words, "--data", "/data", "--dry-run"])


def test_too_few_base_classes_are_one_sentence(tmp_path, command, capsys):
    path = lay_out(tmp_path, CLASSES[:6])
    with pytest.raises(ValueError, match="of which there are 3; use a dataset with at least 4"):
        command(tmp_path / "out", dataset=path)
    assert not (tmp_path / "out" / "select").exists()
