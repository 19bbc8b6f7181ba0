"""Rendering into a data root: complete or absent, never half; and in the split format."""

import json
import math
import threading
from pathlib import Path

import pytest
from PIL import Image

import datasets
from datasets.bundled import BUNDLED, build, specs
from datasets.bundled.__main__ import main as bundled_main
from datasets.bundled.atlas.datasets import PLATES
from datasets.bundled.specs import ALL, COUNTS, SPECS, TASK_COUNTS, TASKS
from proxyfda import benchmarks
from proxyfda.dassl import build_dataset, get_cfg_default
from proxyfda.experiments.project import Project
from proxyfda.utils.errors import BadValue

SMALL = {"train": 2, "val": 1, "test": 1}
SPEC = SPECS[0]


def files(root):
    return {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_split_file_and_pictures(tmp_path):
    assert build.render_dataset(SPEC, tmp_path, SMALL) == "rendered"
    split = json.loads((tmp_path / SPEC.folder / build.SPLIT_FILE).read_text())
    assert list(split) == ["train", "val", "test"]
    assert [len(split[s]) for s in split] == [n * len(SPEC.classes) for n in SMALL.values()]
    for path, label, classname in split["train"]:
        assert SPEC.classes[label][0] == classname
        with Image.open(tmp_path / SPEC.folder / "images" / path) as image:
            assert image.size == (32, 32) and image.mode == "RGB"
    assert len({path for s in split.values() for path, _, _ in s}) == sum(map(len, split.values()))


def test_same_bytes_every_time(tmp_path):
    for name in ("a", "b"):
        build.render_dataset(SPEC, tmp_path / name, SMALL)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_complete_dataset_is_left_alone(tmp_path):
    build.render_dataset(SPEC, tmp_path, SMALL)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert build.render_dataset(SPEC, tmp_path, SMALL) == "complete"
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("harm", ["picture", "split", "version"])
def test_damaged_dataset_is_rendered_again(tmp_path, harm):
    build.render_dataset(SPEC, tmp_path, SMALL)
    good = files(tmp_path)
    folder = tmp_path / SPEC.folder
    if harm == "picture":
        next(folder.rglob("*.png")).unlink()
    elif harm == "split":
        (folder / build.SPLIT_FILE).write_text('{"train": [')
    else:
        (folder / build.ORIGIN_FILE).write_text('{"fingerprint": "older"}')
    assert build.render_dataset(SPEC, tmp_path, SMALL) == "rendered"
    assert files(tmp_path) == good


def test_interruption_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(build.Image, "fromarray", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build.render_dataset(SPEC, tmp_path, SMALL)
    assert list(tmp_path.iterdir()) == []


def test_two_at_once(tmp_path):
    jobs = [
        threading.Thread(target=build.render_dataset, args=(SPEC, tmp_path, SMALL))
        for _ in range(3)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [p.name for p in tmp_path.iterdir()] == [SPEC.folder]
    assert build.is_complete(SPEC, tmp_path)


def test_what_a_killed_call_left_is_removed(tmp_path):
    left = tmp_path / f".{SPEC.folder}.0123abcd" / "images"
    left.mkdir(parents=True)
    assert build.render_dataset(SPEC, tmp_path, SMALL) == "rendered"
    assert [p.name for p in tmp_path.iterdir()] == [SPEC.folder]


def test_other_reason_for_failing_is_not_hidden(tmp_path):
    (tmp_path / "root").write_text("a file where a folder should be")
    with pytest.raises(OSError):
        build.render_dataset(SPEC, tmp_path / "root", SMALL)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
def test_specs(spec):
    names = [name for name, _ in spec.classes]
    half = math.ceil(len(names) / 2)
    assert 10 <= len(names) <= 24 and len(set(names)) == len(names)
    assert COUNTS["train"] >= 20 and spec.template.count("{}") == 1
    assert not set(names[:half]) & set(names[half:])
    words = [{w for n in part for w in n.split()} for part in (names[:half], names[half:])]
    assert words[0] & words[1] <= {"on"}, "base and new halves differ in their words"


@pytest.mark.parametrize("task", TASKS, ids=lambda s: s.name)
def test_tasks(task):
    names = [name for name, _ in task.classes]
    assert 8 <= len(names) <= 24 and len(set(names)) == len(names)
    assert task.template.count("{}") == 1
    assert {task.style(label) for label in range(len(names))} == {task.wear}, "one wear for all"


def test_each_task_has_a_wear_of_its_own():
    others = [style for spec in SPECS for style in (spec.base_style, spec.new_style)]
    assert len({task.wear for task in TASKS}) == len(TASKS)
    assert not {task.wear for task in TASKS} & set(others)
    assert sum(sum(TASK_COUNTS.values()) * len(task.classes) for task in TASKS) <= 5000


def test_benchmarks_names_what_is_rendered():
    assert sorted(benchmarks.SMALL) == sorted(spec.folder for spec in SPECS)
    assert sorted(benchmarks.BUNDLED_TASKS) == sorted(spec.folder for spec in ALL)
    assert list(benchmarks.BUNDLED) == [plate.folder for plate in PLATES]
    assert sorted(benchmarks.RENDERED) == sorted(build.RENDERED) == sorted(BUNDLED)
    project = Project(str(Path(datasets.__file__).parents[1]), entry="train")
    assert project.bundled_datasets == list(benchmarks.BUNDLED)
    assert project.rendered_datasets == list(benchmarks.RENDERED)


# Fingerprint, and mean red, green and blue of three pictures of each class of val. Sines and square
# roots may round differently elsewhere, which moves a mean by far less than another seed would.
PIXELS = {
    "bundled_creatures": ("bf5aeeb31a8e9ddc", [107.73, 96.7, 90.5]),
    "bundled_fruits": ("22f7bc3e80286af3", [105.14, 97.01, 86.13]),
    "bundled_banners": ("9008d24d56790a93", [136.74, 121.74, 119.47]),
    "bundled_scenes": ("886d59cd221d120e", [106.88, 98.56, 88.04]),
    "bundled_shapes": ("9d7abacad5a18991", [98.37, 96.18, 107.41]),
    "bundled_colours": ("e0ccc134d7b425ef", [141.03, 107.04, 81.91]),
    "bundled_textures": ("c4721878728264ab", [60.87, 108.65, 85.79]),
    "bundled_grounds": ("cd5617ce12f42997", [130.9, 128.37, 124.73]),
    "bundled_fabrics": ("e37f56f64cf6cd0b", [128.71, 107.34, 98.22]),
    "bundled_toys": ("bd01e0f290e602b7", [85.2, 96.49, 112.57]),
    "atlas_banners": ("6779b362e1201ce7", [121.15, 113.29, 107.04]),
    "atlas_creatures": ("ac32e6c7ac4aa4a0", [126.43, 103.31, 79.53]),
    "atlas_fabrics": ("339eef85f8cad10a", [110.66, 124.24, 96.69]),
    "atlas_flowers": ("f4b44338e657ee07", [103.06, 114.36, 112.79]),
    "atlas_fruits": ("2b6f3050576a6a10", [101.1, 119.73, 90.34]),
    "atlas_grounds": ("e9afba7d58d87d48", [109.01, 117.84, 121.28]),
    "atlas_scenes": ("e192f682068e3f6d", [128.23, 128.16, 124.7]),
    "atlas_things": ("501bc7bafe1417fe", [143.73, 117.97, 89.83]),
    "atlas_tools": ("80c882f969d49471", [97.06, 92.97, 91.08]),
}


@pytest.mark.parametrize("folder", build.RENDERED)
def test_pictures_are_those_of_every_machine(folder):
    spec = build.RENDERED[folder]
    pictures, _ = spec.draw("val", 3)
    fingerprint, means = PIXELS[folder]
    assert spec.fingerprint() == fingerprint
    assert pictures.double().mean((0, 2, 3)).tolist() == pytest.approx(means, abs=0.01)


def config(root, name):
    cfg = get_cfg_default()
    cfg.DATASET.SUBSAMPLE_CLASSES = "base"
    cfg.DATASET.ROOT, cfg.DATASET.NAME, cfg.DATASET.NUM_SHOTS = str(root), name, 1
    return cfg


@pytest.mark.parametrize(("folder", "declared"), BUNDLED.items(), ids=list(BUNDLED))
def test_missing_dataset_names_the_command(tmp_path, folder, declared):
    with pytest.raises(FileNotFoundError, match="python -m datasets.bundled --root DATA"):
        build_dataset(config(tmp_path, declared.__name__))


@pytest.mark.parametrize("folder", [SPEC.folder, "atlas_tools"])
def test_rendered_dataset_is_read_in_halves(tmp_path, folder):
    spec = build.RENDERED[folder]
    build.render_dataset(spec, tmp_path, SMALL)
    dataset = build_dataset(config(tmp_path, BUNDLED[folder].__name__))
    half = math.ceil(len(spec.classes) / 2)
    assert dataset.classnames == [name for name, _ in spec.classes[:half]]
    assert dataset.all_classnames == [name for name, _ in spec.classes]
    assert len(dataset.train_x) == half and dataset.template == spec.template
    assert dataset.vocabulary == spec.vocabulary


def test_command_says_what_it_did_and_refuses_a_file_as_root(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build, "RENDERED", {SPEC.folder: SPEC})
    monkeypatch.setattr(specs, "COUNTS", SMALL)
    assert bundled_main(["--root", str(tmp_path / "a")]) == 0
    assert f"{SPEC.folder}: rendered" in capsys.readouterr().out
    assert bundled_main(["--root", str(tmp_path / "a")]) == 0
    assert f"{SPEC.folder}: complete" in capsys.readouterr().out
    (tmp_path / "file").touch()
    assert bundled_main(["--root", str(tmp_path / "file")]) == 1
    assert "give a folder that can be written" in capsys.readouterr().err


def test_only_what_is_named_is_rendered(tmp_path, monkeypatch):
    monkeypatch.setattr(specs, "TASK_COUNTS", SMALL)
    build.render_all(tmp_path, ["bundled_grounds"], log=lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["bundled_grounds"]
    with pytest.raises(BadValue, match="did you mean 'bundled_grounds'"):
        build.render_all(tmp_path, ["bundled_ground"])
