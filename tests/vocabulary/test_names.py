"""Vocabularies: reading them, keeping classes out, drawing."""

import os
from pathlib import Path

import pytest

from proxyfda import vocabulary
from proxyfda.vocabulary import (
    VOCABULARIES,
    draw_names,
    names_without,
    read_vocabulary,
    register_vocabulary,
)

NOUNS = read_vocabulary("nouns")


@pytest.mark.parametrize(
    ("name", "classname"),
    [
        ("dog", "dog"),
        ("Dog", "DOG"),
        ("sea lion", "sea_lion"),
        ("sealion", "sea lion"),
        ("sea-lion", "Sea Lion"),
        ("tshirt", "T-shirt"),
        ("dogs", "dog"),
        ("dog", "dogs"),
        ("cherries", "cherry"),
        ("boxes", "box"),
        ("knives", "knife"),
        ("leaf", "leaves"),
        ("gloves", "glove"),
        ("glasses", "glass"),
        ("buses", "bus"),
        ("cactus", "cacti"),
        ("firemen", "fireman"),
        ("mouse", "mice"),
        ("geese", "goose"),
        ("hair dryers", "hair_dryer"),
        ("annual crops land", "Annual Crop Land"),
        ("cafe", "café"),
        ("bishop of llandaff dahlia", "bishop of llandaff"),
        ("forest fire", "Forest"),
    ],
)
def test_a_class_by_whatever_spelling_is_left_out(name, classname):
    assert names_without([name], [classname]) == []


@pytest.mark.parametrize(
    ("name", "classname"),
    [
        ("lion", "sea lion"),
        ("crop", "annual crop land"),
        ("cat", "catfish"),
        ("glass", "gas"),
        ("bird", "!"),
    ],
)
def test_other_names_stay(name, classname):
    assert names_without([name], [classname]) == [name]


def test_no_class_of_the_datasets_at_hand_is_among_the_words_left():
    for classes in (["tench", "goldfish", "vacuum cleaner"], NOUNS[::7]):
        left = names_without(NOUNS, classes)
        assert not {name.casefold() for name in left} & {name.casefold() for name in classes}
        assert len(left) > 1000


def test_the_shipped_list_is_clean_states_its_licence_and_is_small():
    path = Path(VOCABULARIES["nouns"])
    text = path.read_text()
    assert path.stat().st_size < 100_000 and "WordNet 3.0 Copyright 2006" in text
    assert "Permission to use, copy, modify and distribute" in text
    assert len(NOUNS) == 2500 and len({name.lower() for name in NOUNS}) == 2500
    assert all(name == " ".join(name.split()) and name.isascii() for name in NOUNS)


def test_a_file_has_one_name_a_line(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("# head\n\nsea_lion\n  red   fox # an animal\nSea Lion\nÅl\n", encoding="utf-8")
    assert read_vocabulary(str(path)) == ["sea lion", "red fox", "Ål"]


def test_a_path_may_start_where_the_package_lies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_vocabulary("proxyfda/vocabulary/nouns.txt") == NOUNS
    os.makedirs("proxyfda/vocabulary")
    Path("proxyfda/vocabulary/nouns.txt").write_text("own\n")
    assert read_vocabulary("proxyfda/vocabulary/nouns.txt") == ["own"]


def test_a_vocabulary_can_have_a_name(tmp_path, monkeypatch):
    monkeypatch.setattr(vocabulary.names, "VOCABULARIES", {})
    path = tmp_path / "words.txt"
    path.write_text("fox\n")
    register_vocabulary("mine", str(path))
    register_vocabulary("mine", str(path))
    assert read_vocabulary("mine") == ["fox"]
    with pytest.raises(ValueError, match="'mine' is .* already; give .* another name"):
        register_vocabulary("mine", str(tmp_path / "other.txt"))


def test_what_is_no_vocabulary_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'nuons' is neither .*did you mean 'nouns'"):
        read_vocabulary("nuons")
    path = tmp_path / "words.bin"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is no text in UTF-8; give a text file"):
        read_vocabulary(str(path))


def test_draws_follow_from_the_numbers_alone():
    draws = [draw_names(NOUNS, 32, 1, epoch, batch) for epoch in range(3) for batch in range(3)]
    assert len(set(map(tuple, draws))) == 9
    assert all(len(set(draw)) == 32 for draw in draws)
    assert draw_names(NOUNS, 32, 1, 0, 0) == draws[0] != draw_names(NOUNS, 32, 2, 0, 0)
    # The same on every machine and in every version.
    assert draw_names(range(1000), 4, 1, 2, 3) == [544, 169, 577, 132]
