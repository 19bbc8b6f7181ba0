"""CoOp and zero-shot CLIP against what the originals compute, to 1e-5."""

import pytest
import random_clip
import torch

from proxyfda.clip import load_clip
from trainers.zsclip import ZeroshotModel

VARIANTS = {
    "shared_end": ["TRAINER.COOP.N_CTX", 4],
    "csc_middle": ["TRAINER.COOP.N_CTX", 4, "TRAINER.COOP.CSC", True,
                   "TRAINER.COOP.CLASS_TOKEN_POSITION", "middle"],
    "ctxinit_end": ["TRAINER.COOP.N_CTX", 16, "TRAINER.COOP.CTX_INIT", "a photo of a"],
}  # fmt: skip
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


@pytest.mark.parametrize("variant", VARIANTS)
def test_coop(variant, make_trainer, reference, capsys):
    trainer = make_trainer("CoOp", *VARIANTS[variant], clip="reference")
    model, ctx = trainer.model, trainer.model.prompt_learner.ctx
    assert "Number of context words (tokens): 4" in capsys.readouterr().out
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["prompt_learner.ctx"]
    if variant != "ctxinit_end":
        with torch.no_grad():
            ctx.copy_(random_clip.tensor(ctx.shape, 2000, 0.02))

    prefix = f"coop_{variant}"
    with torch.no_grad():
        reference.check(f"{prefix}/logits", model(reference.images))
        reference.check(f"{prefix}/text_features_raw", model.encode_text())
        reference.check("image_features_raw", model.encode_image(reference.images))

    def loss():
        return trainer.loss_terms(reference.images, reference.labels)[0]["loss"]

    value = loss()
    reference.check(f"{prefix}/loss", value)
    reference.check(f"{prefix}/grad/ctx", torch.autograd.grad(value, ctx)[0])

    batch = {"img": reference.images, "label": reference.labels}
    trainer.epoch, trainer.batch_idx, trainer.num_batches = 0, 0, 99  # no change of the rate
    reported, after = [], []
    for _ in range(5):
        summary = trainer.forward_backward(batch)
        assert set(summary) == {"loss", "acc"}
        reported.append(summary["loss"])
        with torch.no_grad():
            after.append(loss().item())
    reference.check(f"{prefix}/sgd_loss_reported", torch.tensor(reported).double())
    reference.check(f"{prefix}/sgd_loss_after", torch.tensor(after).double())
    reference.check(f"{prefix}/sgd5_param/ctx", ctx)


def test_zeroshot(reference_file, reference):
    clip = load_clip("ViT-B/16", str(reference_file))
    names = [name.replace("_", " ") for name in reference.names]
    for dataset, template in TEMPLATES.items():
        model = ZeroshotModel(clip, [[template.format(name) for name in names]])
        with torch.no_grad():
            reference.check(f"zeroshot/{dataset}/logits", model(reference.images))
