"""CoCoOp: agreement with the original, pieces under a memory bound, the plugin on top."""

import pytest
import random_clip
import torch
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from trainer_tools import one_step

from proxyfda import fda_loss
from trainers.cocoop import GIB

FILL = {  # seed and standard deviation of the reference outputs' meta-net
    "meta_net.linear1.bias": (2001, 0.02),
    "meta_net.linear1.weight": (2002, 512**-0.5),
    "meta_net.linear2.bias": (2003, 0.02),
    "meta_net.linear2.weight": (2004, 32**-0.5),
}
WORDS = ["TRAINER.COCOOP.PREC", "fp32", "TRAINER.COCOOP.CTX_INIT", "a photo of a"]
IMAGES = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 3, 1, 7, 3, 5])
BATCH = {"img": IMAGES, "label": LABELS}


def one_image(trainer):
    """GiB of activations that the class texts of one image take."""
    model = trainer.model
    features = model.encode_image(IMAGES[:1])
    return retained(model, lambda: model.encode_text(features)) / GIB


def retained(model, compute):
    """Bytes that autograd holds on to after ``compute()``, frozen weights aside."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = compute()
    for weight in (*model.parameters(), *model.buffers()):
        kept.pop(weight.untyped_storage().data_ptr(), None)
    del output
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def peak_bytes(model, compute):
    """The most bytes of tensors in ``compute()`` that are alive at once, frozen weights aside."""
    weights = {p.untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())}
    alive, peak = {}, 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal peak
            out = func(*args, **(kwargs or {}))
            for tensor in tree_leaves(out):
                if isinstance(tensor, torch.Tensor):
                    storage = tensor.untyped_storage()
                    if storage._cdata not in weights:
                        alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
            for key in [key for key, (ref, _) in alive.items() if ref.expired()]:
                del alive[key]
            peak = max(peak, sum(size for _, size in alive.values()))
            return out

    with Watch():
        compute()
    return peak


def bounded(trainer, images):
    """Set the bound to so many images' activations."""
    trainer.model.max_memory = images * one_image(trainer)
    trainer.model._cuts.clear()


def loss_and_gradients(trainer):
    loss = trainer.loss_terms(IMAGES, LABELS)[0]["loss"]
    learnables = dict(trainer.model.prompt_learner.named_parameters())
    gradients = torch.autograd.grad(loss, list(learnables.values()))
    return loss.detach(), dict(zip(learnables, gradients))


# -- agreement ------------------------------------------------------------------------------


def test_reference(make_trainer, reference, capsys):
    trainer = make_trainer("CoCoOp", *WORDS, "TRAINER.COCOOP.N_CTX", 16, clip="reference")
    assert "Number of context words (tokens): 4" in capsys.readouterr().out
    model, learnables = trainer.model, dict(trainer.model.prompt_learner.named_parameters())
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        f"prompt_learner.{name}" for name in ("ctx", *FILL)
    }
    with torch.no_grad():
        for name, (seed, std) in FILL.items():
            learnables[name].copy_(random_clip.tensor(learnables[name].shape, seed, std))

    with torch.no_grad():
        reference.check("cocoop_ctxinit/logits", model(reference.images))
        features = model.encode_image(reference.images)
        reference.check("cocoop_ctxinit/text_features_raw", model.encode_text(features))
        shift = model.prompt_learner.contexts(features) - model.prompt_learner.ctx
        for token in shift.unbind(1):
            reference.check("cocoop_ctxinit/meta_net_bias", token)

    def loss():
        return trainer.loss_terms(reference.images, reference.labels)[0]["loss"]

    value = loss()
    reference.check("cocoop_ctxinit/loss", value)
    for name, gradient in zip(learnables, torch.autograd.grad(value, [*learnables.values()])):
        reference.check(f"cocoop_ctxinit/grad/{name}", gradient)

    trainer.epoch, trainer.batch_idx, trainer.num_batches = 0, 0, 99  # no change of the rate
    reported, after = [], []
    for _ in range(5):
        summary = trainer.forward_backward({"img": reference.images, "label": reference.labels})
        assert set(summary) == {"loss"}
        reported.append(summary["loss"])
        with torch.no_grad():
            after.append(loss().item())
    reference.check("cocoop_ctxinit/sgd_loss_reported", torch.tensor(reported).double())
    reference.check("cocoop_ctxinit/sgd_loss_after", torch.tensor(after).double())
    for name, value in learnables.items():
        reference.check(f"cocoop_ctxinit/sgd5_param/{name}", value)


def test_every_image_has_the_texts_of_its_own_context(make_trainer):
    trainer = make_trainer("CoCoOp", *WORDS)
    model = trainer.model
    features = F.normalize(model.encode_image(IMAGES), dim=-1)
    prompts, encoder = model.prompt_learner.class_prompts, model.text_encoder
    with torch.no_grad():
        logits = model(IMAGES)
        for image, row in zip(features, logits):
            context = model.prompt_learner.ctx + model.prompt_learner.meta_net(image)
            texts = F.normalize(encoder(prompts(context), prompts.tokenized_prompts), dim=-1)
            torch.testing.assert_close(row, model.logit_scale.exp() * texts @ image)


def test_random_context(make_trainer):
    learner = make_trainer("CoCoOp", "TRAINER.COCOOP.N_CTX", 5).model.prompt_learner
    assert learner.ctx.shape == (5, 64) and 0.01 < learner.ctx.std() < 0.03
    shapes = {name: tuple(p.shape) for name, p in learner.meta_net.named_parameters()}
    assert shapes == {"linear1.weight": (2, 32), "linear1.bias": (2,),
                      "linear2.weight": (64, 2), "linear2.bias": (64,)}  # fmt: skip


# -- memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "passes"),
    [(7.0, [6]), (4.5, [4, 2]), (1.5, [1] * 6), (0.75, [0.5] * 12), (0.4, [0.25] * 24)],
    ids=["whole batch", "four images", "one image", "half an image", "quarter of an image"],
)
def test_pieces_change_nothing_and_stay_under_the_bound(images, passes, make_trainer):
    trainer = make_trainer("CoCoOp", *WORDS)
    loss, gradients = loss_and_gradients(trainer)
    bounded(trainer, images)
    model, rows, taken = trainer.model, [], []
    encode = type(model.text_encoder).forward
    model.text_encoder.register_forward_hook(lambda *args: rows.append(len(args[2]) / 8))

    def measured(*args, **kwargs):
        out = []
        taken.append(
            retained(model, lambda: out.append(encode(model.text_encoder, *args, **kwargs)))
        )
        return encode(model.text_encoder, *args, **kwargs)

    pieces_loss, pieces_gradients = loss_and_gradients(trainer)
    assert rows[: len(passes)] == passes
    torch.testing.assert_close(pieces_loss, loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(pieces_gradients[name], gradient, rtol=1e-4, atol=1e-6)

    # Without the pieces that are computed again, forward keeps the last one alone ...
    features = model.encode_image(IMAGES)
    bound = model.max_memory * GIB
    assert retained(model, lambda: model.encode_text(features)) <= bound
    # ... and no piece by itself takes more.
    model.text_encoder.forward = measured
    loss_and_gradients(trainer)
    assert len(taken) >= len(passes)
    assert bound / 3 < max(taken) <= bound


def test_a_step_holds_one_piece_at_a_time(make_trainer):
    trainer = make_trainer("CoCoOp", *WORDS)
    model = trainer.model

    def step():
        trainer.loss_terms(IMAGES, LABELS)[0]["loss"].backward()

    whole = peak_bytes(model, step)
    bounded(trainer, 1.0)
    model.cut()
    bound = model.max_memory * GIB
    assert whole > 6 * bound
    assert peak_bytes(model, step) < 1.6 * bound  # on top comes what a block's backward works on


def test_evaluation_comes_in_the_same_pieces(make_trainer):
    trainer = make_trainer("CoCoOp", *WORDS)
    with torch.no_grad():
        logits = trainer.model(IMAGES)
    bounded(trainer, 2.5)
    rows = []
    trainer.model.text_encoder.register_forward_hook(lambda *args: rows.append(len(args[2])))
    with torch.no_grad():
        torch.testing.assert_close(trainer.model(IMAGES), logits)
    assert rows == [16, 16, 16]


def test_a_bound_below_a_single_prompt_is_refused(make_trainer):
    trainer = make_trainer("CoCoOp", *WORDS, "TRAINER.COCOOP.MAX_MEMORY", 1e-5)
    with pytest.raises(ValueError, match="MAX_MEMORY is 1e-05 GiB, but one prompt takes") as error:
        trainer.forward_backward(BATCH)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("option", "value"), [("MAX_MEMORY", 0.0), ("MAX_MEMORY", float("inf")), ("N_CTX", 0)]
)
def test_options_out_of_range(option, value, make_trainer):
    with pytest.raises(ValueError, match=f"TRAINER.COCOOP.{option} is {value:g}"):
        make_trainer("CoCoOp", f"TRAINER.COCOOP.{option}", value)


# -- the plugin -----------------------------------------------------------------------------


@pytest.mark.parametrize("images", [7.0, 2.5, 0.3], ids=["one pass", "pieces", "within an image"])
@pytest.mark.parametrize("space", ["text", "cross"])
def test_fda_joins_once_and_exactly(space, images, make_trainer):
    trainer = make_trainer("FDACoCoOp", *WORDS, "TRAINER.PROXYFDA.SPACES", (space,),
                           "TRAINER.PROXYFDA.CONSTANTS", "given",
                           "TRAINER.PROXYFDA.WEIGHT", 3.0, "TRAINER.PROXYFDA.K", 2)  # fmt: skip
    bounded(trainer, images)
    model = trainer.model

    tuned = model.encode_image(IMAGES)
    texts, anchors = model.encode_text(tuned), trainer.frozen_text_features()
    if space == "text":
        terms = [fda_loss(own, anchors, k=2) for own in texts]
    else:
        terms = [
            fda_loss(row, row, columns=own, column_anchors=anchors, k=2)
            for row, own in zip(tuned.split(1), texts)
        ]
    term = torch.stack(terms).mean()
    task = F.cross_entropy(model(IMAGES), LABELS)
    learnables = list(model.prompt_learner.parameters())
    expected = torch.autograd.grad(task + 3.0 * term, learnables)

    summary = one_step(trainer, BATCH)
    assert summary["loss_fda"] == pytest.approx(term.item(), rel=1e-4)
    for parameter, gradient in zip(learnables, expected):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["CoCoOp", "FDACoCoOp", "ProxyFDACoCoOp"])
def test_training_runs_and_repeats(name, make_trainer):
    losses = []
    for output in ("first", "second"):
        trainer = make_trainer(name, *WORDS, "TRAINER.COCOOP.MAX_MEMORY", 0.01, output=output)
        trainer.train()
        assert trainer.last_result["total"] == 16
        losses.append([p.detach().clone() for p in trainer.model.prompt_learner.parameters()])
    for first, second in zip(*losses):
        assert torch.equal(first, second)


# -- precision and checkpoints --------------------------------------------------------------


@pytest.mark.parametrize("prec", ["fp16", "amp"])
def test_half_precision_falls_back_on_the_cpu(prec, make_trainer, capsys):
    trainer = make_trainer("CoCoOp", "TRAINER.COCOOP.PREC", prec)
    assert f"Precision {prec} needs a GPU" in capsys.readouterr().out
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}


def test_upstreams_checkpoint(make_trainer):
    """It is in half precision and holds the embedded names of its classes, whatever they were."""
    trainer = make_trainer("CoCoOp", *WORDS)
    learner = trainer.model.prompt_learner
    state = {name: torch.randn_like(p).half() for name, p in learner.named_parameters()}
    names = {"token_prefix": torch.zeros(5, 1, 64), "token_suffix": torch.ones(5, 72, 64)}
    folder = trainer.output_dir + "/prompt_learner"
    trainer.save_model(0, trainer.output_dir)
    torch.save({"state_dict": {**state, **names}, "epoch": 1}, f"{folder}/model.pth.tar-1")
    trainer.load_model(trainer.output_dir, 1)
    for name, value in learner.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, state[name].float())
