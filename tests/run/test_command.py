"""The command line of scripts/run.py."""

import os
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import run as command_line

import train
from proxyfda.benchmarks import BENCHMARKS, BUNDLED, SMALL
from proxyfda.experiments import layout

ROOT = Path(train.__file__).parent


@pytest.fixture
def dry(monkeypatch, tmp_path, capsys):
    """Names and commands that a command line would run, and its exit code."""
    for name in command_line.HELP:
        monkeypatch.delenv(name, raising=False)

    def call(*words, data="/data"):
        argv = [*words, "--output", str(tmp_path / "my output"), "--dry-run"]
        code = command_line.main(argv + (["--data", data] if data else []))
        lines = capsys.readouterr().out.splitlines()
        assert not (tmp_path / "my output").exists()
        names = [line.partition(": ")[2] for line in lines if not line.startswith(" ")][:-1]
        return code, names, [shlex.split(line) for line in lines if line.startswith(" ")]

    return call


def test_base2new_all_has_eleven_datasets_and_three_seeds(dry):
    code, names, commands = dry("base2new_all", "MaPLe")
    assert code == 0 and len(names) == 11 * 3 * 2
    assert {word.split()[1] for word in names} == set(BENCHMARKS)
    assert commands[0][1] == str(ROOT / "train.py")
    assert f"{os.sep}my output{os.sep}" in commands[0][commands[0].index("--output-dir") + 1]


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (["base2new", "CoOp,FDACoOp", "dtd", "1,2", "4"], 8),
        (["base2new_all", "CoOp,ZeroshotCLIP", "--datasets", "bundled"], 9 * (3 * 2 + 2)),
        (["fewshot", "CoOp"], 11 * 5 * 3),
        (["fewshot", "CoOp", "dtd"], 5 * 3),
        (["fewshot", "CoOp", "dtd", "1,16", "OPTIM.MAX_EPOCH", "1", "--seeds", "1"], 2),
        (["cross_dataset", "CoOp"], 3 * 11),
        (["domain_generalization", "CoOp", "16"], 3 * 5),
        (["domain_generalization", "ZeroshotCLIP"], 5),
        (["cross_dataset", "CoOp", "--source", "bundled_fruits", "--seeds", "1 2"], 2 * 4),
        (["domain_generalization", "CoOp", "--source", "atlas_fruits", "--seeds", "1 2"], 2 * 9),
        (["cross_dataset", "CoOp", "--source", "dtd", "--targets", "eurosat,dtd"], 3 * 2),
        (["base2new", "CoOp,CoOp+rkd,CoOp+rkd", "dtd", "1"], 4),
        (["base2new", "all", "dtd", "1"], 2 * (1 + 4 * 5)),
        (["zeroshot"], 11),
        (["zeroshot", "dtd,eurosat", "INPUT.SIZE", "(32, 32)"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_scripts_run_so_many_jobs(dry, words, count):
    assert len(dry(*words)[1]) == count


PROMPTS = {
    "base2new": ["CoOp", "bundled", "1"],
    "base2new_all": ["CoOp", "--datasets", "bundled"],
    "fewshot": ["CoOp", "--datasets", "bundled"],
    "select": ["CoOp+rkd", "bundled", "--try", "WEIGHT=1", "--splits", "1"],
    "zeroshot": ["--datasets", "bundled"],
    "cross_dataset": ["CoOp", "--source", "bundled"],
    "domain_generalization": ["CoOp", "--source", "bundled"],
}


@pytest.mark.parametrize("protocol", PROMPTS)
def test_bundled_datasets_of_prompts_are_the_atlas_with_its_encoder(dry, protocol):
    _, _, commands = dry(protocol, *PROMPTS[protocol])
    configs = {words[words.index("--dataset-config-file") + 1] for words in commands}
    assert {Path(config).stem for config in configs} == set(BUNDLED)
    configs = {words[words.index("--config-file") + 1] for words in commands}
    assert {Path(config).name for config in configs} == {"atlas.yaml"}


@pytest.mark.parametrize(
    ("source", "world"), [("bundled_fruits", SMALL), ("atlas_fruits", BUNDLED)]
)
def test_a_rendered_source_is_tested_on_its_own_world(dry, source, world):
    _, _, commands = dry("cross_dataset", "CoOp", "--source", source, data="")
    where = [Path(words[words.index("--dataset-config-file") + 1]).stem for words in commands]
    assert sorted(set(where)) == sorted(world)
    config = commands[0][commands[0].index("--config-file") + 1]
    assert Path(config).stem == source.split("_")[0]


def test_environment_variables_serve_for_flags(dry, monkeypatch):
    monkeypatch.setenv("DATASETS", "bundled_fruits, bundled_scenes")
    monkeypatch.setenv("SEEDS", "4")
    monkeypatch.setenv("LABEL", "mine")
    _, names, commands = dry("base2new_all", "CoOp", data="")
    assert len(names) == 4 and "seed 4 (mine)" in names[0]
    assert commands[0][commands[0].index("--root") + 1] == str(ROOT / "data")
    assert "/CoOp/mine/seed4" in " ".join(commands[0])


def test_the_regulariser_may_be_given_for_all_plain_trainers(dry, monkeypatch):
    monkeypatch.setenv("REGULARISER", "rkd")
    _, names, commands = dry("base2new", "ZeroshotCLIP,CoOp,CoOp+kl", "dtd", "1")
    assert [name.split()[0] for name in names[::2]] == ["ZeroshotCLIP", "CoOp+rkd", "CoOp+kl"]
    assert commands[2][commands[2].index("--regulariser") + 1] == "rkd"


@pytest.mark.parametrize(
    "words",
    [["base2new", "CoOp", "dtd", "1"], ["fewshot", "CoOp", "dtd", "OPTIM.LR", "0.1"]],
    ids=lambda words: words[0],
)
def test_no_cache_reaches_every_run(dry, words):
    plain, without = dry(*words), dry(*words, "--no-cache")
    for command in without[2]:
        place = command.index("PROBE.CACHE")
        assert command[place : place + 2] == ["PROBE.CACHE", ""]
        del command[place : place + 2]
    assert without[1:] == plain[1:]  # in the same folders


def test_the_overlay_may_be_given_by_a_variable(dry, monkeypatch):
    monkeypatch.setenv("OVERLAY", "paper")
    _, _, commands = dry("base2new", "CoOp,FDAMaPLe", "dtd", "1")
    assert ["-paper/" in " ".join(words) for words in commands] == [False, False, True, True]
    assert commands[2][1:] and "configs/regularisers/paper.yaml" in " ".join(commands[2])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["base2new", "CoOp", "nothing", "1"], "no dataset 'nothing'; use one of"),
        (["base2new", "CoOp", "folder", "one"], "SEED is 'one'"),
        (["base2new", "CoOp", "folder"], "SEEDS is not given; the usage is base2new.sh TRAINER"),
        (["base2new", "CoOp", "folder", "1", "0"], "SHOTS is 0"),
        (["base2new", "CoOp", "folder", "1", "--cfg", "vit"], "no config 'vit' for trainer 'CoOp'"),
        (["base2new", "CoOp", "folder", "1", "--fast"], "'--fast' is no option"),
        (["base2new", "CoOp", "folder", "1", "4", "more"], "'more' is one word too many"),
        (["base2new", "Coop", "folder", "1"], "no default config of 'Coop'"),
        (["base2new", "CoOp+rdk", "dtd", "1"], "is 'rdk' .did you mean 'rkd'"),
        (["base2new", "FDACoOp+rkd", "dtd", "1"], "given for FDACoOp, whose name says 'fda'"),
        (["base2new", "FDACoOp", "dtd", "1", "--overlay", "papers"], "no overlay 'papers'"),
        (["base2new", "ZeroshotCLIP+rkd", "dtd", "1"], "which trains nothing"),
        (["base2new", "CoOp", "folder", "1", "OPTIM.LRR", "1"], "'OPTIM.LRR' is no option"),
        (
            ["base2new", "CoOp", "folder", "1", "OPTIM.LR"],
            "in pairs.* there are 1 words: OPTIM.LR$",
        ),
        (["base2new_all"], "TRAINER is not given"),
        (["base2new_all", "CoOp", "eurosat"], "'eurosat' is one word too many"),
        (["zeroshot", "--workers", "0"], "--workers is 0"),
        (["base2new", "CoOp", "folder", "1", "--label", "../up"], "--label is '../up'"),
        (["base2new", "CoOp", "folder", "1", "--label", ".."], "--label is '..'"),
        (["base2new", "CoOp", "folder", "1", "OPTIM.LR", "-1"], "OPTIM.LR is -1"),
        (
            ["base2new", "CoOp", "folder", "1", "SEED", "3"],
            "SEED is chosen by the protocol; give SEE",
        ),
        (["base2new", "CoOp", "folder", "-1"], "SEED is -1"),
        (["base2new", ",", "folder", "1"], "TRAINER is ',', which names none"),
        (["base2new", "CoOp", ",", "1"], "',' names no dataset"),
        (
            ["base2new", "CoOp", "folder", "1", "--launcher-opt", "a=b"],
            "--launcher-opt a=b is for ray",
        ),
        (["zeroshot", "--launcher", "pbs"], "--launcher is 'pbs'; use local, ray or slurm"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_words_for_the_script_are_reported(dry, tmp_path, words, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        dry(*words, data=str(tmp_path))


def test_a_missing_data_folder_is_reported(dry):
    with pytest.raises(ValueError, match="DATA=/path/to/datasets"):
        dry("zeroshot", "dtd", data="")


def test_base2new_ends_with_the_table_of_what_it_ran(tmp_path, capsys, monkeypatch):
    for name in command_line.HELP:
        monkeypatch.delenv(name, raising=False)
    for run, shots, seed, base, new in (
        ("CoOp", 4, 1, 80, 40), ("CoOp", 4, 2, 82, 44), ("ZeroshotCLIP", 16, 1, 70, 60),
        ("CoOp", 16, 1, 11, 12), ("MaPLe", 4, 1, 21, 22),
    ):  # fmt: skip
        for dataset in ("dtd", "eurosat"):
            for part, accuracy in (("train_base", base), ("test_new", new)):
                place = layout.base2new(part, dataset, shots, run, "cfg", seed)
                (tmp_path / place).mkdir(parents=True)
                (tmp_path / place / "result.json").write_text(f'{{"accuracy": {accuracy}}}')
    words = ["base2new", "CoOp", "dtd", "1", "4", "--data", "/data", "--output", str(tmp_path)]
    command_line._show_results(command_line._parse(words), [SimpleNamespace(complete=True)])
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    assert ["DescribableTextures", "ZeroshotCLIP", "70.00", "60.00", "64.62", "-"] in rows
    numbers = ["81.00", "±", "1.41", "42.00", "±", "2.83", "55.32"]
    assert ["CoOp", *numbers] in [row[:8] for row in rows]
    assert "MaPLe" not in printed and "EuroSAT" not in printed and "11.00" not in printed


@pytest.mark.parametrize("flag", ["--output", "--data"])
def test_a_file_where_a_folder_is_meant_is_told_before_any_job(tmp_path, monkeypatch, flag):
    monkeypatch.setattr(command_line.sweep, "run", lambda *jobs, **where: pytest.fail("too late"))
    (tmp_path / "taken").write_text("mine")
    folders = {"--data": str(tmp_path / "data"), "--output": str(tmp_path / "output")}
    words = [word for pair in {**folders, flag: str(tmp_path / "taken")}.items() for word in pair]
    with pytest.raises(OSError, match=rf"{flag[2:].upper()} \({flag}\): .*taken cannot be written"):
        command_line.main(["base2new", "CoOp", "bundled_fruits", "1", *words])
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
