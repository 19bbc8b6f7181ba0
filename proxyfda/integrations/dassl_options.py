"""Configuration node ``TRAINER.PROXYFDA``: one table of options with defaults and checks."""

from __future__ import annotations

import difflib
import functools
import math
import sys
from dataclasses import dataclass, fields
from typing import Any, Tuple

from proxyfda.utils.errors import BadModel, BadValue

SPACES = ("image", "text", "cross")
MODES = ("fda", "proxy_fda", "pointwise", "sampler")


def _suggest(value: Any, known: Tuple[str, ...]) -> str:
    close = difflib.get_close_matches(str(value), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _error(option: str, value: Any, remedy: str) -> ValueError:
    return BadValue(f"TRAINER.PROXYFDA.{option} is {value!r}; {remedy}")


@dataclass(frozen=True)
class ProxyFDAConfig:
    """Validated options of the Proxy-FDA term; the yacs keys are these names in upper case.

    The paper (Huang et al., ICML 2025, arXiv 2505.24088) fixes m, n and the proxy ratio; everything
    else is not published and therefore ours. The defaults are those that ``docs/ablation.md``
    supports; ``configs/trainers/ProxyFDA*/paper_*.yaml`` holds the literal form.

    Attributes:
        enabled: ``False`` leaves the host trainer untouched, bit for bit.
        mode: ``"fda"``, ``"proxy_fda"``, or one of the two baselines to compare with:
            ``"pointwise"`` (mean of 1 - cos to the frozen features) and ``"sampler"``
            (class-balanced batches, no term). Empty: what the trainer's class says.
        spaces: any of ``"image"``, ``"text"``, ``"cross"``; their terms are summed. Empty:
            ``image`` where the image encoder is tuned, otherwise ``text`` and ``cross``.
        weight: λ of the total loss L = L_task + λ L_FDA. 0 is the same as ``enabled=False``.
        k: neighbours per anchor, clamped to what a batch allows.
        form: form of the loss, see :func:`proxyfda.fda_loss`, which also says what each uses of
        tau, bias: temperature and bias b of Eq. 2,
        slope, temperature: steepness and softmax temperature of our forms.
        m, n: classes per batch and images per class (paper: 16 and 4); both 0 keeps the host's
            own batches.
        mining: hard class mining, i.e. classes close in the frozen space share a batch.
        proxy_ratio: proxies per set member (s of the paper).
        alpha: weight of the variance term in L_proxy.
        generator_lr: learning rate of the proxy generator (Adam).
        template: hand-written prompt of the text anchors, with ``{}`` for the class name. Empty:
            the dataset's own (see :func:`proxyfda.anchors.host_weights.find_template`).
    """

    enabled: bool = True
    mode: str = ""
    spaces: Tuple[str, ...] = ()
    weight: float = 1.0
    k: int = 8
    form: str = "regress"
    tau: float = 0.1
    bias: float = 10.0
    slope: float = 2.0
    temperature: float = 0.5
    m: int = 0
    n: int = 0
    mining: bool = False
    proxy_ratio: float = 0.4
    alpha: float = 1.0
    generator_lr: float = 1e-3
    template: str = ""

    def __post_init__(self) -> None:
        from proxyfda.neighbours.graph import FORMS

        if self.mode and self.mode not in MODES:
            raise _error(
                "MODE", self.mode, f"use one of {', '.join(MODES)}" + _suggest(self.mode, MODES)
            )
        for space in self.spaces:
            if space not in SPACES:
                raise _error(
                    "SPACES",
                    self.spaces,
                    f"use any of {', '.join(SPACES)}" + _suggest(space, SPACES),
                )
        if len(set(self.spaces)) != len(self.spaces):
            raise _error("SPACES", self.spaces, "name each space once")
        if self.form not in FORMS:
            forms = tuple(FORMS)
            raise _error(
                "FORM", self.form, f"use one of {', '.join(forms)}" + _suggest(self.form, forms)
            )
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise _error(
                "WEIGHT", self.weight, "λ must be a finite number of at least 0 (0 is off)"
            )
        if self.k < 1:
            raise _error("K", self.k, "a neighbourhood needs at least 1 neighbour")
        for option in ("tau", "slope", "temperature", "generator_lr"):
            value = getattr(self, option)
            if not (math.isfinite(value) and value > 0):
                raise _error(option.upper(), value, "use a finite number above 0")
        if not math.isfinite(self.bias):
            raise _error(
                "BIAS", self.bias, "the bias must be finite (SigLIP's is +10 in this sign)"
            )
        if self.m < 0 or self.n < 0 or (self.m == 0) != (self.n == 0):
            raise _error(
                "M",
                self.m,
                f"with N {self.n}: both at least 1, or both 0 for the host's own batches",
            )
        if self.mining and self.m == 0:
            raise _error(
                "MINING", True, "mining chooses the classes of a batch: set M and N above 0"
            )
        if self.mode == "sampler" and self.m == 0:
            raise _error("MODE", "sampler", "that mode is the sampler alone: set M and N above 0")
        if self.mode == "pointwise" and "cross" in self.spaces:
            raise _error(
                "SPACES",
                self.spaces,
                "mode 'pointwise' compares each feature with its own frozen one: use image or text",
            )
        if not 0 < self.proxy_ratio <= 4:
            raise _error(
                "PROXY_RATIO", self.proxy_ratio, "use a number above 0 and up to 4 (paper: 0.4)"
            )
        if self.template and "{}" not in self.template:
            raise _error("TEMPLATE", self.template, "put {} where the class name belongs")
        if not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise _error("ALPHA", self.alpha, "use a finite number of at least 0")

    @property
    def active(self) -> bool:
        """Whether anything about the host's run changes at all."""
        return self.enabled and (self.weight > 0 or self.mode == "sampler")

    @classmethod
    def from_cfg(cls, cfg: Any) -> ProxyFDAConfig:
        """Read and check ``cfg.TRAINER.PROXYFDA``.

        Raises:
            AttributeError: if the node is missing (``extend_cfg`` was not called).
            ValueError: for a value or combination that cannot work, naming the option.
        """
        if "PROXYFDA" not in cfg.TRAINER:
            raise BadModel(
                "the config has no node TRAINER.PROXYFDA; call proxyfda.extend_cfg(cfg) in your"
                " extend_cfg"
            )
        node = cfg.TRAINER.PROXYFDA
        values = {field.name: node[field.name.upper()] for field in fields(cls)}
        spaces = values["spaces"]
        values["spaces"] = (spaces,) if isinstance(spaces, str) and spaces else tuple(spaces)
        return cls(**values)


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

    lenient.proxyfda = True
    yacs._check_and_coerce_cfg_value_type = lenient


def extend_cfg(cfg: Any) -> None:
    """Add ``TRAINER.PROXYFDA`` with the defaults of :class:`ProxyFDAConfig` to a yacs config.

    Call it inside your own ``extend_cfg``; a second call changes nothing.
    """
    _take_whole_numbers()
    if "PROXYFDA" in cfg.TRAINER:
        return
    node = type(cfg)()
    for field in fields(ProxyFDAConfig):
        node[field.name.upper()] = field.default
    cfg.TRAINER.PROXYFDA = node
