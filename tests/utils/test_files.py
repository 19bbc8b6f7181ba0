"""Files are written whole or not at all."""

import json
import os
import stat

import pytest

from proxyfda.utils.files import write_atomically, write_json, write_text


def test_makes_the_folder_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "folder" / "file.txt"
    write_text(str(path), "änderung\n")
    assert path.read_text(encoding="utf-8") == "änderung\n"
    assert os.listdir(path.parent) == ["file.txt"]
    other = tmp_path / "plain"
    other.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)


def test_a_name_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_json("x.json", [1])
    assert (tmp_path / "x.json").read_text() == "[1]\n"


@pytest.mark.parametrize("indent", [None, 4])
def test_json(tmp_path, indent):
    content = {"a": [1, "ü"], "b": None}
    write_json(str(tmp_path / "x.json"), content, indent=indent)
    text = (tmp_path / "x.json").read_text()
    assert text == json.dumps(content, indent=indent) + "\n"


def test_a_failure_keeps_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")

    def write(partial):
        assert os.path.dirname(partial) == str(tmp_path)  # so that the move is one step
        with open(partial, "w") as file:
            file.write("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(str(path), write)
    with pytest.raises(TypeError):
        write_json(str(path), object())
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["file"]
