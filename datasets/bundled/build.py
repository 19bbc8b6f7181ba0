"""Renders the bundled datasets into a data root as PNG files with a split JSON."""

from __future__ import annotations

import json
import os
import shutil
import threading
import uuid
from collections.abc import Iterable
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from proxyfda.experiments.lock import folder_lock
from proxyfda.utils.errors import BadValue
from proxyfda.utils.suggest import did_you_mean

from .atlas.datasets import PLATES
from .specs import ALL, Rendered

RENDERED: dict[str, Rendered] = {spec.folder: spec for spec in (*PLATES, *ALL)}
"""Folder name -> dataset, of all that is rendered."""
SPLIT_FILE = "split_bundled.json"
ORIGIN_FILE = "origin.json"
_one_thread = threading.Lock()  # the folder's lock is the process's


def is_complete(spec: Rendered, root: Path) -> bool:
    """Whether ``root`` holds this very dataset with all its files."""
    folder = root / spec.folder
    try:
        origin = json.loads((folder / ORIGIN_FILE).read_text())
        split = json.loads((folder / SPLIT_FILE).read_text())
        items = [item for part in ("train", "val", "test") for item in split[part]]
    except (OSError, ValueError, KeyError):
        return False
    if origin.get("fingerprint") != spec.fingerprint():
        return False
    return all((folder / "images" / path).is_file() for path, _, _ in items)


def render_dataset(spec: Rendered, root: Path, counts: dict[str, int] | None = None) -> str:
    """Render one dataset; returns ``"rendered"`` or ``"complete"`` (nothing done).

    The work happens in a temporary folder beside the target, which takes its name only when all is
    written: an interrupted call leaves no half dataset, and of two calls at once one wins and the
    other finds it complete. A folder that is incomplete or of another version is replaced, and what
    a killed call has left is removed.

    Raises OSError where ``root`` cannot be written.
    """
    if is_complete(spec, root):
        return "complete"
    with _one_thread, folder_lock(str(root), wait=True):
        # Whoever holds the lock finds only what killed calls have left.
        for left in root.glob(f".{spec.folder}.*"):
            shutil.rmtree(left, ignore_errors=True)
        if is_complete(spec, root):
            return "complete"
        _render(spec, root, counts or {})
    return "rendered"


def _render(spec: Rendered, root: Path, counts: dict[str, int]) -> None:
    target = root / spec.folder
    work = root / f".{spec.folder}.{uuid.uuid4().hex[:8]}"
    split: dict[str, list] = {}
    try:
        for part, default in spec.counts.items():
            images, labels = spec.draw(part, counts.get(part, default))
            pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
            split[part] = []
            for i, label in enumerate(tqdm(labels, desc=f"{spec.folder} {part}", leave=False)):
                classname = spec.classes[label][0]
                path = f"{classname.replace(' ', '_')}/{part}_{i:05d}.png"
                (work / "images" / path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels[i]).save(work / "images" / path)
                split[part].append([path, label, classname])
        (work / SPLIT_FILE).write_text(json.dumps(split, indent=4))
        origin = {"fingerprint": spec.fingerprint(), "template": spec.template}
        (work / ORIGIN_FILE).write_text(json.dumps(origin, indent=4))
        _move_into_place(spec, work, target, root)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _move_into_place(spec: Rendered, work: Path, target: Path, root: Path) -> None:
    for _ in range(3):
        try:
            os.rename(work, target)
            return
        except OSError:
            if not target.exists():
                raise
        if is_complete(spec, root):  # another process was quicker
            return
        aside = root / f".{spec.folder}.{uuid.uuid4().hex[:8]}"
        try:
            os.rename(target, aside)
        except FileNotFoundError:
            continue
        shutil.rmtree(aside, ignore_errors=True)
    raise OSError(f"{target} keeps changing; stop the other process that writes it and try again")


def render_all(root: str | os.PathLike, names: Iterable[str] | None = None, log=print) -> None:
    """Render what ``root`` does not hold yet, and say what was done.

    Args:
        root: data root; it is made where it does not exist.
        names: folders such as ``atlas_fruits``; by default all there are.
        log: takes one line for each dataset.

    Raises:
        BadValue: a name that is none of the bundled datasets'.
        OSError: ``root`` cannot be written.
    """
    names = list(RENDERED if names is None else names)
    for name in names:
        if name not in RENDERED:
            raise BadValue(
                f"there is no bundled dataset {name!r}{did_you_mean(name, RENDERED)}; use one of "
                f"{', '.join(RENDERED)}"
            )
    root = Path(root).expanduser().resolve()
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        log(f"{root / name}: {render_dataset(RENDERED[name], root)}")
