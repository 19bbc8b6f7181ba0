"""Find and read runs: the ``result.json`` of ours, the ``log.txt`` of other codebases.

Where a run lies says what it is. These are the layouts of the CoOp family, ours among them
(``<cfg>_<K>shots`` may be followed by one more folder, as CoOp's ``nctx16_cscFalse_ctpend``):

* base to new: ``{train_base,test_base,test_new}/<dataset>/shots_<K>/<trainer>/<cfg>/seed<S>``
* few-shot: ``<dataset>/<trainer>/<cfg>_<K>shots/seed<S>``
* transfer, that is cross-dataset and domain generalisation:
  ``evaluation/<trainer>/<cfg>_<K>shots/<dataset>/seed<S>``
* zero-shot on all classes: ``ZeroshotCLIP/<cfg>/<dataset>``
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from proxyfda.results.names import TITLES, dataset_key, is_zero_shot
from proxyfda.utils.errors import BadValue, NotFound

PROTOCOLS = ("base2new", "fewshot", "transfer", "zeroshot")
_TAIL = r"(?P<config>[^/]+)_(?P<shots>\d+)shots(?:/(?P<variant>[^/]+))?"
_LAYOUTS = {
    "base2new": r"(?P<folder>train|train_base|test_base|test_new)/(?P<dataset>[^/]+)"
    r"/shots_(?P<shots>-?\d+)/(?P<trainer>[^/]+)/(?P<config>[^/]+)/seed(?P<seed>-?\d+)",
    "transfer": rf"evaluation/(?P<trainer>[^/]+)/{_TAIL}/(?P<dataset>[^/]+)/seed(?P<seed>-?\d+)",
    "fewshot": rf"(?P<dataset>[^/]+)/(?P<trainer>[^/]+)/{_TAIL}/seed(?P<seed>-?\d+)",
    "zeroshot": r"(?P<trainer>ZeroshotCLIP\d*)/(?P<config>[^/]+)/(?P<dataset>[^/]+)"
    r"(?:/seed(?P<seed>-?\d+))?",
}
_PARTS = {"train_base": "base", "test_base": "base", "test_new": "new"}


@dataclass(frozen=True)
class Record:
    """One run: the accuracy of a trainer on a dataset with a seed.

    Attributes:
        part: ``base``, ``new`` or ``all``, the classes.
        dataset, trainer, config, shots, seed: from the folder names (config with the folder that
            may follow it); benchmarks under their config names.
        accuracy: in percent, ``None`` if the run is incomplete; unrounded unless from a log.
        fault: why it is incomplete, otherwise empty.
        title: the dataset's name according to the result, else its folder's.
        folder: where the run lies.
        protocol: ``base2new``, ``fewshot``, ``transfer``, ``zeroshot``; empty for results that no
            layout claims.
        label: the user's name for the output folder, often empty.
        log: whether it was read from a log, so that the accuracy is rounded.
        remark: what has to be said about it below a table, otherwise empty.
        details: as far as known ``cfg`` (flat, values as text), ``versions``, ``time``, ``engine``,
            and ``source``, the dataset that the model of a transfer run was trained on.
    """

    part: str
    dataset: str
    trainer: str
    config: str
    shots: int
    seed: int | None
    accuracy: float | None = None
    fault: str = ""
    title: str = ""
    folder: str = ""
    protocol: str = "base2new"
    label: str = ""
    log: bool = False
    remark: str = ""
    details: dict = field(default_factory=dict, compare=False, repr=False)

    @property
    def place(self):
        """What makes it another run than the next one, as a sortable tuple."""
        seed = -1 if self.seed is None else self.seed
        names = (self.protocol, self.trainer, self.config, self.label, self.log)
        return (*names, _free_of_shots(self), self.shots, self.dataset, seed, self.part)


def _free_of_shots(record):
    # Zero-shot results are the same for any number of shots, and sort before all others.
    return 0 if is_zero_shot(record.trainer) else record.shots


def collect(*outputs, split="test"):
    """All runs below one or several output folders, complete or not.

    Args:
        outputs: folders as given to ``OUTPUT`` of the scripts, or to ``--output-dir`` of another
            codebase's, or any folder in them; ``LABEL=FOLDER`` gives its rows a name.
        split: take results on this split (``test`` or ``val``) and no others.

    Returns:
        Sorted list of :class:`Record`. Of a trainer's config that has results only on another
        split there are none.

    Raises:
        FileNotFoundError: an output folder does not exist or holds no runs.
        ValueError: no complete run, or the same run in two of the folders.
    """
    found, elsewhere = {}, {}
    for output in outputs:
        for record, its_split in _settled(list(_runs(*_labelled(output)))):
            wanted = its_split in ("", split)
            place = record.place
            for other in (found.get(place), elsewhere.get(place, [None])[0]):
                if other is not None:
                    record = _one_of(other, record)
            if wanted or place in found:
                found[place] = record
            else:
                elsewhere[place] = (record, its_split)
    where = " and ".join(str(output) for output in outputs)
    runs = [record for record in found.values() if record.protocol]
    if not any(record.accuracy is not None for record in runs):
        if elsewhere:
            other = sorted({its_split for _, its_split in elsewhere.values()})[0]
            raise BadValue(
                f"{where} has no result on split {split!r}, but {len(elsewhere)} on others; give "
                f"--split {other}"
            )
        raise BadValue(
            f"none of the {len(runs)} runs in {where} has a valid result.json or a log.txt with a "
            f"result ({next((f'{r.folder}: {r.fault}' for r in runs), 'no run')}); run the same "
            "command again to finish them"
        )
    shown = {place[:6] for place, record in found.items() if record.accuracy is not None}
    for place, (record, its_split) in elsewhere.items():
        if place[:6] in shown:
            found[place] = replace(
                record, accuracy=None, fault=f"its result is on split {its_split}"
            )
    return [found[place] for place in sorted(found)]


def _settled(runs):
    """Give empty folders among the runs of another codebase to that one."""
    logs = {r.place[:4] for r, _ in runs if r.log}
    ours = {r.place[:4] for r, _ in runs if not r.log and not _empty(r)}
    foreign = logs - ours
    return [
        (replace(r, log=True) if _empty(r) and r.place[:4] in foreign else r, split)
        for r, split in runs
    ]


def _empty(record):
    files = ("result.json", "config.yaml", "log.txt")
    return not any(os.path.isfile(os.path.join(record.folder, name)) for name in files)


def _labelled(output):
    label, equals, folder = str(output).partition("=")
    if equals and not os.path.exists(str(output)):
        return folder, label
    return output, ""


def _one_of(first, second):
    """Of two records at the same place: base results may be in train_base and in test_base."""
    folders = [_match(r.folder)[1].get("folder") for r in (first, second)]
    if set(folders) != {"train_base", "test_base"}:
        raise BadValue(
            f"{second.folder} and {first.folder} are the same run; give one of the folders, or "
            "name the two outputs by LABEL=FOLDER"
        )
    trained, tested = (first, second) if folders[0] == "train_base" else (second, first)
    if trained.accuracy is None or tested.accuracy is None:
        return trained if tested.accuracy is None else tested
    if abs(trained.accuracy - tested.accuracy) > 0.1:
        return replace(
            trained,
            remark=f"{trained.folder} has base accuracy {trained.accuracy:.2f} and test_base has "
            f"{tested.accuracy:.2f}; the former is shown.",
        )
    return trained


def _match(folder):
    """Protocol and fields of a run's folder; ``("", {})`` where no layout fits."""
    path = os.path.abspath(folder).replace(os.sep, "/")
    for protocol, pattern in _LAYOUTS.items():
        match = re.search(f"(?:^|/){pattern}$", path)
        if match:
            return protocol, match.groupdict()
    return "", {}


def _runs(output, label):
    """Pairs of a record and the split of its result (empty if unknown)."""
    if not os.path.isdir(output):
        raise NotFound(f"{output} is no folder; give the output folder of the scripts")
    known = False
    for folder in _folders(str(output)):
        protocol, names = _match(folder)
        if names.get("folder") == "train":
            continue  # training of a validation sweep, which is evaluated in a folder of its own
        if not protocol:
            if any(os.path.isfile(os.path.join(folder, f)) for f in ("result.json", "log.txt")):
                yield (
                    Record("", folder, "", "", 0, None, folder=folder, protocol="", label=label),
                    "",
                )
            continue
        known = True
        yield _read(Path(folder), protocol, names, label)
    if not known:
        raise NotFound(
            f"{output} has no base2new/train_base or base2new/test_new, and no runs in another "
            "layout of the scripts; give the output folder of the scripts"
        )


def _folders(top):
    """Folders of runs: every ``seed<S>``, and every other one with a result of its own."""
    seen = set()
    for folder, below, files in os.walk(top, followlinks=True):
        below.sort()
        if os.path.realpath(folder) in seen:
            below.clear()
            continue
        seen.add(os.path.realpath(folder))
        name = os.path.basename(os.path.abspath(folder))
        if re.fullmatch(r"seed-?\d+", name) or {"result.json", "log.txt"} & set(files):
            below.clear()
            yield folder


def _read(folder, protocol, names, label):
    trainer, shots, seed = names["trainer"], names.get("shots"), names.get("seed")
    if is_zero_shot(trainer) and protocol != "base2new":
        protocol = "zeroshot"
    config = "/".join(filter(None, (names["config"], names.get("variant"))))
    dataset = dataset_key(names["dataset"])
    record = Record(
        part=_PARTS.get(names.get("folder"), "all"),
        dataset=dataset,
        trainer=trainer,
        config=config,
        shots=0 if protocol == "zeroshot" else int(shots),
        seed=None if seed is None else int(seed),
        title=TITLES.get(dataset, names["dataset"]),
        folder=str(folder),
        protocol=protocol,
        label=label,
    )
    if (folder / "result.json").is_file():
        return _read_result(folder / "result.json", record)
    # Our runs have a config.yaml, and end with a result.json: their logs do not count.
    if not (folder / "config.yaml").is_file():
        logs = sorted(folder.glob("log.txt*"))
        if logs:
            return _read_logs(logs, replace(record, log=True))
    return replace(record, fault="not finished"), ""


def _told(record, subsample, names):
    """Why a result is not of the run that its place says it is; empty if it is.

    A copied folder, or base results twice. Evaluations may have been made without sampling (-1
    shots), and those on other datasets say nothing of shots.
    """
    expected = {"subsample": record.part, "trainer": record.trainer}
    if record.protocol != "zeroshot":
        expected["seed"] = record.seed
    if record.protocol in ("base2new", "fewshot") and names.get("shots") != -1:
        expected["shots"] = record.shots
    found = {"subsample": subsample, **names}
    for name, value in expected.items():
        if found.get(name, value) not in (value, None):
            return f"is of another run, its {name} is {found[name]}"
    return ""


def _read_result(path, record):
    def incomplete(fault):
        return replace(record, fault=f"{path} {fault}"), ""

    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        accuracy = float(result["accuracy"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return incomplete("is unreadable")
    if not 0 <= accuracy <= 100:
        return incomplete(f"has accuracy {accuracy}")
    fault = _told(record, result.get("subsample"), result)
    if fault:
        return incomplete(fault)
    details = {name: result[name] for name in ("versions", "time", "engine") if result.get(name)}
    details["cfg"] = dict(_flat(result.get("cfg") or {}))
    if record.protocol == "transfer":
        details.update(_source(_text(path.with_name("log.txt"))))
    title = record.title if record.dataset in TITLES else result.get("dataset") or record.title
    record = replace(record, accuracy=accuracy, title=str(title), details=details)
    return record, str(result.get("split") or "")


def _flat(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, str(value)


def _read_logs(paths, record):
    """The result of log.txt, else of the newest of the later logs that has one."""
    read = {path: _read_log(path, record) for path in paths}
    order = sorted(paths, key=lambda path: (path.name == "log.txt", path.name), reverse=True)
    taken = next((path for path in order if read[path][0].accuracy is not None), order[0])
    record, split = read[taken]
    others = [
        f"{path.name} {read[path][0].accuracy:g}"
        for path in order
        if path != taken and read[path][0].accuracy not in (None, record.accuracy)
    ]
    if others:
        record = replace(
            record,
            remark=f"{record.folder} has several results: {taken.name} {record.accuracy:g}, which "
            f"is shown, and {', '.join(others)}.",
        )
    return record, split


def _read_log(path, record):
    def incomplete(fault):
        return replace(record, fault=f"{path} {fault}"), ""

    text = _text(path)
    head, sign, block = text.rpartition("=> result")
    found = re.search(r"^\* accuracy: ([\d.]+|nan)%", block, re.MULTILINE) if sign else None
    if not found:
        return incomplete("has no result")
    accuracy = float(found[1])
    if not 0 <= accuracy <= 100:
        return incomplete(f"has accuracy {accuracy}")
    cfg = _printed_config(head)
    names = {"trainer": cfg.get("TRAINER.NAME")}
    for name, key in (("seed", "SEED"), ("shots", "DATASET.NUM_SHOTS")):
        if re.fullmatch(r"-?\d+", cfg.get(key, "")):
            names[name] = int(cfg[key])
    fault = _told(record, cfg.get("DATASET.SUBSAMPLE_CLASSES"), names)
    if fault:
        return incomplete(fault)
    splits = re.findall(r"[Ee]valuat\w* on (?:the )?\*?(\w+)\*? set", head)
    details = {"cfg": cfg, **(_source(head) if record.protocol == "transfer" else {})}
    record = replace(record, accuracy=accuracy, details=details)
    return record, splits[-1] if splits else ""


def _text(path):
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _source(text):
    """``{"source": dataset}`` where a log names the checkpoint of a training folder."""
    loaded = re.findall(r'Loading weights to \S+ from "([^"]+)"', text)
    run = re.match(r"(.*/seed-?\d+)/", loaded[-1].replace("\\", "/")) if loaded else None
    dataset = _match(run[1])[1].get("dataset") if run else None
    return {"source": dataset_key(dataset)} if dataset else {}


def _printed_config(text):
    """The config that train.py prints at the start of a log, flat."""
    cfg, nodes = {}, []
    _, _, text = text.partition("** Config **")
    for line in text.splitlines()[2:]:
        match = re.fullmatch(r"((?:  )*)(\w+):(?: (.*))?", line)
        if not match:
            break
        nodes[len(match[1]) // 2 :] = [match[2]]
        if match[3] is not None:
            cfg[".".join(nodes)] = match[3]
    return cfg
