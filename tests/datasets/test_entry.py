"""Finding the files of listed images."""

import os
import pickle

import pytest
from dataset_trees import files_below, write_images

from datasets.entry import ListedDatum, find_files


def test_one_listing_per_folder(tmp_path, monkeypatch):
    write_images(tmp_path, {"x": [[f"{d}/{i}.jpg", 0, ""] for d in "ab" for i in range(20)]})
    paths = [str(tmp_path / path) for path in files_below(tmp_path)]
    looked, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: looked.append(folder) or scandir(folder))
    monkeypatch.setattr(os.path, "isfile", lambda path: pytest.fail("a stat per image"))
    assert find_files(paths) == ({}, [])
    assert looked == [str(tmp_path / "a"), str(tmp_path / "b")]


def test_folders_and_dangling_links_are_no_files(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "real.jpg").touch()
    (tmp_path / "link.jpg").symlink_to("real.jpg")
    (tmp_path / "dangling.jpg").symlink_to("gone.jpg")
    paths = [str(tmp_path / f"{n}.jpg") for n in ("folder", "real", "link", "dangling")]
    assert find_files([*paths, str(tmp_path / "no" / "x.jpg")])[1] == [
        paths[0],
        paths[3],
        str(tmp_path / "no" / "x.jpg"),
    ]


def test_listed_data_have_no_dict_each():
    """A million of them are in memory at once."""
    item = ListedDatum("a/b.jpg", 3, classname="b")
    assert (item.impath, item.label, item.domain, item.classname) == ("a/b.jpg", 3, 0, "b")
    assert not vars(item)
    copy = pickle.loads(pickle.dumps(item))  # as loader workers get them
    assert (copy.impath, copy.label, copy.classname) == ("a/b.jpg", 3, "b")
