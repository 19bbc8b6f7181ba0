"""Find and read runs: the ``result.json`` of ours, the ``log.txt`` of other codebases.

Where a run lies says what it is (:mod:`proxyfda.experiments.layout`). What it was trained on, with
which backbone and regulariser, is read from its ``result.json``; logs are read of other codebases'
runs alone.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from proxyfda.benchmarks import TITLES, dataset_key
from proxyfda.experiments import layout
from proxyfda.experiments import record as results_file
from proxyfda.names import is_zero_shot
from proxyfda.utils.errors import BadValue, NotFound
from proxyfda.utils.nested import flat


@dataclass(frozen=True)
class Record:
    """A run: the accuracy of a trainer on a dataset with a seed.

    Attributes:
        part: ``base``, ``new`` or ``all``, the classes.
        dataset, trainer, config, shots, seed: from the folder names (config with the folder that
            may follow it); benchmarks under their config names, and the trainer is the run's name,
            such as ``CoOp+rkd``.
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
            ``backbone`` (pair of its name and weights), ``regulariser`` (dict), ``per_class``
            (list), and ``source``, the dataset that the model of a transfer run was trained on.
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


def collect(*outputs, split="test", required=True):
    """All runs below one or several output folders, complete or not.

    Args:
        outputs: folders as given to ``OUTPUT`` of the scripts, or to ``--output-dir`` of another
            codebase's, or any folder in them; ``LABEL=FOLDER`` gives its rows a name.
        split: take results on this split (``test`` or ``val``) and no others.
        required: whether it is an error that there are none; otherwise all unfinished ones, if any.

    Returns:
        Sorted list of :class:`Record`. Of a trainer's config that has results only on another
        split there are none.

    Raises:
        FileNotFoundError: an output folder does not exist or holds no runs.
        ValueError: no complete run, the same run in two of the folders, or a label twice.
    """
    found, elsewhere = {}, {}
    for folder, label in labelled_folders(outputs):
        for record, its_split in _with_owner(list(_runs(folder, label, required))):
            wanted = its_split in ("", split)
            place = record.place
            for other in (found.get(place), elsewhere.get(place, [None])[0]):
                if other is not None:
                    record = _choose(other, record)
            if wanted or place in found:
                found[place] = record
            else:
                elsewhere[place] = (record, its_split)
    where = " and ".join(str(output) for output in outputs)
    runs = [record for record in found.values() if record.protocol]
    if required and not any(record.accuracy is not None for record in runs):
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


def _with_owner(runs):
    """The same runs, with empty folders counted as another codebase's among runs of it."""
    logs = {r.place[:4] for r, _ in runs if r.log}
    ours = {r.place[:4] for r, _ in runs if not r.log and not _empty(r)}
    foreign = logs - ours
    return [
        (replace(r, log=True) if _empty(r) and r.place[:4] in foreign else r, split)
        for r, split in runs
    ]


def _empty(record):
    return not layout.has_any(record.folder)


def labelled_folders(outputs):
    """Pairs of a folder and its label of several ``[LABEL=]FOLDER``.

    Raises:
        BadValue: two of them have the same label.
        NotFound: one does not exist.
    """
    pairs = [labelled(output) for output in outputs]
    folders = {}
    for folder, label in pairs:
        if label and label in folders:
            raise BadValue(
                f"the label {label!r} is given to {folders[label]} and to {folder}; give each "
                "output a label of its own"
            )
        folders[label] = folder
        if not os.path.isdir(folder):
            raise NotFound(f"{folder} is no folder; give the output folder of the scripts")
    return pairs


def labelled(output):
    """The folder of ``[LABEL=]FOLDER`` and its label, which is often empty."""
    label, equals, folder = str(output).partition("=")
    if equals and not os.path.exists(str(output)):
        return folder, label
    return output, ""


def _choose(first, second):
    """The one to show of two records of the same run: base results may lie in two folders.

    Raises:
        BadValue: any other run that is there twice.
    """
    parts = [layout.parse(r.folder).part for r in (first, second)]
    if set(parts) != {layout.TRAIN_BASE, layout.TEST_BASE}:
        raise same_run(second, first)
    trained, tested = (first, second) if parts[0] == layout.TRAIN_BASE else (second, first)
    if trained.accuracy is None or tested.accuracy is None:
        return trained if tested.accuracy is None else tested
    if abs(trained.accuracy - tested.accuracy) > 0.1:
        return replace(
            trained,
            remark=f"{trained.folder} has base accuracy {trained.accuracy:.2f} and test_base has "
            f"{tested.accuracy:.2f}; the former is shown.",
        )
    return trained


def same_run(first, second):
    """The error of a run that is there twice."""
    return BadValue(
        f"{first.folder} and {second.folder} are the same run; give one of the folders, or name "
        "the two outputs by LABEL=FOLDER"
    )


def _runs(output, label, required):
    """Pairs of a record and the split of its result (empty if unknown)."""
    known = False
    for folder in layout.run_folders(str(output)):
        place = layout.parse(folder)
        if place is None:
            if layout.has_any(folder, (layout.RESULT, layout.LOG)):
                unknown = Record("", folder, "", "", 0, None, folder=folder, protocol="")
                yield replace(unknown, label=label), ""
            continue
        if place.protocol in ("select", "finetune", "continual", *layout.IMAGE_TO_TEXT):
            continue  # these are read by selection, probes and image_to_text
        if place.part == layout.TRAIN:
            continue  # training of a validation sweep, which is evaluated in a folder of its own
        known = True
        yield _read(Path(folder), place, label)
    if required and not known:
        raise NotFound(
            f"{output} has no base2new/train_base or base2new/test_new, and no runs in another "
            "layout of the scripts; give the output folder of the scripts"
        )


def _read(folder, place, label):
    zero_shot = is_zero_shot(place.name) and place.protocol != "base2new"
    dataset = dataset_key(place.dataset)
    record = Record(
        part=place.classes,
        dataset=dataset,
        trainer=place.name,
        config=place.config,
        shots=0 if zero_shot else place.shots,
        seed=place.seed,
        title=TITLES.get(dataset, place.dataset),
        folder=str(folder),
        protocol="zeroshot" if zero_shot else place.protocol,
        label=label,
    )
    if (folder / layout.RESULT).is_file():
        return _read_result(record)
    # Our runs have a config.yaml, and end with a result.json: their logs do not count.
    if not (folder / layout.CONFIG).is_file():
        logs = sorted(folder.glob(f"{layout.LOG}*"))
        if logs:
            return _read_logs(logs, replace(record, log=True))
    return replace(record, fault="not finished"), ""


def mismatch(record, found):
    """Why a result is not of the run that its place says it is; empty if it is.

    A copied folder, or base results twice. Evaluations may have been made without sampling (-1
    shots), and those on other datasets say nothing of shots.

    Args:
        found: what the result says: ``trainer`` (the run's name), ``subsample``, ``seed``,
            ``shots``, ``protocol``; what it says nothing of is missing or ``None``.
    """
    expected = {"subsample": record.part, "trainer": record.trainer}
    if record.protocol != "zeroshot":  # wherever it was run, and with whatever seed
        expected.update(protocol=record.protocol, seed=record.seed)
    if record.protocol in ("base2new", "fewshot") and found.get("shots") != -1:
        expected["shots"] = record.shots
    for name, value in expected.items():
        if found.get(name) not in (value, None):
            return f"is of another run, its {name} is {found[name]}"
    return ""


def _read_result(record):
    path = os.path.join(record.folder, layout.RESULT)
    try:
        result = results_file.read(record.folder)
    except (BadValue, NotFound) as error:
        return replace(record, fault=str(error)), ""
    names = ("protocol", "subsample", "seed", "shots")
    found = {"trainer": result.get("name") or result.get("trainer")}
    fault = mismatch(record, {**found, **{name: result.get(name) for name in names}})
    if fault:
        return replace(record, fault=f"{path} {fault}"), ""
    details = details_of(result)
    if record.protocol == "transfer" and result.get("source"):
        details["source"] = result["source"]
    title = record.title if record.dataset in TITLES else result.get("dataset") or record.title
    record = replace(record, accuracy=float(result["accuracy"]), title=str(title), details=details)
    return record, str(result.get("split") or "")


def details_of(result):
    """:attr:`Record.details` from the content of a ``result.json``, but for the source."""
    names = ("versions", "time", "engine", "regulariser", "per_class")
    details = {name: result[name] for name in names if result.get(name)}
    details["cfg"] = {key: str(value) for key, value in flat(result.get("cfg") or {})}
    backbone = result.get("backbone") or {}
    details["backbone"] = (
        _backbone_of(details["cfg"])
        if not backbone
        else (
            backbone["name"],
            *(str(backbone[key]) for key in ("weights", "bytes") if key in backbone),
        )
    )
    return details


def _backbone_of(cfg, weights=""):
    """Name and weights of the backbone in a flat config; ``None`` where it does not say."""
    if "MODEL.BACKBONE.NAME" not in cfg:
        return None
    return cfg["MODEL.BACKBONE.NAME"], cfg.get("MODEL.BACKBONE.WEIGHTS", weights)


def _read_logs(paths, record):
    """The result of log.txt, else of the newest of the later logs that has one."""
    read = {path: _read_log(path, record) for path in paths}
    order = sorted(paths, key=lambda path: (path.name == layout.LOG, path.name), reverse=True)
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
    cfg = printed_config(head)
    said = {"trainer": cfg.get("TRAINER.NAME"), "subsample": cfg.get("DATASET.SUBSAMPLE_CLASSES")}
    for name, key in (("seed", "SEED"), ("shots", "DATASET.NUM_SHOTS")):
        if re.fullmatch(r"-?\d+", cfg.get(key, "")):
            said[name] = int(cfg[key])
    fault = mismatch(record, said)
    if fault:
        return incomplete(fault)
    splits = re.findall(r"[Ee]valuat\w* on (?:the )?\*?(\w+)\*? set", head)
    # The family's other codebases know OpenAI's weights alone.
    details = {"cfg": cfg, "backbone": _backbone_of(cfg, "openai")}
    details.update(_source(head) if record.protocol == "transfer" else {})
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
    folder = layout.run_folder_of(loaded[-1]) if loaded else ""
    place = layout.parse(folder) if folder else None
    return {"source": dataset_key(place.dataset)} if place else {}


def printed_config(text):
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
