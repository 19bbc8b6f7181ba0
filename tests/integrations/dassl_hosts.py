"""Stand-in hosts on the engine: a small CLIP under OpenAI names, prompted as the family does.

Written from descriptions of the four upstream trainers, without their code. Each differs in where
prompts enter (input, arguments of the blocks, parameters inside the blocks), in what the model
returns (logits, a loss, a tuple), and in how often an encoder is called.
"""

import math
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from proxyfda.dassl import (
    DATASET_REGISTRY,
    TRAINER_REGISTRY,
    DatasetBase,
    Datum,
    TrainerX,
    build_lr_scheduler,
    build_optimizer,
)

WIDTH, DIM, PATCH, LENGTH, WORDS = 16, 8, 4, 12, 40
CLASSNAMES = ["abyssinian", "beagle", "basset_hound", "sphynx", "pug", "boxer"]
CUSTOM_TEMPLATES = {"Pets": "a photo of a {}, a type of pet."}  # as the family keeps them


class clip:
    """The host's ``clip`` module, which has the tokeniser."""

    @staticmethod
    def tokenize(texts):
        """[n, LENGTH] numbers, one per word, the largest at the end of the text."""
        texts = [texts] if isinstance(texts, str) else texts
        tokens = torch.zeros(len(texts), LENGTH, dtype=torch.long)
        for row, text in zip(tokens, texts):
            words = [1 + sum(map(ord, word)) % (WORDS - 3) for word in text.split()]
            row[: len(words) + 2] = torch.tensor([WORDS - 2, *words, WORDS - 1])
        return tokens


class Block(nn.Module):
    """A residual attention block on [L, n, w]; it may hold prompts, or be given some."""

    def __init__(self, width, mask=None, own_prompts=0):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, 2)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 2 * width))
        self.mlp.add_module("gelu", nn.GELU())
        self.mlp.add_module("c_proj", nn.Linear(2 * width, width))
        self.mask = mask
        if own_prompts:
            self.VPT = nn.Parameter(0.3 * torch.randn(own_prompts, width))

    def forward(self, x, prompts=None):
        prompts = getattr(self, "VPT", prompts)
        if prompts is not None:  # text: after the first token; images: at the end
            new = prompts.to(x.dtype).unsqueeze(1).expand(-1, x.shape[1], -1)
            n = len(prompts)
            parts = [x[:1], new, x[1 + n :]] if self.mask is not None else [x[:-n], new]
            x = torch.cat(parts)
        y = self.ln_1(x)
        mask = None if self.mask is None else self.mask.to(x.dtype)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width, mask=None, own_prompts=0):
        super().__init__()
        self.resblocks = nn.Sequential(*[Block(width, mask, i and own_prompts) for i in range(2)])

    def forward(self, x, deep=()):
        for i, block in enumerate(self.resblocks):
            x = block(x, deep[i - 1] if 0 < i <= len(deep) else None)
        return x


class Visual(nn.Module):
    """OpenAI's vision transformer, with prompts of its own or as arguments."""

    def __init__(self, size, own_prompts=0):
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.positional_embedding = nn.Parameter(torch.randn((size // PATCH) ** 2 + 1, WIDTH))
        self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.transformer = Transformer(WIDTH, own_prompts=own_prompts)
        self.proj = nn.Parameter(torch.randn(WIDTH, DIM) / WIDTH**0.5)
        if own_prompts:
            self.VPT = nn.Parameter(0.3 * torch.randn(own_prompts, WIDTH))

    def forward(self, images, shallow=None, deep=()):
        x = self.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1).to(x.dtype), x], 1)
        x = x + self.positional_embedding.to(x.dtype)
        shallow = getattr(self, "VPT", shallow)
        if shallow is not None:
            x = torch.cat([x, shallow.to(x.dtype).expand(len(x), -1, -1)], 1)
        x = self.transformer(self.ln_pre(x).transpose(0, 1), deep)
        return self.ln_post(x[0]) @ self.proj


class CLIP(nn.Module):
    def __init__(self, size, own_prompts=0):
        super().__init__()
        mask = torch.full((LENGTH, LENGTH), -math.inf).triu(1)
        self.visual = Visual(size, own_prompts)
        self.transformer = Transformer(WIDTH, mask, own_prompts)
        self.token_embedding = nn.Embedding(WORDS, WIDTH)
        self.positional_embedding = nn.Parameter(torch.randn(LENGTH, WIDTH))
        self.ln_final = nn.LayerNorm(WIDTH)
        self.text_projection = nn.Parameter(torch.randn(WIDTH, DIM) / WIDTH**0.5)

    def encode_text(self, tokens):
        encoder = TextEncoder(self)
        return encoder(self.token_embedding(tokens), tokens)


class TextEncoder(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.transformer, self.ln_final = model.transformer, model.ln_final
        self.positional_embedding = model.positional_embedding
        self.text_projection = model.text_projection

    def forward(self, prompts, tokens, deep=()):
        x = prompts + self.positional_embedding.to(prompts.dtype)
        x = self.ln_final(self.transformer(x.transpose(0, 1), deep)).transpose(0, 1)
        return x[torch.arange(len(x)), tokens.argmax(1)] @ self.text_projection


def load_clip(size, own_prompts=0):
    """The same pre-trained weights for every host; the prompts come on top."""
    torch.manual_seed(5)
    pretrained = CLIP(size).state_dict()
    model = CLIP(size, own_prompts)
    model.load_state_dict(pretrained, strict=False)
    return model


class Prompts(nn.Module):
    """Two learnable context words before the class name, and what a manner adds."""

    def __init__(self, classnames, model):
        super().__init__()
        texts = ["X X " + name.replace("_", " ") + "." for name in classnames]
        self.tokens = clip.tokenize(texts)
        with torch.no_grad():
            embedded = model.token_embedding(self.tokens)
        self.ctx = nn.Parameter(0.3 * torch.randn(2, WIDTH))
        self.register_buffer("token_prefix", embedded[:, :1])
        self.register_buffer("token_suffix", embedded[:, 3:])

    def forward(self, shift=0.0):
        ctx = (self.ctx + shift).expand(len(self.tokens), -1, -1)
        return torch.cat([self.token_prefix, ctx, self.token_suffix], 1)


class HostModel(nn.Module):
    """One set of class texts, image encoder frozen; returns the logits."""

    own_prompts = 0

    def __init__(self, classnames, size):
        super().__init__()
        model = load_clip(size, self.own_prompts)
        self.prompt_learner = Prompts(classnames, model)
        self.image_encoder, self.text_encoder = model.visual, TextEncoder(model)
        self.add(size)

    def add(self, size):
        pass

    def features(self, images):
        """Features of the images, and those of the class texts: one set, or one per image."""
        texts = self.text_encoder(self.prompt_learner(), self.prompt_learner.tokens)
        return self.image_encoder(images), [texts]

    def forward(self, images, labels=None):
        images, texts = self.features(images)
        images, texts = F.normalize(images, dim=-1), F.normalize(torch.stack(texts), dim=-1)
        return 10 * (images.unsqueeze(1) * texts).sum(-1)


class LossModel(HostModel):
    """In training the model returns the loss."""

    def forward(self, images, labels=None):
        logits = super().forward(images)
        return F.cross_entropy(logits, labels) if self.training else logits


class ConditionalModel(LossModel):
    """The text encoder runs once per image, with prompts that depend on it."""

    def add(self, size):
        self.prompt_learner.meta_net = nn.Linear(DIM, WIDTH)

    def features(self, images):
        features, learner = self.image_encoder(images), self.prompt_learner
        texts = [
            self.text_encoder(learner(learner.meta_net(feature)), learner.tokens)
            for feature in features
        ]
        return features, texts


class CoupledModel(LossModel):
    """Prompts on both sides, given to the encoders as arguments."""

    def add(self, size):
        learner = self.prompt_learner
        learner.proj, learner.deep_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        learner.deep = nn.ParameterList([nn.Parameter(0.3 * torch.randn(2, WIDTH))])

    def features(self, images):
        learner = self.prompt_learner
        texts = self.text_encoder(learner(), learner.tokens, learner.deep)
        deep = [learner.deep_proj(prompts) for prompts in learner.deep]
        return self.image_encoder(images, learner.proj(learner.ctx), deep), [texts]


class ConsistentModel(HostModel):
    """Prompts inside the blocks of both encoders, and a frozen teacher; returns a tuple."""

    own_prompts = 2

    def add(self, size):
        self.prompt_learner.ZS_image_encoder = load_clip(size).visual

    def forward(self, images, labels=None):
        if not self.training:
            return super().forward(images)
        features, (texts,) = self.features(images)
        with torch.no_grad():
            teacher = self.prompt_learner.ZS_image_encoder(images)
        logits = 10 * F.normalize(features, dim=-1) @ F.normalize(texts, dim=-1).t()
        return F.cross_entropy(logits, labels), teacher, features, logits


class Wrapped(nn.Module):
    """An image encoder that takes its inputs in another form."""

    def __init__(self, visual, unpack):
        super().__init__()
        self.visual, self.unpack = visual, unpack

    def forward(self, *args, **kwargs):
        return self.visual(*self.unpack(*args, **kwargs))


class ListModel(CoupledModel):
    """MMA's and MMRL's manner: the image encoder is given a list; the texts follow with tokens."""

    def add(self, size):
        super().add(size)
        self.image_encoder = Wrapped(self.image_encoder, lambda inputs: inputs)

    def encode(self, images, shallow, deep):
        return self.image_encoder([images, shallow, deep])

    def features(self, images):
        learner = self.prompt_learner
        texts = self.text_encoder(learner(), learner.tokens, learner.deep)
        deep = [learner.deep_proj(prompts) for prompts in learner.deep]
        return self.encode(images, learner.proj(learner.ctx), deep), [texts]


class KeywordModel(ListModel):
    """By keyword, in a dict, behind prompts."""

    def add(self, size):
        super().add(size)
        self.image_encoder.unpack = lambda prompts, inputs: (inputs["images"], *prompts)

    def encode(self, images, shallow, deep):
        return self.image_encoder((shallow, deep), inputs={"images": images})


class CachedModel(ListModel):
    """SkipTuning's manner: the image encoder goes on from tokens that were kept."""

    def add(self, size):
        super().add(size)
        self.image_encoder.unpack = lambda tokens, shallow, deep: (
            tokens.view(-1, 3, size, size),
            shallow,
            deep,
        )

    def encode(self, images, shallow, deep):
        return self.image_encoder(images.flatten(2), shallow, deep)


class PermutedModel(HostModel):
    """KDPL's manner: a new order of the classes in each step."""

    def forward(self, images, labels=None):
        learner = self.prompt_learner
        order = torch.randperm(len(learner.tokens))
        texts = self.text_encoder(learner()[order], learner.tokens[order])
        features, texts = (F.normalize(x, dim=-1) for x in (self.image_encoder(images), texts))
        return (10 * features @ texts.t())[:, order.argsort()]


@DATASET_REGISTRY.register()
class Pets(DatasetBase):
    """Random images, six of each class."""

    def __init__(self, cfg):
        root, rng, splits = Path(cfg.DATASET.ROOT), np.random.default_rng(0), {}
        for split, count in (("train", 6), ("test", 2)):
            splits[split] = []
            for label, name in enumerate(CLASSNAMES):
                for shot in range(count):
                    path = root / f"{split}_{label}_{shot}.png"
                    if not path.exists():
                        pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                        Image.fromarray(pixels).save(path)
                    splits[split].append(Datum(str(path), label, classname=name))
        train = self.generate_fewshot_dataset(splits["train"], num_shots=cfg.DATASET.NUM_SHOTS)
        super().__init__(train_x=train, val=splits["test"], test=splits["test"])


if hasattr(torch.amp, "GradScaler"):
    Scaler = partial(torch.amp.GradScaler, "cpu")
else:  # an older torch scales on GPUs alone

    class Scaler:
        def __init__(self, init_scale):
            self.value = init_scale

        def is_enabled(self):
            return True

        def get_scale(self):
            return self.value

        def scale(self, loss):
            return loss * self.value

        def step(self, optimiser):
            for group in optimiser.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.grad.div_(self.value)
            optimiser.step()

        def update(self):
            pass


class Host(TrainerX):
    """Builds a model, tunes what belongs to the prompts, loads without the embedded names."""

    model_class = HostModel
    wrap = staticmethod(lambda model: model)

    def build_model(self):
        torch.manual_seed(1)
        self.model = self.model_class(self.dm.dataset.classnames, self.cfg.INPUT.SIZE[0])
        for name, parameter in self.model.named_parameters():
            prompts = "prompt_learner" in name and "ZS_" not in name
            parameter.requires_grad_(prompts or "VPT" in name)
        self.model.to(self.device)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("prompts", self.model, self.optim, self.sched)
        self.model = self.wrap(self.model)
        self.scaler = None

    def loss(self, images, labels):
        """The manner of most: the model returns the loss."""
        return self.model(images, labels)

    def forward_backward(self, batch):
        images, labels = batch["img"].to(self.device), batch["label"].to(self.device)
        loss = self.loss(images, labels)
        self.optim.zero_grad()
        loss.backward()
        self.optim.step()
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}

    def load_model(self, directory, epoch=None):
        path = Path(directory) / "prompts" / f"model.pth.tar-{epoch}"
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        self._models["prompts"].load_state_dict(state)


@TRAINER_REGISTRY.register()
class Plain(Host):
    """The model returns logits, the engine's own helper steps."""

    def forward_backward(self, batch):
        loss = F.cross_entropy(self.model(batch["img"]), batch["label"])
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}


@TRAINER_REGISTRY.register()
class Amp(Host):
    """Autocast in the forward pass (bfloat16, for the CPU) and a scaled loss."""

    def build_model(self):
        super().build_model()
        self.scaler = Scaler(init_scale=1024.0)

    def forward_backward(self, batch):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(self.model(batch["img"]), batch["label"])
        self.optim.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optim)
        self.scaler.update()
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}


@TRAINER_REGISTRY.register()
class Conditional(Host):
    model_class = ConditionalModel


@TRAINER_REGISTRY.register()
class Coupled(Host):
    model_class = CoupledModel


@TRAINER_REGISTRY.register()
class Listed(Host):
    model_class = ListModel


@TRAINER_REGISTRY.register()
class Keyworded(Host):
    model_class = KeywordModel


@TRAINER_REGISTRY.register()
class Cached(Host):
    model_class = CachedModel


@TRAINER_REGISTRY.register()
class OwnBatches(Coupled):
    """Takes its batches from a loader of its own, after a look at all images."""

    def before_train(self):
        super().before_train()
        assert list(self.train_loader_x)

    def before_epoch(self):
        super().before_epoch()
        loader = torch.utils.data.DataLoader(self.train_loader_x.dataset, batch_size=8)
        self.train_loader_x = loader


@TRAINER_REGISTRY.register()
class Permuted(Plain):
    model_class = PermutedModel


@TRAINER_REGISTRY.register()
class Consistent(Host):
    """Several losses, made from the tuple that the model returns."""

    model_class = ConsistentModel

    def loss(self, images, labels):
        cross_entropy, teacher, features, logits = self.model(images, labels)
        pull = F.l1_loss(F.normalize(features, dim=-1), F.normalize(teacher, dim=-1))
        return cross_entropy + 10 * pull + 0.01 * logits.square().mean()


@TRAINER_REGISTRY.register()
class TwoBackward(Host):
    """Two losses, each with a backward pass of its own over one graph."""

    model_class = CoupledModel

    def forward_backward(self, batch):
        loss = self.model(batch["img"], batch["label"])
        self.optim.zero_grad()
        (0.5 * loss).backward(retain_graph=True)
        (0.5 * loss).backward()
        self.optim.step()
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}


# -- what tests do with them ----------------------------------------------------------------------


def first_batch(trainer):
    torch.manual_seed(0)
    batch = next(iter(trainer.train_loader_x))
    trainer.batch_idx, trainer.num_batches, trainer.epoch = 0, 10, 0
    trainer.set_model_mode("train")
    return batch


def learnables(trainer):
    return {n: p for n, p in trainer._models["prompts"].named_parameters() if p.requires_grad}


def pristine_anchors(images):
    """Features of the CLIP that the hosts were built on, by its own forward pass."""
    model = load_clip(8)
    names = [name.replace("_", " ") for name in CLASSNAMES]
    tokens = clip.tokenize([f"a photo of a {name}, a type of pet." for name in names])
    with torch.no_grad():
        return model.visual(images), model.encode_text(tokens)
