"""What is captured, and how a gradient joins: precision, scale, inputs in every form."""

from contextlib import contextmanager, nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from proxyfda.integrations.capture import FeatureCapture, WeightCapture
from proxyfda.integrations.dassl import make_trainer
from tests.integrations import hosts

OLD = not hasattr(torch, "get_autocast_dtype")
needs_autocast = pytest.mark.skipif(OLD, reason="autocast on the CPU is new there")


def joined_gradient(grad, extra, scale, dtype):
    """Gradient that arrives below features of a dtype, where the host's own is ``grad``."""
    encoder = nn.Identity()
    capture = FeatureCapture(
        {"image_encoder": encoder}, lambda captured: {"image_encoder": [torch.tensor([extra])]}
    )
    x = torch.zeros(1, dtype=dtype, requires_grad=True)
    with capture.step(scale=lambda: scale):
        encoder(x * 1).backward(torch.tensor([grad], dtype=dtype))
    return x.grad


@pytest.mark.parametrize("scale", [2.0**16, torch.tensor(2.0**16)], ids=["number", "tensor"])
def test_a_gradient_too_small_for_half_precision_joins_when_it_is_scaled(scale):
    # 2^-26 is 0 in fp16, 2^-10 is not.
    assert joined_gradient(1.0, 2.0**-26, scale, torch.float16).item() == 1 + 2.0**-10


def test_the_sum_is_rounded_once():
    # 2^-8 + 2^-16 makes 1 + 2^-7 of 1 in bfloat16; rounded by itself it is 2^-8, and the sum 1.
    extra = 2.0**-8 + 2.0**-16
    assert joined_gradient(1.0, extra, 1.0, torch.bfloat16).item() == 1 + 2.0**-7


class NotingHost(hosts.MaPLeLike):
    """Notes whether its frozen image features are made under autocast."""

    seen = ()

    def frozen_image_features(self, images):
        self.seen = (*self.seen, torch.is_autocast_enabled("cpu"))
        return super().frozen_image_features(images)


class HalfHost(NotingHost):
    """Runs forward and backward under autocast."""

    def forward_backward(self, batch):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward_backward(batch)


@needs_autocast
@pytest.mark.parametrize(("host", "half"), [(HalfHost, True), (NotingHost, False)])
def test_anchors_are_encoded_in_the_precision_of_the_features(host, half):
    cfg = hosts.make_cfg(REGULARISER="pointwise", SPACES=("image",))
    trainer = make_trainer(host, "")(cfg)
    trainer.model.prompt_learner["vis"].data.zero_()
    # Without a prompt the features are their own anchors, if both are rounded alike.
    assert trainer.forward_backward(hosts.make_batch())["loss_pointwise"] < 1e-6
    assert trainer.seen == (half,)


@needs_autocast
def test_the_gradient_is_computed_in_full_precision_whatever_the_backward_pass_runs_in():
    """A loss that leaves its precision to the context: its matrix product would be rounded."""

    def gradients(captured):
        (leaf,) = captured.leaves["image_encoder"]
        loss = (leaf @ leaf.t()).square().sum()
        return {"image_encoder": list(torch.autograd.grad(loss, [leaf]))}

    def below(context):
        encoder = nn.Identity()
        capture = FeatureCapture({"image_encoder": encoder}, gradients)
        x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
        with capture.step(), context:
            encoder(x * 1).sum().backward()
        return x.grad

    autocast = torch.autocast("cpu", dtype=torch.bfloat16)
    assert torch.equal(below(autocast), below(nullcontext()))


def test_the_loss_scale_is_asked_for_once():
    asked = []
    first, second = nn.Identity(), nn.Identity()
    capture = FeatureCapture(
        {"image_encoder": first, "text_encoder": second},
        lambda captured: {
            name: [torch.ones(1) for _ in leaves] for name, leaves in captured.leaves.items()
        },
    )
    x = torch.zeros(1, requires_grad=True)
    with capture.step(scale=lambda: asked.append(1) or 2.0):
        (first(x * 1) + second(x * 1)).backward()
    assert asked == [1] and x.grad.item() == 2 * (1 + 2.0)


def half_batches(capture_of, kept_texts):
    """Weights' gradients of two half-batches, each with a backward pass, in one step."""
    torch.manual_seed(0)
    image, text = nn.Linear(4, 3), nn.Linear(5, 3)
    images, words = torch.randn(2, 6, 4), torch.randn(7, 5)
    with capture_of(image, text) as term:
        texts = text(words) if kept_texts else None
        for half in images:
            if not kept_texts:
                texts = text(words)
            features = image(half)
            loss = (features @ texts.t()).square().mean() + term(features, texts)
            loss.backward(retain_graph=kept_texts)
    return [p.grad for p in (*image.parameters(), *text.parameters())]


@pytest.mark.parametrize("kept_texts", [False, True], ids=["encoded-again", "encoded-once"])
@pytest.mark.parametrize("sign", [1, -1])
def test_each_half_batch_of_a_step_has_its_term(kept_texts, sign):
    def relate(images, texts):
        return (images @ texts.t()).sin().sum()

    def by_hand(image, text):
        return nullcontext(relate)

    def captured(image, text):
        def gradients(found):
            leaves = [found.leaves[name][-1] for name in ("image_encoder", "text_encoder")]
            assert all(len(calls) == 1 for calls in found.calls.values())
            made = torch.autograd.grad(relate(*leaves), leaves)
            return dict(zip(("image_encoder", "text_encoder"), ([x] for x in made)))

        names = ("image_encoder", "text_encoder")
        encoders = dict([*zip(names, (image, text))][::sign])
        capture = FeatureCapture(encoders, gradients)

        @contextmanager
        def step():
            with capture.step():
                yield lambda *features: 0.0

        return step()

    for got, want in zip(half_batches(captured, kept_texts), half_batches(by_hand, kept_texts)):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


class HalvedHost(hosts.MaPLeLike):
    """Runs each batch as two halves, with a backward pass of each and one step."""

    def forward_backward(self, batch):
        self.optim.zero_grad()
        for half in halves_of(batch):
            self.task_loss(half).backward()
        return {"loss": 0.0}


def halves_of(batch):
    return [{k: v[i::2] for k, v in batch.items()} for i in range(2)]


@pytest.mark.parametrize("regulariser", ["pointwise", "fda"])
def test_the_plugin_gives_each_half_batch_its_term(regulariser):
    def gradients(host, batches, name=regulariser):
        cfg = hosts.make_cfg(REGULARISER=name, SPACES=("image",), K=2)
        trainer, sums = make_trainer(host, "")(cfg), []
        for batch in batches:
            trainer.forward_backward(batch)
            sums.append([p.grad.clone() for p in trainer.model.prompt_learner.parameters()])
        return [sum(parts) for parts in zip(*sums)]

    batch = hosts.make_batch()
    got = gradients(HalvedHost, [batch])
    want = gradients(hosts.MaPLeLike, halves_of(batch))
    bare = gradients(HalvedHost, [batch], "none")
    assert not all(map(torch.allclose, got, bare))
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_weights_take_a_gradient_once_and_only_within_a_step():
    layer = nn.Linear(2, 1, bias=False)
    capture = WeightCapture([layer.weight], lambda: [torch.full((1, 2), 3.0)])
    x = torch.ones(1, 2)
    layer(x).backward()
    assert layer.weight.grad.tolist() == [[1.0, 1.0]] and not capture.joined
    layer.weight.grad = None
    with capture.step(scale=lambda: 10.0):
        loss = layer(x)
        loss.backward(retain_graph=True)
        loss.backward()
    assert layer.weight.grad.tolist() == [[32.0, 32.0]]
    capture.remove()
    layer.weight.grad = None
    with capture.step():
        layer(x).backward()
    assert layer.weight.grad.tolist() == [[1.0, 1.0]]


def test_every_weight_takes_its_own_gradient_once_where_the_loss_goes_back_to_the_weights():
    layer = nn.Linear(2, 3)
    weights = [layer.bias, layer.weight]
    computed = []

    def gradients():
        computed.append(1)
        return torch.autograd.grad(layer.weight.sum() + 2 * layer.bias.sum(), weights)

    capture = WeightCapture(weights, gradients)
    with capture.step():
        (0 * layer(torch.ones(1, 2))).sum().backward()
    assert layer.weight.grad.unique().tolist() == [1.0]
    assert layer.bias.grad.unique().tolist() == [2.0]
    assert computed == [1]


# -- inputs of the image encoder ------------------------------------------------------------------


class Flexible(hosts.Encoder):
    """An encoder that takes its images as a tensor or in a container, before or after a prompt."""

    prompt = None

    def forward(self, x=None, prompt=None, images=None):
        x = images if images is not None else x
        prompt = self.prompt if prompt is None else prompt
        return super().forward(x["pixels"] if isinstance(x, dict) else x, prompt)


class FlexibleModel(hosts.BothPrompts):
    manner = "position"

    def __init__(self):
        super().__init__()
        plain = self.image_encoder
        self.image_encoder = Flexible()
        self.image_encoder.load_state_dict(plain.state_dict())
        self.image_encoder.requires_grad_(False)

    def forward(self, x):
        vis = self.prompt_learner["vis"]
        images = {
            "position": lambda: self.image_encoder(x, vis),
            "keyword": lambda: self.image_encoder(prompt=vis, images=x),
        }[self.manner]()
        return self.logits(images, self.text_encoder(self.names, self.prompt_learner["ctx"]))


class FlexibleHost(hosts.Host):
    model_class = FlexibleModel


OPTIONS = {"SPACES": ("image", "cross"), "K": 3}


@pytest.mark.skipif(
    torch.__version__.startswith("1."), reason="hooks see keywords from torch 2.0 on"
)
def test_images_may_come_by_keyword_after_a_prompt(monkeypatch):
    batch = hosts.make_batch()
    plain = make_trainer(FlexibleHost, "fda")(hosts.make_cfg(**OPTIONS))
    want = plain.forward_backward(batch)
    monkeypatch.setattr(FlexibleModel, "manner", "keyword")
    trainer = make_trainer(FlexibleHost, "fda")(hosts.make_cfg(**OPTIONS))
    assert trainer.forward_backward(batch) == want
    for name, parameter in plain.model.prompt_learner.items():
        assert torch.equal(parameter.grad, trainer.model.prompt_learner[name].grad)


@pytest.mark.skipif(
    not torch.__version__.startswith("1."), reason="hooks see keywords from torch 2.0 on"
)
def test_images_by_keyword_are_refused_where_hooks_do_not_see_them(monkeypatch):
    monkeypatch.setattr(FlexibleModel, "manner", "keyword")
    trainer = make_trainer(FlexibleHost, "fda")(hosts.make_cfg(**OPTIONS))
    with pytest.raises(
        RuntimeError, match="by keyword, which is seen from torch 2.0 on; pass them"
    ):
        trainer.forward_backward(hosts.make_batch())


def test_images_in_no_tensor_are_given_to_the_hosts_own_frozen_features(monkeypatch):
    class Own(FlexibleHost):
        def frozen_image_features(self, images):
            return self.model.image_encoder(images)

    batch = hosts.make_batch()
    want = make_trainer(Own, "fda")(hosts.make_cfg(**OPTIONS)).forward_backward(batch)

    class InDictModel(FlexibleModel):
        def forward(self, x):
            encoder, learner = self.image_encoder, self.prompt_learner
            # The prompt is the module's own, so that no argument is a tensor.
            vars(encoder)["prompt"] = learner["vis"]
            images = encoder({"pixels": x})
            del vars(encoder)["prompt"]
            return self.logits(images, self.text_encoder(self.names, learner["ctx"]))

    monkeypatch.setattr(Own, "model_class", InDictModel)
    trainer = make_trainer(Own, "fda")(hosts.make_cfg(**OPTIONS))
    assert trainer.forward_backward(batch) == want


def test_precomputed_image_features_leave_the_spaces_of_images_empty():
    class Precomputed(hosts.TextPrompts):
        def forward(self, x):
            texts = self.text_encoder(self.names, self.prompt_learner["ctx"])
            return self.logits(F.normalize(x, dim=-1), texts)

    class PrecomputedHost(hosts.Host):
        model_class = Precomputed

    trainer = make_trainer(PrecomputedHost, "fda")(hosts.make_cfg(K=3))
    with pytest.raises(RuntimeError) as error:
        trainer.forward_backward(hosts.make_batch())
    assert "the image encoder was not called in this step" in str(error.value)
    assert str(error.value).endswith("use TRAINER.PROXYFDA.SPACES text")
    text = make_trainer(PrecomputedHost, "fda")(hosts.make_cfg(K=3, SPACES=("text",)))
    assert text.forward_backward(hosts.make_batch())["loss_fda"] > 0


def test_class_texts_that_the_host_keeps_are_said_from_the_second_step_on():
    class Caching(hosts.BothPrompts):
        texts = None

        def forward(self, x):
            if self.texts is None:
                with torch.no_grad():
                    self.texts = self.text_encoder(self.names)
            return self.logits(self.image_encoder(x, self.prompt_learner["vis"]), self.texts)

    class CachingHost(hosts.Host):
        model_class = Caching

    trainer = make_trainer(CachingHost, "fda")(hosts.make_cfg(K=3, SPACES=("image", "cross")))
    trainer.forward_backward(hosts.make_batch())
    with pytest.raises(RuntimeError) as error:
        trainer.forward_backward(hosts.make_batch())
    assert "does the trainer keep the class texts from an earlier one?" in str(error.value)
    assert str(error.value).endswith("use TRAINER.PROXYFDA.SPACES image")
    image = make_trainer(CachingHost, "fda")(hosts.make_cfg(K=3, SPACES=("image",)))
    for _ in range(2):
        assert image.forward_backward(hosts.make_batch())["loss_fda"] > 0


def test_an_encoder_that_returns_no_tensor_is_named():
    class Wrapped(hosts.TextPrompts):
        def __init__(self):
            super().__init__()
            inner = self.text_encoder
            self.text_encoder = nn.Module()
            self.text_encoder.forward = lambda *args: {"features": inner(*args)}

        def forward(self, x):
            texts = self.text_encoder(self.names, self.prompt_learner["ctx"])["features"]
            return self.logits(self.image_encoder(x), texts)

    class WrappedHost(hosts.Host):
        model_class = Wrapped

    trainer = make_trainer(WrappedHost, "fda")(hosts.make_cfg(K=3))
    with pytest.raises(TypeError, match="text_encoder returned a dict, not a feature tensor; name"):
        trainer.forward_backward(hosts.make_batch())


def test_a_loss_that_reaches_no_feature_is_said():
    class Detached(hosts.TextPrompts):
        def forward(self, x):
            return super().forward(x).detach() + self.prompt_learner["ctx"][: hosts.CLASSES]

    class DetachedHost(hosts.Host):
        model_class = Detached

    trainer = make_trainer(DetachedHost, "fda")(hosts.make_cfg(K=3))
    with pytest.raises(RuntimeError, match="no gradient of the host's loss reached the features"):
        trainer.forward_backward(hosts.make_batch())
