"""Small stand-in hosts, written in the manners in which prompt-tuning trainers compute and step."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from yacs.config import CfgNode as CN

import proxyfda

DIM, CLASSES, BATCH = 6, 5, 8


def make_cfg(**options):
    """A host's config; Eq. 2 has the constants of ``fda_loss`` unless other ones are asked for."""
    cfg = CN()
    cfg.SEED = 1
    cfg.TRAINER = CN()
    proxyfda.extend_cfg(cfg)
    options = {"CONSTANTS": "given", "WEIGHT": 1.0, **options}
    cfg.merge_from_list([x for k, v in options.items() for x in (f"TRAINER.PROXYFDA.{k}", v)])
    return cfg


class Scaler:
    """The interface of GradScaler that the family uses, with a fixed scale."""

    def get_scale(self):
        return 1024.0

    def is_enabled(self):
        return True

    def scale(self, loss):
        return loss * 1024.0


class Encoder(nn.Module):
    """A frozen two-layer network, optionally shifted by a prompt at its input."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(DIM, 12), nn.Tanh(), nn.Linear(12, DIM))

    def forward(self, x, prompt=None):
        return self.net(x if prompt is None else x + prompt)


class Model(nn.Module):
    """``image_encoder``, ``text_encoder``, ``prompt_learner``; the subclass says how they meet."""

    def __init__(self):
        super().__init__()
        self.image_encoder, self.text_encoder = Encoder(), Encoder()
        self.prompt_learner = nn.ParameterDict(
            {"ctx": nn.Parameter(torch.randn(DIM)), "vis": nn.Parameter(torch.randn(DIM))}
        )
        self.register_buffer("names", torch.randn(CLASSES, DIM))
        for encoder in (self.image_encoder, self.text_encoder):
            encoder.requires_grad_(False)

    @staticmethod
    def logits(images, texts):
        return 10 * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).transpose(-1, -2)


class TextPrompts(Model):
    """CoOp's manner: one set of class texts, image encoder frozen and run without gradient."""

    def forward(self, x):
        with torch.no_grad():
            images = self.image_encoder(x)
        return self.logits(images, self.text_encoder(self.names, self.prompt_learner["ctx"]))


class ConditionalPrompts(Model):
    """CoCoOp's manner: the text encoder is called once per image."""

    def forward(self, x):
        images = self.image_encoder(x)
        rows = []
        for feature in images:
            texts = self.text_encoder(self.names, self.prompt_learner["ctx"] * feature)
            rows.append(self.logits(feature[None], texts)[0])
        return torch.stack(rows)


class BothPrompts(Model):
    """MaPLe's manner: prompts on both sides."""

    def forward(self, x):
        images = self.image_encoder(x, self.prompt_learner["vis"])
        return self.logits(images, self.text_encoder(self.names, self.prompt_learner["ctx"]))


class ConsistentPrompts(BothPrompts):
    """PromptSRC's manner: forward returns a tuple that holds more than one loss."""

    def forward(self, x):
        logits = super().forward(x)
        return logits, self.prompt_learner["ctx"].square().sum()


class Host:
    """A trainer as in Dassl, cut down to what the plugin meets."""

    model_class = TextPrompts
    scaled = False
    captured_frozen = 0

    def __init__(self, cfg):
        self.cfg, self.device = cfg, torch.device("cpu")
        self.epoch = self.batch_idx = 0
        self.check_cfg(cfg)
        self.build_model()

    def check_cfg(self, cfg):
        pass

    def build_model(self):
        torch.manual_seed(0)
        self.model = self.model_class()
        self.optim = torch.optim.SGD(self.model.prompt_learner.parameters(), lr=0.1)
        self.scaler = Scaler() if self.scaled else None

    def task_loss(self, batch):
        output = self.model(batch["img"])
        if isinstance(output, tuple):
            logits, extra = output
            return F.cross_entropy(logits, batch["label"]) + 0.1 * extra
        return F.cross_entropy(output, batch["label"])

    def forward_backward(self, batch):
        loss = self.task_loss(batch)
        self.optim.zero_grad()
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        return {"loss": loss.item()}

    def frozen_text_features(self):
        return self.model.text_encoder(self.model.names)

    def frozen_image_features(self, images):
        self.captured_frozen += 1
        return self.model.image_encoder(images)


class CoOpLike(Host):
    pass


class ScaledCoOpLike(Host):
    scaled = True


class CoCoOpLike(Host):
    model_class = ConditionalPrompts


class MaPLeLike(Host):
    model_class = BothPrompts


class PromptSRCLike(Host):
    model_class = ConsistentPrompts


def make_batch(seed=3):
    generator = torch.Generator().manual_seed(seed)
    return {
        "img": torch.randn(BATCH, DIM, generator=generator),
        "label": torch.randint(CLASSES, (BATCH,), generator=generator),
    }


class RecomputedPrompts(ConditionalPrompts):
    """Activation checkpointing of each text pass: around the encoder alone, or with what follows.

    The last pass may be kept: a host's backward pass starts there.
    """

    around, reentrant, kept = "encoder", False, 1

    def texts(self, feature):
        return self.text_encoder(self.names, self.prompt_learner["ctx"] * feature)

    def row(self, feature):
        return self.logits(feature[None], self.texts(feature))[0]

    def forward(self, x):
        images = self.image_encoder(x)
        rows = []
        for i, feature in enumerate(images):
            feature = feature.clone().requires_grad_()  # the reentrant kind needs such an input
            call = self.texts if self.around == "encoder" else self.row
            if i + self.kept < len(images):
                out = checkpoint(call, feature, use_reentrant=self.reentrant)
            else:
                out = call(feature)
            rows.append(out if self.around == "more" else self.logits(feature[None], out)[0])
        return torch.stack(rows)


class CheckpointedLike(Host):
    model_class = RecomputedPrompts


# -- the rest of the family: how its trainers differ from the four above ---------------------------


class PermutedPrompts(TextPrompts):
    """KDPL's manner: the classes in an order of the step's own."""

    order = torch.tensor([3, 0, 4, 1, 2])

    def forward(self, x):
        texts = self.text_encoder(self.names[self.order], self.prompt_learner["ctx"])
        return self.logits(self.image_encoder(x), texts)[:, self.order.argsort()]


class MoreClasses(TextPrompts):
    """LASP's manner: a second call with the classes of the whole dataset, in another order."""

    every = torch.tensor([4, 5, 2, 7, 0, 9, 3, 6, 1, 8])

    def __init__(self):
        super().__init__()
        self.register_buffer("all_names", torch.cat([self.names, torch.randn(CLASSES, DIM)]))

    def forward(self, x):
        logits = super().forward(x)
        texts = self.text_encoder(self.all_names[self.every], self.prompt_learner["ctx"])
        return logits, texts.square().mean()


class SeveralPrompts(TextPrompts):
    """PLOT's manner: several prompts per class in one call, and a map of features per image."""

    prompts, points = 3, 4

    def __init__(self):
        super().__init__()
        self.prompt_learner["ctx"] = nn.Parameter(torch.randn(self.prompts, DIM))

    def images(self, x):
        return self.image_encoder(torch.stack([x + i for i in range(self.points)]))

    def texts(self):
        ctx = self.prompt_learner["ctx"].repeat_interleave(CLASSES, 0)
        return self.text_encoder(self.names.repeat(self.prompts, 1), ctx)

    def forward(self, x):
        texts = self.texts().view(self.prompts, CLASSES, DIM).mean(0)
        return self.logits(self.images(x).mean(0), texts)


class SeveralBoth(SeveralPrompts):
    """PLOT++'s manner: a set of features for each visual prompt."""

    def __init__(self):
        super().__init__()
        self.prompt_learner["vis"] = nn.Parameter(torch.randn(self.points, 1, DIM))

    def images(self, x):
        return self.image_encoder(x, self.prompt_learner["vis"])


class ImagesOnly(Model):
    """PromptKD's manner: the class texts are those of another model."""

    def __init__(self):
        super().__init__()
        del self.text_encoder

    def forward(self, x):
        return self.logits(self.image_encoder(x, self.prompt_learner["vis"]), self.names)


class TextsOnly(Model):
    """ProText's manner: no image is seen in training."""

    def __init__(self):
        super().__init__()
        del self.image_encoder

    def forward(self, x):
        return self.logits(x, self.text_encoder(self.names, self.prompt_learner["ctx"]))


class Adapted(Model):
    """CLIP-Adapter's and CLAP's manner: what is trained comes after the frozen encoder."""

    def __init__(self):
        super().__init__()
        del self.text_encoder

    def forward(self, x):
        return self.logits(self.image_encoder(x) + self.prompt_learner["ctx"], self.names)


class PermutedLike(Host):
    model_class = PermutedPrompts


class MoreClassesLike(Host):
    model_class = MoreClasses


class PLOTLike(Host):
    model_class = SeveralPrompts


class PLOTPPLike(Host):
    model_class = SeveralBoth


class ImagesOnlyLike(Host):
    """Asks for its own name, and keeps its model under a name of its own, beside a teacher.

    Dassl knows a part of it alone.
    """

    model_class = ImagesOnly

    def build_model(self):
        super().build_model()
        if "NAME" in self.cfg.TRAINER and self.cfg.TRAINER.NAME != "ImagesOnlyLike":
            raise KeyError(f"no settings for {self.cfg.TRAINER.NAME}")
        self.teacher, self.student = BothPrompts(), self.model
        del self.model
        self._models = {"prompts": self.student.prompt_learner}

    def task_loss(self, batch):
        return F.cross_entropy(self.student(batch["img"]), batch["label"])

    def frozen_image_features(self, images):
        return self.student.image_encoder(images)


class TextsOnlyLike(Host):
    model_class = TextsOnly


class AdaptedLike(Host):
    """Its step takes features and labels, the latter by keyword."""

    model_class = Adapted

    def forward_backward(self, features, labels):
        return super().forward_backward({"img": features, "label": labels})


FAMILY = [
    PermutedLike,
    MoreClassesLike,
    PLOTLike,
    PLOTPPLike,
    ImagesOnlyLike,
    TextsOnlyLike,
    AdaptedLike,
]


def step_of(trainer, batch=None):
    """One step in the host's own way."""
    batch = make_batch() if batch is None else batch
    if isinstance(trainer, AdaptedLike):
        return trainer.forward_backward(batch["img"], labels=batch["label"])
    return trainer.forward_backward(batch)
