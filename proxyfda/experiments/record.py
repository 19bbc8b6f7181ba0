"""The content of ``result.json``: one schema, checked where a run writes it and where it is read.

Standard library only, so that results can be read without torch.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, Callable, Dict

from proxyfda.experiments.layout import PROTOCOLS, RESULT
from proxyfda.utils.errors import BadValue, NotFound
from proxyfda.utils.files import write_json

FREE = (
    "OUTPUT_DIR",
    "RESUME",
    "VERBOSE",
    "DATASET.ROOT",
    "DATALOADER.NUM_WORKERS",
    "TRAIN.PRINT_FREQ",
    "MODEL.BACKBONE.GRAD_CHECKPOINTING",
    "TRAINER.COOP.GRID_MEMORY",
    "PROBE.CACHE",
    "PROBE.CACHE_GB",
    "LOG.WRITERS",
    "LOG.WANDB_PROJECT",
)
"""Options that change nothing that is computed: runs that differ in them alone are the same run."""
SCHEMA = 1
"""Number of the schema, raised when the meaning of a field changes."""


def _is_whole(value: Any) -> bool:
    return type(value) is int


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    # A whole number may be too large to be made a float.
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _is_percent(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 100


def _is(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds)


def _is_backbone(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(name), str) for name in ("name", "weights")
    )


def _are_seconds(value: Any) -> bool:
    return isinstance(value, dict) and all(
        _is_number(part) and part >= 0 for part in value.values()
    )


def _is_regulariser(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict)
        and isinstance(value.get("name"), str)
        and _is_number(value.get("weight", 0))
        and isinstance(value.get("options", {}), dict)
    )


_COUNTS = ("classes", "images")


def _is_probe(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and _is_percent(found.get("linear_probe"))
        and (found.get("zero_shot") is None or _is_percent(found["zero_shot"]))
        and type(found.get("strength")) in (int, float)
        and all(_is_whole(found.get(name)) and found[name] > 0 for name in _COUNTS)
    )


def _are_probes(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(map(_is_probe, value.values()))


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _is_class(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and isinstance(found.get("name"), str)
        and _is_whole(found.get("images"))
        and found["images"] > 0
        and _is_percent(found.get("accuracy"))
        and isinstance(found.get("taken_for"), dict)
        and all(_is_whole(count) and count > 0 for count in found["taken_for"].values())
        and sum(found["taken_for"].values()) <= found["images"]
    )


def _are_classes(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_class, value))


def _is_score(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and _is_number(found.get("score"))
        and found["score"] >= 0
        and _is_percent(found.get("exact"))
        and _is_whole(found.get("examples"))
        and found["examples"] > 0
    )


def _are_scores(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(map(_is_score, value.values()))


_OPTIONAL = type(None)
# Field -> what its value must be. All are there in what we write.
FIELDS: Dict[str, Callable[[Any], bool]] = {
    # the result
    "accuracy": _is_percent,  # in percent, not rounded
    "split": _is(str, _OPTIONAL),  # val or test
    # what was run
    "protocol": lambda value: value in (None, *PROTOCOLS),
    "dataset": _is(str),  # the reader's name of what was tested on
    "source": _is(str, _OPTIONAL),  # what was trained on; null: nothing, or it is not known
    "target": _is(str),  # what was tested on, named as its config file is
    "name": _is(str),  # of the run: trainer and regulariser
    "trainer": _is(str),
    "regulariser": _is_regulariser,  # name, weight, spaces, options, ...; null: none acts
    "backbone": _is_backbone,  # name and weights
    "config": _is(str),
    "shots": _is_whole,
    "seed": _is(int, _OPTIONAL),
    "subsample": _is(str, _OPTIONAL),  # all, base or new classes; seen@1, ...: of base
    "epoch": _is(int, _OPTIONAL),
    # with what
    "engine": _is(str),
    "versions": _is(dict),
    "time": _are_seconds,  # seconds of "build" and "run"
    "cfg": _is(dict),  # the whole config
}
# Fields of runs of one kind.
MORE: Dict[str, Callable[[Any], bool]] = {
    # dataset -> linear_probe and zero_shot (or null) in percent, strength, classes and images
    "probes": _are_probes,
    # of each class its name, images, accuracy in percent, and taken_for: images by wrong class
    "per_class": _are_classes,
    # family -> score (CIDEr times 100, or VQA accuracy in percent), exact (percent of texts that
    # are one of the references word for word) and the number of examples
    "scores": _are_scores,
    "alpha": _is_share,  # of the tuned weights, the rest being the pre-trained ones
    "correct": _is_count,  # images
    "total": _is_count,
}


def check(content: Any) -> None:
    """Check the content of a ``result.json``.

    Records without a number of their schema are from before there was one: they need an accuracy,
    and what else they have must be as in :data:`FIELDS` and :data:`MORE`. Other fields are free.

    Raises:
        BadValue: what is wrong, as the end of a sentence that begins with the file.
    """
    if not isinstance(content, dict):
        raise BadValue("is unreadable: it is no JSON object")
    schema = content.get("schema", 0)
    if type(schema) is not int or schema > SCHEMA:
        raise BadValue(
            f"has schema {schema!r}, and this version of proxyfda reads up to {SCHEMA}; update it"
        )
    for field in FIELDS if schema else ("accuracy",):
        if field not in content:
            raise BadValue(f"has no {field}")
    for field, fits in {**FIELDS, **MORE}.items():
        if field in content and not fits(content[field]):
            raise BadValue(f"has {_unfit(field, content[field])}")


def _unfit(field: str, value: Any) -> str:
    """What of a field does not fit: of several probes or classes the first one."""
    if field == "probes" and isinstance(value, dict):
        for dataset, found in value.items():
            if not _is_probe(found):
                return f"the probe {found} of {dataset}"
    if field == "per_class" and isinstance(value, list):
        return f"the class {next(found for found in value if not _is_class(found))} in {field}"
    return f"{field} {value}"


def write(folder: str, content: Dict[str, Any]) -> Dict[str, Any]:
    """Write ``result.json`` in a run's folder, with the number of the schema; returns its content.

    Raises:
        BadValue: the content does not follow the schema; nothing is written.
    """
    path = os.path.join(folder, RESULT)
    content = {"schema": SCHEMA, **content}
    try:
        check(content)
    except BadValue as error:
        raise BadValue(f"{path} cannot be written, since it {error}") from None
    write_json(path, content, indent=2)
    return content


def read(folder: str) -> Dict[str, Any]:
    """The content of ``result.json`` in a run's folder.

    Raises:
        NotFound: there is none.
        BadValue: it is damaged, or does not follow the schema.
    """
    path = os.path.join(folder, RESULT)
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except FileNotFoundError:
        raise NotFound(f"{path} does not exist; the run is not finished") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadValue(f"{path} is unreadable: {error}") from None
    try:
        check(content)
    except BadValue as error:
        raise BadValue(f"{path} {error}") from None
    return content
