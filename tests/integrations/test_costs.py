"""What the plugin's part of a step asks a device to do."""

import pytest
import torch
from operations import count_operations, synchronisations

from proxyfda import regularisers
from proxyfda.integrations.capture import Call, Captured, FeatureCapture
from proxyfda.integrations.dassl import make_trainer
from proxyfda.integrations.spaces import RegularisedSpaces
from proxyfda.regularisers.constants import FIRST_BATCHES
from tests.integrations import hosts

pytestmark = pytest.mark.skipif(
    torch.__version__.startswith("1."), reason="older versions make other operations of the same"
)
IMAGES, CLASSES, DIM = 32, 20, 64


def frozen_texts():
    return torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(9))


def step_of(seed=0):
    """Features of a step as CoOp has them: frozen images, one set of tuned class texts."""
    stream = torch.Generator().manual_seed(seed)
    images = torch.randn(IMAGES, DIM, generator=stream)
    texts = frozen_texts() + 0.5 * torch.randn(CLASSES, DIM, generator=stream)
    return Captured(
        {
            "image_encoder": [Call(images, images, False, torch.enable_grad)],
            "text_encoder": [Call(None, texts, True, torch.enable_grad)],
        },
        {"image_encoder": [images], "text_encoder": [texts.requires_grad_()]},
    )


def make_spaces(name, spaces=("text", "cross")):
    anchors = frozen_texts()
    kind = regularisers.find(name).kind
    return RegularisedSpaces(
        name, {}, spaces if kind == "relations" else ("text",), 1.5, lambda: anchors, torch.clone
    )


def past_the_first_steps(step):
    """Steps look at what they do at first (is it zero, are the texts the classes?), and constants
    are derived."""
    for _ in range(FIRST_BATCHES + 1):
        step()


NAMES = [name for name in regularisers.names() if regularisers.find(name).kind != "weights"]


def test_the_term_of_fda_on_text_and_cross_takes_at_most_60_operations():
    spaces, step = make_spaces("fda"), step_of()
    past_the_first_steps(lambda: spaces.gradients(step))
    counts = count_operations(lambda: spaces.gradients(step))
    assert 20 < sum(counts.values()) <= 60, counts
    assert counts["cat"] == counts["stack"] == 0  # nothing that is single is copied


@pytest.mark.parametrize("name", NAMES)
def test_gradients_and_the_generators_step_wait_for_no_device(name, monkeypatch):
    # On the CPU Adam reads its counter of steps, which is a number of the host there.
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: None)
    spaces, step = make_spaces(name), step_of()
    terms = {}

    def whole_step():
        spaces.gradients(step)
        terms.update(spaces.finish_step())

    past_the_first_steps(whole_step)
    assert synchronisations(whole_step) == []
    assert all(isinstance(term, torch.Tensor) and term.dim() == 0 for term in terms.values())


def test_the_join_waits_for_no_device():
    encoder = torch.nn.Identity()
    extra = torch.ones(4, 3)
    capture = FeatureCapture(
        {"text_encoder": encoder}, lambda captured: {"text_encoder": [extra, extra]}
    )
    scale = torch.tensor(1024.0)
    x = torch.zeros(4, 3, requires_grad=True)

    def step():
        x.grad = None
        with capture.step(scale=lambda: scale):
            (encoder(x * 1) + encoder(x * 1)).sum().backward()

    assert synchronisations(step) == []
    assert torch.equal(x.grad, torch.full_like(x, 2 * 1025.0))


def test_the_scale_of_a_grad_scaler_is_not_waited_for():
    class Waiting(hosts.Scaler):
        def get_scale(self):
            raise AssertionError("get_scale waits for the device")

    trainer = make_trainer(hosts.ScaledCoOpLike, "fda")(hosts.make_cfg(K=3))
    trainer.scaler = Waiting()
    scale = trainer.regularised_loss_scale()
    assert isinstance(scale, torch.Tensor) and scale.item() == 1024.0
    trainer.forward_backward(hosts.make_batch())


@pytest.mark.parametrize("name", ["fda", "proxy_fda", "l2sp"])
def test_all_terms_of_a_step_are_read_in_one_transfer(name, monkeypatch):
    class Silent(hosts.MaPLeLike):
        def forward_backward(self, batch):
            self.optim.zero_grad()
            self.task_loss(batch).backward()
            return {}

    trainer = make_trainer(Silent, "")(hosts.make_cfg(REGULARISER=name, K=3))
    past_the_first_steps(lambda: trainer.forward_backward(hosts.make_batch()))
    read = []
    for method in ("item", "tolist", "__float__", "__bool__", "cpu", "numpy"):
        original = getattr(torch.Tensor, method)

        def noted(self, *args, method=method, original=original, **kwargs):
            read.append(method)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, method, noted)
    summary = trainer.forward_backward(hosts.make_batch())
    assert read == ["tolist"]
    assert all(type(value) is float for value in summary.values())
