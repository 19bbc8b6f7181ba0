"""Models of transformers from a folder or the hub, whole and without running code from files."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from proxyfda.backbones.weights import first_line, mismatches
from proxyfda.utils.errors import BadModel, BadValue, NotFound, NotInstalled

__all__ = ["load"]

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


def load(place, classes):
    """Model in fp32, tokenizer and image processor.

    Weights come from safetensors or from ``torch.load(weights_only=True)``; no code of the folder
    is run.

    Args:
        place: folder as ``save_pretrained`` of transformers writes it or the hub has it
            (``config.json``, weights, files of tokenizer and image processor), or the name of a
            repository of the hub.
        classes: names of the classes of transformers that fit.

    Raises:
        NotInstalled: no transformers.
        NotFound: no such folder, files that it lacks, or a hub that cannot be reached.
        BadModel: a model of another class.
        BadValue: files that are damaged or do not fit each other.
    """
    try:
        import transformers
    except ImportError as error:
        raise NotInstalled(
            f"transformers cannot be imported ({error}); pip install 'proxyfda[transformers]'"
        ) from error
    folder = Path(place).expanduser()
    local = folder.is_dir()
    if not local and (len(folder.parts) > 2 or str(place).startswith((".", "~", "/"))):
        raise NotFound(
            f"the model's folder {place} does not exist; name one, or a model of the hub"
        )
    if local:
        _require(folder, [CONFIG], "config")
        _require(folder, WEIGHTS, "weights")
    place = str(folder) if local else str(place)
    architecture = _architecture(transformers, place, local, classes)
    with torch.random.fork_rng(devices=[]):  # missing weights are drawn
        model, report = _from_pretrained(
            place, local, "weights", getattr(transformers, architecture),
            output_loading_info=True, weights_only=True, dtype=torch.float32,
        )  # fmt: skip
    missing = sorted(report["missing_keys"])
    if missing:
        lacking = mismatches({key: torch.empty(0) for key in missing}, {})
        raise BadValue(
            f"the weights in {place} do not fit its {CONFIG} ({lacking}); fetch it again"
        )
    tokenizer = _from_pretrained(place, local, "tokenizer", transformers.AutoTokenizer)
    processor = _from_pretrained(place, local, "image processor", transformers.AutoImageProcessor)
    return model, tokenizer, processor


def _architecture(transformers, place, local, classes):
    """The class of transformers that a config names."""
    if local:
        try:
            json.loads((Path(place) / CONFIG).read_text(encoding="utf-8"))
        except ValueError as error:
            raise BadValue(
                f"{Path(place) / CONFIG} is no JSON ({first_line(error)}); fetch it again"
            ) from error
    config = _from_pretrained(place, local, "config", transformers.AutoConfig)
    named = list(config.architectures or [])
    for name in named:
        if name in classes:
            return name
    what = f"a {named[0]}" if named else f"a model of the type {config.model_type!r}"
    raise BadModel(f"{place} holds {what}; give one of {', '.join(classes)}")


def _from_pretrained(place, local, what, kind, **options):
    """``kind.from_pretrained``, with what goes wrong in one sentence."""
    try:
        return kind.from_pretrained(place, local_files_only=local, **options)
    except Exception as error:  # transformers, the hub's client, safetensors and torch have many
        if local:
            raise BadValue(
                f"the {what} in {place} is missing, damaged or does not fit "
                f"({first_line(error)}); fetch the folder again"
            ) from error
        raise NotFound(
            f"the {what} of {place} could not be fetched from the hub ({first_line(error)}); name "
            "a folder on this machine that has the model"
        ) from error


def _require(folder, names, what):
    if not any((folder / name).is_file() for name in names):
        raise NotFound(f"the model's folder {folder} has no {what} ({' or '.join(names)})")
