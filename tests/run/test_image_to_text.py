"""scripts/{captioning,vqa}.sh, on a few rendered pictures and on files in the official layouts."""

import json
import os
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import image_text_trees
import image_to_text as script
import pytest
import tiny_image_text

pytest.importorskip("pycocoevalcap")

from proxyfda.experiments import layout
from proxyfda.utils.errors import AlreadyExists, BadValue, NotFound

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
FEW = ["--limit", "1", "--seeds", "1", "--evaluate-on", "toys", "--workers", "1"]
FEW += ["--batch-size", "64", "--epochs", "2"]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in (*script.HELP, *script.OPTIONS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("proxyfda.experiments.jobs._free_memory", lambda: None)  # it takes long


@pytest.fixture
def quiet(monkeypatch):
    """No tables, which are another process."""
    monkeypatch.setattr(script.subprocess, "run", lambda *a, **more: None)


def result(output, protocol, run, config, family="banners", seed=1):
    folder = Path(output) / layout.image_to_text(protocol, family, run, config, seed)
    return json.loads((folder / "result.json").read_text())


def test_captioning_end_to_end_with_the_table(tmp_path, capfd):
    words = ["captioning", *FEW, "--output", str(tmp_path), "--methods", "naive,L2SP,LDIFS,FDA"]
    assert script.main(words) == 0
    said = capfd.readouterr().out
    assert "Captioning, bundled, tuned on banners" in said
    before = result(tmp_path, "captioning", "Pretrained", "bundled", family="")
    naive = result(tmp_path, "captioning", "FineTune", "bundled")
    fda = result(tmp_path, "captioning", "FDAFineTune", "bundled-weight_1")
    assert list(before["scores"]) == list(fda["scores"]) == ["banners", "toys"]
    assert naive["scores"]["banners"]["score"] != before["scores"]["banners"]["score"]
    weights = [
        (path / "seed1/model/model.safetensors").read_bytes()
        for path in (tmp_path / "captioning/banners").glob("*/*")
    ]
    assert len(weights) == len(set(weights)) == 4  # each method has tuned in its own way
    assert fda["regulariser"] == {"name": "fda", "weight": 1.0}
    assert naive["probes"]["toys"]["classes"] == 16
    folder = tmp_path / "captioning" / "banners" / "FDAFineTune" / "bundled-weight_1" / "seed1"
    assert {"config.yaml", "log.txt", "model", "result.json"} == set(os.listdir(folder))
    assert "loss_fda" in (folder / "log.txt").read_text()

    # what is complete is skipped
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    assert script.main(words) == 0
    assert "5 of 5 jobs are complete already" in capfd.readouterr().out
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}


def test_an_interrupted_run_goes_on_and_ends_with_the_same_numbers(tmp_path, monkeypatch, quiet):
    from trainers.image_to_text.models import ImageToText

    def call(output):
        where = ["--output", str(tmp_path / output), "--methods", "Proxy-FDA"]
        return script.main(["vqa", *FEW, *where])

    assert call("whole") == 0
    batch, calls = ImageToText.batch, []

    def stopped(self, *args, **more):
        calls.append(args)
        if len(calls) == 5:  # the second epoch has begun, of three batches each
            raise KeyboardInterrupt
        return batch(self, *args, **more)

    monkeypatch.setattr(ImageToText, "batch", stopped)
    with pytest.raises(KeyboardInterrupt):
        call("twice")
    folder = tmp_path / "twice/vqa/banners/ProxyFDAFineTune/bundled-weight_1/seed1"
    assert (folder / "checkpoints").is_dir() and not (folder / "result.json").exists()
    monkeypatch.setattr(ImageToText, "batch", batch)
    assert call("twice") == 0
    assert "going on from" in "".join(path.read_text() for path in folder.glob("log.txt*"))
    found = [result(tmp_path / name, "vqa", "ProxyFDAFineTune", "bundled-weight_1")
             for name in ("whole", "twice")]  # fmt: skip
    assert found[0]["scores"] == found[1]["scores"]
    assert found[0]["probes"] == found[1]["probes"]
    assert not (folder / "checkpoints").exists()


@pytest.mark.parametrize(
    ("protocol", "kind", "tree", "family"),
    [("captioning", "blip", "coco", "animal"), ("vqa", "blip_vqa", "vqav2", "other")],
    ids=["COCO", "VQAv2"],
)
def test_a_model_and_files_of_ones_own(tmp_path, quiet, protocol, kind, tree, family):
    make = {"coco": image_text_trees.coco, "vqav2": image_text_trees.vqa}[tree]
    for part in script_splits(protocol):
        data = make(tmp_path / "data", part, "train" if "train" in part else "test")
    model = tmp_path / "my-model"
    tiny_image_text.save(kind, model)
    words = [protocol, "--model", str(model), "--data", str(data), "--tune-on", family]
    words += ["--methods", "naive,FDA", "--seeds", "1", "--epochs", "1", "--batch-size", "4"]
    assert script.main([*words, "--output", str(tmp_path / "out")]) == 0
    found = result(tmp_path / "out", protocol, "FDAFineTune", "my-model-weight_1", family)
    assert next(iter(found["scores"])) == family and len(found["scores"]) > 1
    assert "probes" not in found


def script_splits(protocol):
    from trainers.image_to_text.data import SPLITS

    return SPLITS[protocol].values()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--methods", "LP-FT"], "LP-FT does not tune a model that speaks"),
        (["--methods", "FDAA"], "there is no method 'FDAA'"),
        (["--tune-on", "banner"], "there is no family 'banner'"),
        (["--evaluate-on", "banners"], "only banners is asked about"),
        (["--lambdas", "-1"], "λ is -1"),
        (["--seeds", "one"], "SEEDS is 'one'"),
        (["--seeds", ","], "SEEDS is ','"),
        (["--lr", "inf"], "--lr is inf"),
        (["--epochs", "many"], "invalid int value: 'many'"),
        (["--workers", "0"], "WORKERS is 0"),
        (["--limit", "0"], "--limit is 0"),
        (["--epochs", "0"], "--epochs is 0"),
        (["--test-split", "val2017"], "no split 'val2017'"),
        (["--loader-workers", "-1"], "--loader-workers is -1"),
        (["--what"], "'--what' is no option of vqa.sh"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_option_is_one_sentence_before_anything_runs(tmp_path, words, said):
    with pytest.raises(BadValue, match=said.replace("[", r"\[")):
        script.main(["vqa", "--output", str(tmp_path), *words])
    assert not os.listdir(tmp_path)


def test_data_that_are_not_there(tmp_path):
    with pytest.raises(NotFound, match="nowhere"):
        script.main(["captioning", "--data", str(tmp_path / "nowhere"), "--tune-on", "animal"])


def test_another_run_in_the_folder_is_refused_and_left(tmp_path, quiet, capfd):
    words = ["vqa", *FEW, "--output", str(tmp_path), "--methods", "naive"]
    folder = tmp_path / layout.image_to_text("vqa", "banners", "FineTune", "bundled", 1)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("epochs: 99\n")
    (folder / "model").mkdir()
    (folder / "model" / "model.safetensors").touch()
    assert script.main([*words, "--dry-run"]) == 1
    assert "holds a run with another" in capfd.readouterr().out
    assert (folder / "config.yaml").read_text() == "epochs: 99\n"


def test_every_lambda_is_a_run_of_its_own(tmp_path, capfd, monkeypatch):
    words = ["vqa", "--output", str(tmp_path), "--methods", "naive,FDA", "--lambdas", "1,3"]
    assert script.main([*words, "--dry-run"]) == 0
    said = capfd.readouterr().out
    assert "bundled-weight_3/seed2" in said and said.endswith("0 of 10 jobs are complete\n")
    shown = next(line for line in said.splitlines() if line.strip().startswith("python -m"))
    _, _, module, *words = shlex.split(shown)
    monkeypatch.setattr(sys, "argv", [module, *words, "--epochs", "0"])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.delitem(sys.modules, module)  # run_module warns otherwise
    with pytest.raises(BadValue, match="--epochs is 0"):
        runpy.run_module(module, run_name="__main__")


@pytest.mark.parametrize("name", ["captioning", "vqa"])
def test_the_shell_scripts_explain_themselves(name):
    done = subprocess.run(
        ["bash", str(SCRIPTS / f"{name}.sh"), "--help"], capture_output=True, text=True,
        env={**os.environ, "PYTHON": os.sys.executable},
    )  # fmt: skip
    assert done.returncode == 0 and "--tune-on" in done.stdout and "banners" in done.stdout


def test_the_folder_check_knows_what_differs(tmp_path):
    from trainers.image_to_text.entry import check_folder, parser

    words = ["--output-dir", str(tmp_path), "--protocol", "vqa", "--method", "FineTune"]
    args = parser().parse_args([*words, "--evaluate-on", "toys"])
    (tmp_path / "config.yaml").write_text("epochs: 7\n")
    check_folder(args)  # nothing has come of that run
    (tmp_path / "result.json").touch()
    with pytest.raises(AlreadyExists, match="with another config .accumulate is None there and 1"):
        check_folder(args)


def test_one_damaged_config_ends_no_other_run(tmp_path, capfd):
    words = ["vqa", "--output", str(tmp_path), "--methods", "naive", "--seeds", "1", "--dry-run"]
    folder = tmp_path / "vqa/banners/FineTune/bundled/seed1"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("epochs: [\n")
    (folder / "result.json").write_text("{}")
    assert script.main(words) == 1
    said = capfd.readouterr().out
    assert f"refused, {folder / 'config.yaml'} is damaged" in said
    assert said.count("to run: ") == 1  # the model as it was pre-trained
