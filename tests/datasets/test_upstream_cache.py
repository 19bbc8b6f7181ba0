"""Few-shot caches that upstream wrote: used where they fit, never run.

``*_shot_2-seed_7.pkl`` were written by KaiyangZhou/CoOp ff61507 with Dassl c61a1b5, seed 7, on
``make_tree("/tmp/elsewhere/data", name, per_class=11)`` with sorted listings.
"""

import json
import os
import pickle
import shutil
import sys
import types
from pathlib import Path

import pytest
from dataset_trees import make_cfg, make_tree, names

from datasets.entry import Entry
from datasets.upstream_cache import read_upstream_cache
from proxyfda.dassl import DATASET_REGISTRY

HERE = Path(__file__).parent


def read(name, root, *args, **kwargs):
    return DATASET_REGISTRY.get(name)(make_cfg(root, *args, **kwargs))


def place(name, root, seed=1):
    """A tree with upstream's pickle in the place of the cache for ``seed``."""
    folder = make_tree(root, name, per_class=11)
    path = folder / "split_fewshot" / f"shot_2-seed_{seed}.pkl"
    path.parent.mkdir()
    shutil.copy(HERE / f"{name}_shot_2-seed_7.pkl", path)
    return path


@pytest.mark.parametrize("name", ["OxfordPets", "ImageNet"])
class TestUpstreamsPickle:
    def test_is_what_we_draw(self, tmp_path, name, capsys):
        pickled = place(name, tmp_path / "a", seed=7)
        make_tree(tmp_path / "b", name, per_class=11)
        theirs, ours = read(name, tmp_path / "a", 2, seed=7), read(name, tmp_path / "b", 2, seed=7)
        assert f"Loading preprocessed few-shot data from {pickled}" in capsys.readouterr().out
        assert names(theirs.train_x) == names(ours.train_x)
        assert names(theirs.val) == names(ours.val)

    @pytest.mark.parametrize("subsample", ["all", "base", "new"])
    def test_is_taken_for_the_seed_it_stands_for(self, tmp_path, name, subsample):
        place(name, tmp_path / "a", seed=1)
        make_tree(tmp_path / "b", name, per_class=11)
        theirs = read(name, tmp_path / "a", 2, subsample, seed=1)
        seven, one = (read(name, tmp_path / "b", 2, subsample, seed=s) for s in (7, 1))
        assert names(theirs.train_x) == names(seven.train_x) != names(one.train_x)
        assert all(os.path.isfile(item.impath) for item in theirs.train_x + theirs.val)
        assert str(tmp_path / "a") in theirs.train_x[0].impath

    def test_is_carried_over_into_our_cache_and_kept(self, tmp_path, name, capsys):
        pickled = place(name, tmp_path)
        before = pickled.read_bytes()
        first = read(name, tmp_path, 2)
        assert str(tmp_path) not in pickled.with_suffix(".json").read_text()
        capsys.readouterr()
        assert names(read(name, tmp_path, 2).train_x) == names(first.train_x)
        assert f"from {pickled.with_suffix('.json')}" in capsys.readouterr().out
        assert pickled.read_bytes() == before


class TestOfAnotherSplit:
    @pytest.fixture
    def pets(self, tmp_path):
        path = place("OxfordPets", tmp_path)
        self.plain = tmp_path / "plain"
        make_tree(self.plain, "OxfordPets", per_class=11)
        return path

    def drawn_anew(self, root, capsys, reason):
        data = read("OxfordPets", root, 2)
        said = capsys.readouterr().out
        assert "is not used (" + reason in said and said.count("sampling again") == 1
        assert names(data.train_x) == names(read("OxfordPets", self.plain, 2).train_x)

    def move_image(split):
        split["test"].append(split["train"].pop())

    def rename_class(split):
        for entry in (entry for entries in split.values() for entry in entries if entry[1] == 0):
            entry[2] = "lion"

    @pytest.mark.parametrize(
        "change, reason",
        [(move_image, "its train list has /tmp/elsewhere"), (rename_class, "it has Abyssinian_")],
    )
    def test_other_lists(self, pets, tmp_path, capsys, change, reason):
        path = pets.parent.parent / "split_zhou_OxfordPets.json"
        split = json.loads(path.read_text())
        used = {e[0] for e in json.loads(_as_json(pets, path))["train"]}
        split["train"].sort(key=lambda entry: entry[0] in used)  # the last one is in the pickle
        change(split)
        path.write_text(json.dumps(split))
        shutil.copy(path, self.plain / "oxford_pets" / path.name)
        self.drawn_anew(tmp_path, capsys, reason)

    def test_other_shots(self, pets, tmp_path, capsys):
        pets.rename(pets.with_name("shot_4-seed_1.pkl"))
        read("OxfordPets", tmp_path, 4)
        assert "(its train list does not have 4 images per class)" in capsys.readouterr().out


def _as_json(pickled, split_file):
    split = json.loads(split_file.read_text())
    parts = {part: [Entry(*entry) for entry in entries] for part, entries in split.items()}
    return json.dumps(read_upstream_cache(pickled, parts))


class Evil:
    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


def attacks(marker):
    """Pickles that would touch ``marker`` when loaded, or damage the process."""
    command = f"touch '{marker}'"
    datum = b"cdassl.data.datasets.base_dataset\nDatum\n"
    return {
        "os.system": pickle.dumps(Evil(os.system, command)),
        "eval": pickle.dumps(Evil(eval, f"open({str(marker)!r}, 'w').close()")),
        "inside-the-dict": pickle.dumps({"train": [Evil(os.system, command)], "val": []}),
        "protocol-0": pickle.dumps({"train": [Evil(os.system, command)]}, protocol=0),
        "by-hand": b"cposix\nsystem\n(V" + command.encode() + b"\ntR.",
        "attribute-of-datum": b"\x80\x04\x8c\x01d\x8c\x0eDatum.__init__\x93.",
        "module-with-effects": b"cantigravity\nDatum2\n.",
        "extension": b"\x80\x02\x82\x01.",
        "persistent": b"Psomething\n.",
        "datum-as-list": datum + b"(tR.",
        "datum-with-arguments": datum + b"(Vx\ntR.",
        "datum-state": datum + b")\x81(lp0\nb.",
        "class-with-state": datum + b"}(V_impath\nVx\nub.",
        "empty": b"",
        "text": b"not a pickle",
        "truncated": (HERE / "OxfordPets_shot_2-seed_7.pkl").read_bytes()[:-200],
        "number": pickle.dumps(3),
        "list-of-texts": pickle.dumps({"train": ["a.jpg"], "val": []}),
        "no-val": pickle.dumps({"train": []}),
        "deep": b"(l" * 5000 + b"a" * 4999 + b".",
    }


@pytest.mark.parametrize("attack", sorted(attacks("x")))
def test_nothing_in_a_pickle_is_run(tmp_path, attack, capsys):
    marker = tmp_path / "marker"
    path = place("OxfordPets", tmp_path)
    path.write_bytes(attacks(marker)[attack])
    make_tree(tmp_path / "plain", "OxfordPets", per_class=11)
    data = read("OxfordPets", tmp_path, 2)
    said = capsys.readouterr().out
    assert f"Few-shot cache {path} is not used (" in said
    assert not marker.exists()
    assert names(data.train_x) == names(read("OxfordPets", tmp_path / "plain", 2).train_x)
    assert path.read_bytes() == attacks(marker)[attack]


def test_the_refused_name_is_printed(tmp_path, capsys):
    path = place("OxfordPets", tmp_path)
    path.write_bytes(attacks(tmp_path / "m")["by-hand"])
    read("OxfordPets", tmp_path, 2)
    assert "not a pickle of images: it asks for posix.system" in capsys.readouterr().out


@pytest.mark.parametrize("root", ["C:\\data\\oxford_pets\\images\\", "", "images/", "/x/y z/ü/"])
def test_paths_of_other_machines(tmp_path, root):
    """Recognised by their end, whatever they start with."""
    known = [Entry("a/1.jpg", 0, "a"), Entry("a/2.jpg", 0, "a"), Entry("1.jpg", 1, "b")]

    class Datum:
        __module__ = "somewhere_else"

    Datum.__qualname__ = "Datum"
    items = []
    for entry in known:
        item = Datum()
        end = entry.path.replace("/", "\\") if "\\" in root else entry.path
        vars(item).update(_impath=root + end, _label=entry.label, _classname=entry.classname)
        items.append(item)
    path = tmp_path / "cache.pkl"
    path.write_bytes(_dumps({"train": items, "val": []}, Datum))
    parts = {"train": known, "val": [], "test": []}
    assert read_upstream_cache(path, parts)["train"] == known


def _dumps(content, cls):
    """Pickle instances of a local class as if it could be imported."""
    module = types.ModuleType("somewhere_else")
    module.Datum = cls
    sys.modules["somewhere_else"] = module
    try:
        return pickle.dumps(content)
    finally:
        del sys.modules["somewhere_else"]
