"""PromptSRC: prompts in both encoders, held near the frozen CLIP and averaged over training.

Khattak et al., "Self-regulating Prompts: Foundational Model Adaptation without Forgetting", ICCV
2023, arXiv 2307.06948, Section 3.2.
"""

from __future__ import annotations

import math

import torch
from open_clip import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor, nn
from torch.nn import functional as F

from proxyfda.backbones.clip import ImageEncoder, TextEncoder
from proxyfda.dassl import TRAINER_REGISTRY
from proxyfda.utils.errors import BadValue
from proxyfda.utils.rules import Real, Whole
from proxyfda.utils.templates import DEFAULT_TEMPLATE
from trainers.deep_prompts import DeepPromptLearner, DeepPromptTrainer, random_prompts
from trainers.prompted_clip import CONTEXT_WORDS, unit


def teacher_templates() -> list[str]:
    """The 60 prompts of the teacher: the first 60 of OpenAI's 80, the plain one first."""
    first = [template("{}") for template in OPENAI_IMAGENET_TEMPLATES[:60]]
    return sorted(first, key=lambda template: template != DEFAULT_TEMPLATE)


def gaussian_weights(epochs: int, mean: float, std: float) -> list[float]:
    """The normal density at the epochs 1..``epochs``, scaled to sum 1.

    Raises:
        ValueError: ``std`` is not positive, or the density vanishes at every epoch.
    """
    if not std > 0:
        raise BadValue(f"TRAINER.PROMPTSRC.GPA_STD is {std}; use a spread above 0 epochs.")
    distances = [(epoch - mean) / std for epoch in range(1, epochs + 1)]
    density = [math.exp(-0.5 * z * z) for z in distances]
    if not sum(density) > 0:
        raise BadValue(
            f"TRAINER.PROMPTSRC.GPA_MEAN {mean} is so far from the epochs 1 to {epochs} that with "
            f"GPA_STD {std} all their weights are 0; set GPA_MEAN to an epoch of the run."
        )
    return [value / sum(density) for value in density]


class GaussianAggregation:
    """The weighted sum over epochs of what the learnables are at their ends, in float64.

    Args:
        epochs, mean, std: see :func:`gaussian_weights`.

    Attributes:
        done: number of epochs in the sum.
    """

    def __init__(self, epochs: int, mean: float, std: float):
        self.weights = gaussian_weights(epochs, mean, std)
        self.settings = {
            "OPTIM.MAX_EPOCH": epochs,
            "TRAINER.PROMPTSRC.GPA_MEAN": mean,
            "TRAINER.PROMPTSRC.GPA_STD": std,
        }
        self.done = 0
        self._sum: dict[str, Tensor] = {}

    @classmethod
    def from_cfg(cls, cfg) -> GaussianAggregation:
        options = cfg.TRAINER.PROMPTSRC
        return cls(cfg.OPTIM.MAX_EPOCH, options.GPA_MEAN, options.GPA_STD)

    def add(self, state: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """Add the learnables at the end of the next epoch; their average after the last one."""
        weight = self.weights[self.done]
        for name, value in state.items():
            share = weight * value.detach().double()
            self._sum[name] = self._sum[name] + share if name in self._sum else share
        self.done += 1
        if self.done < len(self.weights):
            return None
        return {name: self._sum[name].to(value.dtype) for name, value in state.items()}

    def state_dict(self) -> dict:
        return {"settings": self.settings, "done": self.done, "sum": self._sum}

    def load_state_dict(self, state: dict, device: torch.device) -> None:
        """Take up :meth:`state_dict`.

        Raises:
            ValueError: there is none, or it was made with other weights.
        """
        if not state:
            raise BadValue(
                "the checkpoint to resume from has no running sum of PromptSRC's Gaussian "
                "aggregation, so the result would not be that of one run; train from the start in "
                "an empty output folder."
            )
        for name, value in self.settings.items():
            before = state["settings"][name]
            if value != before:
                raise BadValue(
                    f"the run to resume was averaged with {name} {before} and the config asks for "
                    f"{value}, which gives the epochs so far other weights; keep the setting or "
                    "train from the start in an empty output folder."
                )
        self.done = state["done"]
        self._sum = {name: value.to(device) for name, value in state["sum"].items()}


class VLPromptLearner(DeepPromptLearner):
    """Independent prompts of the text encoder and of the image encoder.

    ``ctx`` [n_ctx_text, w_t] and ``visual_ctx`` [n_ctx_vision, w_v] enter at the input,
    ``deep_text`` and ``deep_visual`` hold those of the blocks, by their number (1..depth-1).

    Args:
        text_encoder: of the CLIP to be prompted.
        classnames: n names.
        n_ctx_text, n_ctx_vision: numbers of tokens of each prompt.
        ctx_init: words to start the context from (see :class:`DeepPromptLearner`).
        depth_text, depth_vision: numbers of layers with prompts; ``depth_vision`` 0 leaves the
            image encoder as it is.
        image_width: w_v, of the image encoder's tokens.
    """

    upstream = (
        ("visual_ctx", "image_encoder.VPT"),
        ("deep_visual.{}", "image_encoder.transformer.resblocks.{}.VPT_shallow"),
        ("deep_text.{}", "text_encoder.transformer.resblocks.{}.VPT_shallow"),
        ("{}", "prompt_learner.{}"),
    )
    prompt_sets = {
        ("ctx", "deep_text"): ("N_CTX_TEXT", "PROMPT_DEPTH_TEXT"),
        ("visual_ctx", "deep_visual"): ("N_CTX_VISION", "PROMPT_DEPTH_VISION"),
    }

    def __init__(
        self,
        text_encoder: TextEncoder,
        classnames: list[str],
        n_ctx_text: int,
        n_ctx_vision: int,
        ctx_init: str,
        depth_text: int,
        depth_vision: int,
        image_width: int,
    ):
        super().__init__(text_encoder, classnames, n_ctx_text, ctx_init)

        def blocks(depth: int, n_ctx: int, width: int) -> nn.ParameterDict:
            return nn.ParameterDict({str(i): random_prompts(n_ctx, width) for i in range(1, depth)})

        print(f"Number of visual prompt tokens: {n_ctx_vision if depth_vision else 0}")
        self.deep_text = blocks(depth_text, n_ctx_text, text_encoder.width)
        self.visual_ctx = random_prompts(n_ctx_vision, image_width) if depth_vision else None
        self.deep_visual = blocks(depth_vision, n_ctx_vision, image_width)

    def text_prompts(self):
        return self.class_prompts(self.ctx), list(self.deep_text.values())

    def image_prompts(self):
        return self.visual_ctx, list(self.deep_visual.values())


@TRAINER_REGISTRY.register()
class PromptSRC(DeepPromptTrainer):
    """Self-regulating prompts; options under ``TRAINER.PROMPTSRC``.

    Two frozen texts serve two ends: the teacher of the consistency terms averages 60 templates
    (:meth:`teacher_text_features`), while :meth:`frozen_text_features`, the anchors of (Proxy-)FDA,
    stays the dataset's hand-written prompt as for every trainer.
    """

    config_node = "PROMPTSRC"
    defaults = {
        "N_CTX_VISION": 4,  # number of visual prompt tokens
        "N_CTX_TEXT": 4,  # number of text prompt tokens
        "CTX_INIT": "a photo of a",  # initial words, used up to 4 tokens
        "PREC": "fp16",  # fp16, fp32, amp or bf16
        "PROMPT_DEPTH_VISION": 9,  # layers with visual prompts
        "PROMPT_DEPTH_TEXT": 9,  # layers with text prompts
        "TEXT_LOSS_WEIGHT": 25.0,  # consistency of text features
        "IMAGE_LOSS_WEIGHT": 10.0,  # consistency of image features
        "GPA_MEAN": 15.0,  # epoch at the middle of the Gaussian weights
        "GPA_STD": 1.0,  # their spread in epochs
    }
    model_name = "VLPromptLearner"
    rules = {
        "N_CTX_VISION": Whole(1),
        "N_CTX_TEXT": Whole(1),
        "CTX_INIT": CONTEXT_WORDS,
        "PROMPT_DEPTH_VISION": Whole(0),
        "PROMPT_DEPTH_TEXT": Whole(1),
        "TEXT_LOSS_WEIGHT": Real(least=0),
        "IMAGE_LOSS_WEIGHT": Real(least=0),
        "GPA_MEAN": Real(),
        "GPA_STD": Real(above=0),
    }
    depths = {"PROMPT_DEPTH_TEXT": ("text",), "PROMPT_DEPTH_VISION": ("image",)}
    image_tokens = "N_CTX_VISION"

    _teacher_text: Tensor | None = None
    _seen: tuple[Tensor, Tensor] | None = None  # images of the step and their frozen features

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        GaussianAggregation.from_cfg(cfg)  # refuses weights that cannot be

    def build_model(self):
        super().build_model()
        self.aggregation = GaussianAggregation.from_cfg(self.cfg)

    def build_prompt_learner(self, classnames, clip, text_encoder):
        options = self.options
        return VLPromptLearner(
            text_encoder,
            classnames,
            options.N_CTX_TEXT,
            options.N_CTX_VISION,
            options.CTX_INIT,
            options.PROMPT_DEPTH_TEXT,
            options.PROMPT_DEPTH_VISION,
            ImageEncoder(clip).width,
        )

    # -- the frozen CLIP as teacher --------------------------------------------------------------

    def teacher_text_features(self) -> Tensor:
        """Frozen class text features [n, d] of length 1: the mean over 60 templates, normalised."""
        if self._teacher_text is None:
            templates = teacher_templates()
            print(f"Encoding the class names in {len(templates)} templates")
            features = [self.encode_template(template).float() for template in templates]
            self._teacher_text = unit(torch.stack(features).mean(dim=0))
        return self._teacher_text

    def frozen_image_features(self, images):
        """As of every trainer; those of a step's images are kept until its end, since the
        consistency terms and the anchors of (Proxy-)FDA both want them."""
        if self._seen is None or self._seen[0] is not images:
            self._seen = images, super().frozen_image_features(images)
        return self._seen[1]

    def loss_terms(self, images, labels):
        """Cross entropy and the consistency with the teacher, unweighted means but for
        TEXT_LOSS_WEIGHT and IMAGE_LOSS_WEIGHT: the L1 distances of text and image features of
        length 1, and KL(teacher || student) of the class probabilities summed and divided by
        batch size x classes."""
        model, options = self.model, self.options
        image_features, text_features = model.encode_image(images), model.text_features()
        logits = model.logits(image_features, text_features)
        teacher_image = unit(self.frozen_image_features(images))
        teacher_text = self.teacher_text_features()
        teacher_logits = model.logits(teacher_image, teacher_text)
        divergence = F.kl_div(
            logits.log_softmax(dim=1),
            teacher_logits.log_softmax(dim=1),
            reduction="sum",
            log_target=True,
        )
        terms = {
            "ce": F.cross_entropy(logits, labels),
            "l1_text": options.TEXT_LOSS_WEIGHT * F.l1_loss(unit(text_features), teacher_text),
            "l1_image": options.IMAGE_LOSS_WEIGHT * F.l1_loss(unit(image_features), teacher_image),
            "kl": divergence / logits.numel(),
        }
        return {"loss": sum(terms.values()), **terms}, logits

    # -- Gaussian aggregation over the epochs ----------------------------------------------------

    def forward_backward(self, batch):
        try:
            return super().forward_backward(batch)
        finally:
            self._seen = None

    def end_of_epoch(self):
        """Add the epoch to the running sum; after the last one, put the average in its place."""
        super().end_of_epoch()
        learner = self.model.prompt_learner
        average = self.aggregation.add(learner.state_dict())
        if average is not None:
            print("Using GPA model for final inference...")
            learner.load_state_dict(average)

    def extra_state(self):
        return {**super().extra_state(), "gpa": self.aggregation.state_dict()}

    def load_extra_state(self, state):
        super().load_extra_state(state)
        self.aggregation.load_state_dict(state.get("gpa"), self.device)
