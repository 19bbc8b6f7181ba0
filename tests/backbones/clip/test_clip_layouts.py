"""What fixed prompts imply is computed once: a step reads no tensor back to the host."""

import copy
import gc
import pickle

import pytest
import random_clip
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from proxyfda.backbones.clip import ClassPrompts, StateCache, TextEncoder, load_clip
from proxyfda.backbones.clip.tree import LayoutCache, PromptLayout

NAMES = {
    "unequal": ["cat", "windsor_chair", "a very old yin yang"],
    "equal": ["cat", "dog", "cow"],
}
# Operations for which a GPU has to finish its work before the host goes on.
READING_BACK = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select")


class Operations(TorchDispatchMode):
    """The names of the operations that are run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))

    def reading_back(self):
        return [name for name in self.names if name in READING_BACK]


@pytest.fixture(scope="module")
def clip(tiny_file):
    return load_clip("ViT-B/16", str(tiny_file))


def context(n_ctx=4, seed=7, n=None):
    shape = (n_ctx, 64) if n is None else (n, n_ctx, 64)
    return random_clip.tensor(shape, seed, 0.2).requires_grad_()


def whole(encoder, learner, ctx):
    return encoder(learner(ctx), learner.tokenized_prompts, (), learner.shared_tokens(ctx))


def deep(encoder, learner, ctx):
    prompts = random_clip.tensor((2, 64), 1, 0.2).requires_grad_()
    return encoder(learner(ctx), learner.tokenized_prompts, [prompts], learner.shared_tokens(ctx))


def each_alone(encoder, learner, ctx):
    return encoder(learner(ctx), learner.tokenized_prompts)


def in_pieces(encoder, learner, ctx):
    """As CoCoOp cuts the classes of its images."""
    prompts = learner(ctx.expand(2, 1, -1, -1))
    pieces = [
        encoder(prompts[:, part], learner.tokenized_prompts[part], shared=5)
        for part in (slice(0, 2), slice(2, 3))
    ]
    return torch.cat(pieces)


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("run", [whole, deep, each_alone, in_pieces])
def test_a_step_reads_nothing_back_and_gives_the_same(clip, run, names):
    encoder = TextEncoder(clip)
    learner = ClassPrompts(encoder, names, 4)
    results = []
    for _ in range(3):
        ctx = context()
        with Operations() as operations:
            features = run(encoder, learner, ctx)
            forward = len(operations.names)
            (features * random_clip.tensor(features.shape, 8)).sum().backward()
        assert len(operations.names) > forward > 0  # those of the backward pass are seen, too
        results.append((features, ctx.grad, operations.reading_back()))
    assert results[0][2] != []  # the test would notice
    assert results[1][2] == results[2][2] == []
    for features, grad, _ in results[1:]:
        assert torch.equal(features, results[0][0]) and torch.equal(grad, results[0][1])


class TestCache:
    @pytest.fixture
    def made(self):
        """``get(tokens)``, with the layouts that had to be computed in ``made.computed``."""
        cache = LayoutCache(3)

        def get(tokens):
            def compute():
                get.computed.append(PromptLayout(tokens.argmax(dim=-1)))
                return get.computed[-1]

            return cache.get(tokens, tokens.device, compute)

        get.computed, get.cache = [], cache
        return get

    tokens = torch.tensor([[1, 2, 9, 0], [1, 2, 3, 9], [1, 9, 0, 0]])

    def test_same_tensor_and_same_slice(self, made):
        layouts = [made(self.tokens), made(self.tokens[1:]), made(self.tokens[:2])]
        assert [made(self.tokens), made(self.tokens[1:]), made(self.tokens[:2])] == layouts
        assert len(made.computed) == 3
        assert [layout.ends.tolist() for layout in layouts] == [[2, 3, 1], [3, 1], [2, 3]]
        assert [layout.length for layout in layouts] == [4, 4, 4]

    def test_what_was_written_to_is_computed_again(self, made):
        tokens = self.tokens.clone()
        made(tokens), made(tokens[:1])
        tokens[0] = torch.tensor([9, 0, 0, 0])
        assert made(tokens).ends.tolist() == [0, 3, 1]
        assert made(tokens[:1]).ends.tolist() == [0]
        tokens.data = torch.tensor([[0, 9, 0, 0]] * 3)
        assert made(tokens).ends.tolist() == [1, 1, 1]

    def test_a_new_tensor_is_never_taken_for_one_that_is_gone(self, made):
        for end in list(range(4)) * 50:
            tokens = torch.zeros(3, 4, dtype=torch.long)
            tokens[:, end] = 9
            assert made(tokens).ends.tolist() == [end] * 3
            del tokens
            gc.collect(0)

    def test_keeps_the_last_few(self, made):
        tensors = [self.tokens.clone() for _ in range(4)]
        for tokens in tensors:
            made(tokens)
        for tokens in tensors[1:]:
            made(tokens)
        assert len(made.computed) == 4
        made(tensors[0])
        assert len(made.computed) == 5

    def test_inference_tensors_are_computed_every_time(self, made):
        with torch.inference_mode():
            tokens = self.tokens.clone()
            made(tokens)
            tokens[0] = torch.tensor([9, 0, 0, 0])
            assert made(tokens).ends.tolist() == [0, 3, 1]

    def test_copies_are_empty(self, made):
        made(self.tokens)
        for copied in (copy.deepcopy(made.cache), pickle.loads(pickle.dumps(made.cache))):
            assert copied.size == 3 and not copied._kept


def test_features_follow_the_tokens(clip):
    encoder = TextEncoder(clip)
    tokens = clip.tokenizer(["a cat", "a dog or a cow"])
    embedded = encoder.embed(tokens)
    before = encoder(embedded, tokens, shared=1)
    tokens[0] = clip.tokenizer(["a cat or a dog"])[0]
    after = encoder(embedded, tokens, shared=1)
    assert not torch.equal(before[0], after[0]) and torch.allclose(before[1], after[1], atol=1e-6)
    again = copy.deepcopy(encoder)(embedded, tokens.clone(), shared=1)
    torch.testing.assert_close(again, after)


def test_plain_texts_leave_the_layouts_of_the_prompts_in_place(clip):
    encoder = TextEncoder(clip)
    learner = ClassPrompts(encoder, NAMES["unequal"], 4)
    each_alone(encoder, learner, context())
    kept = list(encoder._layouts._kept)
    encoder.encode([f"a photo of {i} cats" for i in range(100)], chunk=2)
    assert list(encoder._layouts._kept) == kept


def test_cached_features_are_compared_in_one_reading(clip):
    learner = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    cache = StateCache()
    with torch.no_grad():
        cache.get(learner, lambda: 1)
        with Operations() as operations:
            assert cache.get(learner, lambda: 2) == 1
        assert len(operations.reading_back()) == 1
        learner[1].bias[1] += 1
        assert cache.get(learner, lambda: 3) == 3
        assert (
            cache.get(torch.nn.Identity(), lambda: 4) == cache.get(torch.nn.Identity(), list) == 4
        )
