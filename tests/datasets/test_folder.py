import os

import pytest
from dataset_trees import files_below, make_cfg, names, write_images

from datasets.folder import ImageFolder


def make_folders(root, counts, part="", suffix=".jpg"):
    """One folder per class with that many images."""
    for folder, n in counts.items():
        write_images(root / part, {"x": [(f"{folder}/{i:02d}{suffix}", 0, "") for i in range(n)]})
    return root


def by_class(items):
    counts = {}
    for item in items:
        counts[item.classname] = counts.get(item.classname, 0) + 1
    return counts


def paths(data):
    return {item.impath for part in (data.train_x, data.val, data.test) for item in part}


@pytest.fixture
def plain(tmp_path):
    return make_folders(tmp_path / "birds", {"b": 10, "a": 12, "c": 4})


class TestClassFolders:
    def test_half_a_fifth_and_the_rest_of_each_class(self, plain):
        data = ImageFolder(make_cfg(plain))
        assert data.classnames == ["a", "b", "c"]
        assert by_class(data.train_x) == {"a": 6, "b": 5, "c": 2}
        assert by_class(data.val) == {"a": 2, "b": 2, "c": 1}
        assert by_class(data.test) == {"a": 4, "b": 3, "c": 1}
        assert len(paths(data)) == 26
        assert (data.name, data.template) == ("birds", "a photo of a {}.")

    @pytest.mark.parametrize("n", range(4, 30))
    def test_every_part_gets_an_image(self, tmp_path, n):
        data = ImageFolder(make_cfg(make_folders(tmp_path, {"a": n, "b": 4})))
        counts = [by_class(part)["a"] for part in (data.train_x, data.val, data.test)]
        assert min(counts) > 0 and sum(counts) == n

    def test_the_split_does_not_depend_on_seed_place_listing_or_other_classes(
        self, plain, tmp_path, monkeypatch
    ):
        first = ImageFolder(make_cfg(plain, seed=1))
        listdir = os.listdir
        monkeypatch.setattr(os, "listdir", lambda folder: listdir(folder)[::-1])
        make_folders(plain, {"0_new": 8})
        moved = tmp_path / "moved"
        plain.rename(moved)
        second = ImageFolder(make_cfg(moved, seed=2))
        for a, b in (
            (first.train_x, second.train_x),
            (first.val, second.val),
            (first.test, second.test),
        ):
            assert [n[0] for n in names(a)] == [n[0] for n in names(b) if n[2] != "0_new"]

    def test_the_cut_is_no_cut_of_the_listing(self, tmp_path):
        data = ImageFolder(make_cfg(make_folders(tmp_path, {"a": 40, "b": 40})))
        trained = [path for path, label, _ in names(data.train_x) if label == 0]
        assert trained != [f"a/{i:02d}.jpg" for i in range(20)]

    def test_images_in_subfolders_belong_to_the_class(self, plain):
        make_folders(plain, {"a/more/deep": 3})
        data = ImageFolder(make_cfg(plain))
        assert len(paths(data)) == 29
        assert data.num_classes == 3

    def test_too_few_images(self, plain):
        make_folders(plain, {"d": 3, "e": 1})
        with pytest.raises(ValueError) as error:
            ImageFolder(make_cfg(plain))
        assert str(error.value) == (
            "ImageFolder: 2 classes have fewer than the 4 images that the split into train, val "
            "and test needs, the first is 'd' with 3; add images or remove the class"
        )

    def test_a_class_may_be_called_train(self, tmp_path):
        data = ImageFolder(make_cfg(make_folders(tmp_path, {"bus": 4, "train": 4})))
        assert data.classnames == ["bus", "train"]


class TestParts:
    @pytest.mark.parametrize("val", ["val", "valid", "validation"])
    def test_three_parts(self, tmp_path, val):
        for part, n in (("train", 3), (val, 1), ("test", 2)):
            make_folders(tmp_path, {"x": n, "y": n}, part)
        data = ImageFolder(make_cfg(tmp_path))
        assert [by_class(p) for p in (data.train_x, data.val, data.test)] == [
            {"x": 3, "y": 3},
            {"x": 1, "y": 1},
            {"x": 2, "y": 2},
        ]
        assert all(f"{os.sep}{val}{os.sep}" in item.impath for item in data.val)

    def test_train_and_test_cut_val_from_train(self, tmp_path):
        make_folders(tmp_path, {"x": 10, "y": 2}, "train")
        make_folders(tmp_path, {"x": 1, "y": 1}, "test")
        data = ImageFolder(make_cfg(tmp_path))
        assert by_class(data.train_x) == {"x": 8, "y": 1}
        assert by_class(data.val) == {"x": 2, "y": 1}
        assert by_class(data.test) == {"x": 1, "y": 1}
        assert len(paths(data)) == 14
        assert all(f"{os.sep}test{os.sep}" in item.impath for item in data.test)

    def test_train_and_val_test_on_val_and_say_so(self, tmp_path, capsys):
        make_folders(tmp_path, {"x": 10, "y": 10}, "train")
        make_folders(tmp_path, {"x": 3, "y": 3}, "val")
        data = ImageFolder(make_cfg(tmp_path))
        assert "no test folder" in capsys.readouterr().out
        assert all(f"{os.sep}val{os.sep}" in item.impath for item in data.test)
        assert [by_class(p)["x"] for p in (data.train_x, data.val, data.test)] == [8, 2, 3]

    def test_other_folders_beside_the_parts_are_left_alone(self, tmp_path):
        for part in ("train", "val", "test", "raw"):
            make_folders(tmp_path, {"x": 2, "y": 2} if part != "raw" else {"z": 1}, part)
        assert ImageFolder(make_cfg(tmp_path)).classnames == ["x", "y"]

    @pytest.mark.parametrize(
        "change, message",
        [
            (
                lambda root: make_folders(root, {"z": 1}, "test"),
                "test has the class 'z', which has no",
            ),
            (
                lambda root: make_folders(root, {"z": 1}, "train"),
                "1 of 3 classes have no val images, the first is 'z'",
            ),
            (lambda root: make_folders(root, {"x": 1}, "valid"), "are both val; remove one"),
            (
                lambda root: (root / "train" / "w").mkdir(),
                "1 of 3 classes have no train images, the first is 'w'",
            ),
        ],
        ids=["only-in-test", "only-in-train", "two-vals", "empty-folder"],
    )
    def test_parts_that_do_not_fit(self, tmp_path, change, message):
        for part in ("train", "val", "test"):
            make_folders(tmp_path, {"x": 2, "y": 2}, part)
        change(tmp_path)
        with pytest.raises(ValueError, match=message):
            ImageFolder(make_cfg(tmp_path))

    def test_one_image_cannot_give_val(self, tmp_path):
        make_folders(tmp_path, {"x": 10, "y": 1}, "train")
        make_folders(tmp_path, {"x": 1, "y": 1}, "test")
        with pytest.raises(ValueError, match="than the 2 images that cutting val .* 'y' with 1"):
            ImageFolder(make_cfg(tmp_path))


class TestDescription:
    def test_names_order_template(self, plain):
        (plain / "dataset.yaml").write_text(
            'name: my birds\ntemplate: "a {}, a bird."\nclasses:\n  c: no\n  b: European robin\n'
        )
        data = ImageFolder(make_cfg(plain))
        assert data.classnames == ["no", "European robin", "a"]
        assert (data.name, data.template) == ("my birds", "a {}, a bird.")
        assert {item.classname for item in data.test if "/c/" in item.impath} == {"no"}

    def test_folders_that_look_like_numbers(self, tmp_path):
        make_folders(tmp_path, {"001": 4, "002": 4, "null": 4})
        (tmp_path / "dataset.yaml").write_text("classes: {001: kea, 002: robin, null: none}")
        assert ImageFolder(make_cfg(tmp_path)).classnames == ["kea", "robin", "none"]

    def test_empty_file(self, plain):
        (plain / "dataset.yaml").write_text("# nothing yet\n")
        assert ImageFolder(make_cfg(plain)).classnames == ["a", "b", "c"]

    @pytest.mark.parametrize(
        "text, message",
        [
            ("a: [", "not YAML"),
            ("- a", "may hold the keys name, template and classes only"),
            ("klasses: {a: b}", "may hold the keys name, template and classes only"),
            ("classes: [a, b]", "classes must map each folder to one class name"),
            ("classes: {a: [x]}", "classes must map each folder to one class name"),
            ("classes: {a: ''}", "classes must map each folder to one class name"),
            ("classes: {z: x}", "names the class folder 'z', which does not exist"),
            ("template: a photo", "it needs one {} for the class name"),
            ('template: "{} {extra}"', "template is '{} {extra}', but it needs one {}"),
            ('template: "{} or {}"', "it needs one {} for the class name"),
            ("name: [a]", "name must be text"),
        ],
    )
    def test_faults(self, plain, text, message):
        (plain / "dataset.yaml").write_text(text)
        with pytest.raises(ValueError) as error:
            ImageFolder(make_cfg(plain))
        assert message in str(error.value)
        assert str(plain / "dataset.yaml") in str(error.value)
        assert "\n" not in str(error.value)


class TestFiles:
    def test_hidden_and_other_files_are_skipped_with_a_line(self, plain, capsys):
        for stray in (".DS_Store", "a/.hidden.jpg", "a/notes.txt", "b/Thumbs.db", "loose.jpg"):
            (plain / stray).touch()
        make_folders(plain, {".cache": 2, "a/.thumbs": 2})
        data = ImageFolder(make_cfg(plain))
        assert data.classnames == ["a", "b", "c"]
        assert len(paths(data)) == 26
        assert "skipped 5 files" in capsys.readouterr().out

    def test_nothing_is_said_about_a_clean_folder(self, plain, capsys):
        (plain / "dataset.yaml").touch()
        ImageFolder(make_cfg(plain))
        assert capsys.readouterr().out == ""

    @pytest.mark.parametrize("suffix", [".JPG", ".jpeg", ".Png", ".webp", ".tiff", ".bmp"])
    def test_image_suffixes(self, tmp_path, suffix):
        data = ImageFolder(make_cfg(make_folders(tmp_path, {"a": 4, "b": 4}, suffix=suffix)))
        assert len(paths(data)) == 8

    def test_only_the_few_shot_cache_is_written(self, plain):
        before = files_below(plain)
        first = ImageFolder(make_cfg(plain, shots=2, subsample="base"))
        assert sorted(set(files_below(plain)) - set(before)) == ["split_fewshot/shot_2-seed_1.json"]
        second = ImageFolder(make_cfg(plain, shots=2, subsample="base"))
        assert names(first.train_x) == names(second.train_x)

    def test_a_new_image_makes_the_cache_anew(self, plain, capsys):
        ImageFolder(make_cfg(plain, shots=2))
        (plain / "a" / "extra.jpg").touch()
        ImageFolder(make_cfg(plain, shots=2))
        assert "drawn from another split" in capsys.readouterr().out


def test_few_shot_base_and_new(plain):
    base = ImageFolder(make_cfg(plain, shots=2, subsample="base"))
    new = ImageFolder(make_cfg(plain, shots=2, subsample="new"))
    assert (base.classnames, new.classnames) == (["a", "b"], ["c"])
    assert by_class(base.train_x) == {"a": 2, "b": 2}
    assert by_class(base.test) == {"a": 4, "b": 3}
    assert by_class(new.test) == {"c": 1}


@pytest.mark.parametrize("counts", [{}, {"a": 9}], ids=["none", "one"])
def test_fewer_than_two_classes(tmp_path, counts):
    with pytest.raises(FileNotFoundError, match="needs at least 2 class folders in .* found"):
        ImageFolder(make_cfg(make_folders(tmp_path, counts)))


def test_a_class_folder_without_images(plain):
    (plain / "d").mkdir()
    with pytest.raises(ValueError, match="1 of 4 classes have no images, the first is 'd'"):
        ImageFolder(make_cfg(plain))


def test_a_dangling_link(plain):
    (plain / "a" / "00.jpg").unlink()
    (plain / "a" / "00.jpg").symlink_to(plain / "gone.jpg")
    with pytest.raises(FileNotFoundError, match="1 of 26 images .*00.jpg; restore it or remove"):
        ImageFolder(make_cfg(plain))
