"""Prompted encoders against plain re-computations with open_clip's blocks."""

import open_clip
import pytest
import random_clip
import torch
from torch import nn

from proxyfda.backbones.clip import (
    ClassPrompts,
    ImageEncoder,
    StateCache,
    TextEncoder,
    initial_context,
    load_clip,
)

TEXTS = ["a photo of a cat.", "a dog", "a photograph of three very old windsor chairs"]
IMAGES = random_clip.tensor((3, 3, 32, 32), 5)


@pytest.fixture(scope="module")
def clip(tiny_file):
    return load_clip("ViT-B/16", str(tiny_file))


@pytest.fixture(params=["CLIP", "CustomTextCLIP", "sequence first"])
def any_clip(request, clip, tiny_file):
    """The same weights in each form that open_clip's classes and versions have."""
    if request.param == "CLIP":
        return clip
    if request.param == "CustomTextCLIP":
        other = open_clip.CustomTextCLIP(
            32,
            {"image_size": 32, "layers": 3, "width": 64, "patch_size": 16},
            {"width": 64, "heads": 1, "layers": 3},
            quick_gelu=True,
        )
        state = open_clip.model.convert_to_custom_text_state_dict(clip.state_dict())
        other.load_state_dict(state)
        other.tokenizer = clip.tokenizer
        return other.eval()
    other = load_clip("ViT-B/16", str(tiny_file))
    for transformer in (other.transformer, other.visual.transformer):
        transformer.batch_first = False
        for block in transformer.resblocks:
            block.attn.batch_first = False
    return other


def prompts(t, seed, n=None, width=64):
    shape = (t, width) if n is None else (n, t, width)
    return random_clip.tensor(shape, seed, 0.2)


def full_text(clip, embedded, tokens, deep):
    """All 77 positions through the blocks, one after the other."""
    x = embedded + clip.positional_embedding
    for i, block in enumerate(clip.transformer.resblocks):
        if 0 < i <= len(deep):
            new = deep[i - 1].expand(len(x), -1, -1)
            x = torch.cat([x[:, :1], new, x[:, 1 + new.shape[1] :]], dim=1)
        x = block(x, attn_mask=clip.attn_mask)
    x = clip.ln_final(x)
    return torch.stack([x[i, tokens[i].argmax()] for i in range(len(x))]) @ clip.text_projection


def full_image(clip, images, first, deep):
    """Class token, patches, prompts through the blocks."""
    v = clip.visual
    x = v.conv1(images).flatten(2).transpose(1, 2)
    x = torch.cat([v.class_embedding.expand(len(x), 1, -1), x], dim=1) + v.positional_embedding
    n = x.shape[1]
    if first is not None:
        x = torch.cat([x, first.expand(len(x), -1, -1)], dim=1)
    x = v.ln_pre(x)
    for i, block in enumerate(v.transformer.resblocks):
        if 0 < i <= len(deep):
            x = torch.cat([x[:, :n], deep[i - 1].expand(len(x), -1, -1)], dim=1)
        x = block(x)
    return v.ln_post(x[:, 0]) @ v.proj


DEEP = {
    "no deep prompts": [],
    "depth 2": [prompts(2, 1)],
    "depth 3": [prompts(2, 1), prompts(2, 2)],
    "depth 3, unequal numbers": [prompts(1, 1), prompts(3, 2)],
    "depth 2, per sample": [prompts(2, 1, n=3)],
}


def test_unprompted_features_are_open_clips(any_clip, clip):
    with torch.no_grad():
        tokens = clip.tokenizer(TEXTS)
        torch.testing.assert_close(TextEncoder(any_clip).encode(TEXTS), clip.encode_text(tokens))
        torch.testing.assert_close(ImageEncoder(any_clip)(IMAGES), clip.encode_image(IMAGES))


@pytest.mark.parametrize("deep", DEEP.values(), ids=DEEP)
def test_text_cut_at_its_end_equals_all_positions(any_clip, clip, deep):
    encoder, tokens = TextEncoder(any_clip), clip.tokenizer(TEXTS)
    embedded = encoder.embed(tokens) + prompts(77, 3, n=3)  # the padding is not zero either
    expected = full_text(clip, embedded, tokens, deep)
    length = int(tokens.argmax(-1).max()) + 1
    assert length < 20
    for given in (embedded, embedded[:, :length]):
        torch.testing.assert_close(encoder(given, tokens, deep), expected)


def test_only_the_positions_up_to_the_longest_end_are_computed(clip):
    seen, encoder = [], TextEncoder(clip)
    tokens = clip.tokenizer(["a cat", "a dog", "a cat or a dog"])
    hook = clip.transformer.resblocks[0].mlp.register_forward_hook(
        lambda module, args, output: seen.append(tuple(output.shape[:2]))
    )
    for shared in (0, 1, 2):
        encoder(encoder.embed(tokens), tokens, shared=shared)
    encoder.encode(["a cat", "a dog", "a cat or a dog"])
    hook.remove()
    assert seen == [(3, 7), (1, 1 + 3 + 3 + 6), (1, 2 + 2 + 2 + 5), (1, 2 + 2 + 2 + 5)]


def test_third_party_blocks_are_run_as_they_are(clip, monkeypatch):
    """A prefix is only shared in blocks whose inside is known."""
    encoder, tokens = TextEncoder(clip), clip.tokenizer(TEXTS)
    plain = encoder(encoder.embed(tokens), tokens)

    class Other(open_clip.transformer.ResidualAttentionBlock):
        def forward(self, x, **options):
            return 2 * super().forward(x, **options)

    monkeypatch.setattr(clip.transformer.resblocks[1], "__class__", Other)
    other = encoder(encoder.embed(tokens), tokens)
    assert not torch.allclose(other, plain)
    assert torch.equal(encoder(encoder.embed(tokens), tokens, shared=1), other)


COMMON = ["a photo of a cat.", "a photo of a dog", "a photo of a very old windsor chair"]


@pytest.mark.parametrize("deep", [d for d in DEEP.values() if all(len(p.shape) == 2 for p in d)],
                         ids=[k for k in DEEP if "per sample" not in k])  # fmt: skip
@pytest.mark.parametrize("texts", [COMMON, COMMON[:1], COMMON[:1] * 2], ids=["unequal lengths",
                         "one text", "equal texts"])  # fmt: skip
@pytest.mark.parametrize("shared", [1, 2, 5])
def test_shared_beginnings_change_nothing(any_clip, clip, shared, texts, deep):
    encoder, tokens = TextEncoder(any_clip), clip.tokenizer(texts)
    context = prompts(4, 3).requires_grad_()
    deep = [given.clone().requires_grad_() for given in deep]
    embedded = encoder.embed(tokens)
    embedded = torch.cat([embedded[:, :1], context.expand(len(texts), 4, -1), embedded[:, 5:]], 1)
    results = []
    for given in (0, shared):
        features = encoder(embedded, tokens, deep, given)
        loss = (features * prompts(len(texts), 8, width=32)).sum()
        results.append([features, *torch.autograd.grad(loss, [context, *deep])])
    for ours, expected in zip(results[1], results[0]):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("shared", [0, 1, 5])
def test_sets_of_texts_with_a_context_each(clip, shared):
    encoder, tokens = TextEncoder(clip), clip.tokenizer(COMMON)
    contexts = prompts(4, 3, n=2)
    embedded = encoder.embed(tokens).expand(2, -1, -1, -1).clone()
    embedded[:, :, 1:5] = contexts.unsqueeze(1)
    for deep in ([], [prompts(2, 1)]):
        features = encoder(embedded, tokens, deep, shared)
        expected = torch.cat([encoder(one, tokens, deep) for one in embedded])
        torch.testing.assert_close(features, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("first", [None, prompts(2, 4), prompts(4, 4, n=3)], ids=["no first",
                         "shared", "per sample"])  # fmt: skip
@pytest.mark.parametrize("deep", DEEP.values(), ids=DEEP)
def test_image_prompts(any_clip, clip, first, deep):
    expected = full_image(clip, IMAGES, first, deep)
    torch.testing.assert_close(ImageEncoder(any_clip)(IMAGES, first, deep), expected)


@pytest.mark.parametrize("first", [None, prompts(2, 4)], ids=["plain", "prompted"])
def test_the_last_image_block_computes_the_token_that_is_read_alone(clip, first):
    encoder, tokens = ImageEncoder(clip), []
    blocks = clip.visual.transformer.resblocks
    hooks = [
        block.mlp.register_forward_hook(lambda module, given, out: tokens.append(given[0].shape[1]))
        for block in blocks
    ]
    encoder(IMAGES, first)
    for hook in hooks:
        hook.remove()
    assert tokens == [5 + (first is not None) * 2] * (len(blocks) - 1) + [1]


def test_gradients_of_all_prompts(tiny_file):
    clip = load_clip("ViT-B/16", str(tiny_file)).double()
    text, image = TextEncoder(clip), ImageEncoder(clip)
    tokens = clip.tokenizer(TEXTS[:2])
    embedded = text.embed(tokens)[:, :8]
    given = [prompts(1, seed).double().requires_grad_() for seed in range(4)]

    def features(context, text_deep, first, image_deep):
        embeds = torch.cat([embedded[:, :1], context.expand(2, 1, -1), embedded[:, 2:]], dim=1)
        out = text(embeds, tokens, [text_deep]) @ random_clip.tensor((32, 1), 6).double()
        return out.sum() + image(IMAGES.double(), first, [image_deep])[:, :4].sum()

    assert torch.autograd.gradcheck(features, given, fast_mode=True)


def test_gradient_checkpointing_changes_nothing(tiny_file, clip):
    other = load_clip("ViT-B/16", str(tiny_file))
    other.set_grad_checkpointing(True)
    tokens, grads = clip.tokenizer(TEXTS), []
    for model in (clip, other):
        deep = prompts(2, 1).requires_grad_()
        encoder = TextEncoder(model)
        encoder(encoder.embed(tokens), tokens, [deep]).sum().backward()
        grads.append(deep.grad)
    torch.testing.assert_close(*grads)


def test_encoders_hold_the_clips_own_weights_and_stay_in_eval_mode(clip):
    holder = nn.ModuleList([TextEncoder(clip), ImageEncoder(clip)]).train()
    own = {id(p) for p in clip.parameters()}
    assert {id(p) for p in holder.parameters()} <= own
    assert not any(module.training for child in holder for module in child.modules())


def test_sizes(clip):
    text, image = TextEncoder(clip), ImageEncoder(clip)
    assert (text.width, text.num_layers, text.context_length) == (64, 3, 77)
    assert (image.width, image.num_layers, image.image_size) == (64, 3, 32)


def test_prompts_that_do_not_fit(clip):
    text, image, tokens = TextEncoder(clip), ImageEncoder(clip), clip.tokenizer(["a cat"])
    with pytest.raises(ValueError, match="depth 4 exceeds the 3 layers"):
        image(IMAGES, prompts(2, 1), [prompts(2, 1)] * 3)
    with pytest.raises(ValueError, match="do not fit tokens of width 64"):
        image(IMAGES, prompts(2, 1, width=32))
    with pytest.raises(ValueError, match="4 deep prompts do not fit into texts of 4"):
        text(text.embed(tokens), tokens, [prompts(4, 1)])
    with pytest.raises(ValueError, match="shorter than their text"):
        text(text.embed(tokens)[:, :2], tokens)
    with pytest.raises(ValueError, match="4 shared tokens leave nothing of texts of 4"):
        text(text.embed(tokens), tokens, shared=4)
    with pytest.raises(ValueError, match="has 82 tokens, the text encoder takes 77"):
        text.encode(["cat " * 80])


# -- class prompts --------------------------------------------------------------------------


NAMES = ["cat", "windsor_chair", "yin yang"]


@pytest.mark.parametrize(
    ("position", "pieces"),
    [("end", "CCCCN."), ("middle", "CCNCC."), ("front", "NCCCC.")],
    ids=["end", "middle", "front"],
)
def test_position_of_the_class_name(clip, position, pieces):
    encoder = TextEncoder(clip)
    context = prompts(4, 7, n=3)
    made = ClassPrompts(encoder, NAMES, 4, position=position)(context)
    for i, name in enumerate(NAMES):
        tokens = encoder.embed(clip.tokenizer([name.replace("_", " ") + "."]))[0]
        end = int(clip.tokenizer([name.replace("_", " ")]).argmax())
        parts, used = [tokens[:1]], 0
        for piece in pieces:
            if piece == "C":
                parts.append(context[i, used : used + 1])
                used += 1
            else:
                parts.append(tokens[1:end] if piece == "N" else tokens[end : end + 2])
        expected = torch.cat(parts)
        torch.testing.assert_close(made[i, : len(expected)], expected)


def test_context_words_give_the_plain_text(clip):
    encoder = TextEncoder(clip)
    prompted = ClassPrompts(encoder, NAMES, 2, "a photo of a")
    features = encoder(
        prompted(initial_context(encoder, "a photo of a", 2)), prompted.tokenized_prompts
    )
    plain = encoder.encode(["a photo of a cat.", "a photo of a windsor chair.",
                            "a photo of a yin yang."])  # fmt: skip
    torch.testing.assert_close(features, plain)


@pytest.mark.parametrize("position", ["end", "middle"])
def test_contexts_per_image(clip, position):
    prompted = ClassPrompts(TextEncoder(clip), NAMES, 4, position=position)
    contexts = torch.stack([prompts(4, seed) for seed in range(5)])
    made = prompted(contexts.unsqueeze(1))
    assert made.shape[:2] == (5, 3)
    for context, one in zip(contexts, made):
        torch.testing.assert_close(one, prompted(context))


@pytest.mark.parametrize(
    ("names", "position", "words", "expected"),
    [
        (NAMES, "end", "", 5),
        (NAMES, "middle", "", 3),
        (NAMES, "front", "", 1),
        (["sea horse", "sea lion"], "end", "", 6),
        (["sea horse", "sea lion"], "front", "", 2),
        (NAMES, "end", "a photo of a big", 6),
        (["cat"], "end", "", 7),
        (["cat", "cat"], "end", "", 7),
        (NAMES, "end", "a", 4),
    ],
    ids=["end", "middle", "front", "names that begin alike", "those in front", "words left over",
         "one class", "classes alike", "context in the place of names"],
)  # fmt: skip
def test_what_all_prompts_have_in_common(clip, names, position, words, expected):
    encoder = TextEncoder(clip)
    made = ClassPrompts(encoder, names, 4, words, position)
    context = prompts(4, 7)
    assert made.shared_tokens(context) == made.shared_tokens(context[None, None]) == expected
    assert made.shared_tokens(prompts(4, 7, n=len(names))) == (expected if len(names) == 1 else 1)
    embedded = made(context)
    assert (embedded[:, :expected] == embedded[:1, :expected]).all()
    if len(set(names)) > 1 and words != "a":  # which ends within the context
        assert not (embedded[:, expected] == embedded[:1, expected]).all()
    plain, shared = (
        encoder(embedded, made.tokenized_prompts, (), given) for given in (0, expected)
    )
    torch.testing.assert_close(shared, plain, rtol=1e-5, atol=2e-6)


def test_words_of_several_tokens_stand_only_at_the_start(clip):
    with pytest.raises(ValueError, match="'middle' needs every context token"):
        ClassPrompts(TextEncoder(clip), NAMES, 2, "a photo of a", position="middle")


# -- cached features ------------------------------------------------------------------------


def sgd(module):
    return torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)


def adam(module):
    return torch.optim.Adam(module.parameters(), lr=0.1)


def fused(module):
    return torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)


def optimiser_step(make):
    def change(module):
        optimiser = make(module)
        module(torch.ones(2)).sum().backward()
        optimiser.step()

    return change


CHANGES = {
    "SGD": optimiser_step(sgd),
    "Adam": optimiser_step(adam),
    "fused": optimiser_step(fused),
    "edit through .data": lambda m: m.bias.data.add_(1),
    "load_state_dict": lambda m: m.load_state_dict(nn.Linear(2, 2).state_dict()),
    "half": lambda m: m.bfloat16(),
    "new parameter": lambda m: setattr(m, "weight", nn.Parameter(torch.ones(2, 2))),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_cache_lives_until_the_learnables_change(change):
    module, cache, calls = nn.Linear(2, 2), StateCache(), []

    def compute():
        calls.append(1)
        return module(torch.ones(2, dtype=module.weight.dtype))

    with torch.no_grad():
        first = cache.get(module, compute)
        assert cache.get(module, compute) is first and len(calls) == 1
    assert cache.get(module, compute).requires_grad and len(calls) == 2
    change(module)
    with torch.no_grad():
        torch.testing.assert_close(cache.get(module, compute), module(
            torch.ones(2, dtype=module.weight.dtype)))  # fmt: skip
        assert len(calls) == 3
