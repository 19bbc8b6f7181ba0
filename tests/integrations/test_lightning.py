"""Lightning with a regulariser: the hand-written sum, precision, resuming, what is left."""

import logging
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from proxyfda import L2SP, FrozenCopy, ProxyFDA
from proxyfda.diagnostics import Monitor
from proxyfda.utils.errors import BadModel, BadType, Unusable

lightning = pytest.importorskip("lightning")

from lightning.pytorch.plugins import MixedPrecision  # noqa: E402

from proxyfda.integrations.lightning import RegulariserCallback  # noqa: E402

D, CLASSES, WEIGHT = 16, 3, 0.7


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Plain(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(12, D), nn.Tanh(), nn.Linear(D, D))
        self.head = nn.Linear(D, CLASSES)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return F.cross_entropy(self.head(self.encoder(images)), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Summed(Plain):
    """The sum by hand, the generator's optimiser stepped by hand."""

    def __init__(self):
        super().__init__()
        self.frozen = FrozenCopy(self.encoder)
        term = regulariser()
        self.kept = [term, torch.optim.Adam(term.parameters(), lr=1e-3)]  # no part of the module
        self.seen = []

    def training_step(self, batch, batch_idx):
        images, labels = batch
        features = self.encoder(images)
        term = self.kept[0](features, self.frozen(images))
        self.seen.append(term.item())
        return F.cross_entropy(self.head(features), labels) + WEIGHT * term

    def on_before_optimizer_step(self, optimizer):
        self.kept[1].step()
        self.kept[1].zero_grad()


class Scaled(MixedPrecision):
    """A GradScaler without autocast, so that numbers compare."""

    def __init__(self):
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=128.0))

    def forward_context(self):
        return torch.autocast("cpu", enabled=False)


def regulariser():
    return ProxyFDA(D, k=3, proxy_seed=0)


def loader(count=40):
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(count, 12, generator=generator)
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(images, torch.arange(count) % CLASSES), batch_size=8
    )


def trainer(*callbacks, epochs=2, **settings):
    return lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", enable_progress_bar=False, logger=False,
        enable_model_summary=False, callbacks=list(callbacks),
        **{"enable_checkpointing": False, **settings},
    )  # fmt: skip


def weights(*modules):
    return torch.cat([p.detach().flatten() for module in modules for p in module.parameters()])


# Five batches an epoch: the last step of two has one batch.
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("scaled", [False, True], ids=["fp32", "scaler"])
def test_weights_are_those_of_the_hand_written_sum(accumulate, scaled):
    def settings():
        plugins = [Scaled()] if scaled else []
        return {"accumulate_grad_batches": accumulate, "plugins": plugins}

    want = Summed()
    if scaled:  # its generator has the scale in its gradients, which Adam takes out again
        want.kept[1].defaults["eps"] = want.kept[1].param_groups[0]["eps"] = 128e-8
    trainer(**settings()).fit(want, loader())
    got, term = Plain(), regulariser()
    start = weights(term)
    callback = RegulariserCallback("encoder", term, WEIGHT)
    run = trainer(callback, **settings())
    run.fit(got, loader())
    tuned = weights(got.encoder, got.head)
    torch.testing.assert_close(tuned, weights(want.encoder, want.head), rtol=1e-5, atol=1e-6)
    # Adam makes whole steps of what rounding leaves of a gradient of zero, here and there.
    gap, moved = weights(term) - weights(want.kept[0]), weights(term) - start
    assert gap.abs().mean() < 1e-5 < 1e-3 < moved.abs().mean()
    logged = run.logged_metrics
    last = (logged["loss_fda"] + logged["loss_proxy"]).item()
    assert last == pytest.approx(want.seen[-1], rel=1e-4)


@pytest.mark.parametrize("ends", ["done", "failed"])
def test_the_module_is_plain_again_afterwards(ends):
    model, callback = Plain(), RegulariserCallback("encoder", regulariser(), WEIGHT)

    class Stop(lightning.Callback):
        def on_train_batch_end(self, *args):
            assert model.encoder._forward_hooks and callback.handle is not None
            if ends == "failed":
                raise RuntimeError("stopped")

    if ends == "failed":
        with pytest.raises(RuntimeError, match="stopped"):
            trainer(callback, Stop()).fit(model, loader())
    else:
        trainer(callback, Stop()).fit(model, loader())
    assert not model.encoder._forward_hooks and callback.handle is None


def checkpoints(folder):
    return lightning.pytorch.callbacks.ModelCheckpoint(folder, every_n_epochs=1, save_top_k=-1)


@pytest.fixture
def interrupted(tmp_path):
    """A run of two epochs, and the checkpoint after its first."""
    model, term = Plain(), regulariser()
    callbacks = [RegulariserCallback("encoder", term, WEIGHT), checkpoints(tmp_path)]
    trainer(*callbacks, enable_checkpointing=True).fit(model, loader())
    return model, term, next(tmp_path.glob("epoch=0*.ckpt"))


def test_a_resumed_run_ends_with_the_same_numbers(interrupted):
    model, term, path = interrupted
    again, other = Plain(), regulariser()
    with torch.no_grad():  # whatever the generator starts from, the checkpoint has it
        other.generator.log_scale.add_(1.0)
    callback = RegulariserCallback("encoder", other, WEIGHT)
    trainer(callback).fit(again, loader(), ckpt_path=str(path))
    torch.testing.assert_close(weights(again, other), weights(model, term), rtol=0, atol=0)


def test_resuming_with_a_copy_of_tuned_weights_is_refused(interrupted):
    model, _, path = interrupted
    callback = RegulariserCallback("encoder", regulariser(), WEIGHT)
    with pytest.raises(Unusable, match="frozen copy holds other weights"):
        trainer(callback).fit(model, loader(), ckpt_path=str(path))


@pytest.mark.parametrize("weight", [WEIGHT, 0.0], ids=["regularised", "plain"])
def test_a_monitor_sees_every_second_batch_and_goes_on_counting(weight, tmp_path):
    def monitored(**more):
        written = []
        monitor = Monitor(lambda *entry: written.append(entry), every=2)
        callback = RegulariserCallback("encoder", regulariser(), weight, monitor=monitor)
        fit = trainer(callback, checkpoints(tmp_path), enable_checkpointing=True)
        fit.fit(Plain(), loader(), **more)
        return written

    whole = monitored()  # 2 epochs of 5 batches
    assert [step for _, _, step in whole] == [0, 0, 2, 2, 4, 4, 6, 6, 8, 8]
    values = {(name, step): value for name, value, step in whole}
    assert values["features/overlap", 0] == 1.0 and values["features/drift", 8] > 1e-3
    path = next(tmp_path.glob("epoch=0*.ckpt"))
    assert monitored(ckpt_path=str(path)) == [one for one in whole if one[2] >= 6]


def test_a_second_fit_keeps_the_first_copy():
    model, callback = Plain(), RegulariserCallback("encoder", regulariser(), WEIGHT)
    for _ in range(2):
        trainer(callback, epochs=1).fit(model, loader())
    anchors, start = callback._session._anchors(torch.ones(1, 12)), Plain().encoder
    torch.testing.assert_close(anchors, start(torch.ones(1, 12)), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "callback, error, words",
    [
        (lambda: RegulariserCallback("enc", regulariser()), BadModel, "no module 'enc'.*encoder"),
        (lambda: RegulariserCallback("encoder", L2SP(Plain())), BadType, "acts on weights"),
        (lambda: RegulariserCallback("encoder", regulariser(), monitor=3), BadType, "is a int"),
    ],
    ids=["name", "weights", "monitor"],
)
def test_a_mistake_is_one_sentence(callback, error, words):
    with pytest.raises(error, match=words):
        trainer(callback()).fit(Plain(), loader())
