"""FineTune: image encoder and linear head, everything tuned; LPFT: the head by a probe first."""

from __future__ import annotations

import os.path as osp

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from proxyfda.anchors import cached_tensor, fingerprint
from proxyfda.backbones import ImageBackbone, load_backbone
from proxyfda.backbones.clip import AUTOCAST, resolve_precision
from proxyfda.backbones.zero_shot import templates_of, zero_shot_weights
from proxyfda.dassl import (
    TRAINER_REGISTRY,
    build_optimizer,
    compute_accuracy,
    find_checkpoint,
    load_checkpoint,
)
from proxyfda.diagnostics import choose_linear_probe, fit_linear_probe
from proxyfda.integrations.balanced_batches import BalancedBatches
from proxyfda.integrations.dassl_options import PluginOptions
from proxyfda.names import PREFIXES
from proxyfda.regularisers import find
from proxyfda.utils.errors import BadValue
from proxyfda.utils.rules import Flag, OneOf, Real, Text, Whole
from trainers.base import ConfiguredTrainer
from trainers.finetune.anchored import Anchored, frozen_copy
from trainers.finetune.head import Classifier, Head
from trainers.finetune.schedule import build_schedule, warmup_of
from trainers.finetune.start import check_start, load_part

__all__ = ["LPFT", "FineTune", "register_with_forms"]

HEADS = ("zero_shot", "probe", "random")
ANCHORS = ("pretrained", "previous")
# Options of the plugin that act on texts or on further images -> their values without effect.
_WITHOUT_EFFECT = {"words": 32, "vocabulary": "", "mixed": 0, "text_classes": "", "template": ""}
_DETERMINISTIC = ("normalize", "center_crop")


def register_with_forms(host: type) -> type:
    """Register a trainer, and ``FDA<Host>`` and ``ProxyFDA<Host>``, which train with the paper's
    regularisers."""
    TRAINER_REGISTRY.register()(host)
    for prefix, regulariser in PREFIXES.items():
        members = {
            "trained_regulariser": regulariser,
            "__doc__": f":class:`{host.__name__}` with {prefix}.",
            "__module__": host.__module__,
        }
        TRAINER_REGISTRY.register()(type(prefix + host.__name__, (host,), members))
    return host


@register_with_forms
class FineTune(BalancedBatches, ConfiguredTrainer):
    """Tunes an image encoder and a linear head end to end; options under ``TRAINER.FINETUNE``.

    The loss of a step is the task's plus λ R, where ``TRAINER.PROXYFDA`` names a regulariser R. The
    encoder runs once in a step; where R compares features, a frozen encoder runs once without
    gradient: the backbone as it was pre-trained, or the encoder that the run started from
    (``ANCHOR previous``). LDIFS compares layers, L2SP the weights of the encoder, everything else
    the features.

    Images are prepared as the backbone wants them, whatever ``INPUT`` says of mean, deviation and
    interpolation. The head is a linear layer on features of length 1.

    Attributes:
        tunes_encoder: its checkpoints have an ``image_encoder``.
        backbone: what is tuned.
        term: the regulariser; None where there is none.
    """

    config_node = "FINETUNE"
    defaults = {
        "PREC": "fp32",  # fp32, amp or bf16
        "HEAD": "",  # zero_shot, probe or random; empty: zero_shot where there are texts
        "START_FROM": "",  # folder of an earlier run, whose encoder is gone on with
        "ANCHOR": "pretrained",  # or previous: the encoder of START_FROM
        "CACHE_ANCHORS": False,  # keep the frozen features of all images
        "WARMUP_STEPS": 500,  # at most half of the run's steps
        "CLIP_GRAD": 1.0,  # norm that the gradient is cut down to; 0 leaves it as it is
    }
    rules = {
        "HEAD": OneOf(("", *HEADS)),
        "START_FROM": Text(what="a folder's path"),
        "ANCHOR": OneOf(ANCHORS),
        "CACHE_ANCHORS": Flag(),
        "WARMUP_STEPS": Whole(0),
        "CLIP_GRAD": Real(least=0),
    }
    precisions = ("fp32", *AUTOCAST)
    regularises_itself = True
    tunes_encoder = True
    trained_regulariser = ""
    heads = HEADS

    term: Anchored | None = None
    _frozen: ImageBackbone | None = None
    _kept: Tensor | None = None

    # -- options --------------------------------------------------------------------------------

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        own, node = cfg.TRAINER.FINETUNE, "TRAINER.FINETUNE"
        if own.HEAD and own.HEAD not in self.heads:
            has = f"starts its head from {', '.join(self.heads)}" if self.heads else "has no head"
            raise BadValue(
                f"{node}.HEAD is {own.HEAD!r}, but {type(self).__name__} {has}; leave it empty"
            )
        if own.ANCHOR == "previous" and not own.START_FROM:
            raise BadValue(
                f"{node}.ANCHOR is 'previous', but {node}.START_FROM names no run whose encoder "
                "that is; give one, or ANCHOR pretrained"
            )
        if own.START_FROM:
            check_start(own.START_FROM, cfg, f"{node}.START_FROM")
        if cfg.MODEL.INIT_WEIGHTS:
            raise BadValue(
                f"MODEL.INIT_WEIGHTS is {cfg.MODEL.INIT_WEIGHTS}, which is for prompts; give the "
                f"run whose encoder to start from as {node}.START_FROM"
            )
        if cfg.OPTIM.WARMUP_EPOCH > 0:
            raise BadValue(
                f"OPTIM.WARMUP_EPOCH is {cfg.OPTIM.WARMUP_EPOCH}, but the learning rate changes "
                f"with every step here; use {node}.WARMUP_STEPS"
            )
        if "normalize" not in cfg.INPUT.TRANSFORMS:
            raise BadValue(
                f"INPUT.TRANSFORMS is {tuple(cfg.INPUT.TRANSFORMS)}, without the normalisation "
                "that the encoder was trained with; add normalize"
            )
        self._check_regulariser(cfg)

    def _check_regulariser(self, cfg) -> None:
        plugin = PluginOptions.from_cfg(cfg, self.trained_regulariser)
        if plugin.has_term:
            if set(plugin.spaces) - {"image"}:
                raise BadValue(
                    f"TRAINER.PROXYFDA.SPACES is {plugin.spaces!r}, but {type(self).__name__} "
                    "compares images alone; leave SPACES empty"
                )
            for name, value in _WITHOUT_EFFECT.items():
                if getattr(plugin, name) != value:
                    raise BadValue(
                        f"TRAINER.PROXYFDA.{name.upper()} is {getattr(plugin, name)!r}, which has "
                        f"no effect on {type(self).__name__}; leave it {value!r}"
                    )
        if not cfg.TRAINER.FINETUNE.CACHE_ANCHORS:
            return
        cache = "TRAINER.FINETUNE.CACHE_ANCHORS"
        random = [name for name in cfg.INPUT.TRANSFORMS if name not in _DETERMINISTIC]
        if random:
            raise BadValue(
                f"{cache} is True, but INPUT.TRANSFORMS has {', '.join(random)}, which shows an "
                f"image otherwise in every epoch; leave {cache} False, or use "
                f"{' and '.join(_DETERMINISTIC)} alone"
            )
        if plugin.has_term and find(plugin.regulariser).takes_layers:
            raise BadValue(
                f"{cache} is True, but {plugin.regulariser} compares all tokens of several layers, "
                f"which are too many to keep of all images; leave {cache} False"
            )

    @property
    def head_start(self) -> str:
        """What the head starts from.

        Raises:
            BadValue: texts are asked for and the backbone has none.
        """
        chosen = self.options.HEAD
        if chosen == "zero_shot" and not self.backbone.has_texts:
            raise BadValue(
                f"TRAINER.FINETUNE.HEAD is 'zero_shot', but {self.backbone.name} has no text "
                "encoder; use probe or random"
            )
        return chosen or ("zero_shot" if self.backbone.has_texts else "random")

    # -- building -------------------------------------------------------------------------------

    def build_data_loader(self):
        """The backbone first: it says how images are prepared."""
        self.backbone = self._load_backbone()
        backbone, cfg = self.backbone, self.cfg.clone()
        frozen = cfg.is_frozen()
        cfg.defrost()
        cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD = (
            [float(value) for value in values]
            for values in (backbone.image_mean, backbone.image_std)
        )
        cfg.INPUT.INTERPOLATION = backbone.interpolation
        if frozen:
            cfg.freeze()
        self.cfg = cfg
        print(
            f"Images as {backbone.name} takes them: {backbone.interpolation}, mean "
            f"{cfg.INPUT.PIXEL_MEAN}, std {cfg.INPUT.PIXEL_STD}"
        )
        super().build_data_loader()

    def _load_backbone(self) -> ImageBackbone:
        chosen, size = self.cfg.MODEL.BACKBONE, tuple(self.cfg.INPUT.SIZE)
        self.precision = resolve_precision(self.options.PREC, self.device)
        print(f"Loading backbone: {chosen.NAME}")
        if len(set(size)) != 1:
            raise BadValue(f"INPUT.SIZE is {size}; encoders take squares, like (224, 224)")
        backbone = load_backbone(
            chosen.NAME, chosen.WEIGHTS, image_size=int(size[0]), device=self.device
        )
        if backbone.image_size and int(size[0]) != backbone.image_size:
            side = backbone.image_size
            raise BadValue(
                f"INPUT.SIZE is {size}, but the image encoder of {chosen.NAME} takes {side} x "
                f'{side} pixels; set INPUT.SIZE "({side}, {side})"'
            )
        return backbone

    def build_model(self):
        plugin = PluginOptions.from_cfg(self.cfg, self.trained_regulariser)
        own = self.options
        if own.ANCHOR == "pretrained":
            self._anchor(plugin)
        if own.START_FROM:
            self._start_from(own.START_FROM)
        if own.ANCHOR == "previous":
            self._anchor(plugin)
        if plugin.has_term or plugin.has_batches:
            self._plugin = plugin
        self._notice_needless_batches(plugin)
        if plugin.has_batches:
            self._replace_batches(plugin)
        if self.cfg.MODEL.BACKBONE.GRAD_CHECKPOINTING:
            self.backbone.set_grad_checkpointing()
        models = self.build_models()
        self._trained = [
            weight
            for model in models.values()
            for weight in model.parameters()
            if weight.requires_grad
        ]
        self.optim = build_optimizer(self._trained, self.cfg.OPTIM)
        steps = len(self.train_loader_x) * self.cfg.OPTIM.MAX_EPOCH
        warmup = warmup_of(steps, own.WARMUP_STEPS)
        if warmup < own.WARMUP_STEPS:
            print(f"Warm-up: {warmup} steps, half of all, in place of {own.WARMUP_STEPS}")
        self.sched = build_schedule(self.optim, steps, warmup)
        for position, (name, model) in enumerate(models.items()):
            first = position == 0  # one optimiser has the weights of all
            kept = (self.optim, self.sched) if first else (None, None)
            self.register_model(name, model, *kept)
        self.scaler = self.build_scaler()

    def _anchor(self, plugin: PluginOptions) -> None:
        """Take the encoder as it is now for what is to be kept."""
        if plugin.has_term:
            self.term = Anchored(plugin, self.backbone, self._seed)
        mines = plugin.has_batches and plugin.mining
        if mines or (self.term is not None and self.term.takes_anchors):
            self._frozen = frozen_copy(self.backbone)
        if self.term is not None and self.term.takes_layers:
            side = self.backbone.image_size
            with torch.no_grad():  # refuses a backbone that gives none, before anything is done
                self._frozen.with_layers(torch.zeros(1, 3, side, side, device=self.device))

    def _start_from(self, folder: str) -> None:
        path = load_part(self.backbone.image_tower, folder, "image_encoder")
        print(f"The encoder starts from {path}")

    def build_models(self) -> dict[str, nn.Module]:
        """What is trained, by the name of its checkpoints; the image encoder first."""
        self.head = Head(self.backbone.output_dim, self.num_classes).to(self.device)
        start = self.head_start
        print(f"Head: {self.num_classes} classes, starts from {start}")
        if start == "zero_shot":
            classnames = self.dm.dataset.classnames
            with torch.no_grad():
                texts = zero_shot_weights(self.backbone, classnames, templates_of(self.dm.dataset))
                self.head.start(self.backbone.logit_scale.exp() * texts)
        self.model = Classifier(self.backbone, self.head)
        return {"image_encoder": self.backbone.image_tower, "head": self.head}

    # -- before the first step ------------------------------------------------------------------

    def before_train(self):
        super().before_train()
        if not self.start_epoch and "head" in self._models and self.head_start == "probe":
            self._probe_head()
        wanted = self.term is not None and self.term.takes_anchors
        if self.options.CACHE_ANCHORS:
            if wanted:
                self._kept = self._keep_anchors()
            else:
                print("TRAINER.FINETUNE.CACHE_ANCHORS has no effect: there are no anchors")
        if not wanted or self._kept is not None:
            self._frozen = None

    def _probe_head(self) -> None:
        """Let the head start from a linear probe on the encoder as the training starts.

        Its strength is chosen on the validation images, where there are some.
        """
        print("Fitting the linear probe that the head starts from")
        train = self._features_of(self._training_images())
        if self.val_loader is None:
            probe = fit_linear_probe(*train, classes=self.num_classes)
        else:
            val = self._features_of(self.val_loader)
            probe = choose_linear_probe(train, val, classes=self.num_classes)
        self.head.start(probe.weight, probe.bias)

    @torch.no_grad()
    def _features_of(self, batches) -> tuple[Tensor, Tensor]:
        """Features [N, d] and labels [N] of all images, of the encoder as it is."""
        features, labels = [], []
        for batch in batches:
            features.append(self.backbone.encode(batch["img"].to(self.device)).float())
            labels.append(batch["label"])
        return torch.cat(features), torch.cat(labels)

    def _keep_anchors(self) -> Tensor:
        """The frozen features [N, d] of all training images, kept in the output folder for a run
        that is resumed."""
        data = self.train_loader_x.dataset
        words = [item.impath for item in data.data_source]
        words += [str(self.cfg.INPUT), self.precision]

        def compute() -> Tensor:
            print(f"Anchors: frozen features of {len(data)} training images")
            images = torch.utils.data.DataLoader(
                data,
                batch_size=self.cfg.DATALOADER.TEST.BATCH_SIZE,
                num_workers=self.train_loader_x.num_workers,
                generator=torch.Generator(),  # its own: the training draws what it draws without
            )
            batches = (batch["img"].to(self.device) for batch in images)
            return torch.cat([self._frozen_features(batch).cpu() for batch in batches])

        path = osp.join(self.cfg.OUTPUT_DIR, "anchors.pt")
        return cached_tensor(path, fingerprint(self._frozen.image_tower, words), compute)

    @torch.no_grad()
    def _frozen_features(self, images: Tensor) -> Tensor:
        with self.autocast():
            return self._frozen(images)

    def _frozen_image_encoder(self):
        return self._frozen_features

    def _frozen_image_weights(self):
        return self._frozen.image_tower.state_dict()

    # -- a step ---------------------------------------------------------------------------------

    def forward_backward(self, batch):
        self._notice_unused_batches()
        images, labels = self.parse_batch_train(batch)
        # First the frozen side: its activations are gone when those of the tuned one are kept.
        anchors = self._anchors(images, batch)
        with self.autocast():
            if self.term is None:
                features = compared = self.backbone(images)
            else:
                features, compared = self.term.encode(self.backbone, images)
        loss, values = self.task_loss(features, labels)
        values = {"loss": loss, **values}
        own: Tensor | int = 0
        if self.term is not None:
            terms = self.term.terms(compared, anchors)
            pull, own = self.term.weighted(terms)
            values = {**values, "loss": loss + pull, "loss_task": loss, **terms}
        self._update(values["loss"] + own)
        return {name: value.detach() for name, value in values.items()}

    def task_loss(self, features: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the task by features [B, d] and labels [B], and values for the log line."""
        logits = self.head(features)
        return F.cross_entropy(logits, labels), {"acc": compute_accuracy(logits, labels)[0]}

    @torch.no_grad()
    def _anchors(self, images: Tensor, batch):
        if self.term is None or not self.term.takes_anchors:
            return None
        if self._kept is not None:
            return self._kept[batch["index"]].to(images.device)
        with self.autocast():
            return self.term.encode(self._frozen, images)[1]

    def _update(self, loss: Tensor) -> None:
        """One step of the optimisers, and of the learning rate."""
        optimisers = [self.optim]
        if self.term is not None and self.term.own is not None:
            optimisers.append(self.term.own)
        for optimiser in optimisers:
            optimiser.zero_grad(set_to_none=True)
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        # Where a batch is too small to have anything to align, the regulariser learns nothing.
        optimisers = list(filter(_has_gradient, optimisers))
        if self.scaler is not None:
            for optimiser in optimisers:  # the bound is one of the gradient, not of its multiple
                self.scaler.unscale_(optimiser)
        if self.options.CLIP_GRAD > 0:
            nn.utils.clip_grad_norm_(self._trained, self.options.CLIP_GRAD)
        for optimiser in optimisers:
            if self.scaler is None:
                optimiser.step()
            else:
                self.scaler.step(optimiser)
        if self.scaler is not None:
            self.scaler.update()
        self.sched.step()

    # -- checkpoints ----------------------------------------------------------------------------

    def extra_state(self):
        state = super().extra_state()
        learned = {} if self.term is None else self.term.saved_state()
        return {**state, "regulariser": learned} if learned else state

    def load_extra_state(self, state):
        super().load_extra_state(state)
        if self.term is not None:
            self.term.restore(state.get("regulariser") or {})

    def load_model(self, directory, epoch=None):
        """Load what a run of this trainer saved.

        Args:
            directory: the run's folder; empty skips loading.
            epoch: 1-based; without it the best on the validation set, if one was kept, else the
                last.

        Raises:
            NotFound: no such checkpoint.
            BadValue: one of another backbone, or a head of other classes.
        """
        if not directory:
            print("No model directory is given, so no weights are loaded")
            return
        self._check_head(directory, epoch)
        for name in self.get_model_names():
            path = load_part(self._models[name], directory, name, epoch)
            print(f'Loading weights to {name} from "{path}"')

    def _check_head(self, directory: str, epoch: int | None) -> None:
        """Refuse a head of another number of classes, by a sentence of its own."""
        if "head" not in self._models:
            return
        path = find_checkpoint(directory, "head", epoch)
        weight = (load_checkpoint(path).get("state_dict") or {}).get("weight")
        if weight is not None and len(weight) != self.num_classes:
            raise BadValue(
                f"{path} is a head of {len(weight)} classes and the dataset has "
                f"{self.num_classes}; evaluate on the classes of its training, or give the encoder "
                "alone to --probe"
            )


@register_with_forms
class LPFT(FineTune):
    """LP-FT: a linear probe first, then everything is tuned from there.

    Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform
    Out-of-Distribution", ICLR 2022, arXiv 2202.10054.
    """

    heads = ("probe",)

    @property
    def head_start(self):
        return "probe"


def _has_gradient(optimiser: torch.optim.Optimizer) -> bool:
    return any(
        weight.grad is not None for group in optimiser.param_groups for weight in group["params"]
    )
