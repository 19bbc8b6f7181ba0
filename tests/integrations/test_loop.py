"""attach: gradients against the hand-written sum, in the manners in which loops compute."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import proxyfda
from proxyfda import FDA, L2SP, LDIFS, RKD, FrozenCopy, ProxyFDA, attach
from proxyfda.utils.errors import BadType, BadValue, Unusable

D, N = 6, 10
OLD = not hasattr(torch, "compile")  # before torch 2.0


def build(seed=0):
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, D))
    return encoder, nn.Linear(D, 3)


def batches(count=1):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(N, 4, generator=generator), torch.randint(3, (N,), generator=generator))
        for _ in range(count)
    ]


def drift(encoder):
    """Away from where it was when it was copied, so that a term has something to say."""
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.manual_seed(5)))


def by_hand(regulariser, weight, data, divide=1):
    """Gradients of Σ (task + weight · term) / divide, written out."""
    encoder, head = build()
    frozen = FrozenCopy(encoder)
    drift(encoder)
    for images, labels in data:
        features = encoder(images)
        loss = F.cross_entropy(head(features), labels)
        ((loss + weight * regulariser(features, frozen(images))) / divide).backward()
    own = list(regulariser.parameters()) if isinstance(regulariser, nn.Module) else []
    return [p.grad for p in (*encoder.parameters(), *head.parameters(), *own)]


def attached(regulariser, weight, data, step, **more):
    """The same by attach; ``step(encoder, head, data)`` is the loop."""
    encoder, head = build()
    handle = attach(encoder, regulariser, weight, **more)
    drift(encoder)
    step(encoder, head, data)
    own = list(regulariser.parameters()) if isinstance(regulariser, nn.Module) else []
    return handle, [p.grad for p in (*encoder.parameters(), *head.parameters(), *own)]


def plain_step(encoder, head, data, divide=1, scale=1.0):
    for images, labels in data:
        (F.cross_entropy(head(encoder(images)), labels) / divide * scale).backward()


def same(got, want, tolerance=1e-5):
    assert len(got) == len(want)
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=1e-7)


REGULARISERS = {
    "fda": lambda: FDA(k=3),
    "proxy_fda": lambda: ProxyFDA(D, k=3, proxy_seed=0),
    "rkd": lambda: RKD(distance=1.0),
    "function": lambda: lambda x, anchors: (x - anchors).square().mean(),
}


@pytest.mark.parametrize("name", REGULARISERS)
def test_gradients_are_those_of_the_hand_written_sum(name):
    data = batches()
    want = by_hand(REGULARISERS[name](), 0.7, data)
    plain = by_hand(lambda x, anchors: 0.0 * x.sum(), 0.7, data)
    handle, got = attached(REGULARISERS[name](), 0.7, data, plain_step)
    same(got, want)
    assert not torch.allclose(got[0], plain[0], rtol=1e-3)
    assert list(handle.terms)[0] == (
        "loss" if name == "function" else f"loss_{name.split('_')[-1]}"
    )


def layers_of(x):
    return [x[:, :2], x]


@pytest.mark.parametrize("together", [False, True])
def test_a_list_of_layers_is_compared_by_ldifs(together):
    data = batches(2)

    def term(x, anchors):
        return LDIFS()(layers_of(x), layers_of(anchors))

    def step(encoder, head, data):
        losses = [F.cross_entropy(head(encoder(images)), labels) for images, labels in data]
        sum(losses).backward()

    want = by_hand(term, 70.0, data)
    if together:  # the term is a mean over all rows
        want = by_hand(term, 35.0, data)
    more = {"features": layers_of, "together": together, "scale": 1.0}
    handle, got = attached(LDIFS(), 70.0, data, step, **more)
    same(got, want)
    assert handle.terms["loss_ldifs"] > 0


def test_relations_of_a_list_of_layers_are_refused():
    with pytest.raises(BadValue, match="FDA relates samples of a batch"):
        attached(FDA(k=3), 1.0, batches(), plain_step, features=layers_of)


def test_several_batches_before_one_step_each_have_the_term():
    data = batches(3)
    want = by_hand(FDA(k=3), 0.7, data, divide=3)

    def step(encoder, head, data):
        plain_step(encoder, head, data, divide=3)

    same(attached(FDA(k=3), 0.7, data, step, scale=1 / 3)[1], want)


def test_several_forward_passes_before_one_backward_pass():
    data = batches(2)
    want = by_hand(ProxyFDA(D, k=3, proxy_seed=0), 0.7, data)

    def step(encoder, head, data):
        sum(F.cross_entropy(head(encoder(images)), labels) for images, labels in data).backward()

    same(attached(ProxyFDA(D, k=3, proxy_seed=0), 0.7, data, step)[1], want)


class Scaler:
    """The interface of GradScaler that counts, with a fixed scale."""

    def is_enabled(self):
        return True

    def scale(self, loss):
        return loss * 128.0


@pytest.mark.parametrize(
    "scale", [Scaler(), 128.0, lambda: 128.0], ids=["scaler", "number", "call"]
)
def test_the_term_is_scaled_as_the_loss_is(scale):
    data = batches()
    regulariser = ProxyFDA(D, k=3, proxy_seed=0)
    want = by_hand(ProxyFDA(D, k=3, proxy_seed=0), 0.7, data)

    def step(encoder, head, data):
        plain_step(encoder, head, data, scale=128.0)

    got = attached(regulariser, 0.7, data, step, scale=scale)[1]
    same([gradient / 128.0 for gradient in got], want)


@pytest.mark.skipif(OLD, reason="torch has it from 2.0 on")
def test_under_autocast_the_term_is_computed_in_full_precision():
    data = batches()
    seen = []

    def term(x, anchors):
        seen.append((x.dtype, torch.is_autocast_enabled("cpu"), (x @ x.t()).dtype))
        return (x - anchors).square().mean()

    def step(encoder, head, data):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            images, labels = data[0]
            F.cross_entropy(head(encoder(images)), labels).backward()

    _, got = attached(term, 0.7, data, step)
    assert seen[0][0] == seen[0][2] == torch.float32
    for gradient, want in zip(got, by_hand(term, 0.7, data)):
        torch.testing.assert_close(gradient, want, rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("inside", [True, False], ids=["around-module", "in-module"])
def test_recomputed_activations_are_not_regularised_twice(inside):
    data = batches()

    def step(encoder, head, data):
        images, labels = data[0]
        images.requires_grad_()
        if inside:
            logits = head(checkpoint(encoder, images, use_reentrant=False))
        else:
            logits = checkpoint(lambda x: head(encoder(x)), images, use_reentrant=False)
        F.cross_entropy(logits, labels).backward()

    same(attached(FDA(k=3), 0.7, data, step)[1], by_hand(FDA(k=3), 0.7, data))


@pytest.mark.skipif(OLD, reason="torch has it from 2.0 on")
def test_a_compiled_model_is_regularised_as_well():
    data = batches()

    def step(encoder, head, data):
        model = torch.compile(nn.Sequential(encoder, head), backend="eager")
        images, labels = data[0]
        F.cross_entropy(model(images), labels).backward()

    same(attached(FDA(k=3), 0.7, data, step)[1], by_hand(FDA(k=3), 0.7, data))


def test_a_second_backward_pass_over_the_graph_is_no_second_term():
    images, _ = batches()[0]
    encoder, _ = build()
    attach(encoder, lambda x, anchors: x.sum(), 1.0)
    out = encoder(images).sum() * 0.0
    out.backward(retain_graph=True)
    first = encoder[2].bias.grad.clone()
    out.backward()
    assert torch.equal(encoder[2].bias.grad, first) and torch.equal(first, torch.full((D,), 10.0))


class Keywords(nn.Module):
    """Takes its images by keyword, and gives features in a mapping."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *, pixels):
        return {"features": self.inner(pixels), "more": None}


@pytest.mark.skipif(OLD, reason="torch has it from 2.0 on")
def test_inputs_by_keyword_and_features_in_a_mapping():
    (images, labels), encoder, head = batches()[0], *build()
    module = Keywords(encoder)
    attach(module, FDA(k=3), 0.7)
    drift(encoder)
    F.cross_entropy(head(module(pixels=images)["features"]), labels).backward()
    got = [p.grad for p in (*encoder.parameters(), *head.parameters())]
    same(got, by_hand(FDA(k=3), 0.7, batches()))


@pytest.mark.parametrize("kind", ["module", "function"])
def test_anchors_may_be_given(kind):
    (images, _), encoder = batches()[0], build()[0]
    other = build(seed=3)[0]
    given = FrozenCopy(other) if kind == "module" else lambda x: other(x).detach()
    attach(encoder, lambda x, anchors: (x * anchors).sum(), 1.0, anchors=given)
    (encoder(images).sum() * 0.0).backward()
    torch.testing.assert_close(encoder[2].bias.grad, other(images).sum(0).detach())


class Tokens(nn.Module):
    """Returns something, and tokens [N, 2, D] of which the first is the feature."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        first = self.inner(x)
        return x, torch.stack([first, 2.0 * first], dim=1)


def test_features_may_be_made_of_one_of_several_outputs():
    (images, labels), encoder, head = batches()[0], *build()
    module = Tokens(encoder)
    attach(module, FDA(k=3), 0.7, output=1, features=lambda tokens: tokens[:, 0])
    drift(encoder)
    F.cross_entropy(head(module(images)[1][:, 0]), labels).backward()
    got = [p.grad for p in (*encoder.parameters(), *head.parameters())]
    same(got, by_hand(FDA(k=3), 0.7, batches()))


def test_features_that_were_changed_in_place_are_refused():
    images, _ = batches()[0]
    encoder, _ = build()
    attach(encoder, FDA(k=3))
    features = encoder(images)
    features /= 2.0
    with pytest.raises(Unusable, match="changed in place.*write x = x / y instead of x /= y"):
        features.sum().backward()


def test_evaluation_and_weight_0_leave_the_module_alone():
    images, _ = batches()[0]
    encoder, _ = build()
    calls = []
    frozen = FrozenCopy(encoder)
    handle = attach(encoder, FDA(k=3), anchors=lambda x: calls.append(1) or frozen(x))
    with torch.no_grad():
        encoder(images)
    handle.weight = 0.0
    encoder(images).sum().backward()
    assert not calls and not handle.terms
    handle.weight = 1.0
    encoder(images).sum().backward()
    assert calls == [1] and set(handle.terms) == {"loss_fda"}


def test_remove_restores_everything():
    data = batches()
    encoder, head = build()
    hooks = copy.copy(encoder._forward_hooks)
    handle = attach(encoder, FDA(k=3), 5.0)
    drift(encoder)
    open_graph = encoder(data[0][0])
    handle.remove()
    handle.remove()
    assert encoder._forward_hooks == hooks
    open_graph.sum().backward()
    gradients = [p.grad for p in encoder.parameters()]
    encoder.zero_grad()
    encoder(data[0][0]).sum().backward()
    same(gradients, [p.grad for p in encoder.parameters()])


def test_graphs_are_freed():
    encoder, _ = build()
    attach(encoder, FDA(k=3))
    features = encoder(batches()[0][0])
    gone = weakref.ref(features)
    gc.disable()
    try:
        del features
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (lambda e: (e.forward, FDA()), BadType, "module is a method; give the torch.nn.Module"),
        (lambda e: (e, L2SP(e)), BadType, "L2SP acts on weights.*add weight \\* regulariser\\(\\)"),
        (lambda e: (e, FDA(), -1.0), BadValue, "weight is -1.0; give a finite number"),
        (lambda e: (e, FDA(), float("nan")), BadValue, "weight is nan"),
        (lambda e: (e, FDA(), 1.0, "cpy"), BadType, "anchors is 'cpy'; give \"copy\""),
        (lambda e: (e, "fda"), BadType, "regulariser is 'fda'; give one of proxyfda.regularisers"),
    ],
    ids=["module", "weights", "negative", "nan", "anchors", "regulariser"],
)
def test_mistakes_are_told_in_one_sentence(arguments, kind, words):
    with pytest.raises(kind, match=words):
        attach(*arguments(build()[0]))


def test_a_module_that_returns_no_tensor_is_told():
    class Words(nn.Linear):
        def forward(self, x):
            return {"text": "hello"}

    module = Words(2, 2)
    attach(module, FDA())
    with pytest.raises(BadType, match="returned a dict whose output first is a str.*by output="):
        module(torch.ones(1, 2))


def test_attach_is_at_the_top():
    assert proxyfda.attach is attach
