"""The plugin: adds the (Proxy-)FDA term to any Dassl-style CLIP trainer.

``proxyfda.register()``, or by hand ``class ProxyFDACoOp(ProxyFDAMixin, CoOp)`` or
``make_trainer(CoOp, "proxy_fda")``. The host is not changed: its features are captured by hooks and
the gradient of λ L is joined to its own backward pass (:mod:`proxyfda.integrations.capture`), frozen features
come from its own weights (:mod:`proxyfda.anchors.host_weights`), its checkpoints stay what they were.
"""

from __future__ import annotations

import os
import os.path as osp
import sys
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn

from proxyfda.anchors.host_weights import FrozenCLIP, find_template, find_tokenize, watch_embeddings
from proxyfda.integrations.capture import Captured, FeatureCapture
from proxyfda.integrations.dassl_options import ProxyFDAConfig
from proxyfda.neighbours.graph import NeighbourGraph, fda_loss, pointwise_loss
from proxyfda.neighbours.proxies import ProxyGenerator, proxy_fda_loss
from proxyfda.sampling import ClassBalancedBatchSampler, class_similarity
from proxyfda.utils.errors import BadModel, BadValue, NotFinite, Unusable

GENERATOR_DIR = "proxy_generator"
_PREFIX = {"fda": "FDA", "proxy_fda": "ProxyFDA"}


def _unwrap(model: nn.Module) -> nn.Module:
    """The module inside ``DataParallel`` and other wrappers.

    Raises:
        RuntimeError: with more than one device, whose replicas no hook on the original sees.
    """
    for module in model.modules():
        devices = getattr(module, "device_ids", None)
        if devices and len(devices) > 1:
            raise Unusable(
                "Proxy-FDA needs all features of a batch on one device, but the model is spread "
                f"over {len(devices)}; make one visible, for example with CUDA_VISIBLE_DEVICES=0"
            )
    while True:
        inner = getattr(model, "module", getattr(model, "_orig_mod", None))
        if not isinstance(inner, nn.Module):
            return model
        model = inner


class ProxyFDAMixin:
    """Put before a trainer: ``class ProxyFDACoOp(ProxyFDAMixin, CoOp)``.

    The host needs what the prompt-tuning family has: ``self.model`` with the encoders named in
    ``fda_modules``, ``self.cfg``, ``self.device``, ``self.dm``, a ``forward_backward(batch)`` that
    runs the backward pass, and Dassl's hooks. Options are read from ``cfg.TRAINER.PROXYFDA``
    (:class:`proxyfda.integrations.dassl_options.ProxyFDAConfig`).

    Anchors: where the image encoder is frozen, its features are their own and no second forward
    runs. Otherwise they are rebuilt from the host's own weights (:mod:`proxyfda.anchors.host_weights`), unless
    the host offers ``frozen_text_features() -> [C, d]`` (hand-written prompts, one row per class in
    label order) or ``frozen_image_features(images) -> [B, d]`` (given what its image encoder was
    given).

    Attributes:
        fda_mode: mode where ``TRAINER.PROXYFDA.MODE`` is empty.
        fda_modules: names of the image and the text encoder, dotted from the model down; a name
            may also stand deeper if it is the only one of its kind.
        fda_backward_pass: which backward pass of a step takes the term, from 1, where the host
            runs several over the same features.
    """

    fda_mode = "proxy_fda"
    fda_modules = {"image_encoder": "image_encoder", "text_encoder": "text_encoder"}
    fda_backward_pass = 1

    _fda: Optional[FeatureAlignment] = None
    _fda_capture: Optional[FeatureCapture] = None
    _fda_clip: Optional[FrozenCLIP] = None

    # -- building ---------------------------------------------------------------------------------

    def check_cfg(self, cfg: Any) -> None:
        super().check_cfg(cfg)
        ProxyFDAConfig.from_cfg(cfg)

    def build_model(self) -> None:
        settings = ProxyFDAConfig.from_cfg(self.cfg)
        if not settings.active:
            return super().build_model()
        with watch_embeddings() as embeddings:
            super().build_model()
        mode = settings.mode or self.fda_mode
        if mode != "sampler" or settings.mining:
            encoders = self._fda_encoders()
            self._fda_clip = self._fda_frozen_clip(encoders, embeddings, settings.template)
        if mode != "sampler":
            self._fda = FeatureAlignment(
                settings,
                mode,
                self._fda_frozen("text"),
                self._fda_frozen("image"),
                self.device,
                max(self.cfg.SEED, 0),
            )
            self._fda_capture = FeatureCapture(
                encoders, self._fda.gradients, self.fda_backward_pass
            )
        if settings.m:
            self._fda_replace_batches(settings)

    def _fda_encoders(self) -> Dict[str, nn.Module]:
        """The modules of ``fda_modules``.

        Raises:
            AttributeError: the trainer has no model, or the model no such module.
        """
        if not isinstance(getattr(self, "model", None), nn.Module):
            raise BadModel(
                f"{type(self).__name__} has no self.model that is trained, so there is nothing "
                "for Proxy-FDA to act on"
            )
        model = _unwrap(self.model)
        modules = dict(model.named_modules())
        encoders = {}
        for name, path in self.fda_modules.items():
            found = [key for key in modules if f".{key}".endswith(f".{path}")]
            if path not in modules and len(found) != 1:
                near = ", ".join(found) or ", ".join(key for key, _ in model.named_children())
                raise BadModel(
                    f"the model has no module {path!r} to capture features from (it has: {near}); "
                    "set fda_modules on the trainer class, or give modules to proxyfda.register"
                )
            encoders[name] = modules[path if path in modules else found[0]]
        return encoders

    def _fda_frozen_clip(
        self, encoders: Dict[str, nn.Module], embeddings: List[nn.Embedding], template: str
    ) -> Optional[FrozenCLIP]:
        """The source of the anchors that the host does not offer itself.

        Raises:
            ValueError: a template where the host has anchors of its own.
        """
        own = [side for side in ("text", "image") if hasattr(self, f"frozen_{side}_features")]
        if template and "text" in own:
            raise BadValue(
                f"TRAINER.PROXYFDA.TEMPLATE is {template!r}, but {type(self).__name__} makes its "
                "own frozen_text_features; leave TEMPLATE empty"
            )
        if len(own) == 2:
            return None
        template = template or find_template(type(self), self.dm.dataset, self.cfg.DATASET.NAME)
        names = [name.replace("_", " ") for name in self.dm.dataset.classnames]
        texts = [template.format(name) for name in names]
        clip = FrozenCLIP(
            encoders["image_encoder"],
            encoders["text_encoder"],
            embeddings,
            find_tokenize(type(self)),
            texts,
        )
        print(
            "Proxy-FDA: frozen features from the model's own weights without prompts, for texts "
            f'like "{texts[0]}"'
        )
        return clip

    def _fda_frozen(self, side: str) -> Callable[..., Tensor]:
        """What gives the frozen features of a side: the host, or its weights."""
        own = getattr(self, f"frozen_{side}_features", None)
        return own or getattr(self._fda_clip, f"{side}_features")

    def _fda_replace_batches(self, settings: ProxyFDAConfig) -> None:
        loader = self.train_loader_x
        labels = [item.label for item in loader.dataset.data_source]
        similarity = self._fda_class_similarity(loader, labels) if settings.mining else None
        sampler = ClassBalancedBatchSampler(
            labels,
            settings.m,
            settings.n,
            similarity=similarity,
            seed=max(self.cfg.SEED, 0),
        )
        # Everything but the choice of images stays the host's.
        self.train_loader_x = torch.utils.data.DataLoader(
            loader.dataset,
            batch_sampler=sampler,
            num_workers=loader.num_workers,
            pin_memory=loader.pin_memory,
            collate_fn=loader.collate_fn,
            worker_init_fn=loader.worker_init_fn,
        )
        if getattr(self, "dm", None) is not None:
            self.dm.train_loader_x = self.train_loader_x
        how = "hard class mining" if settings.mining else "classes at random"
        print(f"Proxy-FDA batches: {settings.m} classes x {settings.n} images, {how}")

    @torch.no_grad()
    def _fda_class_similarity(self, loader: Any, labels: List[int]) -> Tensor:
        """Cosine similarities between the mean frozen image features of the classes, [C, C]."""
        encode = self._fda_frozen("image")
        dataset = type(loader.dataset)(
            self.cfg, loader.dataset.data_source, transform=self.test_loader.dataset.transform
        )
        images = torch.utils.data.DataLoader(
            dataset,
            batch_size=self.cfg.DATALOADER.TEST.BATCH_SIZE,
            num_workers=loader.num_workers,
        )
        features = torch.cat([encode(batch["img"].to(self.device)).float() for batch in images])
        return class_similarity(features.cpu(), torch.tensor(labels))

    # -- training ---------------------------------------------------------------------------------

    def before_epoch(self) -> None:
        super().before_epoch()
        sampler = getattr(self.train_loader_x, "batch_sampler", None)
        if isinstance(sampler, ClassBalancedBatchSampler):
            sampler.set_epoch(self.epoch)

    def _fda_loss_scale(self) -> float:
        scaler = getattr(self, "scaler", None)
        return scaler.get_scale() if scaler is not None and scaler.is_enabled() else 1.0

    def forward_backward(self, batch: Any) -> Dict[str, float]:
        if self._fda_capture is None:
            return super().forward_backward(batch)
        with self._fda_capture.step(scale=self._fda_loss_scale):
            summary = super().forward_backward(batch)
        if not self._fda_capture.joined:
            raise Unusable(
                "no gradient of the host's loss reached the features of "
                f"{' or '.join(self.fda_modules.values())}, so the Proxy-FDA term had no effect; "
                "set fda_modules on the trainer class to the modules that return them"
            )
        terms = self._fda.finish_step()
        for name, value in terms.items():
            if value != value or value in (float("inf"), float("-inf")):
                raise NotFinite(
                    f"{name} is {value} in epoch {self.epoch + 1}, batch {self.batch_idx + 1}; "
                    "lower TRAINER.PROXYFDA.WEIGHT or OPTIM.LR"
                )
        return {**(summary or {}), **terms}

    # -- checkpoints: the host's stay as they are, the generator has a file of its own ------------

    def _fda_generator_file(self, directory: str, epoch: int) -> str:
        return osp.join(directory, GENERATOR_DIR, f"model.pth.tar-{epoch}")

    def save_model(self, epoch: int, directory: str, *args: Any, **kwargs: Any) -> None:
        # Before the host's checkpoint: whoever finds that one finds the generator's too.
        if self._fda is not None and self._fda.generators:
            path = self._fda_generator_file(directory, epoch + 1)
            os.makedirs(osp.dirname(path), exist_ok=True)
            torch.save(self._fda.state_dict(), path + ".tmp")
            os.replace(path + ".tmp", path)
        super().save_model(epoch, directory, *args, **kwargs)

    def resume_model_if_exist(self, directory: str) -> int:
        start_epoch = super().resume_model_if_exist(directory)
        if start_epoch and self._fda is not None and self._fda.mode == "proxy_fda":
            path = self._fda_generator_file(directory, start_epoch)
            if osp.exists(path):
                self._fda.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
            else:
                print(f"No proxy generator at {path}, so it starts anew (another trainer's run?)")
        return start_epoch


class FeatureAlignment:
    """Computes the term and its gradients from the captured features of one step.

    Args:
        settings: the options.
        mode: ``"fda"``, ``"proxy_fda"`` or ``"pointwise"``.
        frozen_text: () -> [C, d], features of the classes' hand-written prompts in label order.
        frozen_image: images [B, 3, H, W] -> [B, d].
        device: where the generators live.
        seed: of the generators' initial weights; the global random stream is left alone.
    """

    def __init__(
        self,
        settings: ProxyFDAConfig,
        mode: str,
        frozen_text: Callable[[], Tensor],
        frozen_image: Callable[[Tensor], Tensor],
        device: torch.device,
        seed: int,
    ) -> None:
        self.settings = settings
        self.mode = mode
        self.generators: Dict[str, ProxyGenerator] = {}
        self._optimisers: Dict[str, torch.optim.Optimizer] = {}
        self._pending: Dict[str, Any] = {}
        self._frozen_text, self._frozen_image = frozen_text, frozen_image
        self._device = device
        self._seed = seed
        self._text_anchors: Optional[Tensor] = None
        self._text_graph: Optional[NeighbourGraph] = None
        self._anchors: Optional[Tensor] = None
        self._terms: Dict[str, Tensor] = {}
        self._options = {
            name: getattr(settings, name)
            for name in ("k", "form", "tau", "bias", "slope", "temperature")
        }

    # -- anchors ----------------------------------------------------------------------------------

    def text_anchors(self) -> Tensor:
        """Frozen class text features of the hand-written prompt, [C, d], computed once."""
        if self._text_anchors is None:
            with torch.no_grad():
                self._text_anchors = self._frozen_text().detach().float()
        return self._text_anchors

    def _image_anchors(self, captured: Captured) -> Tensor:
        """Frozen features of the step's images, [B, d]; encoded once, whatever asks for them."""
        if not captured.tuned("image_encoder"):
            return torch.cat([leaf.detach() for leaf in captured.leaves["image_encoder"]])
        if self._anchors is None:
            found: Dict[int, Tensor] = {}
            for call in captured.calls["image_encoder"]:
                if id(call.inputs) not in found:
                    with torch.no_grad(), call.precision():
                        found[id(call.inputs)] = self._frozen_image(call.inputs).detach().float()
            self._anchors = torch.cat(
                [found[id(call.inputs)] for call in captured.calls["image_encoder"]]
            )
        return self._anchors

    # -- the term ---------------------------------------------------------------------------------

    def spaces(self, captured: Captured) -> Tuple[str, ...]:
        """Spaces of this step, checked against where gradients can flow.

        Raises:
            ValueError: for a choice without any path to the prompts.
        """
        image, text = (captured.tuned(name) for name in ("image_encoder", "text_encoder"))
        spaces = self.settings.spaces
        if not spaces:
            if self.mode == "pointwise":
                return ("image",) if image else ("text",)
            return ("image",) if image else ("text", "cross")
        paths = {"image": image, "text": text, "cross": image or text}
        if not any(paths[space] for space in spaces):
            frozen = "image" if not image else "text"
            raise BadValue(
                f"TRAINER.PROXYFDA.SPACES is {spaces!r}, but the {frozen} encoder is frozen and no "
                "gradient reaches the prompts; use cross or "
                + ("text" if frozen == "image" else "image")
            )
        return tuple(space for space in spaces if paths[space])

    def _arguments(self, space: str, captured: Captured) -> Dict[str, Any]:
        """What the loss of a space takes: features, anchors or graph, columns."""
        images, texts = captured.leaves.get("image_encoder"), captured.leaves.get("text_encoder")
        if space == "image":
            return {"features": torch.cat(images), "anchors": self._image_anchors(captured)}
        anchors = self.text_anchors()
        classes = anchors.shape[0]
        # A host may encode one set of class texts or one per image (CoCoOp), in one call or many.
        rows = torch.cat([text.reshape(-1, text.shape[-1]) for text in texts])
        if rows.shape[0] % classes:
            raise BadValue(
                f"the text encoder returned {rows.shape[0]} features in one step, not a multiple "
                f"of the {classes} classes; spaces text and cross need one feature per class"
            )
        sets = rows.view(-1, classes, rows.shape[-1])
        if space == "text":
            if self.mode == "pointwise":
                return {"features": rows, "anchors": anchors.repeat(len(sets), 1)}
            if self._text_graph is None:
                self._text_graph = NeighbourGraph(anchors, self.settings.k)
            return {"features": sets, "graph": self._text_graph}
        features, image_anchors = torch.cat(images), self._image_anchors(captured)
        if len(sets) == 1:
            sets, scale = sets[0], "pooled"
        elif len(sets) == len(features):
            # Each image is a row of its own: its spread is that of its own similarities.
            features, scale = features.unsqueeze(1), "row"
        else:
            raise BadValue(
                f"{len(features)} images met {len(sets)} sets of class texts in one step; the "
                "cross space needs one set for all images or one per image"
            )
        graph = NeighbourGraph(image_anchors, self.settings.k, anchors, scale=scale)
        return {"features": features, "columns": sets, "graph": graph}

    def _generator(self, space: str, dim: int) -> ProxyGenerator:
        if space not in self.generators:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self._seed)
                generator = ProxyGenerator(dim, ratio=self.settings.proxy_ratio)
            generator.to(self._device)
            optimiser = torch.optim.Adam(generator.parameters(), lr=self.settings.generator_lr)
            self.generators[space], self._optimisers[space] = generator, optimiser
            if space in self._pending:
                self._restore(space, self._pending.pop(space))
        return self.generators[space]

    def _restore(self, space: str, state: Dict[str, Any]) -> None:
        self.generators[space].load_state_dict(state["generator"])
        optimiser = self._optimisers[space]
        groups = optimiser.state_dict()["param_groups"]
        optimiser.load_state_dict({"state": state["optimiser"]["state"], "param_groups": groups})

    def _loss(self, space: str, arguments: Dict[str, Any]) -> Tuple[Tensor, Optional[Tensor]]:
        if self.mode == "pointwise":
            return pointwise_loss(arguments["features"], arguments["anchors"]), None
        if self.mode == "fda":
            return fda_loss(**arguments, **self._options), None
        generator = self._generator(space, arguments["features"].shape[-1])
        return proxy_fda_loss(
            generator=generator, alpha=self.settings.alpha, **arguments, **self._options
        )

    def gradients(self, captured: Captured) -> Dict[str, List[Optional[Tensor]]]:
        """Gradients of λ L with respect to every captured feature; those of L_proxy go to the
        generators, which step in :meth:`finish_step`."""
        loss_fda: List[Tensor] = []
        loss_proxy: List[Tensor] = []
        self._anchors = None
        for space in self.spaces(captured):
            fda, proxy = self._loss(space, self._arguments(space, captured))
            loss_fda.append(fda)
            loss_proxy += [] if proxy is None else [proxy]
        total = self.settings.weight * torch.stack(loss_fda).sum()
        self._terms = {"loss_fda": torch.stack(loss_fda).sum().detach()}
        if loss_proxy:
            self._terms["loss_proxy"] = torch.stack(loss_proxy).sum().detach()
            total = total + torch.stack(loss_proxy).sum()
        names = [(name, leaf) for name, leaves in captured.leaves.items() for leaf in leaves]
        leaves = [leaf for _, leaf in names if leaf.requires_grad]
        weights = [p for generator in self.generators.values() for p in generator.parameters()]
        found = torch.autograd.grad(total, leaves + weights, allow_unused=True)
        for weight, gradient in zip(weights, found[len(leaves) :]):
            weight.grad = gradient
        by_leaf = {id(leaf): gradient for leaf, gradient in zip(leaves, found)}
        return {
            name: [by_leaf.get(id(leaf)) for leaf in leaves]
            for name, leaves in captured.leaves.items()
        }

    def finish_step(self) -> Dict[str, float]:
        """Step the generators; the terms of the step, for the log line."""
        for optimiser in self._optimisers.values():
            optimiser.step()
            optimiser.zero_grad()
        return {name: value.item() for name, value in self._terms.items()}

    # -- state ------------------------------------------------------------------------------------

    def state_dict(self) -> Dict[str, Any]:
        """Weights and optimiser state of each space's generator.

        Without the optimiser's options, which the config has: torch 1.13 cannot read numbers with
        ``weights_only``.
        """
        return {
            space: {
                "generator": generator.state_dict(),
                "optimiser": {"state": self._optimisers[space].state_dict()["state"]},
            }
            for space, generator in self.generators.items()
        }

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Take up :meth:`state_dict`; a generator not built yet takes its state when it is."""
        self._pending = dict(state)
        for space in self.generators:
            if space in state:
                self._restore(space, state[space])


def make_trainer(
    host: type,
    mode: str = "proxy_fda",
    *,
    modules: Optional[Dict[str, str]] = None,
    backward_pass: int = 1,
    frozen_text_features: Optional[Callable[[Any], Tensor]] = None,
    frozen_image_features: Optional[Callable[[Any, Tensor], Tensor]] = None,
) -> type:
    """``FDA<Host>`` or ``ProxyFDA<Host>``: ``host`` with the term added.

    Args:
        host: a trainer class.
        mode: ``"fda"`` or ``"proxy_fda"``.
        modules: where the host calls its encoders differently, see ``ProxyFDAMixin.fda_modules``;
            any of ``image_encoder`` and ``text_encoder``.
        backward_pass: see ``ProxyFDAMixin.fda_backward_pass``.
        frozen_text_features: (trainer) -> [C, d], in place of what would be rebuilt.
        frozen_image_features: (trainer, images) -> [B, d], likewise.

    Raises:
        ValueError: for another mode, or another key in ``modules``.
    """
    if mode not in _PREFIX:
        raise BadValue(f"mode is {mode!r}; use one of {', '.join(_PREFIX)}")
    names = ProxyFDAMixin.fda_modules
    for key in modules or {}:
        if key not in names:
            raise BadValue(f"modules has the key {key!r}; use any of {', '.join(names)}")
    members: Dict[str, Any] = {
        "fda_mode": mode,
        "fda_modules": {**names, **(modules or {})},
        "fda_backward_pass": backward_pass,
        "__doc__": f":class:`{host.__name__}` with the {_PREFIX[mode]} term "
        "(see :class:`ProxyFDAMixin`).",
        "__module__": host.__module__,
    }
    if frozen_text_features is not None:
        members["frozen_text_features"] = lambda self: frozen_text_features(self)
    if frozen_image_features is not None:
        members["frozen_image_features"] = lambda self, images: frozen_image_features(self, images)
    return type(_PREFIX[mode] + host.__name__, (ProxyFDAMixin, host), members)


def _registry() -> Any:
    """The trainer registry in use: that of :mod:`proxyfda.dassl` where it was imported, else the
    one of an installed Dassl as it is, else the embedded engine's."""
    if "proxyfda.dassl" not in sys.modules:
        try:
            from dassl.engine import TRAINER_REGISTRY

            return TRAINER_REGISTRY
        except ImportError:
            pass
    from proxyfda.dassl import TRAINER_REGISTRY

    return TRAINER_REGISTRY


def register(*hosts: type, **options: Any) -> List[str]:
    """Register ``FDA<Name>`` and ``ProxyFDA<Name>`` with Dassl's trainer registry.

    Call it after your trainers are imported.

    Args:
        hosts: trainer classes; without any, all that are registered now except Dassl's own, which
            have no CLIP.
        options: see :func:`make_trainer`.

    Returns:
        The names that were added. Names that exist already are left alone.
    """
    registry = _registry()
    known = set(registry.registered_names())
    if not hosts:
        hosts = tuple(map(registry.get, registry.registered_names()))
        hosts = tuple(
            host
            for host in hosts
            if not issubclass(host, ProxyFDAMixin) and host.__module__.split(".")[0] != "dassl"
        )
    added = []
    for host in hosts:
        for mode in _PREFIX:
            trainer = make_trainer(host, mode, **options)
            if trainer.__name__ not in known:
                registry.register()(trainer)
                added.append(trainer.__name__)
    return added
