"""The plugin on hosts that differ from the ones it was first built with."""

from functools import partial

import pytest
import torch

import proxyfda
from proxyfda.integrations.capture import Call, FeatureCapture, tensors_in
from proxyfda.integrations.class_texts import ClassesByTokens, ClassTexts, order_problem
from proxyfda.integrations.dassl import make_trainer
from proxyfda.utils.errors import BadModel, BadType, BadValue, Unusable
from tests.integrations import hosts

fda = partial(proxyfda.fda_loss, k=3)


def trainer_of(host, *, make=None, **options):
    return make_trainer(host, "", **(make or {}))(
        hosts.make_cfg(**{"REGULARISER": "fda", "K": 3, "WEIGHT": 2.5, **options})
    )


def learnables(trainer):
    return (trainer.student if hasattr(trainer, "student") else trainer.model).prompt_learner


def assert_gradients_of_the_sum(host, trainer, term_of):
    """A step of ``trainer`` has the gradients of the host's loss and 2.5 times the term's."""
    batch = hosts.make_batch()
    plain = host(trainer.cfg)
    hosts.step_of(plain, batch)
    own = list(learnables(plain).values())
    term = term_of(plain, batch["img"])
    more = torch.autograd.grad(2.5 * term, own, allow_unused=True)
    summary = hosts.step_of(trainer, batch)
    assert summary["loss_fda"] == pytest.approx(term.item(), rel=1e-4)
    assert max(found.abs().max() for found in more if found is not None) > 1e-3
    for got, mine, extra in zip(learnables(trainer).values(), own, more):
        want = (0 if mine.grad is None else mine.grad) + (0 if extra is None else extra)
        if isinstance(want, torch.Tensor):
            torch.testing.assert_close(got.grad, want, rtol=1e-4, atol=1e-5)


def text_term(plain, images):
    model = plain.model
    texts = model.text_encoder(model.names, model.prompt_learner["ctx"])
    return fda(texts, plain.frozen_text_features())


# -- class texts ----------------------------------------------------------------------------------


def test_rows_in_another_order_are_refused_with_the_remedy():
    with pytest.raises(BadValue) as error:
        hosts.step_of(trainer_of(hosts.PermutedLike, SPACES="text"))
    assert "of the text encoder lie" in str(error.value)
    assert "TRAINER.PROXYFDA.TEXT_CLASSES tokens" in str(error.value)
    assert "TRAINER.PROXYFDA.SPACES image" in str(error.value)


@pytest.mark.parametrize("as_method", [True, False], ids=["method", "register"])
def test_a_host_says_which_class_a_row_is(as_method):
    def text_classes(trainer, names, prompt):
        return [trainer.model.names.tolist().index(row) for row in names.tolist()]

    host, make = hosts.PermutedLike, {"text_classes": text_classes}
    if as_method:
        host, make = type("Saying", (host,), {"text_classes": text_classes}), {}
    trainer = trainer_of(host, make=make, SPACES="text")
    assert_gradients_of_the_sum(host, trainer, text_term)
    with pytest.raises(BadValue, match="TEXT_CLASSES is 'label', but .* has text_classes of its"):
        trainer_of(host, make=make, SPACES="text", TEXT_CLASSES="label")


def test_rows_that_are_no_class_are_left_out_where_the_host_says_so():
    def text_classes(trainer, names, ctx):
        known = trainer.model.names.tolist()
        return [known.index(row) if row in known else -1 for row in names.tolist()]

    def term(plain, images):  # both calls have all classes, and the same texts
        return text_term(plain, images)

    trainer = trainer_of(hosts.MoreClassesLike, make={"text_classes": text_classes}, SPACES="text")
    assert_gradients_of_the_sum(hosts.MoreClassesLike, trainer, term)


def test_a_call_in_another_order_is_left_out_and_said_once(capsys):
    trainer = trainer_of(hosts.MoreClassesLike, SPACES="text")
    assert_gradients_of_the_sum(hosts.MoreClassesLike, trainer, text_term)
    said = "Proxy-FDA: a call of the text encoder is left out: "
    assert capsys.readouterr().out.count(said) == 1
    for _ in range(4):  # also when nothing is compared any more
        trainer.forward_backward(hosts.make_batch())
        sets, _ = trainer._spaces._class_texts.sets(
            *calls_of(trainer), trainer._spaces._text_anchors
        )
        assert sets.shape == (hosts.CLASSES, hosts.DIM)
    assert said not in capsys.readouterr().out


def calls_of(trainer):
    """The calls of the text encoder in a forward pass, and their features."""
    found = []
    handle = trainer.model.text_encoder.register_forward_hook(
        lambda module, args, output: found.append(Call(None, output, True, torch.enable_grad, args))
    )
    trainer.model(hosts.make_batch()["img"])
    handle.remove()
    return found, [call.output for call in found]


def test_an_order_that_is_the_labels_by_chance_is_noticed_in_the_next_step(monkeypatch):
    trainer = trainer_of(hosts.PermutedLike, SPACES="text")
    monkeypatch.setattr(hosts.PermutedPrompts, "order", torch.arange(hosts.CLASSES))
    hosts.step_of(trainer)
    monkeypatch.setattr(hosts.PermutedPrompts, "order", torch.tensor([0, 4, 2, 3, 1]))
    with pytest.raises(BadValue, match="text encoder lie"):
        hosts.step_of(trainer)


def test_label_order_can_be_taken_on_trust():
    trainer = trainer_of(hosts.PermutedLike, SPACES="text", TEXT_CLASSES="label")

    def term(plain, images):
        model = plain.model
        texts = model.text_encoder(model.names[model.order], model.prompt_learner["ctx"])
        return fda(texts, plain.frozen_text_features())

    assert_gradients_of_the_sum(hosts.PermutedLike, trainer, term)


def test_rows_that_are_no_multiple_of_the_classes_are_refused():
    call = Call(None, torch.randn(7, 6), True, torch.enable_grad)
    anchors = torch.randn(5, 6)
    with pytest.raises(BadValue, match="returned 7 features in one call, not a multiple of the 5"):
        ClassTexts().sets([call], [call.output], anchors)
    good = Call(None, anchors + 0.1, True, torch.enable_grad)
    sets, same = ClassTexts().sets([call, good], [call.output, good.output], anchors)
    assert torch.equal(sets, good.output) and same is anchors
    flat = Call(None, torch.randn(10, 4), True, torch.enable_grad)
    with pytest.raises(BadValue, match="features have 4 dimensions and the frozen ones 6"):
        ClassTexts().sets([flat], [flat.output], anchors)


@pytest.mark.parametrize("count", [2, 3, 5, 12, 60])
def test_another_order_is_told_from_noise(count):
    stream = torch.Generator().manual_seed(count)
    anchors = torch.randn(count, 32, generator=stream) + 3
    noise = torch.randn(count, 32, generator=stream)
    for strength in (0.1, 0.7, 1.2):  # up to more noise than signal
        assert order_problem((anchors + strength * noise + 5)[None], anchors) == ""
    for _ in range(20):
        order = torch.randperm(count, generator=stream)
        if torch.equal(order, torch.arange(count)):
            continue
        assert order_problem((anchors + 0.3 * noise)[order][None], anchors)
    pair = torch.arange(count)
    pair[:2] = torch.tensor([1, 0])
    assert order_problem((anchors + 0.3 * noise)[pair][None], anchors)
    sets = torch.stack([anchors, (anchors + 0.3 * noise)[pair]])
    assert order_problem(sets, anchors)  # every set counts


def test_classes_that_resemble_each_other_are_no_other_order():
    anchors = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    anchors[1] = anchors[0] + 0.01
    rows = anchors.clone()
    rows[:2] = anchors[:2].flip(0)
    assert order_problem(rows[None], anchors) == ""


def tokens_of(*texts):
    """One number per letter, 98 before and 99 after a text."""
    rows = [[98, *(ord(letter) - 96 for letter in text if letter != " "), 99] for text in texts]
    return torch.tensor([row + [0] * (30 - len(row)) for row in rows])


def test_classes_are_read_from_tokens():
    by_tokens = ClassesByTokens(lambda names: tokens_of(*names), ["cat", "catfish", "dog", "ox"])
    tokens = tokens_of("a dog", "some catfish x", "my cat", "a bird")
    output = torch.zeros(4, 6)
    for args, kwargs in (((torch.zeros(4, 9), tokens), {}), ((), {"tokens": [tokens]})):
        call = Call(None, output, True, torch.enable_grad, args, kwargs)
        assert by_tokens(call).tolist() == [2, 1, 0, -1]
    several = Call(None, torch.zeros(3, 4, 6), True, torch.enable_grad, (tokens,))
    assert by_tokens(several).tolist() == [2, 1, 0, -1] * 3
    with pytest.raises(BadType, match="TEXT_CLASSES is 'tokens', but the text encoder is given no"):
        by_tokens(Call(None, output, True, torch.enable_grad, (output,)))


@pytest.mark.parametrize(
    ("classes", "rows", "which"),
    [
        ([1, -1, 0, 2], [2, 0, 3], None),
        ([2, 0, 1, 0, 2, 1], [1, 2, 0, 3, 5, 4], None),
        ([2, -1, 0], [2, 0], [0, 2]),
    ],
    ids=["one-set", "two-sets", "some-classes"],
)
def test_rows_come_into_label_order(classes, rows, which):
    output = torch.arange(len(classes) * 4.0).view(-1, 4)
    anchors = torch.randn(3, 4)
    call = Call(None, output, True, torch.enable_grad)
    sets, used = ClassTexts(lambda call: classes).sets([call], [output], anchors)
    assert torch.equal(sets.reshape(-1, 4), output[rows])
    assert torch.equal(used, anchors if which is None else anchors[which])


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ([0, 1], "text_classes gave 2 classes for 3 rows"),
        ([0, 1, 3], "text_classes gave class 3 of only 3 classes"),
        ([-1, -1, -1], "none of the 3 rows of a call of the text encoder is a class"),
        ([0, 0, 1], "text_classes gave 1 rows for one class and 2 for another"),
    ],
)
def test_classes_that_cannot_be_are_refused(classes, words):
    call = Call(None, torch.randn(3, 4), True, torch.enable_grad)
    with pytest.raises(BadValue, match=words):
        ClassTexts(lambda call: classes).sets([call], [call.output], torch.randn(3, 4))


def test_some_classes_in_one_call_and_others_in_the_next_are_refused():
    calls = [Call(None, torch.randn(2, 4), True, torch.enable_grad, (k,)) for k in ([0, 1], [1, 2])]
    with pytest.raises(BadValue, match="names other classes in one call of the text encoder than"):
        ClassTexts(lambda call: call.args[0]).sets(
            calls, [call.output for call in calls], torch.randn(3, 4)
        )


# -- several features per class and image ---------------------------------------------------------


def several_terms(spaces):
    def term(plain, images):
        model, total = plain.model, 0.0
        texts = model.texts().view(model.prompts, hosts.CLASSES, hosts.DIM)
        features, anchors = model.images(images), plain.frozen_text_features()
        tuned = features.requires_grad
        frozen = plain.model.image_encoder(images) if tuned else None
        if "text" in spaces:
            total = total + torch.stack([fda(text, anchors) for text in texts]).mean()
        if "image" in spaces:
            total = total + torch.stack([fda(part, frozen) for part in features]).mean()
        if "cross" in spaces:
            rows = features.flatten(0, 1)
            own = frozen.repeat(model.points, 1) if tuned else rows
            losses = [fda(rows, own, columns=text, column_anchors=anchors) for text in texts]
            total = total + torch.stack(losses).mean()
        return total

    return term


@pytest.mark.parametrize(
    ("host", "spaces"),
    [
        (hosts.PLOTLike, ("text",)),
        (hosts.PLOTLike, ("text", "cross")),
        (hosts.PLOTPPLike, ("image",)),
        (hosts.PLOTPPLike, ("image", "text", "cross")),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "+".join(value),
)
def test_every_prompt_and_every_feature_of_an_image_is_aligned(host, spaces):
    trainer = trainer_of(host, SPACES=spaces)
    assert_gradients_of_the_sum(host, trainer, several_terms(spaces))


def test_a_pull_takes_all_prompts_of_a_class():
    trainer = trainer_of(hosts.PLOTPPLike, REGULARISER="pointwise", SPACES=("image", "text"))
    plain = hosts.PLOTPPLike(trainer.cfg)
    images = hosts.make_batch()["img"]
    with torch.no_grad():
        model = plain.model
        pairs = (
            (model.images(images).flatten(0, 1), model.image_encoder(images).repeat(4, 1)),
            (model.texts(), plain.frozen_text_features().repeat(3, 1)),
        )
        want = sum((1 - torch.cosine_similarity(x, y)).mean() for x, y in pairs)
    assert hosts.step_of(trainer)["loss_pointwise"] == pytest.approx(want.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (lambda x: x.view(1, 2, -1, hosts.DIM), r"shape \[1, 2, 4, 6\].*SPACES text"),
        (lambda x: x.view(8, 1, hosts.DIM), r"\[8, 1, 6\] for 8 images.*SPACES text"),
    ],
    ids=["4-dimensions", "one-row-short"],
)
def test_features_that_are_no_rows_of_images_are_refused_with_the_remedy(features, words):
    class Odd(hosts.BothPrompts):
        def __init__(self):
            super().__init__()
            encoder = self.image_encoder
            forward = encoder.forward
            encoder.forward = lambda x, prompt=None: (
                forward(x) if prompt is None else features(forward(x, prompt))
            )

        def forward(self, x):
            images = self.image_encoder(x, self.prompt_learner["vis"]).reshape(-1, hosts.DIM)
            return self.logits(images, self.text_encoder(self.names, self.prompt_learner["ctx"]))

    class OddLike(hosts.Host):
        model_class = Odd

    with pytest.raises(BadValue, match=words):
        hosts.step_of(trainer_of(OddLike, SPACES="image"))


# -- names, models, encoders, steps ---------------------------------------------------------------


def named(trainer, **options):
    cfg = hosts.make_cfg(**{"K": 3, **options})
    cfg.TRAINER.NAME = trainer.__name__
    cfg.freeze()
    return cfg


@pytest.mark.parametrize("prefix", ["fda", "proxy_fda", ""])
def test_the_host_sees_its_own_name(prefix):
    trainer = make_trainer(hosts.ImagesOnlyLike, prefix)
    cfg = named(trainer, SPACES="image", REGULARISER="fda" if prefix == "" else "")
    built = trainer(cfg)
    assert built.cfg.TRAINER.NAME == "ImagesOnlyLike" and built.cfg.is_frozen()
    assert trainer.__name__ == cfg.TRAINER.NAME  # what the run is called stays
    assert "loss_fda" in hosts.step_of(built)

    class ByHand(proxyfda.RegularisedTrainer, hosts.ImagesOnlyLike):
        trained_regulariser = "fda"

    assert ByHand(named(ByHand, SPACES="image")).cfg.TRAINER.NAME == "ImagesOnlyLike"


@pytest.mark.parametrize("regulariser", ["fda", "proxy_fda", ""])
@pytest.mark.parametrize("host", hosts.FAMILY, ids=lambda host: host.__name__)
def test_weight_0_is_the_host_bit_for_bit(host, regulariser):
    trainer = make_trainer(host, regulariser)
    more = {} if regulariser else {"REGULARISER": "rkd"}
    off = trainer(named(trainer, WEIGHT=0.0, M=2, N=2, MINING=True, **more))
    plain = host(named(host))
    for _ in range(2):
        assert hosts.step_of(off) == hosts.step_of(plain)
        for got, want in zip(learnables(off).values(), learnables(plain).values()):
            assert (got.grad is None) == (want.grad is None)
            assert got.grad is None or torch.equal(got.grad, want.grad)


def test_the_trained_model_is_found_among_the_registered_ones():
    def term(plain, images):
        student = plain.student
        features = student.image_encoder(images, student.prompt_learner["vis"])
        return fda(features, student.image_encoder(images))

    trainer = trainer_of(hosts.ImagesOnlyLike, SPACES="image")
    assert_gradients_of_the_sum(hosts.ImagesOnlyLike, trainer, term)
    weights = trainer_of(hosts.ImagesOnlyLike, REGULARISER="l2sp")
    assert weights._trained_model() is weights.student


@pytest.mark.parametrize(
    ("host", "missing", "remedy"),
    [(hosts.ImagesOnlyLike, "text", "image"), (hosts.TextsOnlyLike, "image", "text")],
    ids=["images-only", "texts-only"],
)
def test_only_the_encoders_of_the_chosen_spaces_are_looked_for(host, missing, remedy):
    assert "loss_fda" in hosts.step_of(trainer_of(host, SPACES=remedy))
    for options in ({}, {"SPACES": "cross"}, {"SPACES": f"{missing},{remedy}"}):
        with pytest.raises(BadModel) as error:
            trainer_of(host, **options)
        assert f"no module '{missing}_encoder'" in str(error.value)
        assert f"use TRAINER.PROXYFDA.SPACES {remedy}, which does without" in str(error.value)


def test_a_step_of_several_arguments_and_a_host_that_trains_past_its_encoders():
    weights = trainer_of(hosts.AdaptedLike, REGULARISER="l2sp")
    assert "loss_l2sp" in hosts.step_of(weights)
    with pytest.raises(BadValue, match="image encoder is frozen.*REGULARISER l2sp, which acts on"):
        hosts.step_of(trainer_of(hosts.AdaptedLike, SPACES="image"))


def test_encoders_that_are_not_called_are_told():
    class Cached(hosts.ImagesOnly):
        def forward(self, x):
            return self.logits(x + self.prompt_learner["vis"], self.names)

    class CachedLike(hosts.Host):
        model_class = Cached

    with pytest.raises(Unusable, match=r"called in this step: neither.*REGULARISER l2sp"):
        hosts.step_of(trainer_of(CachedLike, SPACES="image"))


# -- what has no effect is said -------------------------------------------------------------------

IDLE = "Proxy-FDA: fda had nothing to align in the space image in each of the first 5 steps"


@pytest.mark.parametrize(("images", "said"), [(3, True), (8, False)])
def test_a_term_that_stays_zero_is_said(images, said, capsys):
    trainer = trainer_of(hosts.MaPLeLike, SPACES="image,text")
    batch = {name: value[:images] for name, value in hosts.make_batch().items()}
    for step in range(7):
        assert (IDLE in capsys.readouterr().out) == (said and step == 5)
        trainer.forward_backward(batch)
    assert "the space text" not in capsys.readouterr().out


def test_a_term_that_is_zero_at_first_alone_is_not_said(capsys):
    trainer = trainer_of(hosts.MaPLeLike, SPACES="image")
    few = {name: value[:3] for name, value in hosts.make_batch().items()}
    for step in range(7):
        trainer.forward_backward(hosts.make_batch() if step == 4 else few)
    assert "nothing to align" not in capsys.readouterr().out


# -- what is given to whom ------------------------------------------------------------------------


def test_tensors_are_found_in_lists_tuples_and_dicts():
    a, b, c = torch.zeros(1), torch.ones(2), torch.ones(3)
    assert [len(t) for t in tensors_in([a, [None, (b, {"x": c})], len])] == [1, 2, 3]
    assert tensors_in("text") == []


def test_images_come_before_other_tensors():
    class Late(torch.nn.Module):
        def forward(self, scale, parts):
            return parts["images"].flatten(1) * scale

    encoder, seen = Late(), []

    def gradients(captured):
        seen.extend(call.inputs for call in captured.calls["image_encoder"])
        return {"image_encoder": [None]}

    capture = FeatureCapture({"image_encoder": encoder}, gradients)
    images = torch.randn(2, 3, 4, 4)
    weight = torch.ones(1, requires_grad=True)
    with capture.step():
        (encoder(torch.ones(1), {"images": images}) * weight).requires_grad_().sum().backward()
    assert seen == [] and capture.seen == {"image_encoder": False}
    with capture.step():
        encoder(weight * torch.ones(1), {"mask": torch.ones(2), "images": images}).sum().backward()
    assert len(seen) == 1 and seen[0] is images
