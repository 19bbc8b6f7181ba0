"""Models of transformers from a folder or the hub, whole and without running code from files."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from proxyfda.backbones.weights import (
    cached,
    first_line,
    mismatches,
    quiet_transformers,
    unreachable,
)
from proxyfda.utils.errors import BadModel, BadValue, NotFound, NotInstalled

__all__ = ["load", "named_class", "the_library"]

CONFIG = "config.json"
WEIGHTS = tuple(
    name + index
    for name in ("model.safetensors", "pytorch_model.bin")
    for index in ("", ".index.json")
)


def load(place, classes):
    """Model in fp32, tokenizer and image processor.

    Weights come from safetensors, or from a file of ``torch.save`` of which tensors alone are read;
    no code of the folder is run.

    Args:
        place: folder as ``save_pretrained`` of transformers writes it and the hub has it
            (``config.json``, weights, files of tokenizer and image processor), or the name of a
            repository of the hub.
        classes: names of the classes of transformers that fit.

    Raises:
        NotInstalled: no transformers.
        NotFound: no such folder, files that it lacks, or a hub that cannot be reached.
        BadModel: a model of another class.
        BadValue: files that are damaged or do not fit each other.
    """
    transformers, source = the_library(), _Source(place)
    kind = getattr(transformers, _architecture(source, classes))
    with torch.random.fork_rng(devices=[]):  # missing weights are drawn
        model, report = source.read("weights", kind, output_loading_info=True, weights_only=True)
    missing = sorted(report["missing_keys"])
    if missing:
        lacking = mismatches({key: torch.empty(0) for key in missing}, {})
        raise BadValue(
            f"the weights in {source.name} do not fit its {CONFIG} ({lacking}); fetch it again"
        )
    tokenizer = source.read("tokenizer", transformers.AutoTokenizer)
    return model.float(), tokenizer, source.read("image processor", transformers.AutoImageProcessor)


def named_class(place, classes):
    """The one of ``classes`` that a model is of, by its config alone; see :func:`load`."""
    return _architecture(_Source(place), classes)


def the_library():
    """transformers.

    Raises:
        NotInstalled: it cannot be imported.
    """
    try:
        import transformers
    except ImportError as error:
        raise NotInstalled(
            f"transformers cannot be imported ({error}); pip install 'proxyfda[captioning]'"
        ) from error
    return transformers


class _Source:
    """Where a model comes from.

    Attributes:
        name: the folder or the repository.
        folder: the folder, None for a repository.
        local: whether the network is left alone: all is in the folder or was fetched before.
    """

    def __init__(self, place):
        folder = Path(place).expanduser()
        self.folder = folder if folder.is_dir() else None
        self.name = str(folder if self.folder else place)
        if self.folder:
            for names in ((CONFIG,), WEIGHTS):
                if not any((folder / name).is_file() for name in names):
                    raise NotFound(f"the model's folder {folder} has no {' or '.join(names)}")
        elif len(folder.parts) > 2 or str(place).startswith((".", "~", "/")):
            raise NotFound(
                f"the model's folder {place} does not exist; name one, or a repository of the hub"
            )
        self.local = bool(self.folder or cached(self.name, [CONFIG]))
        if not self.local:
            import huggingface_hub

            problem = unreachable(huggingface_hub.constants.ENDPOINT)
            if problem:
                raise self._not_fetched("model", problem)

    def read(self, what, kind, **options):
        """``kind.from_pretrained``, with what goes wrong in one sentence."""
        try:
            with quiet_transformers():
                return kind.from_pretrained(self.name, local_files_only=self.local, **options)
        except Exception as error:  # transformers, the hub's client, safetensors, torch: many kinds
            if not self.folder:
                raise self._not_fetched(what, _first_sentence(error)) from error
            raise BadValue(
                f"the {what} in {self.name} cannot be read ({_first_sentence(error)}); fetch the "
                "folder again"
            ) from error

    def _not_fetched(self, what, problem):
        return NotFound(
            f"the {what} of {self.name} could not be fetched from the hub ({problem}); name a "
            "folder of this machine that has the model"
        )


def _first_sentence(error):
    """Without the advice that libraries add, which is for their own callers."""
    return first_line(error).split(". ")[0]


def _architecture(source, classes):
    """The class of transformers that a config names."""
    if source.folder:
        try:
            json.loads((source.folder / CONFIG).read_text(encoding="utf-8"))
        except ValueError as error:
            raise BadValue(
                f"{source.folder / CONFIG} is no JSON ({first_line(error)}); fetch it again"
            ) from error
    config = source.read("config", the_library().AutoConfig)
    named = list(config.architectures or [])
    for name in named:
        if name in classes:
            return name
    what = f"a {named[0]}" if named else f"a model of the type {config.model_type!r}"
    raise BadModel(f"{source.name} holds {what}; give one of {', '.join(classes)}")
