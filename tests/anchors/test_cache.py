"""Tensors kept in a file: found again, and computed again where the file cannot serve."""

import os

import pytest
import torch
from torch import nn

from proxyfda.anchors import cached_tensor, fingerprint


class Compute:
    def __init__(self, value):
        self.value, self.calls = value, 0

    def __call__(self):
        self.calls += 1
        return self.value


VALUE, OTHER = torch.arange(6.0).view(2, 3), torch.ones(2)


def test_computed_once_for_a_key(tmp_path):
    path = str(tmp_path / "folder" / "anchors.pt")
    first = Compute(VALUE)
    assert torch.equal(cached_tensor(path, "key", first), VALUE) and first.calls == 1
    again = Compute(OTHER)
    assert torch.equal(cached_tensor(path, "key", again), VALUE) and again.calls == 0
    assert os.listdir(tmp_path / "folder") == ["anchors.pt"]


def test_another_key_is_computed_and_takes_the_place(tmp_path):
    path = str(tmp_path / "anchors.pt")
    cached_tensor(path, "key", Compute(VALUE))
    assert torch.equal(cached_tensor(path, "another", Compute(OTHER)), OTHER)
    later = Compute(VALUE)
    assert torch.equal(cached_tensor(path, "another", later), OTHER) and later.calls == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no tensor"),
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: torch.save(OTHER, path),
        lambda path: torch.save({"value": OTHER}, path),
        lambda path: torch.save(nn.Linear(2, 2), path),
    ],
    ids=["empty", "text", "half", "bare tensor", "no key", "pickled code"],
)
def test_damaged_file_is_computed_again(tmp_path, damage, capsys):
    path = tmp_path / "anchors.pt"
    cached_tensor(str(path), "key", Compute(VALUE))
    damage(path)
    compute = Compute(VALUE)
    assert torch.equal(cached_tensor(str(path), "key", compute), VALUE) and compute.calls == 1
    assert f"{path} cannot be read" in capsys.readouterr().out
    later = Compute(OTHER)
    assert torch.equal(cached_tensor(str(path), "key", later), VALUE) and later.calls == 0


def test_value_that_is_no_tensor_is_computed_again(tmp_path):
    path = tmp_path / "anchors.pt"
    torch.save({"key": "key", "value": "text"}, path)
    assert torch.equal(cached_tensor(str(path), "key", Compute(VALUE)), VALUE)


def test_without_a_path_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compute = Compute(VALUE)
    for _ in range(2):
        assert torch.equal(cached_tensor("", "key", compute), VALUE)
    assert compute.calls == 2 and os.listdir(tmp_path) == []


def test_file_that_cannot_be_written_is_no_obstacle(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    path = str(tmp_path / "file" / "anchors.pt")  # its folder cannot be made
    assert torch.equal(cached_tensor(path, "key", Compute(VALUE)), VALUE)
    assert f"{path} cannot be written" in capsys.readouterr().out


def test_folder_that_torch_cannot_write_into_is_no_obstacle(tmp_path, capsys, monkeypatch):
    # What torch raises for a folder without permission, or a full disk.
    def refuse(*args, **kwargs):
        raise RuntimeError("Parent directory does not exist or no permission")

    monkeypatch.setattr(torch, "save", refuse)
    path = str(tmp_path / "anchors.pt")
    assert torch.equal(cached_tensor(path, "key", Compute(VALUE)), VALUE)
    assert f"{path} cannot be written" in capsys.readouterr().out
    assert os.listdir(tmp_path) == []


def test_an_error_of_the_computation_is_not_hidden(tmp_path):
    def fail():
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        cached_tensor(str(tmp_path / "anchors.pt"), "key", fail)


def test_fingerprint():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    start = fingerprint(module, ["a cat", "a dog"])
    assert (
        start == fingerprint(module, ["a cat", "a dog"]) == fingerprint(module, ("a cat", "a dog"))
    )
    seen = {start, fingerprint(module, ["a cat"]), fingerprint(module, ["a dog", "a cat"])}
    seen.add(fingerprint(module, ["a cat", "a dogé\udce9"]))
    with torch.no_grad():
        module[0].weight[1, 2] += 1e-3
    seen.add(fingerprint(module, ["a cat", "a dog"]))
    with torch.no_grad():
        module[1].running_mean[0] = 0.5  # a buffer counts too
    seen.add(fingerprint(module, ["a cat", "a dog"]))
    with torch.no_grad():
        module[0].weight.neg_()  # sums of squares alone would be the same
    seen.add(fingerprint(module, ["a cat", "a dog"]))
    with torch.no_grad():  # the sum alone would be the same
        module[0].bias[0] += 0.25
        module[0].bias[1] -= 0.25
    seen.add(fingerprint(module, ["a cat", "a dog"]))
    assert len(seen) == 8


def test_fingerprint_knows_shapes_and_names():
    words = ["a"]
    one, two = nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False)
    nn.init.ones_(one.weight), nn.init.ones_(two.weight)
    named = nn.Sequential(one)
    prints = {fingerprint(module, words) for module in (one, two, named)}
    assert len(prints) == 3
    assert fingerprint(one.half(), words) in prints  # the same values in another precision
