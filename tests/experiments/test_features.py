"""Features of images in files: what names them, damage, bounds, several processes."""

import os
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from proxyfda.backbones import load_backbone
from proxyfda.experiments import features as module
from proxyfda.experiments.features import FeatureCache, Features, encoder_digest, images_digest
from proxyfda.utils.errors import CannotWrite


@pytest.fixture(autouse=True)
def forget_images(monkeypatch):
    monkeypatch.setattr(module, "_kept", {})


@pytest.fixture(scope="module")
def backbone(tiny_file):
    return load_backbone("ViT-B/16", str(tiny_file))


class Read:
    """A reader's item that has no file."""

    impath = "somewhere/0"

    def __init__(self, colour):
        self.colour = colour

    def read(self):
        return Image.new("RGB", (2, 2), self.colour)


def files(folder, *texts):
    items = []
    for number, text in enumerate(texts):
        path = folder / f"{number}.png"
        path.write_text(text)
        os.utime(path, (number, number))
        items.append(SimpleNamespace(impath=str(path)))
    return items


def numbers(count, seed=0):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


# -- what features depend on ----------------------------------------------------------------------


def test_images_are_told_apart_by_path_size_time_and_order(tmp_path):
    first, second = files(tmp_path, "a", "b")
    same = images_digest([first, second])
    assert same == images_digest([first, second])
    assert images_digest([second, first]) != same
    os.utime(first.impath, (5, 5))
    later = images_digest([first, second])
    (tmp_path / "0.png").write_text("longer")
    os.utime(first.impath, (5, 5))
    assert len({same, later, images_digest([first, second])}) == 3


def test_images_without_a_file_are_told_apart_by_their_pixels():
    assert images_digest([Read("red")]) == images_digest([Read("red")])
    assert images_digest([Read("red")]) != images_digest([Read("blue")])
    with pytest.raises(FileNotFoundError):
        images_digest([SimpleNamespace(impath="nowhere")])


def test_encoders_are_told_apart_by_every_byte_and_by_what_no_weight_says(tiny_file):
    def fresh():
        return load_backbone("ViT-B/16", str(tiny_file))

    before = encoder_digest(fresh())
    assert before == encoder_digest(fresh())
    changed = fresh()
    weight = next(changed.image_tower.parameters())
    with torch.no_grad():  # sum and sum of squares stay
        weight.view(-1)[[0, 1]] = weight.view(-1)[[1, 0]]
    assert encoder_digest(changed) != before
    other = fresh()
    block = other.image_tower.transformer.resblocks[0].mlp
    block.gelu = torch.nn.ReLU()
    assert encoder_digest(other) != before


def test_features_are_computed_once_for_the_same_encoder_images_and_transform(
    backbone, tmp_path, monkeypatch
):
    calls = []
    encode = type(backbone).encode
    monkeypatch.setattr(
        type(backbone), "encode", lambda self, x: calls.append(len(x)) or encode(self, x)
    )
    items = files(tmp_path, "a", "b", "c")
    images = numbers(3 * 3 * 32 * 32).view(3, 3, 32, 32)

    def batches(items):
        yield from ({"img": images[i : i + 2]} for i in (0, 2))

    def of(transform="t", some=items):
        cache = FeatureCache(str(tmp_path / "cache"))
        return Features(backbone, transform, batches, cache).of(some)

    found = of()
    assert calls == [2, 1] and torch.equal(found[:2], encode(backbone, images[:2]))
    assert torch.equal(of(), found) and calls == [2, 1]
    of("another")
    of(some=items[::-1])
    assert len(calls) == 6
    of(), of("another")
    assert len(calls) == 6 and len(list((tmp_path / "cache").glob("*.safetensors"))) == 3


def test_an_encoder_of_the_same_process_sees_the_images_that_another_has_read(backbone, tmp_path):
    read = []

    def batches(items):
        read.append(len(items))
        yield {"img": torch.ones(2, 3, 32, 32)}

    for _ in range(2):
        Features(backbone, "t", batches, FeatureCache("")).of(files(tmp_path, "a", "b"))
    assert read == [2]


# -- the files ------------------------------------------------------------------------------------


def counting(value, calls):
    return lambda: calls.append(1) or value


def test_what_was_kept_is_given_bit_for_bit(tmp_path):
    calls, value = [], numbers(6).view(2, 3)
    for _ in range(2):
        found = FeatureCache(str(tmp_path)).get("ab1", counting(value, calls))
        assert torch.equal(found, value)
    assert len(calls) == 1
    assert torch.equal(load_file(tmp_path / "ab1.safetensors")["value"], value)


@pytest.mark.parametrize("damage", ["cut off", "one byte"])
def test_a_damaged_file_is_computed_again_with_one_line(tmp_path, capsys, damage):
    calls, value = [], numbers(6)
    cache = FeatureCache(str(tmp_path))
    cache.get("ab1", counting(value, calls))
    path = tmp_path / "ab1.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content if damage == "one byte" else content[:-3])
    assert torch.equal(cache.get("ab1", counting(value, calls)), value) and len(calls) == 2
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "ab1.safetensors is damaged" in out
    cache.get("ab1", counting(value, calls))
    assert len(calls) == 2


def test_a_folder_that_cannot_be_written_costs_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    cache, calls = FeatureCache(str(tmp_path / "file" / "below")), []
    for key in ("ab1", "ab2"):
        assert len(cache.get(key, counting(numbers(3), calls))) == 3
    out = capsys.readouterr().out
    assert len(calls) == 2 and out.count("\n") == 1 and "so the next run computes" in out


def test_a_full_disk_is_told_in_one_whole_sentence(tmp_path, capsys, monkeypatch):
    def refuse(path, write):
        raise CannotWrite(f"{path} cannot be written: {'the disk is full ' * 20}there")

    monkeypatch.setattr(module, "write_atomically", refuse)
    FeatureCache(str(tmp_path)).get("ab1", lambda: numbers(3))
    out = capsys.readouterr().out
    assert out.count("cannot be written") == 1 and "there, so the next run computes" in out


def test_the_files_of_the_oldest_use_are_removed_first(tmp_path):
    cache = FeatureCache(str(tmp_path), gigabytes=3.5 * 4e-6)  # 3 of 4,000 bytes each
    for number, key in enumerate(["a", "b", "c"]):
        cache.get(key, lambda: numbers(1000))
        os.utime(tmp_path / f"{key}.safetensors", (number, number))
    cache.get("a", lambda: pytest.fail("it was kept"))
    cache.get("d", lambda: numbers(1000))
    assert sorted(path.stem for path in tmp_path.glob("*.safetensors")) == ["a", "c", "d"]


def test_what_is_larger_than_the_bound_is_not_kept(tmp_path, capsys):
    cache = FeatureCache(str(tmp_path), gigabytes=1e-6)
    cache.get("a", lambda: numbers(1000))
    assert not list(tmp_path.glob("*.safetensors"))
    assert "more than PROBE.CACHE_GB 1e-06" in capsys.readouterr().out


def test_of_two_that_ask_at_once_one_computes_and_the_other_waits(tmp_path, capsys):
    started, calls, found = threading.Event(), [], []

    def slow():
        calls.append(1)
        started.set()
        time.sleep(0.3)
        return numbers(4)

    def ask():  # a cache of its own, as another process has
        found.append(FeatureCache(str(tmp_path)).get("ab1", slow))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    threads[0].start()
    started.wait()
    threads[1].start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and torch.equal(*found)
    assert "Waiting for features" in capsys.readouterr().out


def test_an_interruption_leaves_nothing_behind(tmp_path):
    def interrupted():
        raise KeyboardInterrupt

    cache = FeatureCache(str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        cache.get("ab1", interrupted)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.parent.name != "locks"]
    assert len(cache.get("ab1", lambda: numbers(3))) == 3  # the lock is free again


def test_what_a_killed_writer_left_goes_once_its_features_are_computed_again(tmp_path):
    left, other = (tmp_path / f"{key}.safetensors.0123abcd.tmp" for key in ("ab1", "cd2"))
    left.write_bytes(b"half")
    other.write_bytes(b"half")  # somebody may be writing it
    FeatureCache(str(tmp_path)).get("ab1", lambda: torch.ones(2))
    assert not left.exists() and other.exists()


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = []
    for _ in range(2):
        FeatureCache("").get("ab1", counting(numbers(3), calls))
    assert len(calls) == 2 and not os.listdir(tmp_path)
