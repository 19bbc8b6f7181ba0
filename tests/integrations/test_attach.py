"""attach in loops that it does not own: every kind of step beside the hand-written sum.

A loop is run twice on equal weights: with the term inside the loss, and without it but with the
handle on. Gradients of the first step and all weights after three steps have to agree.
"""

import copy
import dataclasses
import gc
import pickle
import warnings
import weakref
from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from proxyfda import FDA, RKD, FrozenCopy, ProxyFDA, attach
from proxyfda.integrations import loss_scale
from proxyfda.utils.errors import BadType, BadValue, Unusable

D, N, STEPS, WEIGHT = 6, 10, 3, 0.7
OLD = not hasattr(torch, "compile")  # before torch 2.0
new = pytest.mark.skipif(OLD, reason="torch has it from 2.0 on")


class Loop:
    """Weights, data and what a loop needs; the term only where it is written by hand."""

    def __init__(self, by_hand, regulariser=None, **options):
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, D))
        self.head = nn.Linear(D, 3)
        self.regulariser = regulariser or ProxyFDA(D, k=3, proxy_seed=0)
        self.frozen = FrozenCopy(self.encoder)
        self.handle = None
        if not by_hand:
            self.handle = attach(self.encoder, self.regulariser, WEIGHT, **options)
        # Away from where it was, so that the term has something to say.
        with torch.no_grad():
            for p in self.encoder.parameters():
                p.add_(0.3 * torch.randn(p.shape, generator=torch.manual_seed(5)))
        own = list(getattr(self.regulariser, "parameters", list)())
        self.parameters = [*self.encoder.parameters(), *self.head.parameters(), *own]
        self.optimiser = torch.optim.SGD(self.parameters, lr=0.05, momentum=0.9)
        self.stream = torch.Generator().manual_seed(1)
        self.gradients = None

    def batch(self):
        images = torch.randn(N, 4, generator=self.stream)
        return images, torch.randint(3, (N,), generator=self.stream)

    def term(self, features, images):
        """Written by hand; nothing where the handle is on."""
        if self.handle is not None:
            return 0.0
        return WEIGHT * self.regulariser(features, self.frozen(images))

    def loss(self, encode=None, head=None):
        images, labels = self.batch()
        features = (encode or self.encoder)(images)
        return F.cross_entropy((head or self.head)(features), labels) + self.term(features, images)

    def step(self):
        if self.gradients is None:
            self.gradients = [
                torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in self.parameters
            ]
        self.optimiser.step()


def agree(loop, tolerance=1e-5, **options):
    """Run ``loop(Loop)`` in both ways."""
    torch.manual_seed(3)
    hand, host = Loop(True, options.pop("hand", None)), Loop(False, **options)
    try:
        for each in (hand, host):
            torch.manual_seed(7)
            for _ in range(STEPS):
                each.optimiser.zero_grad()
                loop(each)
    finally:
        host.handle.remove()
    for got, want in [*zip(host.gradients, hand.gradients), *zip(host.parameters, hand.parameters)]:
        if tolerance is None:
            assert (got - want).norm() < 0.02 * want.norm()
        else:
            torch.testing.assert_close(got, want, rtol=tolerance, atol=1e-6)
    assert any(gradient.abs().sum() > 0 for gradient in hand.gradients[-1:])
    return host


def without_term(loop):
    """First gradient of the encoder without any term."""
    plain = Loop(False)
    plain.handle.remove()
    loop(plain)
    return plain.gradients[0]


def plain(loop):
    loop.loss().backward()
    loop.step()


def test_a_plain_loop():
    host = agree(plain)
    assert not torch.allclose(host.gradients[0], without_term(plain), rtol=1e-2)


def zero_grad_between(loop):
    loss = loop.loss()
    loop.optimiser.zero_grad()
    loss.backward()
    loop.step()


def test_gradients_may_be_reset_between_forward_and_backward():
    agree(zero_grad_between)


# -- accumulation ------------------------------------------------------------------------------


def accumulate(loop):
    for _ in range(3):
        loop.loss().backward()
    loop.step()


def accumulate_divided(loop):
    for _ in range(3):
        (loop.loss() / 3).backward()
    loop.step()


def accumulate_in_one_pass(loop):
    ((loop.loss() + loop.loss()) / 2).backward()
    loop.step()


def accumulate_late(loop):
    first, second = loop.loss(), loop.loss()
    first.backward()
    second.backward()
    loop.step()


def half_batches(loop):
    images, labels = loop.batch()
    for half in (slice(0, 5), slice(5, None)):
        features = loop.encoder(images[half])
        loss = F.cross_entropy(loop.head(features), labels[half])
        ((loss + loop.term(features, images[half])) / 2).backward()
    loop.step()


@pytest.mark.parametrize(
    "loop",
    [accumulate, accumulate_divided, accumulate_in_one_pass, accumulate_late, half_batches],
    ids=lambda loop: loop.__name__,
)
@pytest.mark.filterwarnings("ignore:the loss is multiplied")
def test_gradient_accumulation(loop):
    agree(loop)


def test_a_loss_of_transformers_that_is_a_share_of_all_samples_has_its_share_of_the_term():
    def shared(loop):
        for _ in range(2):
            images, labels = loop.batch()
            features = loop.encoder(images)
            task = F.cross_entropy(loop.head(features), labels, reduction="sum") / (2 * N)
            (task + loop.term(features, images) / 2).backward()
        loop.step()

    with pytest.warns(UserWarning, match="the loss is multiplied by 0.5"):
        agree(shared)


def test_the_factor_is_told_once_and_can_be_settled():
    with pytest.warns(UserWarning, match="multiplied by 0.3333.*give scale= to attach") as seen:
        host = agree(accumulate_divided)
    assert len(seen) == 1 and float(host.handle.scale) == pytest.approx(1 / 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agree(accumulate_divided, scale=1 / 3)
        agree(plain)


def test_a_weight_of_the_task_is_not_the_term_s():
    def weighted(loop):
        images, labels = loop.batch()
        features = loop.encoder(images)
        task = 0.5 * F.cross_entropy(loop.head(features), labels)
        (task + loop.term(features, images)).backward()
        loop.step()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agree(weighted)


def test_the_order_of_draws_is_that_of_the_loop():
    """A regulariser with a state of its own sees the batches in the order of the forward passes."""

    class Turns(nn.Module):
        def __init__(self):
            super().__init__()
            self.turn, self.w = 0, nn.Parameter(torch.ones(()))

        def forward(self, x, anchors):
            self.turn += 1
            noise = torch.rand(x.shape)
            return self.w * ((x - anchors) * noise).square().mean() * self.turn

    agree(accumulate_in_one_pass, hand=Turns(), regulariser=Turns(), scale=0.5)


# -- precision ---------------------------------------------------------------------------------


@new
@pytest.mark.parametrize("divide", [1, 2], ids=["", "accumulated"])
@pytest.mark.filterwarnings("ignore:the loss is multiplied")
def test_grad_scaler_without_being_told(divide):
    def scaled(loop):
        loop.scaler = getattr(loop, "scaler", None) or torch.amp.GradScaler("cpu", 2.0**10)
        for _ in range(divide):
            loop.scaler.scale(loop.loss() / divide).backward()
        loop.scaler.unscale_(loop.optimiser)
        if loop.gradients is None:
            loop.gradients = [p.grad.clone() for p in loop.parameters]
        loop.scaler.step(loop.optimiser)
        loop.scaler.update()

    host = agree(scaled)
    assert float(host.handle.scale) == 2.0**10 / divide


@new
def test_a_disabled_grad_scaler():
    def scaled(loop):
        torch.amp.GradScaler("cpu", enabled=False).scale(loop.loss()).backward()
        loop.step()

    agree(scaled)


@new
@pytest.mark.parametrize("inside", [True, False], ids=["backward-inside", "backward-outside"])
def test_bfloat16_autocast(inside):
    def half(loop):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loop.loss()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        loop.step()

    # Gradients in bfloat16 are rounded after the sum here, and before it by hand.
    host = agree(half, tolerance=None)
    exact = agree(plain)
    assert not torch.allclose(exact.gradients[0], without_term(plain), rtol=0.1)
    for got, want in zip(host.gradients, exact.gradients):
        assert (got - want).norm() < 0.02 * want.norm()


def test_float64_is_kept():
    torch.manual_seed(0)
    encoder = nn.Linear(4, D).double()
    frozen = FrozenCopy(encoder)
    with torch.no_grad():
        encoder.weight.add_(0.1)
    images, regulariser = torch.randn(N, 4).double(), FDA(k=3)
    x = encoder(images)
    want = torch.autograd.grad(x.square().sum() + regulariser(x, frozen(images)), encoder.weight)[0]
    with attach(encoder, regulariser, 1.0, anchors=frozen):
        encoder(images).square().sum().backward()
    torch.testing.assert_close(encoder.weight.grad, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("regulariser", "weight"),
    [(FDA(k=3), 0.3), (RKD(), 1.0), (lambda x, anchors: x.sum(), 1.0)],
    ids=["fda", "rkd", "function"],
)
def test_without_a_weight_it_is_the_regularisers_own(regulariser, weight):
    with attach(nn.Linear(4, D), regulariser) as handle:
        assert handle.weight == weight


# -- checkpoints, compilers --------------------------------------------------------------------


def around_both(loop, images, reentrant):
    return checkpoint(lambda x: loop.head(loop.encoder(x)), images, use_reentrant=reentrant)


def around_module(loop, images, reentrant):
    return loop.head(checkpoint(loop.encoder, images, use_reentrant=reentrant))


def in_module(loop, images, reentrant):
    first = loop.encoder[0]
    plain_forward = type(first).forward
    first.forward = lambda x: checkpoint(
        lambda y: plain_forward(first, y), x, use_reentrant=reentrant
    )
    return loop.head(loop.encoder(images))


@pytest.mark.parametrize("place", [around_both, around_module, in_module])
@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
@pytest.mark.parametrize("divide", [1, 4], ids=["", "divided"])
@pytest.mark.filterwarnings("ignore:the loss is multiplied")
def test_activation_checkpointing(place, reentrant, divide):
    def checkpointed(loop):
        images, labels = loop.batch()
        if loop.handle is None:
            features = loop.encoder(images)
            loss = F.cross_entropy(loop.head(features), labels) + loop.term(features, images)
        else:
            logits = place(loop, images.requires_grad_(), reentrant)
            loss = F.cross_entropy(logits, labels)
        (loss / divide).backward()
        loop.step()

    agree(checkpointed)


def test_selective_checkpointing():
    found = pytest.importorskip("torch.utils.checkpoint")
    if not hasattr(found, "create_selective_checkpoint_contexts"):
        pytest.skip("torch has it from 2.4 on")
    kept = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default]

    def selective(loop):
        images, labels = loop.batch()
        if loop.handle is None:
            features = loop.encoder(images)
            loss = F.cross_entropy(loop.head(features).tanh(), labels) + loop.term(features, images)
        else:
            logits = checkpoint(
                lambda x: loop.head(loop.encoder(x)).tanh(),
                images,
                use_reentrant=False,
                context_fn=lambda: found.create_selective_checkpoint_contexts(kept),
            )
            loss = F.cross_entropy(logits, labels)
        loss.backward()
        loop.step()

    agree(selective)


@new
@pytest.mark.parametrize(("when", "backend"), [("before-and-run", "aot_eager"), ("after", "eager")])
def test_compiled_models(when, backend):
    def compiled(loop):
        if not hasattr(loop, "model"):
            loop.model = torch.compile(nn.Sequential(loop.encoder, loop.head), backend=backend)
        images, labels = loop.batch()
        if loop.handle is None:
            features = loop.encoder(images)
            loss = F.cross_entropy(loop.head(features), labels) + loop.term(features, images)
        else:
            loss = F.cross_entropy(loop.model(images), labels)
        loss.backward()
        loop.step()

    if when == "after":
        agree(compiled)
        return
    hand, host = Loop(True), Loop(False)
    host.handle.remove()
    host.model = torch.compile(nn.Sequential(host.encoder, host.head), backend=backend)
    images, labels = host.batch()
    F.cross_entropy(host.model(images), labels).backward()
    host.optimiser.zero_grad()
    hand.batch()
    host.handle = attach(host.encoder, host.regulariser, WEIGHT, anchors=host.frozen)
    for _ in range(STEPS):
        for each in (hand, host):
            each.optimiser.zero_grad()
            compiled(each)
    for got, want in zip(host.parameters, hand.parameters):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    host.handle.remove()
    images, labels = host.batch()
    gradient = torch.autograd.grad(
        F.cross_entropy(host.model(images), labels), host.encoder[0].weight
    )[0]
    plain = F.cross_entropy(host.head(host.encoder(images)), labels)
    want = torch.autograd.grad(plain, host.encoder[0].weight)[0]
    torch.testing.assert_close(gradient, want, rtol=1e-5, atol=1e-7)


@new
def test_a_whole_graph_is_compiled_around_the_module():
    loop, hand = Loop(False), Loop(True)
    loop.handle.remove()
    compiled = torch.compile(loop.encoder, backend="aot_eager", fullgraph=True)
    loop.handle = attach(compiled, loop.regulariser, WEIGHT, anchors=loop.frozen)
    images, labels = loop.batch()
    F.cross_entropy(loop.head(compiled(images)), labels).backward()
    hand.loss().backward()
    for got, want in zip(loop.parameters, hand.parameters):
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-5, atol=1e-7)


@new
def test_a_graph_that_must_be_whole_is_refused_in_words():
    loop = Loop(False)
    model = torch.compile(nn.Sequential(loop.encoder, loop.head), backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="attach to what torch.compile returns"):
        model(loop.batch()[0])
    loop.handle.remove()


# -- several calls, inputs, outputs --------------------------------------------------------------


def two_views(loop, joined):
    images, labels = loop.batch()
    views = [images, images + 0.5 * torch.randn(N, 4, generator=loop.stream)]
    features = [loop.encoder(view) for view in views]
    loss = sum(F.cross_entropy(loop.head(x), labels) for x in features)
    loss = loss - F.cosine_similarity(*features).mean()
    if joined:
        loss = loss + loop.term(torch.cat(features), torch.cat(views))
    else:
        loss = loss + sum(map(loop.term, features, views))
    loss.backward()
    loop.step()


@pytest.mark.parametrize("joined", [False, True], ids=["a-term-each", "together"])
def test_a_module_that_is_called_twice_in_a_step(joined):
    agree(lambda loop: two_views(loop, joined), together=joined)


def test_together_leaves_out_what_was_thrown_away_and_what_had_its_term():
    def loop_with_waste(loop):
        loop.encoder(loop.batch()[0])  # never goes back
        two_views(loop, True)

    agree(loop_with_waste, together=True)


def test_together_in_a_reentrant_checkpoint_is_refused():
    loop = Loop(False, together=True)
    images, _ = loop.batch()
    x = checkpoint(loop.encoder, images.requires_grad_(), use_reentrant=True)
    with pytest.raises(Unusable, match="cannot be taken together.*use_reentrant=False"):
        x.sum().backward()
    loop.handle.remove()


@dataclasses.dataclass
class Output:
    features: torch.Tensor
    more: int = 0


class Named(NamedTuple):
    features: torch.Tensor
    more: int = 0


KINDS = {
    "tuple": (lambda x: (x, 1), None),
    "second": (lambda x: (x * 2, x), 1),
    "last": (lambda x: [x * 2, x], -1),
    "dict": (lambda x: {"more": x * 2, "features": x}, "features"),
    "dict-position": (lambda x: {"more": x * 2, "features": x}, 1),
    "ordered-dict": (lambda x: OrderedDict(features=x), None),
    "dataclass": (Output, None),
    "attribute": (Output, "features"),
    "named-tuple": (Named, "features"),
}


class Wrapped(nn.Module):
    def __init__(self, inner, kind):
        super().__init__()
        self.inner, self.kind = inner, kind

    def forward(self, *, pixels, mask=None):
        return self.kind(self.inner(pixels))


@new
@pytest.mark.parametrize("name", KINDS)
def test_what_a_module_returns_and_inputs_by_keyword(name):
    kind, output = KINDS[name]
    loop, hand = Loop(False), Loop(True)
    loop.handle.remove()
    module, seen = Wrapped(loop.encoder, kind), []
    frozen = Wrapped(loop.frozen, kind)
    handle = attach(module, loop.regulariser, WEIGHT, anchors=frozen, output=output)
    images, labels = loop.batch()
    loop.encoder.register_forward_hook(lambda *found: seen.append(found[2]))
    module(pixels=images)
    F.cross_entropy(loop.head(seen[0]), labels)  # thrown away: no backward pass
    returned = module(pixels=images, mask=None)
    features = (
        returned.features
        if hasattr(returned, "features")
        else (returned["features"] if isinstance(returned, dict) else returned[output or 0])
    )
    F.cross_entropy(loop.head(features), labels).backward()
    hand.loss().backward()
    for got, want in zip(loop.parameters, hand.parameters):
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-5, atol=1e-7)
    handle.remove()


def test_the_single_number_that_a_model_gives_as_its_loss_is_no_feature():
    class WithLoss(nn.Linear):
        def forward(self, x):
            return {"loss": super().forward(x).sum(), "embeds": super().forward(x)}

    module = WithLoss(2, 2)
    refused = pytest.raises(BadType, match="a single number.*output=, one of 'loss', 'embeds'")
    with attach(module, FDA()), refused:
        module(torch.ones(1, 2))


def test_tokens_where_samples_are_related_are_refused():
    class Tokens(nn.Linear):
        def forward(self, x):
            return super().forward(x)[:, None].expand(-1, 3, -1)

    module = Tokens(2, 2)
    with attach(module, FDA()), pytest.raises(BadValue, match=r"\(5, 3, 2\).*lambda x: x\[:, 0\]"):
        module(torch.ones(5, 2))


def test_anchors_of_another_batch_are_refused():
    module = nn.Linear(2, 2)
    refused = pytest.raises(BadValue, match="5 features and 3 anchors")
    with attach(module, FDA(), anchors=lambda x: x[:3]), refused:
        module(torch.ones(5, 2))


EDITS = {
    "divided": lambda x: x.div_(2.0),
    "a-part": lambda x: x[:, 0].zero_(),
    "activation": lambda x: F.relu(x, inplace=True),
    "layer": lambda x: nn.LeakyReLU(inplace=True)(x),
    "without-gradient": lambda x: torch.no_grad()(lambda: x.normal_())(),
}


@pytest.mark.parametrize("name", EDITS)
def test_features_edited_in_place_are_refused(name):
    loop = Loop(False)
    features = loop.encoder(loop.batch()[0])
    EDITS[name](features)
    with pytest.raises(Unusable, match="changed in place.*write x = x / y.*inplace=False"):
        features.sum().backward()
    loop.handle.remove()


def test_edits_inside_the_module_and_of_its_inputs_are_none_of_ours():
    def edited(loop):
        images, labels = loop.batch()
        features = nn.Sequential(loop.encoder)(images)
        term = loop.term(features, images)
        images.zero_()
        (F.cross_entropy(loop.head(features * 1), labels) + term).backward()
        loop.step()

    # By hand the first layer's saved input would be edited as well, so its gradients differ.
    loop = Loop(False)
    module = nn.Sequential(loop.encoder, nn.ReLU(inplace=True))
    loop.handle.remove()
    anchors = FrozenCopy(module)
    images, _ = loop.batch()
    x = module(images)
    want = torch.autograd.grad(
        x.sum() + WEIGHT * FDA(k=3)(x, anchors(images)), loop.encoder[0].weight
    )[0]
    with attach(module, FDA(k=3), WEIGHT, anchors=anchors):
        module(images).sum().backward()
    torch.testing.assert_close(loop.encoder[0].weight.grad, want, rtol=1e-5, atol=1e-7)


# -- regularisers with something of their own ------------------------------------------------------


def test_what_a_function_trains_receives_its_gradient():
    torch.manual_seed(4)
    projections = [nn.Linear(D, 2, bias=False) for _ in range(2)]
    projections[1].load_state_dict(projections[0].state_dict())
    losses = [lambda x, anchors, p=p: (p(x) - p(anchors)).square().mean() for p in projections]
    hand, host = Loop(True, losses[0]), Loop(False, losses[1])
    for loop in (hand, host):
        loop.loss().backward()
    host.handle.remove()
    assert projections[0].weight.grad.abs().sum() > 0
    for got, want in [
        (projections[1].weight, projections[0].weight), *zip(host.parameters, hand.parameters),
    ]:  # fmt: skip
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-5, atol=1e-7)


def test_two_regularisers_on_one_module_add_up():
    def two(loop):
        if loop.handle is not None and not hasattr(loop, "second"):
            loop.second = attach(
                loop.encoder, lambda x, a: (x - a).square().mean(), 2.0, anchors=loop.frozen
            )
        images, labels = loop.batch()
        features = loop.encoder(images)
        loss = F.cross_entropy(loop.head(features), labels) + loop.term(features, images)
        if loop.handle is None:
            loss = loss + 2.0 * (features - loop.frozen(images)).square().mean()
        loss.backward()
        loop.step()

    agree(two).second.remove()


# -- left alone, refused, restored -----------------------------------------------------------------


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_passes_without_gradient_are_left_alone(context):
    def validates(loop):
        with context():
            loop.encoder.eval()
            loop.encoder(torch.ones(3, 4))
            loop.encoder.train()
        plain(loop)

    calls = []
    loop = Loop(False)
    loop.handle.remove()
    with attach(loop.encoder, FDA(), anchors=lambda x: calls.append(1)), context():
        loop.encoder(torch.ones(3, 4))
    assert not calls
    agree(validates)


def test_second_derivatives_are_refused():
    loop = Loop(False)
    with pytest.raises(Unusable, match="create_graph=True.*by hand"):
        loop.encoder(loop.batch()[0]).sum().backward(create_graph=True)
    loop.handle.remove()


@new
@pytest.mark.parametrize("kind", ["grad", "vmap"])
def test_transforms_of_torch_func_are_refused(kind):
    from torch.func import functional_call, grad, vmap

    loop = Loop(False)
    weights = dict(loop.encoder.named_parameters())
    images, _ = loop.batch()
    run = {
        "grad": lambda: grad(lambda w: functional_call(loop.encoder, w, (images,)).sum())(weights),
        "vmap": lambda: vmap(lambda x: functional_call(loop.encoder, weights, (x,)))(images),
    }[kind]
    with pytest.raises(Unusable, match="torch.func.*by hand"):
        run()
    fixed = {name: weight.detach() for name, weight in weights.items()}
    vmap(lambda x: functional_call(loop.encoder, fixed, (x,)))(images)
    loop.handle.remove()


def test_a_replica_of_data_parallel_is_refused():
    module = nn.Linear(2, 2)
    module._is_replica = True
    with attach(module, FDA()), pytest.raises(Unusable, match="attach to the DataParallel module"):
        module(torch.ones(4, 2))


def test_everything_is_as_it_was_after_remove():
    encoder = Loop(True).encoder
    encoder.register_forward_hook(lambda *_: None)

    def state():
        hooks = {k: dict(v) for k, v in vars(encoder).items() if "hooks" in k and v is not None}
        return hooks, set(vars(encoder)), [n for n, _ in encoder.named_modules()]

    before, weights = state(), copy.deepcopy(encoder.state_dict())
    of_torch = torch.autograd.backward, torch.autograd.grad
    with attach(encoder, FDA(k=3)) as handle:
        assert list(encoder.state_dict()) == list(weights)
        assert len(list(encoder.parameters())) == 4
        encoder(torch.randn(N, 4)).sum().backward()
    assert state() == before
    assert (torch.autograd.backward, torch.autograd.grad) == of_torch
    handle.remove()
    assert state() == before and handle._anchors is None  # the copy is given back
    for name, weight in encoder.state_dict().items():
        assert torch.equal(weight, weights[name])


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))],
    ids=["deepcopy", "pickle"],
)
def test_copies_and_pickles_of_the_module_are_without_the_term(copied):
    loop = Loop(False, lambda x, anchors: (x - anchors).square().sum())
    other, images = copied(loop.encoder), loop.batch()[0]
    for module in (other, loop.encoder):
        module(images).sum().backward()
    term = [p.grad for p in other.parameters()], [p.grad for p in loop.encoder.parameters()]
    assert not torch.allclose(term[0][0], term[1][0])
    loop.handle.remove()
    loop.encoder.zero_grad()
    loop.encoder(images).sum().backward()
    torch.testing.assert_close(loop.encoder[0].weight.grad, term[0][0])


def test_graphs_without_a_backward_pass_are_freed():
    loop = Loop(False)
    images, _ = loop.batch()
    features = loop.encoder(images)
    held = [weakref.ref(features), weakref.ref(images)]
    gc.disable()
    try:
        del features, images
        assert [ref() for ref in held] == [None, None]
    finally:
        gc.enable()
        loop.handle.remove()


def test_what_watches_the_loss_goes_with_the_module():
    gc.collect()  # what other tests have left
    before = loss_scale._watchers
    module = nn.Linear(2, 2)
    handle = attach(module, FDA())
    assert loss_scale._watchers == before + 1
    del module, handle
    gc.collect()
    assert loss_scale._watchers == before


def test_a_parameter_that_a_module_hands_out_gathers_no_hooks():
    class Prompts(nn.Module):
        def __init__(self):
            super().__init__()
            self.context = nn.Parameter(torch.ones(3, 2))

        def forward(self):
            return self.context

    module = Prompts()
    with attach(module, lambda x, anchors: x.sum()):
        for _ in range(5):
            module.zero_grad()
            module().sum().backward()
            assert torch.equal(module.context.grad, torch.full((3, 2), 2.0))
        assert len(module.context._backward_hooks) <= 1


@new
def test_the_copy_follows_the_module():
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    with attach(module, lambda x, anchors: anchors.sum() + 0 * x.sum()) as handle:
        module.double()
        module(torch.ones(4, 2).double()).sum().backward()
        assert handle.terms["loss"].dtype == torch.float64
        module.to("meta")
        assert module(torch.ones(4, 2, device="meta").double()).device.type == "meta"
