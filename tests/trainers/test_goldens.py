"""The trainers against what the originals compute, to 1e-5 (CoCoOp: ``test_cocoop.py``)."""

import pytest
import random_clip
import torch

import trainers.base
from proxyfda.backbones.clip import load_clip
from trainers.checkpoints import rename, to_upstream
from trainers.prompted_clip import unit
from trainers.promptsrc import gaussian_weights
from trainers.zsclip import ZeroshotModel

WORDS = "a photo of a"


def coop(n_ctx, words="", csc=False, position="end"):
    return "CoOp", {
        "N_CTX": n_ctx,
        "CTX_INIT": words,
        "CSC": csc,
        "CLASS_TOKEN_POSITION": position,
    }


def maple(n_ctx, words, depth):
    return "MaPLe", {"N_CTX": n_ctx, "CTX_INIT": words, "PROMPT_DEPTH": depth}


def promptsrc(vision, text, words, depth_vision, depth_text, mean=2.0):
    return "PromptSRC", {
        "N_CTX_VISION": vision,
        "N_CTX_TEXT": text,
        "CTX_INIT": words,
        "PROMPT_DEPTH_VISION": depth_vision,
        "PROMPT_DEPTH_TEXT": depth_text,
        "GPA_MEAN": mean,
    }


VARIANTS = {
    "coop_shared_end": coop(4),
    "coop_csc_middle": coop(4, csc=True, position="middle"),
    "coop_ctxinit_end": coop(16, WORDS),
    "maple_d3_ctxinit": maple(2, WORDS, 3),
    "maple_depth_1": maple(2, WORDS, 1),
    "maple_five_tokens": maple(5, WORDS, 2),  # above 4: the words are not used
    "maple_random": maple(3, "", 4),
    "maple_few_words": maple(4, "a photo", 2),
    "promptsrc_d3_ctxinit": promptsrc(4, 4, WORDS, 3, 3),
    "promptsrc_depth_1": promptsrc(4, 4, WORDS, 1, 1),
    "promptsrc_unequal": promptsrc(3, 2, WORDS, 4, 2),
    "promptsrc_five_tokens": promptsrc(4, 5, WORDS, 2, 3),
    "promptsrc_random": promptsrc(2, 3, "", 2, 4),
    "promptsrc_text_only": promptsrc(4, 4, WORDS, 0, 3),
}
AGGREGATED = ["promptsrc_unequal", "promptsrc_random"]
TEACHER = {}  # the same for all variants
TERMS = {"CoOp": {"acc"}, "MaPLe": set(), "PromptSRC": {"ce", "l1_text", "l1_image", "kl"}}


def build(variant, make_trainer, reference_clip, monkeypatch):
    """The trainer of a variant, and its learnables under the reference numbers' names, filled."""
    name, options = VARIANTS[variant]
    monkeypatch.setattr(trainers.base, "load_clip", lambda *args, **kwargs: reference_clip)
    node = f"TRAINER.{name.upper()}"
    opts = [word for key, value in options.items() for word in (f"{node}.{key}", value)]
    trainer = make_trainer(
        name, *opts, f"{node}.PREC", "fp32", "OPTIM.MAX_EPOCH", 3, "OPTIM.LR_SCHEDULER", "cosine",
        "OPTIM.WARMUP_EPOCH", 1, "OPTIM.WARMUP_TYPE", "constant", clip="reference",
    )  # fmt: skip
    learner = trainer.model.prompt_learner
    named = {rename(key, learner.upstream): p for key, p in learner.named_parameters()}
    words = options["CTX_INIT"] and (name == "CoOp" or len(learner.ctx) <= 4)
    for index, key in enumerate(sorted(named)):
        if key == "prompt_learner.ctx" and words:
            continue
        std = named[key].shape[1] ** -0.5 if key.endswith("weight") else 0.02
        with torch.no_grad():
            named[key].copy_(random_clip.tensor(named[key].shape, 2000 + index, std))
    for group in trainer.optim.param_groups:
        group["lr"] = 0.002
    trainer.epoch = 0
    if name == "PromptSRC":
        trainer._teacher_text = TEACHER.get("text")
        TEACHER["text"] = trainer.teacher_text_features()
    return trainer, {key.removeprefix("prompt_learner."): p for key, p in named.items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_features_losses_gradients_and_steps(
    variant, make_trainer, reference, reference_clip, monkeypatch
):
    trainer, learnables = build(variant, make_trainer, reference_clip, monkeypatch)
    model = trainer.model
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert trained == {id(p) for p in learnables.values()}
    with torch.no_grad():
        reference.check(f"{variant}/logits", model(reference.images))
        if f"{variant}/text_features_raw" in reference:
            reference.check(f"{variant}/text_features_raw", model.encode_text())
            images = f"{variant}/image_features_raw"
            images = images if images in reference else "image_features_raw"
            reference.check(images, model.encode_image(reference.images))

    def terms():
        return trainer.loss_terms(reference.images, reference.labels)[0]

    values = terms()
    reference.check(f"{variant}/loss", values["loss"])
    for name, value in values.items():
        if f"{variant}/term/{name}" in reference:
            reference.check(f"{variant}/term/{name}", value)
    gradients = torch.autograd.grad(values["loss"], list(learnables.values()))
    for name, gradient in zip(learnables, gradients):
        reference.check(f"{variant}/grad/{name}", gradient)

    if f"{variant}/sgd_loss_reported" not in reference:
        return
    trainer.batch_idx, trainer.num_batches = 0, 99  # no change of the rate
    batch = {"img": reference.images, "label": reference.labels}
    reported = []
    for _ in range(5):
        summary = trainer.forward_backward(batch)
        assert set(summary) == {"loss"} | TERMS[VARIANTS[variant][0]]
        reported.append(summary["loss"])
    reference.check(f"{variant}/sgd_loss_reported", torch.tensor(reported))
    for name, value in learnables.items():
        key = f"{variant}/sgd5_param/{name}"
        if key in reference or f"{key}__stats" in reference:  # of MaPLe's, some were not kept
            reference.check(key, value)


def test_maple_projects_its_prompts(make_trainer, reference, reference_clip, monkeypatch):
    trainer, _ = build("maple_d3_ctxinit", make_trainer, reference_clip, monkeypatch)
    first, deeper = trainer.model.prompt_learner.image_prompts()
    reference.check("maple_d3_ctxinit/shared_ctx_vision", first)
    for index, prompts in enumerate(deeper):
        reference.check(f"maple_d3_ctxinit/deep_vision/{index}", prompts)


def test_promptsrcs_teacher(make_trainer, reference, reference_clip, monkeypatch):
    name = "promptsrc_d3_ctxinit"
    trainer, _ = build(name, make_trainer, reference_clip, monkeypatch)
    reference.check(f"{name}/zs_text_features", trainer.teacher_text_features())
    features = trainer.frozen_image_features(reference.images)
    reference.check(f"{name}/zs_image_features", unit(features))


@pytest.mark.parametrize("variant", AGGREGATED)
def test_gaussian_aggregation_over_three_epochs(
    variant, make_trainer, reference, reference_clip, monkeypatch
):
    trainer, _ = build(variant, make_trainer, reference_clip, monkeypatch)
    trainer.num_batches, losses = 2, []
    for trainer.epoch in range(3):
        for trainer.batch_idx in range(2):
            some = slice(4 * trainer.batch_idx, 4 * trainer.batch_idx + 4)
            batch = {"img": reference.images[some], "label": reference.labels[some]}
            losses.append(trainer.forward_backward(batch)["loss"])
        trainer.end_of_epoch()
    reference.check(f"{variant}/gpa_losses", torch.tensor(losses))
    for name, value in to_upstream(trainer.model.prompt_learner).items():
        reference.check(f"{variant}/gpa_param/{name.removeprefix('prompt_learner.')}", value)
    with torch.no_grad():
        reference.check(f"{variant}/gpa_logits", trainer.model(reference.images))


@pytest.mark.parametrize("setting", [(20, 15, 1), (20, 6, 10), (50, 30, 30), (50, 45, 5)])
def test_gaussian_weights(setting, reference):
    epochs, mean, std = setting
    expected = reference[f"gpa_weights/N{epochs}_mean{mean}_std{std}"]
    weights = torch.tensor(gaussian_weights(*setting), dtype=torch.float64)
    torch.testing.assert_close(weights, expected, rtol=1e-13, atol=0)


TEMPLATES = {
    "Caltech101": "a photo of a {}.",
    "DescribableTextures": "{} texture.",
    "EuroSAT": "a centered satellite photo of {}.",
    "FGVCAircraft": "a photo of a {}, a type of aircraft.",
    "Food101": "a photo of {}, a type of food.",
    "OxfordFlowers": "a photo of a {}, a type of flower.",
    "OxfordPets": "a photo of a {}, a type of pet.",
    "UCF101": "a photo of a person doing {}.",
}


def test_zeroshot(reference_file, reference):
    clip = load_clip("ViT-B/16", str(reference_file))
    names = [name.replace("_", " ") for name in reference.names]
    for dataset, template in TEMPLATES.items():
        model = ZeroshotModel(clip, [[template.format(name) for name in names]])
        with torch.no_grad():
            reference.check(f"zeroshot/{dataset}/logits", model(reference.images))
