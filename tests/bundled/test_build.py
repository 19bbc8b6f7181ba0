"""Rendering into a data root: complete or absent, never half; and in the split format."""

import json
import math
import threading

import pytest
from PIL import Image

from datasets.bundled import BUNDLED, build
from datasets.bundled.__main__ import main as bundled_main
from datasets.bundled.specs import COUNTS, SPECS
from proxyfda.dassl import build_dataset, get_cfg_default

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


def config(root, name):
    cfg = get_cfg_default()
    cfg.DATASET.SUBSAMPLE_CLASSES = "base"
    cfg.DATASET.ROOT, cfg.DATASET.NAME, cfg.DATASET.NUM_SHOTS = str(root), name, 1
    return cfg


@pytest.mark.parametrize(("folder", "declared"), BUNDLED.items(), ids=list(BUNDLED))
def test_missing_dataset_names_the_command(tmp_path, folder, declared):
    with pytest.raises(FileNotFoundError, match="python -m datasets.bundled --root DATA"):
        build_dataset(config(tmp_path, declared.__name__))


def test_rendered_dataset_is_read_in_halves(tmp_path):
    build.render_dataset(SPEC, tmp_path, SMALL)
    dataset = build_dataset(config(tmp_path, BUNDLED[SPEC.folder].__name__))
    half = math.ceil(len(SPEC.classes) / 2)
    assert dataset.classnames == [name for name, _ in SPEC.classes[:half]]
    assert len(dataset.train_x) == half and dataset.template == SPEC.template


def test_command_says_what_it_did_and_refuses_a_file_as_root(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build, "SPECS", SPECS[:1])
    monkeypatch.setattr(build, "COUNTS", SMALL)
    assert bundled_main(["--root", str(tmp_path / "a")]) == 0
    assert f"{SPEC.folder}: rendered" in capsys.readouterr().out
    assert bundled_main(["--root", str(tmp_path / "a")]) == 0
    assert f"{SPEC.folder}: complete" in capsys.readouterr().out
    (tmp_path / "file").touch()
    assert bundled_main(["--root", str(tmp_path / "file")]) == 1
    assert "give a folder that can be written" in capsys.readouterr().err
