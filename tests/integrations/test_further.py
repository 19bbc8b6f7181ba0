"""Nodes beyond the batch on stand-in hosts: mixed images, words, and what is refused."""

import random
from functools import partial

import pytest
import torch

import proxyfda
from proxyfda.integrations.dassl import describe_regulariser, make_trainer
from proxyfda.integrations.further import MIXTURES, MixedImages, Words, mix
from tests.integrations import dassl_hosts, hosts
from tests.integrations.dassl_hosts import clip, first_batch, learnables, load_clip

proxyfda.register()


# -- mixtures -------------------------------------------------------------------------------


def sources(mixture, images):
    """Of which image each pixel is, by value: images are constant here."""
    values = mixture[0].unique().tolist()
    assert torch.equal(mixture[0], mixture[1]) and torch.equal(mixture[0], mixture[2])
    return [images[:, 0, 0, 0].tolist().index(value) for value in values]


@pytest.fixture
def images():
    """Five constant images of different values, 8 x 12 pixels."""
    return torch.arange(1.0, 6.0).view(5, 1, 1, 1).expand(5, 3, 8, 12)


def test_halves_are_left_and_right_or_upper_and_lower(images):
    seen = set()
    for mixture in mix(images, 40, "halves", random.Random(0)):
        assert len(sources(mixture, images)) == 2
        sides = mixture[0, :, :6], mixture[0, :, 6:]
        levels = mixture[0, :4], mixture[0, 4:]
        whole = [all(len(part.unique()) == 1 for part in parts) for parts in (sides, levels)]
        assert sum(whole) == 1
        seen.add(whole[0])
    assert seen == {True, False}


def test_patches_are_sixteen_cells_half_of_each(images):
    layouts = set()
    for mixture in mix(images, 20, "patches", random.Random(0)):
        assert len(sources(mixture, images)) == 2
        cells = mixture[0].unflatten(0, (4, 2)).unflatten(2, (4, 3))
        assert torch.equal(cells.amax((1, 3)), cells.amin((1, 3)))
        shown = cells[:, 0, :, 0] == cells[0, 0, 0, 0]
        assert shown.sum() == 8
        layouts.add(tuple(shown.flatten().tolist()))
    assert len(layouts) > 10


def test_a_blend_is_the_mean_of_two_different_images(images):
    for mixture in mix(images, 20, "blend", random.Random(0)):
        (value,) = mixture.unique().tolist()
        assert value in {(a + b) / 2 for a in range(1, 6) for b in range(1, a)}


def test_an_odd_size_keeps_every_pixel():
    images = torch.rand(3, 3, 7, 5)
    for kind in ("halves", "patches"):
        for mixture in mix(images, 6, kind, random.Random(0)):
            assert torch.stack([(mixture == image).all(0) for image in images]).any(0).all()


def test_mixtures_follow_from_seed_and_step_alone():
    images = torch.rand(6, 3, 8, 8)

    def made(seed, epoch, batch):
        mixed = MixedImages(3, "halves", seed)
        mixed.start(epoch, batch)
        return mixed(images)

    assert torch.equal(made(1, 2, 3), made(1, 2, 3))
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert not torch.equal(made(1, 2, 3), made(*other))
    assert MixedImages(3, "halves", 1)(images[:1]) is None


@pytest.mark.parametrize("kind", MIXTURES)
@pytest.mark.parametrize("host", ["Plain", "Coupled", "Consistent"])
def test_mixed_images_are_further_rows_of_the_hosts_own_call(make, host, kind):
    """On hosts as they stand elsewhere: the gradient is that of the explicit sum."""
    spaces = ("cross",) if host == "Plain" else ("image", "cross")
    plain = make(getattr(dassl_hosts, host))
    given = {"CONSTANTS": "given", "MIXED": 3, "MIXTURE": kind}
    trainer = make(f"FDA{host}", WEIGHT=2.5, K=3, SPACES=spaces, **given)
    batch = first_batch(plain)
    plain.optim.step = lambda: None
    own = plain.forward_backward(batch)
    names, parameters = zip(*learnables(plain).items())
    mixer = MixedImages(3, kind, seed=1)
    joint = torch.cat([batch["img"], mixer(batch["img"])])
    features, (texts,) = plain.model.features(joint)
    image_anchors, text_anchors = dassl_hosts.pristine_anchors(joint)
    loss = partial(proxyfda.fda_loss, k=3)
    term = loss(features, image_anchors, columns=texts, column_anchors=text_anchors)
    if "image" in spaces:
        term = term + loss(features, image_anchors)
    extra = torch.autograd.grad(2.5 * term, parameters, allow_unused=True)
    batch = first_batch(trainer)
    calls = []
    trainer.model.image_encoder.register_forward_hook(lambda *a: calls.append(len(a[2])))
    trainer.optim.step = lambda: None
    summary = trainer.forward_backward(batch)
    assert summary["loss"] == pytest.approx(own["loss"], rel=1e-5)  # the task sees none of them
    assert summary["loss_fda"] == pytest.approx(term.item(), rel=1e-4)
    assert calls == [len(batch["img"])]  # the first hook is ours: it takes them off again
    for name, parameter, more in zip(names, parameters, extra):
        want = (0 if parameter.grad is None else parameter.grad) + (0 if more is None else more)
        got = learnables(trainer)[name].grad
        torch.testing.assert_close(
            got, want, rtol=1e-3, atol=2e-6, msg=lambda m, n=name: f"{n} {m}"
        )


def test_evaluation_mixes_nothing(make):
    trainer, plain = make("FDACoupled", K=3, MIXED=3), make(dassl_hosts.Coupled)
    images = first_batch(trainer)["img"]
    trainer.set_model_mode("eval")
    plain.set_model_mode("eval")
    with torch.no_grad():
        assert torch.equal(trainer.model_inference(images), plain.model_inference(images))


def test_mixed_images_have_no_texts_of_their_own(make):
    trainer = make("FDAConditional", K=3, SPACES=("cross",), MIXED=3)
    with pytest.raises(
        ValueError, match=r"11 images, 3 of them mixed, met 8 sets .*have no texts of their own"
    ):
        trainer.forward_backward(first_batch(trainer))


def test_mixed_images_need_a_space_of_images(make):
    with pytest.raises(ValueError, match="MIXED is 3; .'text',. have no images"):
        make("FDACoupled", K=3, SPACES=("text",), MIXED=3)
    trainer = make("Plain", REGULARISER="pointwise", MIXED=3)
    with pytest.raises(ValueError, match="MIXED adds images, but the spaces are .'text',., which"):
        trainer.forward_backward(first_batch(trainer))


def test_what_cannot_be_mixed_is_refused():
    trainer = make_trainer(hosts.MaPLeLike, "fda")(hosts.make_cfg(K=3, MIXED=2))
    with pytest.raises(ValueError, match=r"of shape \(8, 6\) and no images .*set MIXED 0"):
        trainer.forward_backward(hosts.make_batch())


# -- words on a host of one's own -----------------------------------------------------------


class WordyModel(dassl_hosts.HostModel):
    """What docs/drop-in.md asks of a host: names behind the classes, whose texts it ignores."""

    def add(self, size):
        self.embedding = load_clip(size).token_embedding
        self.classes = len(self.prompt_learner.tokens)

    def set_words(self, names):
        learner, n = self.prompt_learner, self.classes
        tokens = clip.tokenize([f"X X {name}." for name in names]) if names else None
        words = [] if tokens is None else [tokens]
        learner.tokens = torch.cat([learner.tokens[:n], *words])
        embedded = [] if tokens is None else [self.embedding(tokens).detach()]
        for name, part in (("token_prefix", slice(0, 1)), ("token_suffix", slice(3, None))):
            more = [rows[:, part] for rows in embedded]
            setattr(learner, name, torch.cat([getattr(learner, name)[:n], *more]))

    def features(self, images):
        images, (texts,) = super().features(images)
        return images, [texts[: self.classes]]


class Wordy(dassl_hosts.Plain):
    model_class = WordyModel

    def set_words(self, names):
        self.model.set_words(names)


@pytest.fixture
def words_file(tmp_path):
    path = tmp_path / "words.txt"
    names = ["fox", "Beagles", "red fox", "owl", "sphynx cat", "oak", "fern", "rose", "mole", "ant"]
    path.write_text("\n".join(names))
    return str(path)


def wordy(make, words_file, name="pointwise", spaces=("words",), **own):
    return make(
        make_trainer(Wordy, ""), REGULARISER=name, SPACES=spaces, WEIGHT=2.5, WORDS=5,
        VOCABULARY=words_file, **own,
    )  # fmt: skip


def test_words_on_a_host_of_ones_own(make, words_file, capsys):
    trainer, plain = wordy(make, words_file), make(Wordy)
    assert "5 a step of the 8 names in" in capsys.readouterr().out
    given = []
    keep = trainer.set_words
    trainer.set_words = lambda names: (given.append(names), keep(names))
    batch = first_batch(trainer)
    trainer.optim.step = plain.optim.step = lambda: None
    summary = trainer.forward_backward(batch)
    drawn, after = given
    assert len(set(drawn)) == 5 and after == []
    assert not {"Beagles", "sphynx cat"} & set(drawn)
    own = plain.forward_backward(first_batch(plain))
    assert summary["loss"] == pytest.approx(own["loss"], rel=1e-6)
    plain.model.set_words(drawn)
    texts = plain.model.text_encoder(
        plain.model.prompt_learner(), plain.model.prompt_learner.tokens
    )
    frozen = load_clip(8)
    anchors = frozen.encode_text(
        clip.tokenize([f"a photo of a {name}, a type of pet." for name in drawn])
    )
    term = (1 - torch.cosine_similarity(texts[-5:], anchors.detach())).mean()
    assert summary["loss_pointwise"] == pytest.approx(term.item(), rel=1e-5)
    ctx = plain.model.prompt_learner.ctx
    want = ctx.grad + torch.autograd.grad(2.5 * term, ctx)[0]
    torch.testing.assert_close(trainer.model.prompt_learner.ctx.grad, want, rtol=1e-4, atol=1e-6)


def test_a_host_that_cannot_encode_other_names_is_refused(make):
    with pytest.raises(
        AttributeError, match=r"Plain cannot encode names .* method set_words\(names\)"
    ):
        make("FDAPlain", SPACES=("words",))


def test_a_host_with_anchors_of_its_own_has_some_for_words(make):
    class Own(Wordy):
        def frozen_text_features(self):
            return torch.zeros(6, dassl_hosts.DIM)

    with pytest.raises(AttributeError, match="give it a method frozen_word_features"):
        make(make_trainer(Own, "fda"), SPACES=("words",))


def test_classes_that_are_not_known_cannot_be_kept_out(make, words_file):
    trainer_class = make_trainer(Wordy, "fda")
    cfg = {"SPACES": ("words",), "VOCABULARY": words_file, "WORDS": 4}
    trainer = make(trainer_class, **cfg)
    options = trainer._plugin
    trainer.cfg.defrost()
    trainer.cfg.DATASET.SUBSAMPLE_CLASSES = "base"
    with pytest.raises(ValueError, match="does not say what its other classes are.*all_classnames"):
        trainer._vocabulary(options)
    trainer.dm.dataset.all_classnames = [*trainer.dm.dataset.classnames, "owl", "oaks"]
    left = trainer._vocabulary(options)
    assert left == ["fox", "red fox", "fern", "rose", "mole", "ant"]


@pytest.mark.parametrize(
    ("names", "count", "left"),
    [("pug\nboxer", 1, 0), ("pug\nfox", 2, 1), ("", 32, 0)],
    ids=["classes alone", "a single word", "empty"],
)
def test_too_few_words_are_refused(make, tmp_path, names, count, left):
    path = tmp_path / "few.txt"
    path.write_text(names)
    with pytest.raises(
        ValueError, match=f"WORDS is {count}, .* vocabulary has {left} names; give a"
    ):
        make(make_trainer(Wordy, ""), REGULARISER="pointwise", SPACES=("words",), WORDS=count,
             VOCABULARY=str(path))  # fmt: skip


def test_the_dataset_may_name_its_vocabulary(make, words_file, monkeypatch):
    monkeypatch.setattr(dassl_hosts.Pets, "vocabulary", words_file, raising=False)
    trainer = make(make_trainer(Wordy, "fda"), SPACES=("words",), WORDS=4)
    assert len(trainer._words.names) == 8
    monkeypatch.setattr(dassl_hosts.Pets, "vocabulary", "")
    assert len(make(make_trainer(Wordy, "fda"), SPACES=("words",))._words.names) > 2400


def test_anchors_of_the_vocabulary_are_computed_once():
    asked = []

    def frozen(names):
        asked.append(len(names))
        return torch.arange(float(len(names))).unsqueeze(1)

    words = Words(list("abcdefg"), 3, 1, frozen)
    for step in range(3):
        names = words.draw(0, step)
        assert words.anchors().flatten().tolist() == ["abcdefg".index(name) for name in names]
    assert asked == [7]
    draws = [tuple(words.draw(epoch, batch)) for epoch in range(2) for batch in range(2)]
    assert len(set(draws)) == 4
    assert Words(list("abcdefg"), 3, 2, frozen).draw(0, 0) != list(draws[0])


# -- options --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"MIXED": -1}, "MIXED is -1; use 0"),
        ({"MIXTURE": "halfs"}, "MIXTURE is 'halfs'; use one of .*did you mean 'halves'"),
        ({"REGULARISER": "l2sp", "MIXED": 2}, "MIXED is 2; l2sp acts on weights: leave it 0"),
        ({"SPACES": ("words",), "WORDS": 3}, "WORDS is 3; fda in the space words needs at least 4"),
        ({"SPACES": ("image_words",), "WORDS": 1}, "WORDS is 1; fda in .* image_words .* least 2"),
        ({"SPACES": ("text_words",), "WORDS": 0}, "WORDS is 0; use at least 1"),
        ({"REGULARISER": "pointwise", "SPACES": ("image_words",)}, "use any of image, text, words"),
        ({"SPACES": ("image_wrods",)}, "did you mean 'image_words'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_bad_options_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(hosts.CoOpLike, "")(hosts.make_cfg(**{"REGULARISER": "fda", **options}))


def test_records_say_which_words_and_mixtures_there_were():
    def described(**options):
        cfg = hosts.make_cfg(REGULARISER="rkd", **options)
        cfg.TRAINER.NAME = "CoOp"
        return describe_regulariser(cfg)

    plain = described()
    assert described(SPACES=("words",), WORDS=8, VOCABULARY="mine") == {
        **plain, "spaces": ["words"], "words": 8, "vocabulary": "mine",
    }  # fmt: skip
    assert described(MIXED=4) == {**plain, "mixed": 4, "mixture": "halves"}
