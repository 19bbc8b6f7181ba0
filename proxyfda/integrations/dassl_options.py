"""Configuration node ``TRAINER.PROXYFDA``: one table of options with defaults and checks."""

from __future__ import annotations

import functools
import sys
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Dict, Set, Tuple

from proxyfda.integrations.further import MIXTURES
from proxyfda.integrations.spaces import SPACES
from proxyfda.names import NONE
from proxyfda.regularisers import REGULARISERS, find, names
from proxyfda.utils.errors import BadModel, BadType, BadValue
from proxyfda.utils.rules import LARGEST_FLOAT
from proxyfda.utils.suggest import did_you_mean
from proxyfda.utils.templates import check_template

__all__ = ["PluginOptions", "check_node", "extend_cfg", "idle_options", "settle"]

NODE = "TRAINER.PROXYFDA"
TEXT_CLASSES = ("", "label", "tokens")
OWN_WEIGHT = -1.0
# Keys that were there before the regularisers had names -> what to use in their place.
_RENAMED = {
    "MODE": "the regulariser's name says what is trained; none leaves balanced batches alone",
    "FORM": "paper is fda, regress is rkd, standardised is fda with UNITS frozen, the others are "
    "called as before",
}


def _error(option: str, value: Any, remedy: str) -> BadValue:
    return BadValue(f"{NODE}.{option} is {value!r}; {remedy}")


def _own_weight(regulariser: str) -> float:
    return find(regulariser).default_weight if regulariser in REGULARISERS else 1.0


@dataclass(frozen=True)
class PluginOptions:
    """Validated options of the plugin; the yacs keys are these names in upper case.

    Besides, the node has the options of all regularisers, each under its own name in upper case
    (``K``, ``TAU``, ``PROXY_RATIO``, ...); only those of the regulariser in use are looked at.

    The paper (Huang et al., ICML 2025, arXiv 2505.24088) fixes m, n and the proxy ratio; everything
    else is not published and therefore ours.

    Attributes:
        enabled: ``False`` leaves the host trainer untouched, bit for bit.
        regulariser: what is trained, by name; ``none``: no term. Empty: what the trainer's name
            says, ``fda`` for ``FDA<Host>``, ``proxy_fda`` for ``ProxyFDA<Host>``, nothing for the
            host's own.
        spaces: names in :data:`proxyfda.integrations.spaces.SPACES`; their terms are summed. Empty:
            see :class:`~proxyfda.integrations.spaces.RegularisedSpaces`.
        weight: λ of the total loss L = L_task + λ R. 0 is the same as ``enabled=False``; -1 becomes
            the regulariser's own (``Regulariser.default_weight``).
        m, n: classes per batch and images per class; 0 keeps the host's own batches.
        mining: hard class mining, i.e. classes close in the frozen space share a batch.
        generator_lr: learning rate of what the regulariser learns itself, by Adam: the proxies'
            generator, learned constants.
        template: hand-written prompt of the text anchors, with ``{}`` for the class name. Empty:
            the dataset's own (see :func:`proxyfda.anchors.host_weights.find_template`).
        words: names beyond the classes in a step, where a space of words is used (ours, see
            :mod:`proxyfda.integrations.further`).
        vocabulary: where they come from: a name in ``proxyfda.vocabulary.VOCABULARIES`` or a file
            with one name per line. Empty: the dataset's attribute ``vocabulary``, else ``nouns``.
        mixed: mixtures of two images in a step, further images in every space of images (ours).
        mixture: how two images are mixed: ``halves``, ``patches`` or ``blend``.
        text_classes: which class a row of the text encoder is. Empty: rows are in label order,
            which the first steps check; ``label``: the same, unchecked; ``tokens``: by the class
            name in the tokens that the text encoder is given.
        settings: options of the regulariser in use, as they act: what stands for a choice by other
            options is that choice.
    """

    enabled: bool = True
    regulariser: str = ""
    spaces: Tuple[str, ...] = ()
    weight: float = OWN_WEIGHT
    m: int = 0
    n: int = 0
    mining: bool = False
    generator_lr: float = 1e-3
    template: str = ""
    words: int = 32
    vocabulary: str = ""
    mixed: int = 0
    mixture: str = "halves"
    text_classes: str = ""
    settings: Dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = [NONE, *names()]
        if self.regulariser and self.regulariser not in known:
            raise _error(
                "REGULARISER",
                self.regulariser,
                f"use one of {', '.join(known)}{did_you_mean(self.regulariser, known)}",
            )
        for space in self.spaces:
            if space not in SPACES:
                raise _error(
                    "SPACES",
                    self.spaces,
                    f"use any of {', '.join(SPACES)}{did_you_mean(space, SPACES)}",
                )
        if len(set(self.spaces)) != len(self.spaces):
            raise _error("SPACES", self.spaces, "name each space once")
        if self.weight == OWN_WEIGHT:
            object.__setattr__(self, "weight", _own_weight(self.regulariser))
        if not 0 <= self.weight <= LARGEST_FLOAT:
            raise _error(
                "WEIGHT",
                self.weight,
                "use a finite λ of at least 0 (0 is off), or -1 (the regulariser's own)",
            )
        if not 0 < self.generator_lr <= LARGEST_FLOAT:
            raise _error("GENERATOR_LR", self.generator_lr, "use a finite number above 0")
        if self.n < 0:
            raise _error("N", self.n, "use 0 (the host's own batches) or a number of images")
        if self.m < 0 or (self.m == 0) != (self.n == 0):
            raise _error(
                "M",
                self.m,
                f"with N {self.n}: both at least 1, or both 0 for the host's own batches",
            )
        if self.mining and self.m == 0:
            raise _error(
                "MINING", True, "mining chooses the classes of a batch: set M and N above 0"
            )
        if self.mixed < 0:
            raise _error("MIXED", self.mixed, "use 0 (none) or a number of images")
        if self.words < 1:
            raise _error("WORDS", self.words, "use at least 1; which SPACES have words decides")
        if self.mixture not in MIXTURES:
            raise _error(
                "MIXTURE",
                self.mixture,
                f"use one of {', '.join(MIXTURES)}{did_you_mean(self.mixture, MIXTURES)}",
            )
        if self.text_classes not in TEXT_CLASSES:
            raise _error(
                "TEXT_CLASSES",
                self.text_classes,
                "leave it empty or use one of label, tokens"
                f"{did_you_mean(self.text_classes, TEXT_CLASSES[1:])}",
            )
        if self.template:
            check_template(self.template, f"{NODE}.TEMPLATE")
        if self.has_term:
            self._check_regulariser()

    def _check_regulariser(self) -> None:
        regulariser = find(self.regulariser)
        if regulariser.kind == "weights" and self.spaces:
            raise _error(
                "SPACES", self.spaces, f"{self.regulariser} acts on weights: leave SPACES empty"
            )
        if regulariser.kind == "weights" and self.mixed:
            raise _error("MIXED", self.mixed, f"{self.regulariser} acts on weights: leave it 0")
        if self.mixed and self.spaces and not any(SPACES[s].uses("images") for s in self.spaces):
            raise _error(
                "MIXED", self.mixed, f"{self.spaces!r} have no images: add one of images to SPACES"
            )
        alone = [space for space, nodes in SPACES.items() if nodes.columns is None]
        if regulariser.kind == "features" and not set(self.spaces) <= set(alone):
            raise _error(
                "SPACES",
                self.spaces,
                f"{self.regulariser} compares each feature with its own frozen one: use any of "
                f"{', '.join(alone)}",
            )
        for space in self.spaces if self.has_words else ():
            least = 1
            if regulariser.kind == "relations":
                least = {"words": 4, "image_words": 2}.get(space, 1)
            if self.words < least:
                raise _error(
                    "WORDS",
                    self.words,
                    f"{self.regulariser} in the space {space} needs at least {least}",
                )
        made = _make_options(regulariser, self.settings)
        object.__setattr__(self, "settings", {f.name: getattr(made, f.name) for f in fields(made)})

    @property
    def has_term(self) -> bool:
        """Whether a regulariser acts."""
        return self.enabled and self.weight > 0 and self.regulariser not in ("", NONE)

    @property
    def has_words(self) -> bool:
        """Whether a space asks for names beyond the classes."""
        return any(SPACES[space].uses("words", "texts") for space in self.spaces)

    @property
    def keeps_state(self) -> bool:
        """Whether the regulariser learns something that a resumed run needs."""
        return self.has_term and find(self.regulariser).make_options(**self.settings).keeps_state

    @property
    def has_batches(self) -> bool:
        """Whether the host's batches are replaced by balanced ones."""
        chosen = self.has_term or self.regulariser == NONE
        return self.enabled and chosen and self.m > 0

    @classmethod
    def from_cfg(cls, cfg: Any, trained: str = "") -> PluginOptions:
        """Read and check ``cfg.TRAINER.PROXYFDA``.

        Args:
            trained: the regulariser that the trainer's name says, or empty.

        Raises:
            BadModel: if the node is missing (``extend_cfg`` was not called).
            BadValue: for a value or combination that cannot work, naming the option.
        """
        if "PROXYFDA" not in cfg.TRAINER:
            raise BadModel(
                f"the config has no node {NODE}; call proxyfda.extend_cfg(cfg) in your extend_cfg"
            )
        node = cfg.TRAINER.PROXYFDA
        values = {f.name: node[f.name.upper()] for f in fields(cls) if f.name != "settings"}
        spaces = values["spaces"]
        values["spaces"] = (spaces,) if isinstance(spaces, str) and spaces else tuple(spaces)
        chosen = values["regulariser"]
        if trained and chosen not in ("", trained):
            raise _error(
                "REGULARISER",
                chosen,
                f"but the trainer's name says {trained}: give the name of the host to --trainer, "
                "or leave REGULARISER empty",
            )
        values["regulariser"] = trained or chosen
        if values["regulariser"] in REGULARISERS:
            options = fields(find(values["regulariser"]).options_class)
            values["settings"] = {f.name: node[f.name.upper()] for f in options}
        return cls(**values)


def _make_options(regulariser: Any, settings: Dict[str, Any]) -> Any:
    """The options of a regulariser; its complaints name them as the config does."""
    try:
        return regulariser.make_options(**settings)
    except (BadValue, BadType) as error:
        option, _, rest = str(error).partition(" ")
        raise BadValue(f"{NODE}.{option.upper()} {rest}") from None


def check_node(cfg: Any) -> None:
    """Refuse values of ``cfg.TRAINER.PROXYFDA`` that no regulariser can have, in use or not.

    What only goes wrong together with another option is left to the regulariser in use.

    Raises:
        BadValue: naming the option.
    """
    node = cfg.TRAINER.PROXYFDA
    for regulariser in REGULARISERS.values():
        names = [option.name for option in fields(regulariser.options_class)]
        settings = {name: node[name.upper()] for name in names}
        try:
            _make_options(regulariser, settings)
        except BadValue:
            for name, value in settings.items():
                _make_options(regulariser, {name: value})


def settle(cfg: Any, trained: str = "") -> None:
    """Put what acts in the place of ``WEIGHT -1`` and empty ``CONSTANTS``, which stand for it, so
    that the config that is kept of a run says it.

    Args:
        trained: as for :meth:`PluginOptions.from_cfg`.
    """
    node = cfg.TRAINER.PROXYFDA
    name = trained or node.REGULARISER
    if node.WEIGHT == OWN_WEIGHT:
        node.WEIGHT = _own_weight(name)
    if name not in REGULARISERS:
        return
    names = [option.name for option in fields(find(name).options_class)]
    try:
        made = find(name).make_options(**{name: node[name.upper()] for name in names})
    except BadValue:
        return  # whoever builds the regulariser says it
    for option in names:
        node[option.upper()] = getattr(made, option)


def idle_options(regulariser: str) -> Set[str]:
    """Keys of the node that make no difference, since they are other regularisers' options."""
    own = fields(find(regulariser).options_class) if regulariser in REGULARISERS else ()
    every = {f.name for kind in REGULARISERS.values() for f in fields(kind.options_class)}
    return {name.upper() for name in every - {f.name for f in own}}


def node_defaults() -> Dict[str, Any]:
    """Keys and default values of the node."""
    defaults = {
        f.name.upper(): f.default for f in fields(PluginOptions) if f.default is not MISSING
    }
    for regulariser in REGULARISERS.values():
        for option in fields(regulariser.options_class):
            defaults[option.name.upper()] = option.default
    return defaults


def _take_whole_numbers() -> None:
    """Let yacs take ``WEIGHT 3`` and ``SPACES text,cross`` for the options of our node alone.

    yacs refuses an int where the default is a float, and has no hook for that but the function
    which checks types.
    """
    yacs = sys.modules.get("yacs.config")
    check = getattr(yacs, "_check_and_coerce_cfg_value_type", None)
    if check is None or hasattr(check, "proxyfda"):
        return

    @functools.wraps(check)
    def lenient(replacement: Any, original: Any, key: str, full_key: str) -> Any:
        if "PROXYFDA." in full_key:
            if isinstance(original, float) and type(replacement) is int:
                replacement = float(replacement)
            elif isinstance(original, tuple) and isinstance(replacement, str):
                replacement = tuple(part.strip() for part in replacement.split(",") if part)
        return check(replacement, original, key, full_key)

    lenient.proxyfda = True  # type: ignore[attr-defined]
    yacs._check_and_coerce_cfg_value_type = lenient  # type: ignore[union-attr]


def extend_cfg(cfg: Any) -> None:
    """Add ``TRAINER.PROXYFDA`` with the options of the plugin and of all regularisers.

    Call it inside your own ``extend_cfg``; a second call changes nothing.
    """
    _take_whole_numbers()
    if "PROXYFDA" in cfg.TRAINER:
        return
    node = type(cfg)()
    for key, default in node_defaults().items():
        node[key] = default
    cfg.TRAINER.PROXYFDA = node
    if hasattr(cfg, "register_renamed_key"):
        for key, meaning in _RENAMED.items():
            cfg.register_renamed_key(f"{NODE}.{key}", f"{NODE}.REGULARISER", meaning)
