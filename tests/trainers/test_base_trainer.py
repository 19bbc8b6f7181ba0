"""The shared trainer through CoOp: training, precision, checkpoints, evaluation, bad input."""

import functools
import traceback
import warnings
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from trainer_tools import IMAGES, checkpoint_file, logits, one_step, save

from proxyfda.backbones.clip import TextEncoder, load_clip
from trainers.cocoop import saved_bytes

ROOT = Path(__file__).resolve().parents[2]

# -- training -------------------------------------------------------------------------------


def test_training_moves_the_context_only(make_trainer, capsys):
    trainer = make_trainer("CoOp")
    frozen = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    before = frozen.pop("prompt_learner.ctx")
    trainer.train()
    after = trainer.model.state_dict()
    assert not torch.equal(before, after["prompt_learner.ctx"])
    assert all(torch.equal(value, after[name]) for name, value in frozen.items())
    said = capsys.readouterr().out
    assert 'Initial context: "X X X' in said and "acc " in said
    for part in ("Loading CLIP (backbone: ViT-B/16)", "lr 2.0000e-03", "epoch [2/2] batch [2/2]"):
        assert part in said


def test_the_rate_changes_once_at_the_end_of_an_epoch(make_trainer, monkeypatch):
    cosine = ["OPTIM.LR_SCHEDULER", "cosine", "OPTIM.MAX_EPOCH", 3]
    trainer = make_trainer("CoOp", *cosine, "DATALOADER.TRAIN_X.BATCH_SIZE", 4)
    rates, forward_backward, after_epoch = [], trainer.forward_backward, trainer.after_epoch

    def recorded(batch):
        rates.append(trainer.get_current_lr())
        return forward_backward(batch)

    def saved():
        rates.append(f"saved at {trainer.get_current_lr():g}")
        after_epoch()

    monkeypatch.setattr(trainer, "forward_backward", recorded)
    monkeypatch.setattr(trainer, "after_epoch", saved)
    trainer.train()
    assert rates == [
        *[0.002] * 4, "saved at 0.0015",
        *[pytest.approx(0.0015)] * 4, "saved at 0.0005",
        *[pytest.approx(0.0005)] * 4, "saved at 0",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["CoOp", "CoCoOp", "MaPLe", "PromptSRC"])
def test_a_step_leaves_its_values_on_the_device(name, make_trainer):
    """No wait of the trainer's own for the device: not for the log line, not to check the loss."""
    node = f"TRAINER.{name.upper()}"
    opts = {
        "MaPLe": [f"{node}.PROMPT_DEPTH", 3],
        "PromptSRC": [f"{node}.PROMPT_DEPTH_TEXT", 3, f"{node}.PROMPT_DEPTH_VISION", 3,
                      f"{node}.GPA_MEAN", 2.0],
    }  # fmt: skip
    trainer = make_trainer(name, f"{node}.PREC", "fp32", *opts.get(name, []))
    one_step(trainer)  # what is computed once and kept
    with Waits() as waits:
        summary = trainer.forward_backward({"img": IMAGES, "label": torch.arange(4)})
    assert not [place for place in waits.places if place.startswith(("trainers/", "proxyfda/eng"))]
    assert all(isinstance(value, torch.Tensor) for value in summary.values())
    assert not any(value.requires_grad for value in summary.values())


def test_batches_are_copied_without_waiting_for_the_device(make_trainer):
    class Copied:
        def to(self, device, non_blocking=False):
            return device, non_blocking

    trainer = make_trainer("CoOp")
    batch = {"img": Copied(), "label": Copied()}
    for parse in (trainer.parse_batch_train, trainer.parse_batch_test):
        assert parse(batch) == ((trainer.device, True),) * 2


class Waits(TorchDispatchMode):
    """Notes which file of the project reads a value off the device (``item``, ``bool``, ...)."""

    def __init__(self):
        super().__init__()
        self.places = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            files = [Path(frame.filename) for frame in traceback.extract_stack()]
            ours = [file.relative_to(ROOT) for file in files if file.is_relative_to(ROOT)]
            self.places.append(ours[-2].as_posix())  # the last one is this method
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("prec", ["fp16", "amp"])
def test_half_precision_falls_back_on_the_cpu(prec, make_trainer, capsys):
    trainer = make_trainer("CoOp", "TRAINER.COOP.PREC", prec)
    assert f"Precision {prec} needs a GPU" in capsys.readouterr().out
    assert trainer.precision == "fp32" and trainer.model.dtype == torch.float32
    torch.testing.assert_close(logits(trainer), logits(make_trainer("CoOp", output="other")))


@pytest.mark.parametrize("prec", ["fp16", "amp"])
@pytest.mark.parametrize("host", ["CoOp", "CoCoOp"])
def test_half_precision_is_near_fp32(host, prec, make_trainer, every_precision):
    results = {}
    for name in ("fp32", prec):
        trainer = make_trainer(host, f"TRAINER.{host.upper()}.PREC", name, output=name)
        if name == "amp":  # the scaler's first guess, 2^16, is for it to lower where it overflows
            trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        ctx = trainer.model.prompt_learner.ctx
        assert ctx.dtype == torch.float32
        before = ctx.detach().clone()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results[name] = one_step(trainer)["loss"], (ctx - before).flatten()
    (loss, step), (loss_half, step_half) = results["fp32"], results[prec]
    assert loss_half == pytest.approx(loss, rel=5e-3)
    assert torch.cosine_similarity(step, step_half, dim=0) > 0.99
    assert trainer.model.dtype == (torch.float16 if prec == "fp16" else torch.float32)


@pytest.mark.parametrize("host", ["CoOp", "CoCoOp", "MaPLe", "PromptSRC", "FDAMaPLe"])
def test_checkpointing_keeps_less_and_gives_the_same_gradients(host, make_trainer):
    node = f"TRAINER.{host.replace('FDA', '').upper()}"
    depths = {"MaPLe": ["PROMPT_DEPTH", 3], "FDAMaPLe": ["PROMPT_DEPTH", 3]}
    depths["PromptSRC"] = ["PROMPT_DEPTH_TEXT", 3, "PROMPT_DEPTH_VISION", 3]
    opts = [f"{node}.{x}" if i % 2 == 0 else x for i, x in enumerate(depths.get(host, []))]
    kept, gradients = [], []
    for checkpointing in (False, True):
        option = "MODEL.BACKBONE.GRAD_CHECKPOINTING"
        trainer = make_trainer(host, f"{node}.PREC", "fp32", *opts, option, checkpointing)
        compute = functools.partial(trainer.loss_terms, IMAGES, torch.arange(4))
        kept.append(saved_bytes(trainer.model, compute))
        one_step(trainer)
        learner = trainer.model.prompt_learner
        gradients.append([p.grad for p in learner.parameters() if p.grad is not None])
    assert kept[1] < 0.6 * kept[0]
    for plain, again in zip(*gradients):
        torch.testing.assert_close(again, plain)


@pytest.mark.parametrize("print_freq", [1, 3, 50])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops(value, print_freq, make_trainer, monkeypatch):
    """With its own batch in the message, whenever it is noticed, and before anything is saved."""
    trainer = make_trainer("CoOp", "DATALOADER.TRAIN_X.BATCH_SIZE", 2, "TRAIN.PRINT_FREQ",
                           print_freq, "TRAIN.CHECKPOINT_FREQ", 1)  # fmt: skip
    loss_terms = trainer.loss_terms

    def spoiled(images, labels):
        terms, logits = loss_terms(images, labels)
        if (trainer.epoch, trainer.batch_idx) == (1, 4):
            terms = {"loss": terms["loss"] * value, "ce": torch.tensor(2.0)}
        return terms, logits

    monkeypatch.setattr(trainer, "loss_terms", spoiled)
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    for part in ("epoch 2, batch 5 ", f"(loss {value:g}, ce 2, acc ", "OPTIM.LR"):
        assert part in str(error.value)
    assert trainer.batch_idx < 4 + print_freq
    assert checkpoint_file(trainer, 1).exists() and not checkpoint_file(trainer, 2).exists()


# -- evaluation -----------------------------------------------------------------------------


def test_last_result_is_exact(make_trainer):
    trainer = make_trainer("CoOp")
    value = trainer.test()
    result = trainer.last_result
    correct = 0
    for batch in trainer.test_loader:
        with torch.no_grad():
            correct += int((trainer.model(batch["img"]).argmax(1) == batch["label"]).sum())
    assert (result["split"], result["total"], result["correct"]) == ("test", 16, correct)
    assert result["accuracy"] == value == 100 * correct / 16
    assert 0 <= result["macro_f1"] <= 100
    trainer.test("val")
    assert (trainer.last_result["split"], trainer.last_result["total"]) == ("val", 8)


def test_class_texts_are_encoded_once_per_state(make_trainer):
    trainer = make_trainer("CoOp", "DATALOADER.TEST.BATCH_SIZE", 4)
    calls = []
    trainer.model.text_encoder.register_forward_hook(lambda *args: calls.append(1))
    trainer.test()
    trainer.test("val")
    assert len(calls) == 1
    before = logits(trainer)
    assert len(calls) == 1
    with torch.no_grad():
        trainer.model.prompt_learner.ctx.add_(1)
    assert not torch.equal(logits(trainer), before) and len(calls) == 2


def test_frozen_features_are_plain_clips_and_unseen_by_hooks(make_trainer, tiny_file):
    trainer = make_trainer("CoOp")
    calls = []
    for encoder in (trainer.model.text_encoder, trainer.model.image_encoder):
        encoder.register_forward_hook(lambda *args: calls.append(1))
    clip = load_clip("ViT-B/16", str(tiny_file))
    names = [name.replace("_", " ") for name in trainer.dm.dataset.classnames]
    expected = TextEncoder(clip).encode([f"a photo of a {name}." for name in names])
    texts = trainer.frozen_text_features()
    torch.testing.assert_close(texts, expected)
    assert trainer.frozen_text_features() is texts
    torch.testing.assert_close(
        trainer.frozen_image_features(IMAGES), clip.encode_image(IMAGES), check_stride=False
    )
    assert not calls


# -- checkpoints ----------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [None, 2], ids=["last", "by epoch"])
def test_checkpoint_round_trip(epoch, make_trainer):
    trained = make_trainer("CoOp")
    trained.train()
    saved = torch.load(checkpoint_file(trained), weights_only=True)["state_dict"]
    assert list(saved) == ["ctx"]
    other = make_trainer("CoOp", output="other")
    assert not torch.equal(logits(other), logits(trained))
    other.load_model(trained.output_dir, epoch)
    torch.testing.assert_close(logits(other), logits(trained))


def test_upstreams_checkpoint(make_trainer):
    """It holds the embedded class names, maybe of other classes, in half precision, and pickles
    the scheduler as an object."""
    trainer = make_trainer("CoOp")
    ctx = torch.randn(16, 64).half()
    optimiser = torch.optim.SGD([nn_parameter()], lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 5)
    save(
        trainer,
        {"ctx": ctx, "token_prefix": torch.zeros(5, 1, 64), "token_suffix": torch.ones(5, 60, 64)},
        scheduler={"successor": scheduler},
    )
    trainer.load_model(trainer.output_dir, 2)
    loaded = trainer.model.prompt_learner.ctx
    assert loaded.dtype == torch.float32 and torch.equal(loaded, ctx.float())


def nn_parameter():
    return torch.nn.Parameter(torch.zeros(1))


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"ctx": torch.zeros(4, 64)}, "it has 4 context tokens and the config asks for 16: set "
         "TRAINER.COOP.N_CTX"),
        ({"ctx": torch.zeros(16, 512)}, "(16, 512) instead of (16, 64); it was trained with a "
         "backbone of another width"),
        ({"ctx": torch.zeros(5, 16, 64)}, "set TRAINER.COOP.CSC True"),
        ({"context": torch.zeros(16, 64)}, "missing: ctx; unexpected: context"),
        ({"ctx": torch.zeros(16, 64), "meta_net.linear1.weight": torch.zeros(2)},
         "unexpected: meta_net.linear1.weight"),
    ],
    ids=["n_ctx", "width", "csc", "names", "another trainer's"],
)  # fmt: skip
def test_a_checkpoint_that_does_not_fit_is_refused(state, said, make_trainer):
    trainer = make_trainer("CoOp")
    save(trainer, state)
    before = trainer.model.prompt_learner.ctx.clone()
    with pytest.raises(ValueError) as error:
        trainer.load_model(trainer.output_dir, 2)
    assert said in str(error.value) and "does not fit this CoOp" in str(error.value)
    assert torch.equal(trainer.model.prompt_learner.ctx, before)


def test_contexts_of_other_classes_are_refused(make_trainer):
    trainer = make_trainer("CoOp", "TRAINER.COOP.CSC", True)
    save(trainer, {"ctx": torch.zeros(5, 16, 64)})
    with pytest.raises(ValueError, match="belong to 5 classes of their own"):
        trainer.load_model(trainer.output_dir, 2)


def test_missing_and_foreign_checkpoints(make_trainer, capsys):
    trainer = make_trainer("CoOp")
    trainer.load_model("")
    assert "no weights are loaded" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="model.pth.tar-7"):
        trainer.load_model(trainer.output_dir, 7)
    path = checkpoint_file(trainer)
    path.parent.mkdir(parents=True)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="has no state_dict"):
        trainer.load_model(trainer.output_dir, 2)


# -- bad input ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opts", "said"),
    [
        (["TRAINER.COOP.PREC", "fp61"], "TRAINER.COOP.PREC is 'fp61' (did you mean 'fp16'?)"),
        (["TRAINER.COOP.N_CTX", 0], "TRAINER.COOP.N_CTX is 0; give a whole number of at least 1"),
        (["TRAINER.COOP.CLASS_TOKEN_POSITION", "midle"], "(did you mean 'middle'?)"),
        (["INPUT.SIZE", (224, 224)], 'set INPUT.SIZE "(32, 32)"'),
        (["TRAINER.COOP.N_CTX", 75], "which leave no room for class names in the 77 tokens"),
        (["MODEL.BACKBONE.NAME", "ViT-B/161"], "did you mean 'ViT-B/16'?"),
    ],
    ids=["precision", "n_ctx", "position", "image size", "too long", "backbone"],
)
def test_bad_options(opts, said, make_trainer):
    with pytest.raises(ValueError) as error:
        make_trainer("CoOp", *opts)
    assert said in str(error.value)


# -- CoOp's and zero-shot CLIP's own --------------------------------------------------------


@pytest.mark.parametrize("csc", [False, True])
def test_context_words_set_the_number_of_tokens(csc, make_trainer, capsys):
    trainer = make_trainer("CoOp", "TRAINER.COOP.CTX_INIT", "a_photo of a", "TRAINER.COOP.CSC", csc)
    said = capsys.readouterr().out
    assert 'Initial context: "a photo of a"' in said and "(tokens): 4" in said
    assert ("CSC has no effect" in said) == csc
    assert trainer.model.prompt_learner.ctx.shape == (4, 64)
    zero_shot = make_trainer("ZeroshotCLIP", output="other")
    torch.testing.assert_close(logits(trainer), logits(zero_shot), rtol=1e-4, atol=1e-4)


def test_zero_shot_has_nothing_to_train(make_trainer, capsys):
    trainer = make_trainer("ZeroshotCLIP")
    trainer.load_model("anywhere", 3)
    trainer.train()
    assert "nothing to train" in capsys.readouterr().out
    assert trainer.last_result["total"] == 16


def test_prompt_ensemble_does_not_grow_with_each_trainer(make_trainer):
    first, second = (make_trainer("ZeroshotCLIP2", output=name) for name in "ab")
    assert len(first.templates()) == len(second.templates()) == 8
    torch.testing.assert_close(logits(first), logits(second))
    norms = first.model.text_features.norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones(8))
