"""The Trainer of transformers with a regulariser: the hand-written sum, resuming, what is left."""

import os

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from proxyfda import FrozenCopy, ProxyFDA
from proxyfda.diagnostics import Monitor
from proxyfda.utils.errors import BadType, NotFound, Unusable

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from proxyfda.integrations.transformers import RegulariserCallback, attach_to_trainer  # noqa: E402

D, CLASSES, WEIGHT = 16, 3, 0.7


@pytest.fixture(autouse=True)
def no_library_of_datasets(monkeypatch):
    """The repository's folder "datasets" passes for Hugging Face's library."""
    monkeypatch.setattr("transformers.trainer.is_datasets_available", lambda: False)
    transformers.logging.set_verbosity_error()


class Model(nn.Module):
    """Takes no count of samples: the Trainer divides its loss by the accumulated batches."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, D), nn.Tanh(), nn.Linear(D, D))
        self.head = nn.Linear(D, CLASSES)

    def forward(self, pixel_values, labels=None):
        logits = self.head(self.backbone(pixel_values))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def model(kind="own"):
    torch.manual_seed(0)
    if kind == "own":
        return Model()
    config = transformers.ViTConfig(
        hidden_size=D, intermediate_size=2 * D, num_hidden_layers=1, num_attention_heads=2,
        image_size=2, patch_size=1, num_labels=CLASSES,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def parts(model):
    """The module with the features, its output's key, and what makes them of that output."""
    if isinstance(model, Model):
        return model.backbone, None, None
    return model.vit, "last_hidden_state", lambda tokens: tokens[:, 0]


def dataset(count):
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(count, 3, 2, 2, generator=generator)
    return [{"pixel_values": image, "labels": i % CLASSES} for i, image in enumerate(images)]


def arguments(folder, **more):
    settings = dict(
        num_train_epochs=2, per_device_train_batch_size=8, gradient_accumulation_steps=2,
        learning_rate=0.1, optim="sgd", max_grad_norm=0.0, lr_scheduler_type="constant",
        logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True,
        remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip
    return transformers.TrainingArguments(str(folder), **{**settings, **more})


def regulariser():
    return ProxyFDA(D, k=3, proxy_seed=0)


class Summed(transformers.Trainer):
    """The sum by hand: the mean over the batches of a step, whoever divides the loss."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        module, key, make = parts(model)
        out = [m(inputs["pixel_values"]) for m in (module, self.frozen)]
        features, anchors = [o if key is None else make(o[key]) for o in out]
        term = self.regulariser(features, anchors)
        self.terms.append(term.item())
        counted = num_items_in_batch is not None
        return loss + WEIGHT * term / (self.current_gradient_accumulation_steps if counted else 1)

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.seen += 1
        if self.seen == self.current_gradient_accumulation_steps:
            self.optimiser.step()
            self.optimiser.zero_grad()
            self.seen = 0
        return loss


def by_hand(kind, folder, count, **settings):
    trainer = Summed(model(kind), arguments(folder, **settings), train_dataset=dataset(count))
    trainer.frozen = FrozenCopy(parts(trainer.model)[0])
    trainer.regulariser = regulariser()
    trainer.optimiser = torch.optim.Adam(trainer.regulariser.parameters(), lr=1e-3)
    trainer.terms, trainer.seen = [], 0
    trainer.train()
    return trainer


def attached(kind, folder, count, **settings):
    tuned = model(kind)
    trainer = transformers.Trainer(
        tuned, arguments(folder, **settings), train_dataset=dataset(count)
    )
    module, key, make = parts(tuned)
    term = regulariser()
    callback = attach_to_trainer(trainer, module, term, WEIGHT, output=key, features=make)
    return trainer, callback, term


def weights(*modules):
    return torch.cat([p.detach().flatten() for module in modules for p in module.parameters()])


# 36 samples: the last step of an epoch has one batch of four.
@pytest.mark.parametrize("kind", ["own", "vit"])
@pytest.mark.parametrize("count", [32, 36], ids=["whole steps", "a shorter last step"])
def test_weights_are_those_of_the_hand_written_sum(kind, count, tmp_path):
    want = by_hand(kind, tmp_path, count)
    trainer, callback, term = attached(kind, tmp_path, count)
    start = weights(term)
    trainer.train()
    torch.testing.assert_close(weights(trainer.model), weights(want.model), rtol=1e-5, atol=1e-5)
    # Adam makes whole steps of what rounding leaves of a gradient of zero, here and there.
    gap, moved = weights(term) - weights(want.regulariser), weights(term) - start
    assert gap.abs().mean() < 1e-5 < 1e-3 < moved.abs().mean()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    first = logged[0]["loss_fda"] + logged[0]["loss_proxy"]
    assert first == pytest.approx(sum(want.terms[:2]) / 2, rel=1e-5)
    assert callback.handle is None


def test_the_trainer_is_plain_again_afterwards(tmp_path):
    trainer, callback, _ = attached("own", tmp_path, 16)
    trainer.train()
    assert not trainer.model.backbone._forward_hooks
    trainer.remove_callback(callback)
    assert not any(isinstance(c, RegulariserCallback) for c in trainer.callback_handler.callbacks)


def test_a_resumed_run_ends_with_the_same_numbers(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 3}
    whole, _, term = attached("own", tmp_path / "whole", 32, **settings)
    whole.train()
    path = tmp_path / "whole" / "checkpoint-3"
    again, callback, other = attached("own", tmp_path / "whole", 32, **settings)
    with torch.no_grad():  # whatever the generator starts from, the checkpoint has it
        other.generator.log_scale.add_(1.0)
    again.train(resume_from_checkpoint=str(path))
    assert again.state.global_step == whole.state.global_step == 4
    torch.testing.assert_close(
        weights(again.model, other), weights(whole.model, term), rtol=0, atol=0
    )
    assert callback.handle is None


def test_resuming_without_the_generator_is_refused(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1}
    attached("own", tmp_path, 32, **settings)[0].train()
    os.remove(tmp_path / "checkpoint-1" / "proxyfda.pt")
    trainer = attached("own", tmp_path, 32, **settings)[0]
    with pytest.raises(NotFound, match="generator's state is not in .*checkpoint-1"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_resuming_with_a_copy_of_tuned_weights_is_refused(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 3}
    first = attached("own", tmp_path, 32, **settings)[0]
    first.train()
    trainer = transformers.Trainer(
        first.model, arguments(tmp_path, **settings), train_dataset=dataset(32)
    )
    attach_to_trainer(trainer, first.model.backbone, regulariser(), WEIGHT)
    with pytest.raises(Unusable, match="frozen copy holds other weights"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


@pytest.mark.parametrize("weight", [WEIGHT, 0.0], ids=["regularised", "plain"])
def test_a_monitor_sees_every_second_batch_and_goes_on_counting(weight, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2}

    def monitored(resume=None):
        trainer = transformers.Trainer(
            model(), arguments(tmp_path, **settings), train_dataset=dataset(32)
        )
        monitor = Monitor(lambda name, value, step: written.append((name, value, step)), every=2)
        written = []
        attach_to_trainer(trainer, trainer.model.backbone, regulariser(), weight, monitor=monitor)
        trainer.train(resume_from_checkpoint=resume)
        return written

    whole = monitored()  # 2 epochs of 4 batches, two to a step
    assert [step for _, _, step in whole] == [0, 0, 2, 2, 4, 4, 6, 6]
    values = {(name, step): value for name, value, step in whole}
    assert values["features/overlap", 0] == 1.0 and values["features/drift", 6] > 1e-3
    assert monitored(str(tmp_path / "checkpoint-2")) == [one for one in whole if one[2] >= 4]


def test_several_gpus_in_one_process_are_refused(tmp_path):
    trainer = transformers.Trainer(model(), arguments(tmp_path), train_dataset=dataset(8))
    trainer.args._n_gpu = 2
    with pytest.raises(Unusable, match="split each batch over 2 GPUs.*torchrun"):
        attach_to_trainer(trainer, trainer.model.backbone, regulariser())


def test_no_monitor_is_one_sentence_before_anything_is_trained(tmp_path):
    trainer = transformers.Trainer(model(), arguments(tmp_path), train_dataset=dataset(8))
    with pytest.raises(BadType, match="monitor is a int; give a proxyfda.diagnostics.Monitor"):
        attach_to_trainer(trainer, trainer.model.backbone, regulariser(), monitor=3)


def test_no_trainer_is_one_sentence():
    with pytest.raises(BadType, match="trainer is a Linear; give a transformers.Trainer"):
        attach_to_trainer(nn.Linear(1, 1), nn.Linear(1, 1), regulariser())
