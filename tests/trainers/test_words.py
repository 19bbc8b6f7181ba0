"""Words beyond the classes, and mixed images, in the four trainers: against the sum by hand."""

from functools import partial

import naive
import pytest
import torch
from torch.nn import functional as F
from trainer_tools import IMAGES, logits, one_step

from proxyfda.backbones.clip import ClassPrompts, TextEncoder, load_clip

LABELS = torch.arange(4)
WEIGHT = 1.5
# Trainer -> its options, and the words of the context in its prompts.
TRAINERS = {
    "CoOp": (["TRAINER.COOP.N_CTX", 3], "X X X"),
    "CoCoOp": (["TRAINER.COCOOP.CTX_INIT", "a photo of a"], "a photo of a"),
    "MaPLe": (["TRAINER.MAPLE.N_CTX", 2, "TRAINER.MAPLE.PROMPT_DEPTH", 3], "a photo of a"),
    "PromptSRC": (
        ["TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION", 2, "TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT", 3],
        "a photo of a",
    ),
}
VOCABULARY = ["red fox", "owl", "lighthouse", "oak tree", "ant", "suspension bridge", "fern"]


@pytest.fixture
def make(make_trainer, tmp_path):
    """``make("CoOp", "rkd", "words", WORDS=5)``: a trainer with a regulariser on words."""
    path = tmp_path / "words.txt"
    path.write_text("\n".join(VOCABULARY))

    def build(trainer, regulariser, *spaces, output="run", opts=(), **own):
        own = {"WORDS": 5, "VOCABULARY": str(path), "WEIGHT": WEIGHT, "K": 2, **own}
        own.update(REGULARISER=regulariser, SPACES=spaces)
        named = [word for key, value in own.items() for word in (f"TRAINER.PROXYFDA.{key}", value)]
        built = make_trainer(trainer, *TRAINERS[trainer][0], *opts, *named, output=output)
        built.epoch = built.batch_idx = 0
        return built

    return build


def encoded(trainer, names):
    """Tuned text features of names by the public encoder, prompt by prompt, and frozen ones.

    [n, d], or [B, n, d] where each image has a context of its own.
    """
    model, words = trainer.model, TRAINERS[type(trainer).__name__][1]
    learner, encoder = model.prompt_learner, model.text_encoder
    contexts, deep = learner.ctx.unsqueeze(0), learner.text_prompts()[1]
    if hasattr(learner, "meta_net"):
        contexts = learner.contexts(model.encode_image(IMAGES))
    sets = []
    for context in contexts:
        rows = []
        for name in names:
            tokens = encoder.tokenize([f"{words} {name}."])
            prompt = encoder.embed(tokens).clone()
            prompt = torch.cat([prompt[:, :1], context[None], prompt[:, 1 + len(context) :]], 1)
            rows.append(encoder(prompt, tokens, deep))
        sets.append(torch.cat(rows))
    tokens = encoder.tokenize([f"a photo of a {name}." for name in names])
    frozen = encoder(encoder.embed(tokens), tokens).detach()
    return (torch.stack(sets) if len(sets) > 1 else sets[0]), frozen


def pull(features, anchors):
    return torch.stack([1 - naive.cosine(x, y) for x, y in zip(features, anchors)]).mean()


relate = partial(naive.relation_loss, "rkd", k=2)


def by_hand(trainer, regulariser, space, words, mixed=None):
    """The term of a space by its plain formula."""
    names = [name.replace("_", " ") for name in trainer.dm.dataset.classnames]
    names = {"text": names, "words": words, "cross": names, "image": []}.get(
        space.replace("image_", ""), [*names, *words]
    )
    images = IMAGES if mixed is None else torch.cat([IMAGES, mixed])
    rows = trainer.model.encode_image(images)
    frozen_rows = trainer.frozen_image_features(images)
    if space == "image":
        return relate(rows, frozen_rows)
    texts, anchors = encoded(trainer, names)
    sets = texts if texts.dim() == 3 else [texts]
    if not space.startswith(("cross", "image")):
        loss = pull if regulariser == "pointwise" else relate
        return torch.stack([loss(own, anchors) for own in sets]).mean()
    if len(sets) == 1:
        return relate(rows, frozen_rows, columns=texts, column_anchors=anchors)
    pairs = zip(rows.split(1), frozen_rows.split(1), sets)
    losses = [
        relate(row, frozen, columns=own, column_anchors=anchors, scale="row")
        for row, frozen, own in pairs
    ]
    return torch.stack(losses).mean()


def assert_joined(trainer, regulariser, *spaces):
    """A step's gradients are those of the task's loss plus the weighted terms by hand."""
    learnables = dict(trainer.model.prompt_learner.named_parameters())
    words = trainer._words.draw(0, 0) if trainer._words else []
    mixed = None
    if trainer._mixed is not None:
        trainer._mixed.start(0, 0)
        mixed = trainer._mixed(IMAGES)
    terms = [by_hand(trainer, regulariser, space, words, mixed) for space in spaces]
    task = trainer.loss_terms(IMAGES, LABELS)[0]["loss"]
    total = task + WEIGHT * sum(terms)
    alone = torch.autograd.grad(
        sum(terms), list(learnables.values()), allow_unused=True, retain_graph=True
    )
    want = torch.autograd.grad(total, list(learnables.values()), allow_unused=True)
    assert max(g.abs().max() for g in alone if g is not None) > 1e-4
    summary = one_step(trainer)
    assert summary["loss"] == pytest.approx(task.item(), rel=1e-5)
    assert summary[f"loss_{regulariser}"] == pytest.approx(sum(terms).item(), rel=1e-4)
    for (name, parameter), gradient in zip(learnables.items(), want):
        largest = max(1.0, gradient.abs().max().item())
        assert (parameter.grad - gradient).abs().max().item() <= 1e-5 * largest, name


CASES = [
    ("pointwise", "words"),
    ("rkd", "text_words"),
    ("rkd", "image_words"),
    ("rkd", "cross_words"),
]


@pytest.mark.parametrize(("regulariser", "space"), CASES)
@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_step_has_the_gradient_of_the_sum(make, trainer, regulariser, space):
    assert_joined(make(trainer, regulariser, space), regulariser, space)


@pytest.mark.parametrize("trainer", ["CoOp", "CoCoOp"])
def test_classes_and_words_together(make, trainer):
    spaces = "text", "cross", "words", "image_words"
    assert_joined(make(trainer, "rkd", *spaces), "rkd", *spaces)


@pytest.mark.parametrize("trainer", ["MaPLe", "PromptSRC"])
def test_mixed_images_are_nodes_in_every_space_of_images(make, trainer):
    spaces = "image", "cross", "image_words"
    assert_joined(make(trainer, "rkd", *spaces, MIXED=3), "rkd", *spaces)


@pytest.mark.parametrize("position", ["middle", "front"])
def test_words_stand_where_class_names_do(make, position):
    option = ["TRAINER.COOP.CLASS_TOKEN_POSITION", position]
    trainer = make("CoOp", "pointwise", "words", opts=option)
    learner, encoder = trainer.model.prompt_learner, trainer.model.text_encoder
    learner.set_words(encoder, VOCABULARY)
    with torch.no_grad():
        got = encoder(learner(), learner.tokenized_prompts, (), learner.shared_tokens)
    before = {"middle": 1, "front": 0}[position]
    for name, row in zip(VOCABULARY, got[-len(VOCABULARY) :]):
        tokens = encoder.tokenize([f"X X X {name}."])
        start, _, rest = encoder.embed(tokens)[0].split([1, 3, tokens.shape[1] - 4])
        length = int(encoder.eot_positions(encoder.tokenize([name]))) - 1
        parts = [start, learner.ctx[:before], rest[:length], learner.ctx[before:], rest[length:]]
        with torch.no_grad():
            want = encoder(torch.cat(parts).unsqueeze(0), tokens)[0]
        torch.testing.assert_close(row, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_classes_and_words_are_one_call_and_the_classes_stay_as_they_are(make, trainer):
    built = make(trainer, "pointwise", "words")
    before, names = logits(built), len(built.dm.dataset.classnames)
    calls = []
    handle = built.model.text_encoder.register_forward_hook(lambda *a: calls.append(len(a[2])))
    sets = len(IMAGES) if trainer == "CoCoOp" else 1
    with built._further_nodes():
        inside = built.model(IMAGES).detach()  # with gradient: nothing is taken from the cache
    assert calls == [sets * (names + 5)]
    torch.testing.assert_close(inside, before, rtol=1e-5, atol=1e-5)
    handle.remove()
    built.model._text_cache._context = None
    assert torch.equal(logits(built), before)  # bit for bit once the words are gone


def test_words_shorten_what_the_classes_have_in_common(tiny_file):
    encoder = TextEncoder(load_clip("ViT-B/16", str(tiny_file)))
    prompts = ClassPrompts(encoder, ["toy fox", "toy dog"], 3)
    context = torch.randn(3, encoder.width, generator=torch.Generator().manual_seed(0))
    alone = prompts.shared_tokens(context), prompts.tokens
    assert alone == (5, 5 + 2 * 3)  # start, context, toy; then name, full stop and end of each
    for words in (["owl"], ["toy owl"], ["lighthouse", "toy red fox"]):
        prompts.set_words(encoder, words)
        assert prompts.shared_tokens(context) == (5 if words == ["toy owl"] else 4)
        with torch.no_grad():
            shared = prompts.shared_tokens(context)
            got = encoder(prompts(context), prompts.tokenized_prompts, (), shared)
            for name, row in zip(["toy fox", "toy dog", *words], got):
                single = ClassPrompts(encoder, [name], 3)
                (want,) = encoder(single(context), single.tokenized_prompts)
                torch.testing.assert_close(row, want, rtol=1e-4, atol=1e-5)
    prompts.set_words(encoder, [])
    assert (prompts.shared_tokens(context), prompts.tokens) == alone and len(prompts(context)) == 2


@pytest.mark.parametrize("images", [7.0, 2.5, 0.4], ids=["one pass", "pieces", "within an image"])
def test_words_come_in_the_pieces_that_memory_allows(make, images):
    trainer = make("CoCoOp", "rkd", "words", "image_words")
    model = trainer.model
    trainer._words.draw(0, 0)
    with trainer._further_nodes():
        _, taken = model._fitting(slice(0, 13))[0]
        model.max_memory = images * taken / 2**30
        model._cuts.clear()
        assert len(model.cut()[1]) == (1 if images > 1 else 4)
    assert_joined(trainer, "rkd", "words", "image_words")


def test_a_cut_is_measured_again_for_longer_words(make):
    model = make("CoCoOp", "rkd", "words").model
    learner, encoder = model.prompt_learner, model.text_encoder
    measured, fitting = [], model._fitting
    model._fitting = lambda classes: measured.append(classes) or fitting(classes)
    for words in (["owl"], ["ant"], ["a very old suspension bridge"], ["owl"], []):
        learner.set_words(encoder, words)
        model.cut()
    assert measured == [slice(0, 9), slice(0, 9), slice(0, 8)]


@pytest.mark.parametrize(
    ("trainer", "name"),
    [("CoOp", "kl"), ("CoCoOp", "proxy_rkd"), ("MaPLe", "proxy_fda"), ("PromptSRC", "fda")],
)
def test_any_regulariser_acts_on_the_joint_graph(make, trainer, name):
    mixed = 2 if trainer in ("MaPLe", "PromptSRC") else 0
    spaces = ("text_words", "cross_words", *(["image"] if mixed else []))
    summary = one_step(make(trainer, name, *spaces, MIXED=mixed))
    assert all(torch.tensor(value).isfinite() for value in summary.values())
    assert ("loss_proxy" in summary) == name.startswith("proxy")


def test_the_frozen_pass_of_the_images_is_still_shared(make, monkeypatch):
    trainer = make("PromptSRC", "rkd", "image", MIXED=3)
    seen, encode = [], type(trainer.model.image_encoder).encode
    monkeypatch.setattr(
        type(trainer.model.image_encoder),
        "encode",
        lambda self, images: seen.append(len(images)) or encode(self, images),
    )
    one_step(trainer)
    assert seen == [4, 3]


def test_class_specific_contexts_have_none_for_words(make):
    trainer = make("CoOp", "pointwise", "words", opts=["TRAINER.COOP.CSC", True])
    with pytest.raises(ValueError, match="CSC True. say nothing about names beyond the classes"):
        one_step(trainer)


@pytest.mark.parametrize("trainer", ["CoOp", "MaPLe"])
def test_a_run_repeats_and_resumes_to_the_same_numbers(make, trainer):
    mixed = {"MIXED": 2} if trainer == "MaPLe" else {}

    def weights(output, epochs):
        opts = ["OPTIM.MAX_EPOCH", epochs, "OPTIM.LR_SCHEDULER", "single_step",
                "TRAIN.CHECKPOINT_FREQ", 1, "SEED", 5]  # fmt: skip
        built = make(trainer, "rkd", "image_words", output=output, opts=opts, **mixed)
        built.train()
        return [p.detach().clone() for p in built.model.prompt_learner.parameters()]

    whole = weights("whole", 3)
    assert all(map(torch.equal, weights("again", 3), whole))
    weights("parts", 1)
    assert all(map(torch.equal, weights("parts", 3), whole))


def test_words_and_mixtures_take_nothing_from_the_global_stream(make):
    states = []
    for own in ({"WEIGHT": 0.0}, {}, {"MIXED": 3}):
        trainer = make("MaPLe", "rkd", "image_words", output=str(len(states)), **own)
        torch.manual_seed(0)
        one_step(trainer)
        states.append(torch.get_rng_state())
    assert torch.equal(states[0], states[1]) and torch.equal(states[0], states[2])


@pytest.mark.parametrize("trainer", TRAINERS)
def test_without_weight_the_trainer_is_the_plain_one_bit_for_bit(make, make_trainer, trainer):
    losses = []
    for built in (
        make(trainer, "rkd", "words", WEIGHT=0.0, MIXED=3),
        make_trainer(trainer, *TRAINERS[trainer][0], output="plain"),
    ):
        losses.append([one_step(built)["loss"] for _ in range(2)])
    assert losses[0] == losses[1]


def test_the_text_encoders_frozen_features_of_words_are_those_of_the_template(make):
    trainer = make("CoOp", "pointwise", "words")
    _, want = encoded(trainer, VOCABULARY)
    torch.testing.assert_close(trainer.frozen_word_features(VOCABULARY), want)
    cosines = F.cosine_similarity(want[:, None], want[None], dim=-1)
    assert (cosines[~torch.eye(len(want), dtype=torch.bool)] < 0.999).all()  # they are not one
