"""Tiny data roots and configs for the reader tests."""

from pathlib import Path
from types import SimpleNamespace


def make_cfg(root, shots=-1, subsample="all", seed=1):
    dataset = SimpleNamespace(ROOT=str(root), NUM_SHOTS=shots, SUBSAMPLE_CLASSES=subsample)
    return SimpleNamespace(DATASET=dataset, SEED=seed)


def write_images(root, split):
    """Empty files: readers look only at names."""
    for entries in split.values():
        for path, _, _ in entries:
            file = Path(root) / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()


def make_split(classes=5, train=6, val=3, test=2):
    """Class i is called name_i; classes come in descending order of label."""
    return {
        part: [
            [f"c{i}/{part}_{j}.jpg", i, f"name_{i}"]
            for i in reversed(range(classes))
            for j in range(n)
        ]
        for part, n in (("train", train), ("val", val), ("test", test))
    }


def names(items):
    """What a list of Datum holds, with the last two parts of the path only."""
    return [("/".join(Path(d.impath).parts[-2:]), d.label, d.classname) for d in items]


def files_below(root):
    return sorted(str(p.relative_to(root)) for p in Path(root).rglob("*") if p.is_file())
