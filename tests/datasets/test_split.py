"""One declaration, one reader: split files, subsampling, errors."""

import json
import os

import pytest
from dataset_trees import make_cfg, make_split, names, write_images

import datasets  # noqa: F401  (registers the readers)
from proxyfda.dassl import DATASET_REGISTRY, get_cfg_default
from proxyfda.utils.errors import BadValue


def test_reads_the_whole_split_in_file_order(toy_root, Toy):
    data = Toy(make_cfg(toy_root))
    split = make_split()
    for part, items in (("train", data.train_x), ("val", data.val), ("test", data.test)):
        assert names(items) == [tuple(entry) for entry in split[part]]
        assert all(os.path.isabs(item.impath) for item in items)
    assert data.classnames == [f"name_{i}" for i in range(5)]
    assert (data.name, data.template) == ("Toy", "a toy {}.")
    assert not (toy_root / "toy" / "split_fewshot").exists()


def test_home_directory_in_the_root(toy_root, Toy, monkeypatch):
    monkeypatch.setenv("HOME", str(toy_root.parent))
    assert len(Toy(make_cfg(f"~/{toy_root.name}")).test) == 10


def test_paths_may_start_in_the_dataset_folder(toy_root, Toy):
    Toy.image_dir = ""
    write_images(toy_root / "toy", make_split())
    data = Toy(make_cfg(toy_root, shots=2))
    assert data.image_dir == data.dataset_dir == str(toy_root / "toy")
    cache = json.loads((toy_root / "toy" / "split_fewshot" / "shot_2-seed_1.json").read_text())
    assert cache["train"][0][0].startswith("c4/train_")


@pytest.mark.parametrize("classes, base", [(2, 1), (3, 2), (5, 3), (11, 6)])
def test_base_is_the_larger_half_and_labels_start_at_zero(tmp_path, Toy, classes, base):
    split = make_split(classes, train=1, val=1, test=1)
    write_images(tmp_path / "toy" / "images", split)
    (tmp_path / "toy" / "split.json").write_text(json.dumps(split))
    everything = [f"name_{i}" for i in range(classes)]
    for subsample, expected in (("base", everything[:base]), ("new", everything[base:])):
        data = Toy(make_cfg(tmp_path, subsample=subsample))
        assert data.classnames == expected
        assert data.all_classnames == everything
        for items in (data.train_x, data.val, data.test):
            assert sorted(item.label for item in items) == list(range(len(expected)))
            assert all(item.classname == expected[item.label] for item in items)


def test_upstreams_names_are_callable_on_the_class(toy_root, Toy, tmp_path):
    lists = Toy.read_split(str(toy_root / "toy" / "split.json"), str(toy_root / "toy" / "images"))
    assert Toy.subsample_classes(*lists) == lists
    train, test = Toy.subsample_classes(lists[0], lists[2], subsample="new")
    assert (
        {item.classname for item in train}
        == {item.classname for item in test}
        == {"name_3", "name_4"}
    )
    again = tmp_path / "again.json"
    Toy.save_split(*lists, str(again), str(toy_root / "toy" / "images"))
    assert json.loads(again.read_text()) == make_split()


class TestBadInput:
    @pytest.mark.parametrize("subsample", ["Base", "", "novel"])
    def test_subsample_word(self, toy_root, Toy, subsample):
        with pytest.raises(ValueError, match="SUBSAMPLE_CLASSES is .* use all, base or new"):
            Toy(make_cfg(toy_root, subsample=subsample))
        with pytest.raises(ValueError, match="use all, base or new"):
            Toy.subsample_classes([], subsample=subsample)

    @pytest.mark.parametrize("shots", [0, -2, -16])
    def test_number_of_shots(self, toy_root, Toy, shots):
        with pytest.raises(ValueError, match=f"NUM_SHOTS is {shots}; give 1 or more"):
            Toy(make_cfg(toy_root, shots))

    def test_no_new_class_left(self, tmp_path, Toy):
        split = make_split(1)
        write_images(tmp_path / "toy" / "images", split)
        (tmp_path / "toy" / "split.json").write_text(json.dumps(split))
        with pytest.raises(ValueError, match="new leaves no class of the 1 there are"):
            Toy(make_cfg(tmp_path, subsample="new"))

    def test_empty_root(self, Toy):
        with pytest.raises(ValueError, match="DATASET.ROOT is empty; .* --root"):
            Toy(make_cfg(""))

    def test_missing_root(self, tmp_path, Toy):
        with pytest.raises(
            FileNotFoundError, match="data root .*nowhere is not a folder; .* --root"
        ):
            Toy(make_cfg(tmp_path / "nowhere"))

    @pytest.mark.parametrize(
        "gone, what",
        [
            ("toy", "folder"),
            ("toy/split.json", "split file"),
            ("toy/images", "image folder"),
        ],
    )
    def test_missing_pieces(self, toy_root, Toy, gone, what):
        (toy_root / gone).rename(toy_root / "gone")
        with pytest.raises(FileNotFoundError) as error:
            Toy(make_cfg(toy_root))
        assert str(error.value) == (
            f"Toy: the {what} {toy_root / gone} does not exist; run the toy factory"
        )

    def test_missing_images_are_counted_and_the_first_is_named(self, toy_root, Toy):
        images = toy_root / "toy" / "images"
        for gone in ("c4/train_2.jpg", "c1/test_0.jpg"):
            (images / gone).unlink()
        with pytest.raises(FileNotFoundError) as error:
            Toy(make_cfg(toy_root))
        assert str(error.value) == (
            f"2 of 55 images listed in {toy_root / 'toy' / 'split.json'} are missing, the first is "
            f"{images / 'c4' / 'train_2.jpg'}; run the toy factory"
        )

    @pytest.mark.parametrize(
        "text, fault",
        [
            ("{", "not JSON"),
            ("[]", "no list 'train'"),
            ('{"train": []}', "no list 'val'"),
            ('{"train": [], "val": [], "test": []}', "train or test is empty"),
            ('{"train": [["a.jpg", 0]], "val": [], "test": []}', "entry 0 of 'train' is"),
            ('{"train": [["a.jpg", "x", "a"]], "val": [], "test": []}', "entry 0 of 'train' is"),
            ('{"train": [["a.jpg", -1, "a"]], "val": [], "test": []}', "entry 0 of 'train' is"),
            ('{"train": [[1, 0, "a"]], "val": [], "test": []}', "entry 0 of 'train' is"),
            (
                '{"train": [["a", 0, "a"]], "val": [["b", 0, "b"]], "test": []}',
                "label 0 is both 'a' and 'b'",
            ),
            (
                '{"train": [["a", 0, "a"]], "val": [], "test": [["b", 2, "b"]]}',
                "label 1 of 0 to 2 has no training image",
            ),
            (
                '{"train": [["a", 0, "a"]], "val": [], "test": [["b", 1, "b"]]}',
                "label 1 of 0 to 1 has no training image",
            ),
        ],
        ids=[
            "truncated",
            "list",
            "parts",
            "empty",
            "short",
            "label",
            "negative",
            "path",
            "names",
            "gap",
            "unseen",
        ],
    )
    def test_malformed_split(self, toy_root, Toy, text, fault):
        path = toy_root / "toy" / "split.json"
        path.write_text(text)
        with pytest.raises(ValueError) as error:
            Toy(make_cfg(toy_root))
        message = str(error.value)
        assert message.startswith(f"{path} is not a valid split file ({fault}")
        assert message.endswith("; fetch or make it again")


def test_a_declaration_without_split_file(toy_root, Toy):
    Toy.split_file = ""
    with pytest.raises(ValueError, match=r"Toy declares no split_file; name one or override parts"):
        Toy(make_cfg(toy_root))


class TestTemplate:
    @pytest.mark.parametrize("template", ["a toy", "{} or {}", "{} {extra}", None])
    def test_of_a_declaration_is_checked(self, toy_root, Toy, template):
        Toy.template = template
        with pytest.raises(BadValue, match="Toy: template is .* needs one {} for the class name"):
            Toy(make_cfg(toy_root))


class TestOptions:
    def test_are_added_where_the_config_lacks_them(self, toy_root, Toy):
        cfg = get_cfg_default()
        Toy.extend_cfg(cfg)
        assert cfg.DATASET.SUBSAMPLE_CLASSES == "all"
        cfg.DATASET.SUBSAMPLE_CLASSES = "new"
        Toy.extend_cfg(cfg)
        assert cfg.DATASET.SUBSAMPLE_CLASSES == "new"
        cfg.DATASET.ROOT, cfg.SEED = str(toy_root), 1
        assert Toy(cfg).classnames == ["name_3", "name_4"]

    def test_every_registered_reader_of_ours_adds_them(self):
        for name in ("ImageNet", "OxfordPets", "ImageFolder", "BundledFruits"):
            cfg = get_cfg_default()
            DATASET_REGISTRY.get(name).extend_cfg(cfg)
            assert cfg.DATASET.SUBSAMPLE_CLASSES == "all"
