"""``PREC bf16`` against fp32, on the CPU, with every trainer."""

import shutil

import pytest
import torch
from trainer_tools import one_step

TRAINERS = {
    "CoOp": "COOP",
    "ProxyFDACoOp": "COOP",
    "ProxyFDACoCoOp": "COCOOP",
    "MaPLe": "MAPLE",
    "ProxyFDAPromptSRC": "PROMPTSRC",
    "FineTune": "FINETUNE",
    "ProxyFDAFineTune": "FINETUNE",
    "LPFT": "FINETUNE",
    "FLYP": "FINETUNE",
}


@pytest.fixture
def make(make_trainer):
    """``make("CoOp", "bf16")``, with few prompts as the CLIP has few blocks."""

    def make(name, prec, *opts, output="run"):
        words = [f"TRAINER.{TRAINERS[name]}.PREC", prec, *opts]
        words += ["TRAINER.MAPLE.PROMPT_DEPTH", 2, "TRAINER.PROXYFDA.K", 3]
        for side in ("TEXT", "VISION"):
            words += [f"TRAINER.PROMPTSRC.PROMPT_DEPTH_{side}", 2]
        words += ["INPUT.TRANSFORMS", ("normalize",)]
        return make_trainer(name, *words, output=output)

    return make


def learnt(trainer):
    """Every weight that is trained, by name."""
    return {
        f"{model}.{name}": weight
        for model in trainer.get_model_names()
        for name, weight in trainer._models[model].named_parameters()
        if weight.requires_grad
    }


def gradient(trainer):
    weights = learnt(trainer).values()
    return torch.cat([w.grad.flatten() for w in weights if w.grad is not None])


@pytest.mark.parametrize("name", TRAINERS)
def test_a_step_is_near_that_in_fp32(name, make):
    found = {}
    for prec in ("fp32", "bf16"):
        trainer = make(name, prec, output=prec)
        assert trainer.precision == prec and trainer.scaler is None
        trainer.start_epoch = 0
        values = one_step(trainer)
        assert {weight.dtype for weight in learnt(trainer).values()} == {torch.float32}
        found[prec] = values["loss"], gradient(trainer)
    (loss, exact), (loss_bf16, rounded) = found["fp32"], found["bf16"]
    assert loss_bf16 == pytest.approx(loss, rel=0.02)
    assert loss_bf16 != loss  # or nothing was computed in bfloat16
    assert torch.cosine_similarity(exact, rounded, dim=0) > 0.98


@pytest.mark.parametrize("name", ["CoOp", "ProxyFDACoCoOp", "ProxyFDAPromptSRC", "FineTune"])
def test_evaluation_is_that_of_fp32(name, make):
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = []
    for prec in ("fp32", "bf16"):
        trainer = make(name, prec, output=prec)
        trainer.set_model_mode("eval")
        with torch.no_grad():
            found.append(trainer.model_inference(images))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", ["ProxyFDACoOp", "MaPLe", "ProxyFDAFineTune"])
def test_training_lowers_the_loss_and_a_resume_changes_nothing(name, make, tmp_path):
    def run(output):
        trainer = make(
            name, "bf16", "OPTIM.MAX_EPOCH", 6, "TRAIN.CHECKPOINT_FREQ", 3, "OPTIM.LR", 0.02,
            "DATALOADER.TRAIN_X.BATCH_SIZE", 16, output=output,
        )  # fmt: skip
        step, losses = trainer.forward_backward, []

        def kept(batch):
            values = step(batch)
            losses.append(float(values.get("loss_task", values["loss"])))
            return values

        trainer.forward_backward = kept
        trainer.train()
        return losses, learnt(trainer)

    losses, straight = run("straight")
    assert losses[-1] < losses[0]
    shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
    for pointer in (tmp_path / "resumed").glob("*/checkpoint"):
        pointer.write_text("model.pth.tar-3\n")
    rest, resumed = run("resumed")
    assert rest == losses[3:]
    for key, weight in straight.items():
        assert torch.equal(weight, resumed[key])
