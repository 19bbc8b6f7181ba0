"""Files are written whole or not at all."""

import errno
import json
import os
import stat

import pytest

from proxyfda.utils.errors import CannotWrite
from proxyfda.utils.files import (
    remove_partial,
    write_atomically,
    write_binary,
    write_json,
    write_text,
    writing,
)


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


REFUSED = {
    errno.ENOSPC: "cannot be written: the disk is full; free some space",
    errno.EROFS: "cannot be written: that file system is read-only; choose",
    errno.EACCES: "cannot be written: you have no permission; change",
    errno.EISDIR: "cannot be written: a folder is where a file is meant",
}


@pytest.mark.parametrize("code", REFUSED, ids=errno.errorcode.get)
def test_what_the_system_refuses_is_one_sentence_with_the_path(tmp_path, code):
    path = tmp_path / "file"
    path.write_text("before")

    def refuse(partial):
        open(partial, "w").close()
        raise OSError(code, os.strerror(code))

    with pytest.raises(CannotWrite, match=f"^{path} {REFUSED[code]}") as caught:
        write_atomically(str(path), refuse)
    assert isinstance(caught.value, OSError)
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["file"]


def test_a_missing_file_is_no_refusal(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, writing(within=str(tmp_path)):
        (tmp_path / "nothing").read_text()
    assert not isinstance(caught.value, CannotWrite)


@pytest.mark.parametrize(
    "first", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()], ids=["full", "interrupted"]
)
def test_a_library_s_own_error_does_not_hide_the_first_one(tmp_path, first):
    def save(file):
        try:
            raise first
        finally:
            raise RuntimeError("unexpected pos 576 vs 534")  # as torch.save ends

    kind = CannotWrite if isinstance(first, OSError) else KeyboardInterrupt
    with pytest.raises(kind):
        write_binary(str(tmp_path / "file"), save)
    assert os.listdir(tmp_path) == []


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
    (tmp_path / "below").mkdir()
    for name in ("a.0123abcd.tmp", "below/b.01234567.tmp", "notes.tmp", "below/c.txt"):
        (tmp_path / name).touch()
    remove_partial(str(tmp_path))
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*"))
    assert left == ["below/c.txt", "notes.tmp"]
