"""PromptSRC's own: loss terms, one teacher pass per step, Gaussian aggregation, resuming."""

import math
from pathlib import Path

import open_clip
import pytest
import torch
from trainer_tools import IMAGES, checkpoint_file, logits

from proxyfda.backbones.clip import load_clip
from trainers.promptsrc import GaussianAggregation, gaussian_weights, teacher_templates

LABELS = torch.arange(4)
BATCH = {"img": IMAGES, "label": LABELS}


@pytest.fixture
def promptsrc(make_trainer, monkeypatch):
    """A trainer at depth 2 whose teacher has three templates, to be fast, or as many as asked."""

    def make(*opts, name="PromptSRC", templates=3, **kwargs):
        some = teacher_templates()[:templates]
        monkeypatch.setattr("trainers.promptsrc.teacher_templates", lambda: some)
        node = "TRAINER.PROMPTSRC"
        own = ("GPA_MEAN", "GPA_STD", "TEXT_LOSS_WEIGHT", "IMAGE_LOSS_WEIGHT")
        opts = [f"{node}.{word}" if word in own else word for word in opts]
        return make_trainer(
            name, f"{node}.PREC", "fp32", f"{node}.PROMPT_DEPTH_TEXT", 2,
            f"{node}.PROMPT_DEPTH_VISION", 2, f"{node}.GPA_MEAN", 2.0, *opts, **kwargs,
        )  # fmt: skip

    return make


# -- loss terms -----------------------------------------------------------------------------


def test_the_teacher_has_sixty_templates_the_plain_one_first():
    templates = teacher_templates()
    openai = [template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    assert len(templates) == 60 and set(templates) == set(openai[:60])
    plain = "a photo of a {}."
    assert templates[0] == plain
    assert templates[1:] == [template for template in openai[:60] if template != plain]


def test_terms_against_naive_formulas(promptsrc, tiny_file):
    trainer = promptsrc("TEXT_LOSS_WEIGHT", 3.0, "IMAGE_LOSS_WEIGHT", 7.0, templates=60)
    terms, _ = trainer.loss_terms(IMAGES, LABELS)

    clip = load_clip("ViT-B/16", str(tiny_file))
    names = [name.replace("_", " ") for name in trainer.dm.dataset.classnames]
    with torch.no_grad():
        texts = torch.stack([
            sum(clip.encode_text(clip.tokenizer([t.format(name)]))[0] for t in teacher_templates())
            for name in names
        ]) / 60  # fmt: skip
        teacher_text = texts / texts.norm(dim=1, keepdim=True)
        images = clip.encode_image(IMAGES)
        teacher_image = images / images.norm(dim=1, keepdim=True)
        image, text = trainer.model.encode_image(IMAGES), trainer.model.encode_text()
        image, text = (x / x.norm(dim=1, keepdim=True) for x in (image, text))
        scale = clip.logit_scale.exp()
        p = (scale * teacher_image @ teacher_text.t()).double().softmax(dim=1)
        q = (scale * image @ text.t()).double().softmax(dim=1)
    expected = {
        "ce": -sum(math.log(q[i, label]) for i, label in enumerate(LABELS)) / 4,
        "l1_text": 3 * (text - teacher_text).abs().mean().item(),
        "l1_image": 7 * (image - teacher_image).abs().mean().item(),
        "kl": (p * (p / q).log()).sum().item() / (4 * len(names)),
    }
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value, rel=1e-4, abs=1e-7), name
    assert terms["loss"].item() == pytest.approx(sum(expected.values()), rel=1e-4)


def test_the_anchors_of_fda_stay_the_datasets_prompt(promptsrc, tiny_file):
    trainer = promptsrc()
    clip = load_clip("ViT-B/16", str(tiny_file))
    names = [name.replace("_", " ") for name in trainer.dm.dataset.classnames]
    with torch.no_grad():
        expected = clip.encode_text(clip.tokenizer([f"a photo of a {name}." for name in names]))
    torch.testing.assert_close(trainer.frozen_text_features(), expected, rtol=1e-4, atol=1e-5)
    cosine = torch.cosine_similarity(trainer.teacher_text_features(), expected)
    assert cosine.max() < 0.9999


@pytest.mark.parametrize("name", ["PromptSRC", "FDAPromptSRC", "ProxyFDAPromptSRC"])
def test_one_teacher_pass_per_step(name, promptsrc, monkeypatch):
    """The consistency terms and the anchors of the plugin share it; the next step has its own."""
    trainer = promptsrc(name=name)
    trainer.epoch, trainer.batch_idx, trainer.num_batches = 0, 0, 9
    encoder, calls = trainer.model.image_encoder, []
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda images: calls.append(images) or encode(images))
    trainer.forward_backward(BATCH)
    assert len(calls) == 1 and calls[0] is IMAGES
    IMAGES_2 = IMAGES.flip(0)
    trainer.forward_backward({"img": IMAGES_2, "label": LABELS})
    assert len(calls) == 2 and calls[1] is IMAGES_2
    trainer.forward_backward(BATCH)  # nothing is kept beyond a step
    assert len(calls) == 3
    other = trainer.frozen_image_features(IMAGES_2)
    torch.testing.assert_close(other, encode(IMAGES_2))
    torch.testing.assert_close(trainer.frozen_image_features(IMAGES), encode(IMAGES))


# -- Gaussian aggregation -------------------------------------------------------------------


class Recorder:
    """Notes the learnables at the beginning and at the end of every epoch."""

    def __init__(self, trainer, monkeypatch):
        self.begin, self.end = [], []
        before, add = trainer.before_epoch, trainer.aggregation.add

        def state():
            items = trainer.model.prompt_learner.state_dict().items()
            return {key: value.clone() for key, value in items}

        monkeypatch.setattr(trainer, "before_epoch", lambda: self.begin.append(state()) or before())
        monkeypatch.setattr(
            trainer.aggregation, "add", lambda *args: self.end.append(state()) or add(*args)
        )


def test_the_result_is_the_weighted_sum_of_the_epochs(promptsrc, monkeypatch, capsys):
    trainer = promptsrc("OPTIM.MAX_EPOCH", 4, "GPA_STD", 1.5, "TRAIN.CHECKPOINT_FREQ", 1)
    recorder = Recorder(trainer, monkeypatch)
    trainer.train()
    assert capsys.readouterr().out.count("Using GPA model for final inference...") == 1
    density = [math.exp(-((e - 2) ** 2) / (2 * 1.5**2)) for e in (1, 2, 3, 4)]
    saved = [torch.load(checkpoint_file(trainer, e), weights_only=True) for e in (1, 2, 3, 4)]
    assert len(recorder.end) == 4
    for name, value in trainer.model.prompt_learner.state_dict().items():
        ends = [state[name] for state in recorder.end]
        expected = sum(w * end.double() for w, end in zip(density, ends)) / sum(density)
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)
        assert not torch.allclose(value, ends[-1])
        # Training goes on from the raw values, and so do the checkpoints but for the last.
        for before, end in zip(recorder.begin[1:], ends):
            assert torch.equal(before[name], end)
        for checkpoint, end in zip(saved[:3], ends):
            assert torch.equal(checkpoint["state_dict"][name], end)
        assert torch.equal(saved[3]["state_dict"][name], value)
    assert set(saved[3]["state_dict"]) == set(recorder.end[0])  # the learnables alone


def test_validation_sees_the_average_in_the_last_epoch_only(promptsrc, monkeypatch):
    trainer = promptsrc("OPTIM.MAX_EPOCH", 3, "TEST.FINAL_MODEL", "best_val")
    recorder, seen = Recorder(trainer, monkeypatch), []

    def test(split=None):
        seen.append((split, trainer.model.prompt_learner.ctx.detach().clone()))
        return float(len(seen))

    monkeypatch.setattr(trainer, "test", test)
    trainer.train()
    assert [split for split, _ in seen] == ["val"] * 3 + [None]
    assert [torch.equal(ctx, end["ctx"]) for (_, ctx), end in zip(seen, recorder.end)] == [
        True, True, False,
    ]  # fmt: skip
    best = Path(trainer.output_dir) / "VLPromptLearner" / "model-best.pth.tar"
    torch.testing.assert_close(
        torch.load(best, weights_only=True)["state_dict"]["ctx"], seen[2][1], rtol=0, atol=0
    )


@pytest.mark.parametrize(
    ("epoch", "name"), [(0, "PromptSRC"), (3, "PromptSRC"), (1, "ProxyFDAPromptSRC")]
)
def test_interrupted_and_resumed_is_bit_for_bit_the_same(epoch, name, promptsrc, monkeypatch):
    opts = ["OPTIM.MAX_EPOCH", 4, "TRAIN.CHECKPOINT_FREQ", 1, "GPA_STD", 1.5]
    whole = promptsrc(*opts, name=name, output="whole")
    whole.train()

    stopped = promptsrc(*opts, name=name, output="stopped")
    step = stopped.forward_backward

    def interrupted(batch):
        if (stopped.epoch, stopped.batch_idx) == (epoch, 1):
            raise KeyboardInterrupt
        return step(batch)

    monkeypatch.setattr(stopped, "forward_backward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    resumed = promptsrc(*opts, name=name, output="stopped")
    resumed.train()
    assert resumed.aggregation.done == 4
    for key, value in whole.model.prompt_learner.state_dict().items():
        assert torch.equal(value, resumed.model.prompt_learner.state_dict()[key]), key
    assert torch.equal(logits(whole), logits(resumed))
    again = promptsrc(*opts, name=name, output="stopped")
    again.train()  # a finished run is only tested
    assert torch.equal(logits(whole), logits(again))


def test_other_weights_or_no_running_sum_cannot_be_resumed(promptsrc):
    trained = promptsrc("TRAIN.CHECKPOINT_FREQ", 1)
    trained.train()
    for option, value in (("OPTIM.MAX_EPOCH", 3), ("GPA_MEAN", 1.0), ("GPA_STD", 2.0)):
        trainer = promptsrc(option, value, "RESUME", trained.output_dir, output="other")
        with pytest.raises(ValueError, match=rf"averaged with \S*{option} .*keep the setting"):
            trainer.train()
    path = checkpoint_file(trained)
    checkpoint = torch.load(path, weights_only=True)
    torch.save({**checkpoint, "extra": {}}, path)
    with pytest.raises(ValueError, match="has no running sum"):
        promptsrc().train()


def test_half_precision_learnables_keep_their_type():
    aggregation = GaussianAggregation(2, 1.5, 1.0)
    assert aggregation.add({"ctx": torch.tensor([1.0, 2.0]).half()}) is None
    average = aggregation.add({"ctx": torch.tensor([3.0, 2.0]).half()})
    assert torch.equal(average["ctx"], torch.tensor([2.0, 2.0]).half())


@pytest.mark.parametrize(("mean", "std"), [(300.0, 1.0), (-300.0, 1.0), (5.0, 1e-200)])
def test_weights_near_the_edge_of_the_numbers(mean, std):
    """All vanish, or the one epoch at the mean has everything."""
    if mean == 5.0:
        assert gaussian_weights(8, mean, std) == [float(e == 5) for e in range(1, 9)]
    else:
        with pytest.raises(ValueError, match="set GPA_MEAN to an epoch of the run"):
            gaussian_weights(20, mean, std)
