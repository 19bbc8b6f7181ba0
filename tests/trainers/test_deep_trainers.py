"""MaPLe and PromptSRC: training, precision, options, checkpoints of both conventions."""

import copy

import open_clip
import pytest
import torch
from trainer_tools import checkpoint_file, logits, one_step, save

import trainers.base
from proxyfda.backbones.clip import ClassPrompts, TextEncoder, load_clip
from trainers.checkpoints import to_upstream

NODES = {"MaPLe": "TRAINER.MAPLE", "PromptSRC": "TRAINER.PROMPTSRC"}
# Names of the learnables in upstream's checkpoints at depth 3, from those of its own runs.
UPSTREAM_NAMES = {
    "MaPLe": {
        "prompt_learner.ctx",
        "prompt_learner.proj.weight",
        "prompt_learner.proj.bias",
        "prompt_learner.compound_prompts_text.0",
        "prompt_learner.compound_prompts_text.1",
        "prompt_learner.compound_prompt_projections.0.weight",
        "prompt_learner.compound_prompt_projections.0.bias",
        "prompt_learner.compound_prompt_projections.1.weight",
        "prompt_learner.compound_prompt_projections.1.bias",
    },
    "PromptSRC": {
        "prompt_learner.ctx",
        "image_encoder.VPT",
        "image_encoder.transformer.resblocks.1.VPT_shallow",
        "image_encoder.transformer.resblocks.2.VPT_shallow",
        "text_encoder.transformer.resblocks.1.VPT_shallow",
        "text_encoder.transformer.resblocks.2.VPT_shallow",
    },
}
FROZEN = {
    "logit_scale": torch.tensor(4.6),
    "prompt_learner.token_prefix": torch.zeros(5, 1, 64),
    "prompt_learner.token_suffix": torch.zeros(5, 74, 64),
    "image_encoder.class_embedding": torch.zeros(64),
    "image_encoder.transformer.resblocks.1.attn.in_proj_weight": torch.zeros(192, 64),
    "text_encoder.transformer.resblocks.2.mlp.c_fc.bias": torch.zeros(256),
    "text_encoder.text_projection": torch.zeros(64, 32),
    "prompt_learner.ZS_image_encoder.conv1.weight": torch.zeros(64, 3, 16, 16),
}
both = pytest.mark.parametrize("name", NODES)


@pytest.fixture
def deep(make_trainer):
    """``deep("MaPLe", "N_CTX", 2)``: options without their node; depth 3 unless given."""

    def make(name, *opts, **kwargs):
        opts = [*(("PROMPT_DEPTH_VISION", 3, "PROMPT_DEPTH_TEXT", 3) if "SRC" in name
                  else ("PROMPT_DEPTH", 3)), *opts]  # fmt: skip
        node = NODES[name.replace("Proxy", "").replace("FDA", "")]
        named = [f"{node}.{x}" if i % 2 == 0 and "." not in x else x for i, x in enumerate(opts)]
        return make_trainer(name, f"{node}.PREC", "fp32", *named, **kwargs)

    return make


# -- training -------------------------------------------------------------------------------


@both
def test_training_moves_every_learnable_and_nothing_else(name, deep):
    trainer = deep(name)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.train()
    after = trainer.model.state_dict()
    moved = {key for key, value in before.items() if not torch.equal(value, after[key])}
    learnables = {key for key in before if key.startswith("prompt_learner.")}
    assert moved == learnables
    assert all(after[key].dtype == torch.float32 for key in learnables)
    saved = torch.load(checkpoint_file(trainer), weights_only=True)
    assert {f"prompt_learner.{key}" for key in saved["state_dict"]} == learnables


@both
@pytest.mark.parametrize("prec", ["fp16", "amp"])
def test_half_precision_falls_back_on_the_cpu(name, prec, deep, capsys):
    trainer = deep(name, "PREC", prec)
    assert f"Precision {prec} needs a GPU" in capsys.readouterr().out
    torch.testing.assert_close(logits(trainer), logits(deep(name, output="other")))


@both
@pytest.mark.parametrize("prec", ["fp16", "amp"])
def test_half_precision_is_near_fp32(name, prec, deep, every_precision):
    results = {}
    for precision in ("fp32", prec):
        trainer = deep(name, "PREC", precision, output=precision)
        learner = trainer.model.prompt_learner
        before = {key: value.clone() for key, value in learner.state_dict().items()}
        assert {value.dtype for value in before.values()} == {torch.float32}
        if trainer.scaler:  # at its first, largest scale the gradients overflow and no step is done
            trainer.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        summary = one_step(trainer)
        steps = [(value - before[key]).flatten() for key, value in learner.state_dict().items()]
        results[precision] = summary, torch.cat(steps)
    (terms, step), (terms_half, step_half) = results["fp32"], results[prec]
    assert terms_half == pytest.approx(terms, rel=2e-2, abs=2e-3)
    assert torch.cosine_similarity(step, step_half, dim=0) > 0.98


@both
@pytest.mark.parametrize("plugin", ["FDA", "ProxyFDA"])
def test_the_plugin_acts_on_the_image_features(name, plugin, deep):
    trainer = deep(plugin + name, "TRAINER.PROXYFDA.WEIGHT", 3.0)
    plain = deep(name, output="plain")
    plain.model.prompt_learner.load_state_dict(trainer.model.prompt_learner.state_dict())
    terms, plain_terms = one_step(trainer), one_step(plain)
    assert terms["loss_fda"] > 0 and terms["loss"] == pytest.approx(plain_terms["loss"])
    ours, theirs = (t.model.prompt_learner.state_dict() for t in (trainer, plain))
    image = "visual_ctx" if name == "PromptSRC" else "proj.bias"
    assert not torch.equal(ours[image], theirs[image])


# -- context --------------------------------------------------------------------------------


def naive_prompts(trainer, words, ctx):
    """Embeddings of the prompts in full length, the context written over positions 1..n."""
    encoder = trainer.model.text_encoder
    names = [name.replace("_", " ") for name in trainer.dm.dataset.classnames]
    tokens = encoder.tokenize([f"{words} {name}." for name in names])
    embedded = encoder.token_embedding(tokens).clone()
    embedded[:, 1 : 1 + len(ctx)] = ctx
    return tokens, embedded


@both
@pytest.mark.parametrize(
    ("n_ctx", "words", "said"),
    [
        (2, "a photo of a", 'Initial context: "a photo of a"'),
        (4, "a photo", '"a photo" has 2 tokens for 4 context tokens; the others take the place'),
        (4, "a", '"a" has 1 tokens for 4'),
        (5, "a photo of a", 'CTX_INIT "a photo of a" is not used: 5 context tokens are above 4'),
        (3, "", 'Initial context: "X X X"'),
    ],
    ids=["fewer", "more than words", "over the end of text", "above four", "random"],
)
def test_context_of_other_length_than_the_words(name, n_ctx, words, said, deep, capsys):
    option = "N_CTX_TEXT" if name == "PromptSRC" else "N_CTX"
    trainer = deep(name, option, n_ctx, "CTX_INIT", words)
    assert said in capsys.readouterr().out
    learner = trainer.model.prompt_learner
    used = words if words and n_ctx <= 4 else " ".join(["X"] * n_ctx)
    tokens, expected = naive_prompts(trainer, used, learner.ctx)
    prompts, deeper = learner.text_prompts()
    torch.testing.assert_close(prompts, expected[:, : prompts.shape[1]])
    assert [tuple(p.shape) for p in deeper] == [(n_ctx, 64)] * 2
    if words and n_ctx <= 4:
        start = trainer.model.text_encoder.tokenize([words])[0, 1 : 1 + n_ctx]
        embedding = trainer.model.text_encoder.token_embedding(start)
        torch.testing.assert_close(learner.ctx.detach(), embedding)


def test_a_context_may_reach_the_end_of_short_texts(tiny_file):
    """Upstream reads the features there all the same."""
    encoder = TextEncoder(load_clip("ViT-B/16", str(tiny_file)))
    prompts = ClassPrompts(encoder, ["cat", "face"], 4, "a")
    ctx, deep = torch.randn(4, 64), torch.randn(4, 64)
    features = encoder(prompts(ctx), prompts.tokenized_prompts, [deep])
    assert torch.isfinite(features).all()
    torch.testing.assert_close(features[0], features[1])  # nothing of the names is left


# -- options --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "opts", "said"),
    [
        ("MaPLe", ["PROMPT_DEPTH", 0], "TRAINER.MAPLE.PROMPT_DEPTH is 0; give a whole number"),
        ("MaPLe", ["PROMPT_DEPTH", 4], "MAPLE.PROMPT_DEPTH is 4, but the text encoder of ViT-B/16 "
         "has 3 layers; use at most 3"),
        ("MaPLe", ["N_CTX", 0], "TRAINER.MAPLE.N_CTX is 0; give a whole number"),
        ("MaPLe", ["PREC", "fp8"], "TRAINER.MAPLE.PREC is 'fp8'"),
        ("PromptSRC", ["PROMPT_DEPTH_TEXT", 0], "PROMPT_DEPTH_TEXT is 0; give a whole number"),
        ("PromptSRC", ["PROMPT_DEPTH_TEXT", 9], "the text encoder of ViT-B/16 has 3 layers"),
        ("PromptSRC", ["PROMPT_DEPTH_VISION", -1], "PROMPT_DEPTH_VISION is -1; give a whole"),
        ("PromptSRC", ["PROMPT_DEPTH_VISION", 4], "the image encoder of ViT-B/16 has 3 layers"),
        ("PromptSRC", ["N_CTX_VISION", 6], "N_CTX_VISION is 6, but an image has 5 tokens"),
        ("PromptSRC", ["N_CTX_VISION", 0], "N_CTX_VISION is 0; give a whole number"),
        ("PromptSRC", ["N_CTX_TEXT", 0], "N_CTX_TEXT is 0; give a whole number"),
        ("PromptSRC", ["GPA_STD", 0.0], "GPA_STD is 0.0; give a number above 0"),
        ("PromptSRC", ["GPA_MEAN", 900.0], "GPA_MEAN 900.0 is so far from the epochs 1 to 2"),
    ],
)  # fmt: skip
def test_bad_options(name, opts, said, deep):
    with pytest.raises(ValueError) as error:
        deep(name, *opts)
    assert said in str(error.value)


@both
def test_a_resnet_is_refused(name, deep, monkeypatch):
    vision = {"layers": (1, 1, 1, 1), "width": 8, "image_size": 32, "head_width": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 3}
    clip = open_clip.CLIP(32, vision, text)
    monkeypatch.setattr(trainers.base, "load_clip", lambda *args, **kwargs: clip)
    with pytest.raises(ValueError, match=f"{name} prompts the image encoder, and that of RN50"):
        deep(name, "MODEL.BACKBONE.NAME", "RN50")


# -- checkpoints ----------------------------------------------------------------------------


@both
def test_names_map_one_to_one_on_upstreams(name, deep):
    assert set(to_upstream(deep(name).model.prompt_learner)) == UPSTREAM_NAMES[name]


@both
@pytest.mark.parametrize("convention", ["ours", "upstream", "upstream without the frozen"])
def test_checkpoint_round_trip(name, convention, deep, capsys):
    """Upstream's are in half precision, and pickle the schedule as an object."""
    trained, other = deep(name), deep(name, output="other")
    with torch.no_grad():
        for value in trained.model.prompt_learner.parameters():
            value.copy_(torch.randn(value.shape).half())
    learner = trained.model.prompt_learner
    state = learner.state_dict()
    extra = {}
    if convention != "ours":
        state = {key: value.half() for key, value in to_upstream(learner).items()}
        optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        extra["scheduler"] = {"successor": torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 5)}
    if convention == "upstream":
        state = {**FROZEN, **state}
    save(other, copy.deepcopy(state), **extra)
    assert not torch.equal(logits(other), logits(trained))
    other.load_model(other.output_dir, 2)
    assert {p.dtype for p in other.model.prompt_learner.parameters()} == {torch.float32}
    torch.testing.assert_close(logits(other), logits(trained))
    assert "(epoch = 2)" in capsys.readouterr().out


MISFITS = {
    "deeper": ("MaPLe", ["PROMPT_DEPTH", 2],
               ["unexpected: prompt_learner.compound_prompts_text.1",
                "its prompt depth is 3 and the config asks for 2: set "
                "TRAINER.MAPLE.PROMPT_DEPTH 3"]),
    "shallower": ("PromptSRC", ["PROMPT_DEPTH_TEXT", 2],
                  ["unexpected: text_encoder.transformer.resblocks.2.VPT_shallow",
                   "set TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT 3"]),
    "no visual prompts": ("PromptSRC", ["PROMPT_DEPTH_VISION", 0],
                          ["unexpected: image_encoder.VPT",
                           "set TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION 3"]),
    "tokens": ("MaPLe", ["N_CTX", 3],
               ["prompt_learner.ctx is (2, 64) instead of (3, 64)",
                "it has 2 context tokens and the config asks for 3: set TRAINER.MAPLE.N_CTX"]),
    "visual tokens": ("PromptSRC", ["N_CTX_VISION", 2],
                      ["image_encoder.VPT is (4, 64) instead of (2, 64)",
                       "it has 4 context tokens and the config asks for 2: set "
                       "TRAINER.PROMPTSRC.N_CTX_VISION"]),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_a_checkpoint_of_other_options_is_refused(case, deep):
    name, opts, said = MISFITS[case]
    trainer = deep(name, *opts, output="other")
    save(trainer, {**FROZEN, **to_upstream(deep(name).model.prompt_learner)})
    before = copy.deepcopy(trainer.model.prompt_learner.state_dict())
    with pytest.raises(ValueError) as error:
        trainer.load_model(trainer.output_dir, 2)
    for part in (*said, f"does not fit this {name}"):
        assert part in str(error.value)
    after = trainer.model.prompt_learner.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@both
def test_partial_foreign_and_wider_checkpoints_are_refused(name, deep):
    trainer = deep(name)
    whole = to_upstream(trainer.model.prompt_learner)
    deepest = [key for key in whole if key.endswith((".1", "2.VPT_shallow"))][-1]
    cases = {
        f"missing: {deepest}": {k: v for k, v in whole.items() if k != deepest},
        "unexpected: adapter.weight": {**whole, "adapter.weight": torch.zeros(2)},
        "unexpected: prompt_learner.meta_net.bias": {
            **whole, "prompt_learner.meta_net.bias": torch.zeros(2),
        },
        "set MODEL.BACKBONE.NAME": {
            k: torch.zeros(*v.shape[:-1], 96) if v.dim() == 2 else v for k, v in whole.items()
        },
    }  # fmt: skip
    for said, state in cases.items():
        save(trainer, {**FROZEN, **state})
        with pytest.raises(ValueError) as error:
            trainer.load_model(trainer.output_dir, 2)
        assert said in str(error.value), str(error.value)


@both
@pytest.mark.parametrize("convention", ["ours", "upstream"])
def test_initial_weights_take_what_fits(name, convention, deep, tmp_path, capsys):
    learner = deep(name).model.prompt_learner
    with torch.no_grad():
        for value in learner.parameters():
            value.normal_()
    state = learner.state_dict() if convention == "ours" else {**FROZEN, **to_upstream(learner)}
    torch.save({"state_dict": state}, tmp_path / "start.pt")
    opts = ["PROMPT_DEPTH_TEXT" if name == "PromptSRC" else "PROMPT_DEPTH", 2]
    started = deep(name, *opts, "MODEL.INIT_WEIGHTS", str(tmp_path / "start.pt"), output="other")
    taken = started.model.prompt_learner.state_dict()
    assert all(torch.equal(value, learner.state_dict()[key]) for key, value in taken.items())
    said = capsys.readouterr().out
    assert "Initial values from" in said and "differ otherwise: unexpected: " in said
    torch.save({"other": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="unexpected: other; check --trainer"):
        deep(name, "MODEL.INIT_WEIGHTS", str(tmp_path / "other.pt"), output="none")
