"""The scripts from end to end, on small trees of the benchmarks with JPEGs and a tiny CLIP."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import dataset_trees
import pytest
import run

from proxyfda import results
from proxyfda.benchmarks import SMALL
from proxyfda.experiments import protocols
from proxyfda.experiments.lock import LOCK

SCRIPTS = Path(run.__file__).parent
NAMES = sorted(run.WORDS)


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """A data root with all fifteen datasets: few classes, noise for images."""
    root = tmp_path_factory.mktemp("data root")
    for name in (*dataset_trees.BENCHMARKS, *dataset_trees.IMAGENET_TEST_SETS):
        dataset_trees.make_tree(root, name, images="noise", per_class=6)
    return root


@pytest.fixture(scope="module")
def whole(trees, options, tmp_path_factory):
    """Output and exit code of base2new_all: eleven datasets, one seed."""
    output = tmp_path_factory.mktemp("whole")
    where = ["--data", str(trees), "--output", str(output), "--seeds", "1"]
    code = run.main(["base2new_all", "CoOp", "2", *options, *where])
    return output, code


def table(output, *words, capsys):
    capsys.readouterr()
    results.main([str(output), *words])
    return capsys.readouterr().out


def measured(output):
    """Accuracy by folder."""
    return {
        str(path.parent.relative_to(output)): json.loads(path.read_text())["accuracy"]
        for path in Path(output).rglob("result.json")
    }


@pytest.mark.slow
def test_base2new_all_ends_in_a_complete_table(whole, capsys):
    output, code = whole
    assert code == 0 and len(measured(output)) == 22
    printed = table(output, capsys=capsys)
    for name in dataset_trees.BENCHMARKS:
        assert name in printed
    assert "average" in printed and "Missing" not in printed and "*" not in printed


@pytest.mark.slow
def test_a_deleted_result_is_missing_in_the_table_and_run_again(
    whole, trees, options, tmp_path, capsys
):
    output = tmp_path / "copy"
    shutil.copytree(whole[0], output)
    where = {"project": run.PROJECT, "data": "", "output": str(output)}
    lost = protocols.base2new_jobs("CoOp", "eurosat", 1, shots=2, **where)[1]
    os.unlink(Path(lost.folder, "result.json"))
    assert "Missing: CoOp on EuroSAT: seed 1 new" in table(output, capsys=capsys)
    # The same command at its new place would find other model folders: only the lost one runs.
    where = ["--data", str(trees), "--output", str(output)]
    assert run.main(["base2new", "CoOp", "eurosat", "1", "2", *options, *where]) == 0
    assert "Missing" not in table(output, capsys=capsys)


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_to_the_same_numbers(whole, trees, options, tmp_path):
    output = tmp_path / "out put"
    words = ["CoOp", "2", *options]
    environment = {
        **os.environ,
        "DATA": str(trees),
        "OUTPUT": "out put",  # below the folder where it is started
        "DATASETS": "dtd,oxford_pets,food101",
        "SEEDS": "1",
        "PYTHON": sys.executable,
    }
    command = ["bash", str(SCRIPTS / "base2new_all.sh"), *words]
    kwargs = {"cwd": tmp_path, "env": environment, "text": True, "stderr": subprocess.STDOUT}

    def catch_interrupts():
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    first = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=catch_interrupts,
        **kwargs,
    )
    while not list(output.rglob("result.json")):
        assert first.poll() is None, first.stdout.read()
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGINT)
    said = first.communicate(timeout=60)[0]
    assert first.returncode == -signal.SIGINT  # 130 in a shell
    assert "interrupted: run the same command again to go on" in said
    assert "Traceback" not in said
    assert not list(output.rglob(LOCK))
    done = len(measured(output))
    assert 0 < done < 6
    second = subprocess.run(command, stdout=subprocess.PIPE, check=True, **kwargs)
    assert f"{done} of 6 jobs are complete already" in second.stdout
    assert "average" in second.stdout and "Missing" not in second.stdout
    expected = measured(whole[0])
    found = measured(output)
    assert len(found) == 6
    assert found == {folder: expected[folder] for folder in found}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "folders"),
    [
        (
            ["fewshot", "CoOp", "dtd", "1,2", "--seeds", "1"],
            ["dtd/CoOp/vit_b16_ep50_1shots/seed1", "dtd/CoOp/vit_b16_ep100_2shots/seed1"],
        ),
        (
            ["cross_dataset", "CoOp", "2", "--seeds", "1", "--targets", "dtd,eurosat"],
            [
                "imagenet/CoOp/vit_b16_ep50_ctxv1_2shots/seed1",
                "evaluation/CoOp/vit_b16_ep50_ctxv1_2shots/dtd/seed1",
                "evaluation/CoOp/vit_b16_ep50_ctxv1_2shots/eurosat/seed1",
            ],
        ),
        (
            ["domain_generalization", "CoOp", "2", "--seeds", "1"],
            [
                "imagenet/CoOp/vit_b16_ep50_ctxv1_2shots/seed1",
                *(
                    f"evaluation/CoOp/vit_b16_ep50_ctxv1_2shots/{name}/seed1"
                    for name in ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
                ),
            ],
        ),
        (
            ["zeroshot", "dtd,imagenet_a"],
            ["ZeroshotCLIP/vit_b16/dtd", "ZeroshotCLIP/vit_b16/imagenet_a"],
        ),
    ],
    ids=lambda value: value[0],
)
def test_the_other_protocols_run_and_end_in_a_table(
    trees, options, tmp_path, capfd, words, folders
):
    where = ["--data", str(trees), "--output", str(tmp_path)]
    assert run.main([*words, *options, *where]) == 0
    assert sorted(measured(tmp_path)) == sorted(folders)
    printed = capfd.readouterr().out
    assert ("DescribableTextures" in printed) == ("dtd" in " ".join(folders))
    assert "Accuracy in %" in printed


@pytest.mark.slow
@pytest.mark.parametrize("script", ["cross_dataset", "zeroshot"])
def test_bundled_datasets_need_no_data(tmp_path, capfd, script, options, monkeypatch):
    monkeypatch.setattr(run, "ROOT", str(tmp_path))  # the data folder of a fresh clone is there
    rendered = []

    def render(root, names):
        rendered.append(root)
        assert sorted(names) == sorted(used[script])
        for name in names:
            lay_out(Path(root, name))

    monkeypatch.setattr("datasets.bundled.build.render_all", render)
    used = {"cross_dataset": SMALL, "zeroshot": ("atlas_tools", "bundled_scenes")}
    words = ["CoOp", "1"] if script == "cross_dataset" else []
    more = {
        "cross_dataset": ["--source", "bundled_fruits"],
        "zeroshot": ["--datasets", ",".join(used["zeroshot"])],
    }
    monkeypatch.setattr(run, "_show_results", lambda args, jobs: None)
    where = ["--output", str(tmp_path / "out"), "--seeds", "1"]
    assert run.main([script, *words, *options, *more[script], *where]) == 0
    assert rendered == [str(tmp_path / "data")]
    assert len(measured(tmp_path / "out")) == len(used[script])


def lay_out(folder):
    """A dataset in the layout of the bundled ones, with noise for images."""
    from datasets.bundled.build import SPLIT_FILE

    split = dataset_trees.make_split(classes=3)
    (folder / "images").mkdir(parents=True)
    (folder / SPLIT_FILE).write_text(json.dumps(split))
    source = folder.parent / "noise"
    dataset_trees.make_tree(source, "Food101", images="noise", per_class=4)
    image = next(source.rglob("*.jpg"))
    for entries in split.values():
        for path, _, _ in entries:
            (folder / "images" / path).parent.mkdir(exist_ok=True)
            shutil.copyfile(image, folder / "images" / path)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2], ids=["in this process", "in loader workers"])
def test_a_truncated_image_is_reported_by_name(options, tmp_path, capsys, workers):
    folder = dataset_trees.make_tree(tmp_path / "data", "EuroSAT", images="noise", per_class=4)
    for broken in folder.rglob("*.jpg"):
        broken.write_bytes(broken.read_bytes()[:200])
    where = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "out")]
    words = [*options[:-1], str(workers)]
    assert run.main(["base2new", "CoOp", "eurosat", "1", "1", *words, *where]) == 1
    (told,) = [line for line in capsys.readouterr().err.splitlines() if "train_base" in line]
    assert "cannot be read" in told and f"{folder}/2750/" in told and ".jpg" in told


@pytest.mark.parametrize("name", NAMES)
def test_every_script_hands_its_words_on_from_anywhere(name, tmp_path):
    python = tmp_path / "my python"
    python.write_text('#!/bin/sh\nfor word; do echo "<$word>"; done\n')
    python.chmod(0o755)
    words = ["CoOp", "a b", "INPUT.SIZE", "(32, 32)", "--output", "x  y", ""]
    done = subprocess.run(
        ["bash", str(SCRIPTS / f"{name}.sh"), *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": str(python)},
        capture_output=True,
        text=True,
        check=True,
    )
    expected = [str(SCRIPTS / "run.py"), name, *words]
    assert done.stdout.splitlines() == [f"<{word}>" for word in expected]
