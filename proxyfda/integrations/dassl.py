"""The plugin: adds a regulariser to any Dassl-style CLIP trainer.

``proxyfda.register()``, or by hand ``class ProxyFDACoOp(RegularisedTrainer, CoOp)`` or
``make_trainer(CoOp, "proxy_fda")``. The host is not changed: its features are captured by hooks
and the gradient of λ R is joined to its own backward pass
(:mod:`proxyfda.integrations.capture`), frozen features come from its own weights
(:mod:`proxyfda.anchors.host_weights`), its checkpoints stay what they were.
"""

from __future__ import annotations

import math
import os.path as osp
import sys
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Set, Tuple

import torch
from torch import Tensor, nn

from proxyfda.anchors.host_weights import (
    FrozenCLIP,
    find_template,
    find_tokenize,
    is_images,
    watch_embeddings,
)
from proxyfda.integrations.balanced_batches import BalancedBatches
from proxyfda.integrations.capture import FeatureCapture, WeightCapture
from proxyfda.integrations.class_texts import ClassesByTokens, ClassTexts
from proxyfda.integrations.dassl_options import PluginOptions, extend_cfg
from proxyfda.integrations.further import MixedImages, Words
from proxyfda.integrations.spaces import ENCODERS, RegularisedSpaces
from proxyfda.names import PREFIXES, split_run_name
from proxyfda.regularisers import L2SP, find
from proxyfda.utils.errors import (
    BadModel,
    BadType,
    BadValue,
    NotFinite,
    NotInstalled,
    Unusable,
    UserError,
)
from proxyfda.utils.files import write_binary
from proxyfda.utils.finite import all_finite
from proxyfda.utils.suggest import did_you_mean
from proxyfda.utils.templates import check_template
from proxyfda.vocabulary import names_without, read_vocabulary

__all__ = [
    "RegularisedTrainer",
    "describe_regulariser",
    "extend_cfg",
    "make_trainer",
    "register",
]

STATE_DIR = "regulariser"
_PREFIXES = {regulariser: prefix for prefix, regulariser in PREFIXES.items()}


def describe_regulariser(cfg: Any) -> Optional[Dict[str, Any]]:
    """What a config adds to its trainer, for records of a run; None if nothing.

    Returns:
        ``name``, ``weight``, ``spaces`` (empty: chosen by the host), ``options`` of the
        regulariser, and ``m``, ``n`` and ``mining`` of the batches; where they are used, also
        ``words`` and their ``vocabulary`` (empty: by the dataset), ``mixed`` and ``mixture``.
    """
    if "PROXYFDA" not in cfg.TRAINER:
        return None
    options = PluginOptions.from_cfg(cfg, split_run_name(cfg.TRAINER.NAME)[1])
    if not (options.has_term or options.has_batches):
        return None
    found = {
        "name": options.regulariser,
        "weight": options.weight,
        "spaces": list(options.spaces),
        "options": dict(options.settings),
        "m": options.m,
        "n": options.n,
        "mining": options.mining,
    }
    if options.has_term and options.has_words:
        found.update(words=options.words, vocabulary=options.vocabulary)
    if options.has_term and options.mixed:
        found.update(mixed=options.mixed, mixture=options.mixture)
    return found


def _unwrap(model: nn.Module) -> nn.Module:
    """The module inside ``DataParallel`` and other wrappers.

    Raises:
        Unusable: with more than one device, whose replicas no hook on the original sees.
    """
    for module in model.modules():
        devices = getattr(module, "device_ids", None)
        if devices and len(devices) > 1:
            raise Unusable(
                "the regulariser needs all features of a batch on one device, but the model is "
                f"spread over {len(devices)}; make one visible, for example with "
                "CUDA_VISIBLE_DEVICES=0"
            )
    while True:
        inner = getattr(model, "module", getattr(model, "_orig_mod", None))
        if not isinstance(inner, nn.Module):
            return model
        model = inner


class RegularisedTrainer(BalancedBatches):
    """Put before a trainer: ``class ProxyFDACoOp(RegularisedTrainer, CoOp)``.

    The host needs what the prompt-tuning family has: a model with those encoders named in
    ``regularised_modules`` that the chosen spaces relate (``self.model``, or another attribute that
    is or holds what it gave to Dassl's ``register_model``), ``self.cfg``, ``self.device``,
    ``self.dm``, a ``forward_backward`` that runs the backward pass, and Dassl's hooks. Options are
    read from ``cfg.TRAINER.PROXYFDA``
    (:class:`~proxyfda.integrations.dassl_options.PluginOptions`). In the config that the host is
    given, ``TRAINER.NAME`` is the host's own.

    Anchors: where the image encoder is frozen, its features are their own and no second forward
    runs. Otherwise they are rebuilt from the host's own weights
    (:mod:`proxyfda.anchors.host_weights`), unless the host offers ``frozen_text_features() -> [C,
    d]`` (hand-written prompts, one row per class in label order) or
    ``frozen_image_features(images) -> [B, d]``. The latter is given the images [B, 3, H, W] among
    the arguments of the image encoder, or the first tensor if there are none.

    Class texts: the rows that the text encoder returns in a call are the classes in label order,
    once or several times over, which the first steps check. A host with another order offers
    ``text_classes(*args, **kwargs)``, given the arguments of a call of the text encoder, which
    returns the class of each row, -1 for none; see also ``TRAINER.PROXYFDA.TEXT_CLASSES``. One that
    says ``texts_in_label_order = True`` is not checked.

    Spaces of words need a host with a method ``set_words(names)``: until the next call, each call
    of its text encoder in training also encodes these names with the same prompts, behind the
    classes, and the host goes on with the classes' features alone. It is called with an empty list
    after each step. A host with ``frozen_text_features`` of its own gives ``frozen_word_features(
    names) -> [n, d]`` as well. The dataset's ``all_classnames``, of which ``classnames`` may be a
    part, are never among the words.

    Attributes:
        trained_regulariser: what the trainer's name says; empty where the config decides.
        regularised_modules: names of the image and the text encoder, dotted from the model down; a
            name may also stand deeper if it is the only one of its kind.
        regularised_backward_pass: which backward pass of a step takes the term, from 1, where the
            host runs several over the same features.
    """

    trained_regulariser = ""
    regularised_modules = {"image_encoder": "image_encoder", "text_encoder": "text_encoder"}
    regularised_backward_pass = 1

    _spaces: Optional[RegularisedSpaces] = None
    _weights_term: Optional[L2SP] = None
    _capture: Any = None
    _logged: Set[str] = frozenset()  # type: ignore[assignment]
    _frozen_clip: Optional[FrozenCLIP] = None
    _words: Optional[Words] = None
    _mixed: Optional[MixedImages] = None

    # -- building ---------------------------------------------------------------------------------

    def __init__(self, cfg: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(_under_own_name(cfg, type(self)), *args, **kwargs)  # type: ignore[call-arg]

    def check_cfg(self, cfg: Any) -> None:
        """Refuse options that cannot work before anything is built."""
        super().check_cfg(cfg)  # type: ignore[misc]
        self._options(cfg)

    def _options(self, cfg: Any) -> PluginOptions:
        if not self.trained_regulariser and "PROXYFDA" not in cfg.TRAINER:
            # The host under its own name needs nothing of ours in its config.
            return PluginOptions()
        return PluginOptions.from_cfg(cfg, self.trained_regulariser)

    def build_model(self) -> None:
        """Build the host, and what the options add to it."""
        options = self._options(self.cfg)  # type: ignore[attr-defined]
        if not (options.has_term or options.has_batches):
            if not self.trained_regulariser:
                self._notice_needless_batches(options)
            super().build_model()  # type: ignore[misc]
            return
        with watch_embeddings() as embeddings:
            super().build_model()  # type: ignore[misc]
        self._plugin = options
        kind = find(options.regulariser).kind if options.has_term else ""
        if kind == "weights":
            self._regularise_weights(options)
        elif options.has_term or options.mining:
            encoders = self._regularised_encoders(self._needed_encoders(options))
            has_words = options.has_term and options.has_words
            names = self._vocabulary(options) if has_words else []
            self._frozen_clip = self._find_frozen_clip(
                encoders, embeddings, options.template, names
            )
            if has_words:
                self._find_words(options, names)
            if options.has_term:
                self._regularise_features(options, encoders)
        if options.has_batches:
            self._replace_batches(options)

    def _regularise_weights(self, options: PluginOptions) -> None:
        model = _unwrap(self._trained_model())
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not trained:
            raise BadModel(
                f"no weight of {type(self).__name__}'s model is trained, so {options.regulariser} "
                "has nothing to act on; leave TRAINER.PROXYFDA.REGULARISER empty"
            )
        self._weights_term = term = L2SP(trained)

        def gradients() -> List[Tensor]:
            loss = term()
            self._weights_loss = loss.detach()
            return list(torch.autograd.grad(options.weight * loss, trained))

        self._capture = WeightCapture(trained, gradients, self.regularised_backward_pass)

    def _regularise_features(self, options: PluginOptions, encoders: Dict[str, nn.Module]) -> None:
        settings = dict(options.settings)
        if settings.get("proxy_seed", 0) < 0:
            settings["proxy_seed"] = self._seed
        self._spaces = RegularisedSpaces(
            options.regulariser,
            settings,
            options.spaces,
            options.weight,
            self._frozen_features("text"),
            self._frozen_features("image"),
            options.generator_lr,
            self.device,  # type: ignore[attr-defined]
            self._class_texts(options),
            None if self._words is None else self._words.anchors,
        )
        if options.mixed:
            self._mixed = MixedImages(options.mixed, options.mixture, self._seed)
        self._capture = FeatureCapture(
            encoders,
            self._spaces.gradients,
            self.regularised_backward_pass,
            {"image_encoder": self._mixed} if self._mixed is not None else None,
        )

    def _vocabulary(self, options: PluginOptions) -> List[str]:
        """Names beyond the dataset's classes, base and new.

        Raises:
            BadModel: the host cannot encode names beyond its classes.
            BadValue: the dataset does not say what all of its classes are; or too few names.
        """
        if not hasattr(self, "set_words"):
            raise BadModel(
                f"TRAINER.PROXYFDA.SPACES is {options.spaces!r}, but {type(self).__name__} cannot "
                "encode names beyond its classes; give the trainer a method set_words(names) (see "
                "docs/drop-in.md), or use image, text or cross"
            )
        if hasattr(self, "frozen_text_features") and not hasattr(self, "frozen_word_features"):
            raise BadModel(
                f"{type(self).__name__} makes its own frozen_text_features, which has no rows for "
                "words; give it a method frozen_word_features(names) as well"
            )
        dataset, part = self.dm.dataset, self.cfg.DATASET  # type: ignore[attr-defined]
        classes = getattr(dataset, "all_classnames", None)
        if classes is None and getattr(part, "SUBSAMPLE_CLASSES", "all") != "all":
            raise BadValue(
                f"DATASET.SUBSAMPLE_CLASSES is {part.SUBSAMPLE_CLASSES}, and the dataset "
                f"{type(dataset).__name__} does not say what its other classes are, which must not "
                "be among the words; give it an attribute all_classnames"
            )
        source = options.vocabulary or getattr(dataset, "vocabulary", "") or "nouns"
        names = names_without(read_vocabulary(source), classes or dataset.classnames)
        print(
            f"Proxy-FDA words: {options.words} a step of the {len(names)} names in {source} that "
            "are no class of the dataset"
        )
        return names

    def _find_words(self, options: PluginOptions, names: List[str]) -> None:
        own = getattr(self, "frozen_word_features", None)
        clip: Any = self._frozen_clip
        frozen = own or (lambda words: clip.word_features())
        self._words = Words(names, options.words, self._seed, frozen)

    def _class_texts(self, options: PluginOptions) -> ClassTexts:
        """What tells the class of a row of the text encoder.

        Raises:
            BadValue: both the host and the config say it, the host has no tokeniser to read by, or
                words are in use.
        """
        own, chosen = getattr(self, "text_classes", None), options.text_classes
        if own is None and chosen != "tokens":
            return ClassTexts(
                checked=chosen == "" and not getattr(self, "texts_in_label_order", False)
            )
        if options.has_words:
            raise BadValue(
                f"TRAINER.PROXYFDA.SPACES is {options.spaces!r}, whose words come behind classes "
                "in label order, but the rows are in another one (text_classes, or "
                "TRAINER.PROXYFDA.TEXT_CLASSES); use image, text or cross"
            )
        if own is not None:
            if chosen:
                raise BadValue(
                    f"TRAINER.PROXYFDA.TEXT_CLASSES is {chosen!r}, but {type(self).__name__} has "
                    "text_classes of its own; leave TEXT_CLASSES empty"
                )
            return ClassTexts(lambda call: own(*call.args, **call.kwargs))
        tokenize = find_tokenize(type(self))
        if tokenize is None:
            raise BadValue(
                "TRAINER.PROXYFDA.TEXT_CLASSES is 'tokens', but the trainer's module has no "
                "clip.tokenize; give text_classes to proxyfda.register in its place"
            )
        return ClassTexts(ClassesByTokens(tokenize, self._classnames()))

    def _classnames(self) -> List[str]:
        names = self.dm.dataset.classnames  # type: ignore[attr-defined]
        return [classname.replace("_", " ") for classname in names]

    def _possible_models(self) -> List[nn.Module]:
        """``self.model``, then what is or holds a model registered with Dassl.

        Raises:
            BadModel: the trainer has none.
        """
        models = list((getattr(self, "_models", None) or {}).values())
        models = [model for model in models if isinstance(model, nn.Module)]
        parts = {id(model) for model in models}
        attributes = [value for value in vars(self).values() if isinstance(value, nn.Module)]
        found = [value for value in [getattr(self, "model", None)] if isinstance(value, nn.Module)]
        found += [
            value for value in attributes if any(id(part) in parts for part in value.modules())
        ]
        found = list({id(model): model for model in [*found, *models]}.values())
        if not found:
            raise BadModel(
                f"{type(self).__name__} has no model that is trained, neither self.model nor one "
                "given to register_model, so there is nothing for a regulariser to act on; use its "
                "plain form"
            )
        return found

    def _trained_model(self) -> nn.Module:
        """The first of the possible models with a weight that is trained."""
        models = self._possible_models()
        trained = (m for m in models if any(p.requires_grad for p in m.parameters()))
        return next(trained, models[0])

    def _needed_encoders(self, options: PluginOptions) -> List[str]:
        """Those whose features the chosen spaces relate; all where the host chooses."""
        needed = {name for space in options.spaces for name in ENCODERS[space]}
        if not (options.has_term and needed):
            needed = set(self.regularised_modules) if options.has_term else set()
        if options.has_batches and options.mining:
            needed.add("image_encoder")
        return [name for name in self.regularised_modules if name in needed]

    def _regularised_encoders(self, needed: List[str]) -> Dict[str, nn.Module]:
        """The modules of ``regularised_modules`` that are needed.

        Raises:
            BadModel: the trainer has no model, or none that has such modules.
        """
        problems = []
        for model in map(_unwrap, self._possible_models()):
            encoders, problem = self._encoders_in(model, needed)
            if not problem:
                return encoders
            problems.append(problem)
        raise BadModel(problems[0])

    def _encoders_in(self, model: nn.Module, needed: List[str]) -> Tuple[Dict[str, nn.Module], str]:
        """The needed encoders in a model, and a sentence on the one that is missing."""
        modules = dict(model.named_modules())
        encoders: Dict[str, nn.Module] = {}
        problem = ""
        for name in needed:
            path = self.regularised_modules[name]
            found = [key for key in modules if f".{key}".endswith(f".{path}")]
            if path in modules or len(found) == 1:
                encoders[name] = modules[path if path in modules else found[0]]
                continue
            near = ", ".join(found) or ", ".join(key for key, _ in model.named_children())
            problem = problem or (
                f"the model has no module {path!r} to capture features from (it has: {near}); "
                "set regularised_modules on the trainer class, or give modules to "
                "proxyfda.register"
            )
        if problem and len(encoders) == 1:
            space = "image" if "image_encoder" in encoders else "text"
            problem += f", or use TRAINER.PROXYFDA.SPACES {space}, which does without"
        return encoders, problem

    def _find_frozen_clip(
        self,
        encoders: Dict[str, nn.Module],
        embeddings: List[nn.Embedding],
        template: str,
        words: Sequence[str],
    ) -> Optional[FrozenCLIP]:
        """The source of the anchors that the host does not offer itself; of ``words`` as well.

        Raises:
            BadValue: a template where the host has anchors of its own.
        """
        own = [side for side in ("text", "image") if hasattr(self, f"frozen_{side}_features")]
        if template and "text" in own:
            raise BadValue(
                f"TRAINER.PROXYFDA.TEMPLATE is {template!r}, but {type(self).__name__} makes its "
                "own frozen_text_features; leave TEMPLATE empty"
            )
        if len(own) == 2:
            return None
        dataset, name = self.dm.dataset, self.cfg.DATASET.NAME  # type: ignore[attr-defined]
        template = template or find_template(type(self), dataset, name)
        check_template(template, f"the template of {name}")
        texts = [template.format(classname) for classname in self._classnames()]
        clip = FrozenCLIP(
            encoders.get("image_encoder"),
            encoders.get("text_encoder"),
            embeddings,
            find_tokenize(type(self)),
            texts,
            [template.format(word) for word in words],
        )
        print(
            "Proxy-FDA: frozen features from the model's own weights without prompts, for texts "
            f'like "{texts[0]}"'
        )
        return clip

    def _frozen_features(self, side: str) -> Callable[..., Tensor]:
        """What gives the frozen features of a side: the host, or its weights."""
        own: Optional[Callable[..., Tensor]] = getattr(self, f"frozen_{side}_features", None)
        if own is None:
            found: Callable[..., Tensor] = getattr(self._frozen_clip, f"{side}_features")
            return found
        if side == "text":
            return own

        def of_images(inputs: Any) -> Tensor:
            if self._mined and not is_images(inputs):
                raise BadType(
                    "frozen_image_features was given images [B, 3, H, W] by TRAINER.PROXYFDA."
                    "MINING, but the image encoder is given none in training; set MINING False"
                )
            return own(inputs)

        return of_images

    # -- batches: what the mixin asks for ---------------------------------------------------------

    def _frozen_image_weights(self) -> Dict[str, Tensor]:
        """See :class:`BalancedBatches`."""
        if self._frozen_clip is not None and not hasattr(self, "frozen_image_features"):
            return self._frozen_clip.image_weights()
        encoder = self._regularised_encoders(["image_encoder"])["image_encoder"]
        return {
            name: weight for name, weight in encoder.named_parameters() if not weight.requires_grad
        }

    def _frozen_image_encoder(self) -> Callable[..., Tensor]:
        """See :class:`BalancedBatches`."""
        return self._frozen_features("image")

    # -- training ---------------------------------------------------------------------------------

    def regularised_loss_scale(self) -> Any:
        """The factor by which the host scales its loss, a number or a tensor."""
        scaler = getattr(self, "scaler", None)
        if scaler is None or not scaler.is_enabled():
            return 1.0
        # In place of get_scale, which waits for the device.
        return scaler.scale(torch.ones((), device=self.device))  # type: ignore[attr-defined]

    def forward_backward(self, *args: Any, **kwargs: Any) -> Any:
        """The host's step, with the term joined to its backward pass."""
        self._notice_unused_batches()
        if self._capture is None:
            return super().forward_backward(*args, **kwargs)  # type: ignore[misc]
        with self._further_nodes(), self._capture.step(scale=self.regularised_loss_scale):
            summary = super().forward_backward(*args, **kwargs)  # type: ignore[misc]
        if not self._capture.joined:
            raise self._not_joined()
        return {**(summary or {}), **self._finish_step()}

    def _not_joined(self) -> Exception:
        """Why the term had no effect in a step, and what to do."""
        if self._spaces is None:
            return Unusable(
                "no gradient of the host's loss reached a weight of its model, so the regulariser "
                "had no effect; leave TRAINER.PROXYFDA.REGULARISER empty"
            )
        spaces = self._plugin.spaces if self._plugin is not None else ()
        sides = {name.partition("_")[0]: tuned for name, tuned in self._capture.seen.items()}
        if len(spaces) == 1 and list(sides.values()) == [False]:
            others = [space for space in ("cross", "text", "image") if space not in spaces]
            return BadValue(
                f"TRAINER.PROXYFDA.SPACES is {spaces!r}, but the {''.join(sides)} encoder is "
                f"frozen and no gradient reaches the prompts; use {' or '.join(others)}, or "
                "TRAINER.PROXYFDA.REGULARISER l2sp, which acts on weights"
            )
        called = " and ".join(self.regularised_modules[name] for name in self._capture.seen)
        return Unusable(
            "no gradient of the host's loss reached the features of "
            f"{' or '.join(self.regularised_modules.values())}, so the regulariser had no "
            f"effect (called in this step: {called or 'neither'}); set regularised_modules on the "
            "trainer class to the modules that return them, or TRAINER.PROXYFDA.REGULARISER l2sp, "
            "which acts on weights"
        )

    @contextmanager
    def _further_nodes(self) -> Iterator[None]:
        """The words and mixed images of a step, the same whenever it is done again."""
        if self._mixed is not None:
            self._mixed.start(self.epoch, self.batch_idx)  # type: ignore[attr-defined]
        if self._words is None:
            yield
            return
        self.set_words(self._words.draw(self.epoch, self.batch_idx))  # type: ignore[attr-defined]
        try:
            yield
        finally:
            self.set_words([])  # type: ignore[attr-defined]

    def _finish_step(self) -> Dict[str, Any]:
        if self._spaces is not None:
            terms = self._spaces.finish_step()
        else:
            terms = {"loss_l2sp": self._weights_loss}
        self._logged = set(terms)
        if hasattr(super(), "check_step"):  # the engine brings values over for its log lines
            return dict(terms)
        # One transfer for all terms, after the step.
        values = dict(zip(terms, torch.stack(list(terms.values())).tolist()))
        self._check_terms(self.batch_idx, values)  # type: ignore[attr-defined]
        return values

    def check_step(self, batch_idx: int, values: Dict[str, float]) -> None:
        """Refuse terms that are infinite or no number, where the engine has this hook."""
        super().check_step(batch_idx, values)  # type: ignore[misc]
        self._check_terms(batch_idx, {name: values[name] for name in self._logged & set(values)})

    def _check_terms(self, batch_idx: int, values: Dict[str, float]) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                raise NotFinite(
                    f"{name} is {value} in epoch {self.epoch + 1}, batch {batch_idx + 1}; "  # type: ignore[attr-defined]
                    "lower TRAINER.PROXYFDA.WEIGHT or OPTIM.LR"
                )

    # -- checkpoints: the host's stay as they are, the regulariser has a file of its own ----------

    def _state_file(self, directory: str, epoch: int) -> str:
        return osp.join(directory, STATE_DIR, f"model.pth.tar-{epoch}")

    def save_model(self, epoch: int, directory: str, *args: Any, **kwargs: Any) -> None:
        """Save the host's models, and before them what the regulariser has of its own."""
        state: Dict[str, Any] = {}
        if self._weights_term is not None:
            state = self._weights_term.state_dict()
        elif self._spaces is not None:
            state = self._spaces.saved_state()
        if state and self._plugin is not None:
            # First: whoever finds the host's checkpoint finds this one too.
            content = {"name": self._plugin.regulariser, "state": state}
            path = self._state_file(directory, epoch + 1)
            write_binary(path, lambda file: torch.save(content, file))
        super().save_model(epoch, directory, *args, **kwargs)  # type: ignore[misc]

    def resume_model_if_exist(self, directory: str) -> int:
        """Resume the host, and the regulariser from its own file."""
        start_epoch: int = super().resume_model_if_exist(directory)  # type: ignore[misc]
        if not start_epoch or self._plugin is None or not self._plugin.has_term:
            return start_epoch
        name, path = self._plugin.regulariser, self._state_file(directory, start_epoch)
        found = self._read_state(path)
        try:
            if found.get("name") == name and self._weights_term is not None:
                self._weights_term.load_state_dict(found["state"])
            elif found.get("name") == name and self._spaces is not None:
                self._spaces.restore_state(found["state"])
            elif self._weights_term is not None or self._plugin.keeps_state:
                print(f"No state of {name} at {path}, so it starts anew (another run's?)")
        except UserError:
            raise
        except Exception as error:  # whatever a regulariser makes of a damaged state
            raise _damaged(path, error) from error
        return start_epoch

    def check_beside(self, directory: str, epoch: int) -> None:
        """Refuse an epoch of which the regulariser's file is damaged."""
        super().check_beside(directory, epoch)  # type: ignore[misc]
        self._read_state(self._state_file(directory, epoch))

    def _read_state(self, path: str) -> Dict[str, Any]:
        """What ``save_model`` has kept of the regulariser; empty if it has kept nothing.

        Raises:
            BadValue: the file is damaged.
        """
        if not osp.exists(path):
            return {}
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(found["state"], dict) or not isinstance(found["name"], str):
                raise TypeError("it is no state of a regulariser")
        except Exception as error:  # torch raises half a dozen kinds
            raise _damaged(path, error) from error
        bad = [key for key, value in _tensors(found["state"]) if not all_finite(value)]
        if bad:
            raise _damaged(path, NotFinite(f"{bad[0]} is infinite or NaN"))
        return found


def _tensors(state: Dict[str, Any], prefix: str = "") -> Iterator[Tuple[str, Tensor]]:
    for key, value in state.items():
        if isinstance(value, dict):
            yield from _tensors(value, f"{prefix}{key}.")
        elif isinstance(value, Tensor):
            yield f"{prefix}{key}", value


def _damaged(path: str, error: Exception) -> BadValue:
    why = " ".join(str(error).split()).split(". ")[0][:120]
    if "weights_only" in why or "Weights only" in why:  # torch advises to read it unsafely
        why = "it holds more than tensors, numbers and texts"
    return BadValue(
        f"{path} cannot be read as the state of a regulariser ({why}); restore it from a copy, or "
        "remove the run's folder to train anew"
    )


def _under_own_name(cfg: Any, trainer: type) -> Any:
    """The config with ``TRAINER.NAME`` as the host knows it, which hosts ask in places; a copy
    where that is another."""
    order = trainer.__mro__
    host = next(
        base
        for base in order[order.index(RegularisedTrainer) :]
        if base is not BalancedBatches and not issubclass(base, RegularisedTrainer)
    )
    if cfg.TRAINER.get("NAME", host.__name__) == host.__name__ or host is object:
        return cfg
    cfg = cfg.clone()
    was_frozen = cfg.is_frozen()
    cfg.defrost()
    cfg.TRAINER.NAME = host.__name__
    if was_frozen:
        cfg.freeze()
    return cfg


# -- making and registering trainers --------------------------------------------------------------


def make_trainer(
    host: type,
    regulariser: str = "proxy_fda",
    *,
    modules: Optional[Dict[str, str]] = None,
    backward_pass: int = 1,
    frozen_text_features: Optional[Callable[[Any], Tensor]] = None,
    frozen_image_features: Optional[Callable[[Any, Tensor], Tensor]] = None,
    text_classes: Optional[Callable[..., Any]] = None,
) -> type:
    """``FDA<Host>`` or ``ProxyFDA<Host>``, or the host itself with the config's regulariser.

    Args:
        host: a trainer class.
        regulariser: ``"fda"`` or ``"proxy_fda"``; empty: whatever ``TRAINER.PROXYFDA.REGULARISER``
            says, under the host's own name.
        modules: where the host calls its encoders differently, see
            ``RegularisedTrainer.regularised_modules``; any of ``image_encoder`` and
            ``text_encoder``.
        backward_pass: see ``RegularisedTrainer.regularised_backward_pass``.
        frozen_text_features: (trainer) -> [C, d], in place of what would be rebuilt.
        frozen_image_features: (trainer, images) -> [B, d], likewise; see
            :class:`RegularisedTrainer` for what it is given.
        text_classes: (trainer, ...) -> [rows], given the arguments of a call of the text encoder:
            the class of each row that it returns, -1 for none; where the rows are not the classes
            in label order.

    Raises:
        BadValue: for another regulariser, or another key in ``modules``.
    """
    if regulariser and regulariser not in _PREFIXES:
        raise BadValue(
            f"regulariser is {regulariser!r}{did_you_mean(regulariser, _PREFIXES)}; trainers of "
            f"their own have {', '.join(_PREFIXES)}, the others are asked for by "
            "TRAINER.PROXYFDA.REGULARISER"
        )
    encoders = RegularisedTrainer.regularised_modules
    for key in modules or {}:
        if key not in encoders:
            raise BadValue(f"modules has the key {key!r}; use any of {', '.join(encoders)}")
    members: Dict[str, Any] = {
        "trained_regulariser": regulariser,
        "regularised_modules": {**encoders, **(modules or {})},
        "regularised_backward_pass": backward_pass,
        "__doc__": f":class:`{host.__name__}` with "
        + (f"{_PREFIXES[regulariser]}" if regulariser else "the regulariser of the config")
        + " (see :class:`RegularisedTrainer`).",
        "__module__": host.__module__,
    }
    if frozen_text_features is not None:
        members["frozen_text_features"] = lambda self: frozen_text_features(self)
    if frozen_image_features is not None:
        members["frozen_image_features"] = lambda self, images: frozen_image_features(self, images)
    if text_classes is not None:
        members["text_classes"] = lambda self, *args, **kwargs: text_classes(self, *args, **kwargs)
    name = _PREFIXES.get(regulariser, "") + host.__name__
    return type(name, (RegularisedTrainer, host), members)


def _registry() -> Any:
    """The trainer registry in use: that of :mod:`proxyfda.dassl` where it was imported, else the
    one of an installed Dassl as it is, else the embedded engine's."""
    if "proxyfda.dassl" not in sys.modules:
        try:
            from dassl.engine import TRAINER_REGISTRY

            return TRAINER_REGISTRY
        except ImportError as error:
            reason = error
        try:
            from proxyfda import dassl
        except ImportError:
            remedy = "install Dassl.pytorch or put its folder on PYTHONPATH"
            if (reason.name or "").partition(".")[0] != "dassl":
                remedy = (
                    f"install {reason.name}, or import proxyfda.dassl before anything of dassl, "
                    "which mends what it can"
                )
            raise NotInstalled(
                f"proxyfda.register needs Dassl, which cannot be imported ({reason}); {remedy}"
            ) from reason
    else:
        from proxyfda import dassl
    return dassl.TRAINER_REGISTRY  # type: ignore[attr-defined]


def register(*hosts: type, **options: Any) -> List[str]:
    """Register ``FDA<Name>`` and ``ProxyFDA<Name>`` with Dassl's trainer registry.

    ``<Name>`` itself is replaced by a subclass that takes ``TRAINER.PROXYFDA.REGULARISER``, so that
    every regulariser can be had without another name; as long as that is empty it is the host, bit
    for bit. Call this after your trainers are imported.

    Args:
        hosts: trainer classes; without any, all that are registered now except Dassl's own, which
            have no CLIP. One that says ``regularises_itself = True``, since it reads
            ``TRAINER.PROXYFDA`` and adds the term to its own loss, is left alone.
        options: see :func:`make_trainer`.

    Returns:
        The names that were added. Names that exist already are left alone.
    """
    registry = _registry()
    known = set(registry.registered_names())
    if not hosts:
        hosts = tuple(map(registry.get, registry.registered_names()))
        hosts = tuple(host for host in hosts if host.__module__.split(".")[0] != "dassl")
    added = []
    for host in hosts:
        if issubclass(host, RegularisedTrainer) or getattr(host, "regularises_itself", False):
            continue
        for regulariser in _PREFIXES:
            trainer = make_trainer(host, regulariser, **options)
            if trainer.__name__ not in known:
                registry.register()(trainer)
                added.append(trainer.__name__)
        if host.__name__ in known and registry.get(host.__name__) is host:
            registry.register(make_trainer(host, "", **options), force=True)
    return added
