"""``python -m datasets.check``, and the page that it refers to."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from dataset_trees import BENCHMARKS, IMAGENET_TEST_SETS, files_below, make_tree
from PIL import Image

from datasets.bundled import BUNDLED
from datasets.check import examine, main, registered_readers, resolve
from datasets.entry import Counts, Entry
from proxyfda.benchmarks import BENCHMARKS as THEIRS
from proxyfda.benchmarks import FINETUNE, RENDERED, TITLES
from proxyfda.dassl import DATASET_REGISTRY, DataManager, ImageError, get_cfg_default

ROOT = Path(__file__).resolve().parents[2]
ALL = BENCHMARKS + IMAGENET_TEST_SETS
FINETUNE_ALONE = tuple(TITLES[name] for name in FINETUNE if name not in THEIRS)
# Of make_tree(per_class=10): what a complete dataset is taken to be here.
TREE = {
    "ImageNet": (7, 70, 0, 35),
    "OxfordPets": (5, 40, 15, 20),
    "DescribableTextures": (5, 25, 10, 15),
    "FGVCAircraft": (6, 60, 30, 30),
    "ImageNetR": (3, 0, 0, 30),
}


@pytest.fixture
def complete(tmp_path, monkeypatch):
    """A root with small datasets that count as complete."""
    for name, counts in TREE.items():
        make_tree(tmp_path, name, "noise")
        monkeypatch.setattr(DATASET_REGISTRY.get(name), "expected", Counts(*counts))
    return tmp_path


def check(*args, out=None):
    code = main(["--root", *map(str, args)])
    return code, out.readouterr().out if out else ""


def row(text, name):
    """The cells of a dataset's line in the table."""
    line = next(line for line in text.splitlines() if line.startswith(name + " "))
    return re.split(r"\s{2,}", line.strip())


def pets(root):
    return root / "oxford_pets"


def test_complete_data(complete, capsys):
    before = files_below(complete)
    code, text = check(complete, "--deep", out=capsys)
    assert code == 0
    assert row(text, "OxfordPets") == [
        "OxfordPets", "oxford_pets", "5", "40", "15", "20", "file", "0", "0", "complete"
    ]  # fmt: skip
    assert row(text, "ImageNet")[2:6] == ["7", "70", "0", "35"]
    assert row(text, "UCF101")[-1] == "not found"
    assert files_below(complete) == before
    assert "UCF101:" not in text


@pytest.mark.parametrize("name", sorted(TREE))
def test_a_missing_dataset_is_a_fault_only_if_it_is_named(tmp_path, complete, name, capsys):
    folder = tmp_path / DATASET_REGISTRY.get(name).dataset_dir
    folder.rename(tmp_path / "gone")
    assert check(complete)[0] == 0
    capsys.readouterr()
    code, text = check(complete, name, out=capsys)
    assert code == 1
    assert f"- {name}: the folder {folder} does not exist; docs/DATASETS.md says how" in text


def test_missing_images_are_named(complete, capsys):
    for i in range(1, 8):
        (pets(complete) / "images" / f"Bengal_{i}.jpg").unlink()
    code, text = check(complete, "oxford_pets", "--json", complete / "r.json", out=capsys)
    assert code == 1
    assert row(text, "OxfordPets")[-2:] == ["7", "incomplete"]
    assert "7 of 75 images are missing: " in text and "and 2 more (--json FILE has all)" in text
    assert text.count(str(pets(complete) / "images" / "Bengal_")) == 5
    (report,) = json.loads((complete / "r.json").read_text())
    assert len(report["missing"]) == 7 and report["verdict"] == "incomplete"


def test_unreadable_images_are_found_by_looking_deep(complete, capsys):
    images = pets(complete) / "images"
    whole = (images / "Bengal_1.jpg").read_bytes()
    (images / "Bengal_1.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "Bengal_2.jpg").write_bytes(b"")
    (images / "Bengal_3.jpg").write_text("<html>404</html>")
    assert check(complete, "oxford_pets")[0] == 0
    capsys.readouterr()
    code, text = check(complete, "oxford_pets", "--deep", "--workers", "2", out=capsys)
    assert code == 1
    assert row(text, "OxfordPets")[-2:] == ["3", "incomplete"]
    for i in (1, 2, 3):
        assert f'Image "{images / f"Bengal_{i}.jpg"}" cannot be read' in text


def test_the_same_image_stops_training_by_name(complete):
    """With workers, whose errors come wrapped."""
    image = pets(complete) / "images" / "Bengal_1.jpg"
    image.write_bytes(image.read_bytes()[:600])
    cfg = get_cfg_default()
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"
    cfg.merge_from_list(
        ["DATASET.NAME", "OxfordPets", "DATASET.ROOT", str(complete), "DATALOADER.NUM_WORKERS", 2]
        + ["INPUT.SIZE", (32, 32), "VERBOSE", False, "DATALOADER.TRAIN_X.BATCH_SIZE", 8]
    )
    data = DataManager(cfg)
    with pytest.raises(ImageError, match="Bengal_1.jpg") as error:
        for loader in (data.train_loader_x, data.val_loader, data.test_loader):
            for _ in loader:
                pass
    assert "\n" not in str(error.value)


def test_other_numbers_than_the_complete_data(complete, capsys):
    for image in (complete / "imagenet" / "images" / "train" / "n01440764").glob("*_[0-3].JPEG"):
        image.unlink()
    code, text = check(complete, "imagenet", out=capsys)
    assert code == 1
    assert row(text, "ImageNet")[3] == "66 (70)"
    assert "- ImageNet: it has 66 train images instead of 70" in text


@pytest.mark.parametrize(
    "spoil, fault",
    [
        (lambda text: text[:-40], "is not a valid split file (not JSON"),
        (lambda text: text.replace('"val"', '"vol"'), "is not a valid split file (no list 'val')"),
        (
            lambda text: json.dumps({k: v + v[:2] for k, v in json.loads(text).items()}),
            "6 images are listed twice",
        ),
        (
            lambda text: json.dumps({**json.loads(text), "val": json.loads(text)["train"][:9]}),
            "9 images are listed twice",
        ),
    ],
    ids=["truncated", "no-val", "repeated", "train-in-val"],
)
def test_spoiled_split_files(complete, spoil, fault, capsys):
    path = pets(complete) / "split_zhou_OxfordPets.json"
    path.write_text(spoil(path.read_text()))
    code, text = check(complete, "oxford_pets", out=capsys)
    assert code == 1 and fault in text and row(text, "OxfordPets")[-1] == "incomplete"


def test_the_published_split_file_is_recognised(complete, monkeypatch, capsys):
    import hashlib

    path = pets(complete) / "split_zhou_OxfordPets.json"
    reader = DATASET_REGISTRY.get("OxfordPets")
    _, text = check(complete, "oxford_pets", out=capsys)
    assert "is not the published file byte for byte" in text
    monkeypatch.setattr(reader, "split_sha256", hashlib.sha256(path.read_bytes()).hexdigest())
    _, text = check(complete, "oxford_pets", out=capsys)
    assert row(text, "OxfordPets")[6] == "published" and "byte for byte" not in text


def test_a_missing_split_file_is_reported_and_none_is_made(complete, monkeypatch, capsys):
    path = pets(complete) / "split_zhou_OxfordPets.json"
    path.unlink()
    monkeypatch.setattr(DATASET_REGISTRY.get("OxfordPets"), "expected", Counts(5, 40, 10, 25))
    code, text = check(complete, "oxford_pets", out=capsys)
    assert code == 0 and row(text, "OxfordPets")[6] == "none"
    assert "a split would be made, which is not the published one" in text
    assert not path.exists()


def test_one_bad_dataset_does_not_hide_the_others(complete, capsys):
    (complete / "fgvc_aircraft" / "variants.txt").unlink()
    code, text = check(complete, out=capsys)
    assert code == 1
    assert row(text, "FGVCAircraft")[-1] == "incomplete" and "variants.txt does not exist" in text
    assert row(text, "OxfordPets")[-1] == "complete"


class TestOwnImages:
    @pytest.fixture
    def birds(self, tmp_path):
        for cls in ("kea", "robin"):
            for i in range(6):
                path = tmp_path / "my birds" / cls / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (i, i, i)).save(path)
        return tmp_path / "my birds"

    @pytest.mark.parametrize("word", ["folder", "ImageFolder", "imagefolder"])
    def test_take_part(self, birds, word, capsys):
        code, text = check(birds, word, "--deep", out=capsys)
        assert code == 0
        assert row(text, "my birds") == [
            "my birds", "my birds", "2", "6", "2", "4", "-", "0", "0", "complete"
        ]  # fmt: skip

    def test_skipped_and_broken_files(self, birds, capsys):
        (birds / "kea" / "notes.txt").touch()
        (birds / "kea" / "0.png").write_bytes(b"broken")
        code, text = check(birds, "folder", "--deep", out=capsys)
        assert code == 1
        assert "skipped 1 files" in text and f'"{birds}/kea/0.png" cannot be read' in text

    def test_faulty_description(self, birds, capsys):
        (birds / "dataset.yaml").write_text("classes: {kaka: kaka}")
        code, text = check(birds, "folder", out=capsys)
        assert code == 1 and "names the class folder 'kaka', which does not exist" in text

    def test_are_pointed_to_where_nothing_known_is_found(self, birds, capsys):
        code, text = check(birds, out=capsys)
        assert code == 1 and "with the name ImageFolder after the root" in text


def test_a_folder_under_another_name(complete, capsys):
    (complete / "UCF-101").mkdir()
    (complete / "SUN-397").mkdir()
    code, text = check(complete, out=capsys)
    assert code == 0  # nothing that was looked for is incomplete
    for name in ("UCF-101", "SUN-397"):
        assert f"rename or link {complete / name}, which is there" in text


def test_class_names_of_imagenet_are_compared_with_clips(tmp_path):
    from open_clip import IMAGENET_CLASSNAMES

    reader = DATASET_REGISTRY.get("ImageNet").at(str(tmp_path))
    entries = [Entry(f"{i}.JPEG", i, name) for i, name in enumerate(IMAGENET_CLASSNAMES)]
    assert reader.remarks({"test": entries}) == []
    assert reader.remarks({"test": entries[:7]}) == []
    entries[15] = entries[15]._replace(classname="robin")
    (said,) = reader.remarks({"test": entries})
    assert said.startswith("1 of the 1000 class names") and "'robin' for 'American robin'" in said


class TestNames:
    @pytest.mark.parametrize("name", ALL)
    def test_config_and_registered_names(self, name):
        reader = DATASET_REGISTRY.get(name)
        module = reader.__module__.rpartition(".")[2]
        for word in (name, name.lower(), module, module.replace("_", "-")):
            assert resolve(word, registered_readers()) == name

    def test_unknown(self):
        with pytest.raises(
            ValueError,
            match=r"no dataset 'OxfordPest' \(did you mean 'OxfordPets'\?\); use one of .*UCF",
        ):
            resolve("OxfordPest", registered_readers())


@pytest.mark.parametrize(
    "args, message",
    [
        (["--root", "nowhere"], "--root .*nowhere is not a folder"),
        (["--root", ".", "pest"], "there is no dataset 'pest'; use one of"),
        (["--root", ".", "--workers", "0"], "--workers is 0; give 1 or more"),
        (["--root", ".", "--json", "no/r.json"], "--json: the folder of no/r.json does not exist"),
    ],
    ids=["root", "dataset", "workers", "json"],
)
def test_mistakes(args, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        main(args)


@pytest.mark.parametrize(
    "word, code, said",
    [("folder", 1, "incomplete"), ("pest", 1, "error: there is no dataset 'pest'; use one of")],
    ids=["incomplete", "mistake"],
)
def test_as_a_program(tmp_path, word, code, said):
    """In a process of its own, where nothing has registered any reader."""
    (tmp_path / "only_one_class").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "datasets.check", "--root", ".", word],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PROXYFDA_ENGINE": "embedded"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_examine_is_usable_from_python(complete):
    report = examine(DATASET_REGISTRY.get("ImageNetR"), str(complete))
    assert (report.classes, report.test, report.verdict) == (3, 30, "complete")
    assert report.unreadable is None


class TestThePage:
    text = (ROOT / "docs" / "DATASETS.md").read_text()
    rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in text.splitlines() if "|" in line]

    @pytest.mark.parametrize("name", [*ALL, *FINETUNE_ALONE])
    def test_has_what_the_declaration_says(self, name):
        reader = DATASET_REGISTRY.get(name)
        module = reader.__module__.rpartition(".")[2]
        told = [f"`{text}`" if text else "-" for text in (reader.dataset_dir,)]
        told += [f"`{text}`" if text else "-" for text in (reader.image_dir, reader.split_file)]
        told += [f"{number:,}" if number else "-" for number in reader.expected]
        (line,) = [row for row in self.rows if row[0] == f"`{module}`, {name}"]
        assert line[1:] == told
        heading = next(h for h in self.text.split("\n### ")[1:] if name in h.partition("\n")[0])
        assert f"{reader.dataset_dir}/" in heading
        if reader.split_file:
            assert [f"`{reader.split_file}`", f"`{reader.split_sha256}`"] in self.rows

    @pytest.mark.parametrize("name", RENDERED)
    def test_has_the_numbers_of_the_bundled_ones(self, name):
        told = [f"{number:,}" for number in BUNDLED[name].expected]
        (line,) = [row for row in self.rows if row[0] == f"`{name}`"]
        assert line[2:] == told

    def test_has_no_other_datasets(self):
        listed = {row[0].partition(", ")[2] for row in self.rows if row[0].startswith("`")}
        assert listed - {""} == {*ALL, *FINETUNE_ALONE}

    def test_names_the_mirror_and_the_bundled_datasets(self):
        for word in (
            "zhengli97/prompt_learning_dataset",
            "atlas_fruits",
            "python -m datasets.check --root",
        ):
            assert word in self.text

    def test_the_recipe_for_classnames_works(self, tmp_path, monkeypatch):
        from open_clip import IMAGENET_CLASSNAMES

        code = self.text.split("<<'EOF'\n")[1].split("EOF")[0]
        for i in range(1000):
            (tmp_path / "images" / "train" / f"n{i:08d}").mkdir(parents=True)
        monkeypatch.setattr(sys, "argv", ["-", str(tmp_path)])
        exec(compile(code, "recipe", "exec"), {})
        names = DATASET_REGISTRY.get("ImageNet").read_classnames(str(tmp_path / "classnames.txt"))
        assert list(names.values()) == list(IMAGENET_CLASSNAMES)


def test_a_module_that_is_no_command_says_what_is():
    words = [sys.executable, "-m", "datasets.make_split"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "python -m datasets.check" in done.stderr.splitlines()[-1]
