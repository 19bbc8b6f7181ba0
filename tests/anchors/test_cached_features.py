"""Frozen features that were computed once, and who they belong to."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from proxyfda import FDA, FrozenCopy, attach
from proxyfda.anchors import CachedFeatures
from proxyfda.utils.errors import BadType, BadValue, Unusable

N, D = 37, 5


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, D), nn.Dropout(0.5))


def images(count=N):
    return torch.randn(count, 3, 2, 2, generator=torch.Generator().manual_seed(1))


def loader(shuffle=False, workers=0):
    data = TensorDataset(images(), torch.arange(N))
    return DataLoader(data, batch_size=8, shuffle=shuffle, num_workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_each_sample_gets_its_own_features_in_any_order(workers):
    encoder = build()
    frozen = FrozenCopy(encoder)
    cached = CachedFeatures.of(encoder, loader(shuffle=True))
    assert len(cached) == N
    for batch, _ in loader(shuffle=True, workers=workers):
        torch.testing.assert_close(cached(batch), frozen(batch), rtol=1e-6, atol=1e-6)


class Counted(nn.Linear):
    calls = 0

    def forward(self, x):
        Counted.calls += 1
        return super().forward(x)


def test_attach_makes_no_frozen_pass_and_gets_the_same_gradients():
    torch.manual_seed(0)
    encoder, data = Counted(4, D), torch.randn(20, 4)
    frozen = FrozenCopy(encoder)
    cached = CachedFeatures.of(encoder, TensorDataset(data, torch.zeros(20)))
    with torch.no_grad():
        encoder.weight.mul_(1.5)
    batch = data[torch.randperm(20)[:10]]
    want = torch.autograd.grad(FDA(k=3)(encoder(batch), frozen(batch)), encoder.weight)[0]
    with attach(encoder, FDA(k=3), 1.0, anchors=cached):
        before = Counted.calls
        (encoder(batch).sum() * 0.0).backward()
        assert Counted.calls == before + 1
    torch.testing.assert_close(encoder.weight.grad, want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.flip(-1),
        lambda x: x + 1e-6,
        lambda x: -x,
        lambda x: x.roll(1, dims=1),
        lambda x: x.half(),
        lambda x: torch.cat([x[:3], torch.zeros(1, 3, 2, 2)]),
    ],
    ids=["flip", "last-bit", "sign", "channels", "precision", "one-of-four"],
)
def test_a_sample_in_another_form_is_refused(change):
    cached = CachedFeatures.of(build(), loader())
    with pytest.raises(Unusable, match="not among the 37.*transform is random.*anchors='copy'"):
        cached(change(images()[:8]))


def test_samples_that_differ_in_high_bits_alone_are_told_apart():
    signs = torch.randint(2, (200, 12), generator=torch.Generator().manual_seed(3)) * 2.0 - 1
    signs = signs.unique(dim=0)
    encoder = nn.Linear(12, D)
    torch.testing.assert_close(
        CachedFeatures.of(encoder, TensorDataset(signs))(signs), FrozenCopy(encoder)(signs)
    )


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.bool, torch.int64, torch.float16, torch.bfloat16, torch.float64]
)
def test_samples_of_every_kind_are_told_apart(dtype):
    samples = torch.arange(16)[:, None].bitwise_and(torch.tensor([1, 2, 4, 8])).bool().to(dtype)
    encoder = nn.Sequential(nn.Linear(4, D))
    encoder.register_forward_pre_hook(lambda _, args: (args[0].float(),))
    cached = CachedFeatures.of(encoder, TensorDataset(samples))
    torch.testing.assert_close(cached(samples.flip(0)), FrozenCopy(encoder)(samples.flip(0)))


class Pixels(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, D)

    def forward(self, mask=None, *, pixels):
        return {"tokens": torch.stack([self.layer(pixels), pixels[:, :1].expand(-1, D)], 1)}


class Words(Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, i):
        return {"pixels": torch.full((4,), float(i)), "mask": torch.ones(2), "labels": i}


@pytest.mark.skipif(torch.__version__.startswith("1."), reason="hooks see keywords from 2.0 on")
def test_batches_that_are_mappings_and_features_that_are_chosen():
    module = Pixels()
    options = {"output": "tokens", "features": lambda x: x[:, 0]}
    with pytest.raises(BadType, match="say by inputs="):
        CachedFeatures.of(module, Words(), **options)
    cached = CachedFeatures.of(
        module, Words(), inputs=lambda b: {k: b[k] for k in ("mask", "pixels")}, **options
    )
    pixels = torch.stack([Words()[i]["pixels"] for i in (7, 2, 5, 3)])
    torch.testing.assert_close(cached(pixels=pixels, mask=torch.ones(4, 2)), module.layer(pixels))
    with attach(module, lambda x, a: (x - a).square().sum(), anchors=cached, **options) as handle:
        module(pixels=pixels)["tokens"].sum().backward()
    assert float(handle.terms["loss"]) < 1e-9


def test_a_file_keeps_them_for_the_same_weights_and_number_of_samples(tmp_path):
    path, encoder = str(tmp_path / "cache.pt"), build()
    first = CachedFeatures.of(encoder, loader(), path=path)

    class Untouched(Dataset):
        def __len__(self):
            return N

        def __getitem__(self, i):
            raise AssertionError("computed again")

    again = CachedFeatures.of(encoder, Untouched(), path=path)
    assert torch.equal(again(images()), first(images()))
    with torch.no_grad():
        encoder[1].bias.add_(1.0)
    assert not torch.allclose(
        CachedFeatures.of(encoder, loader(), path=path)(images()), first(images())
    )
    few = CachedFeatures.of(encoder, TensorDataset(images(5)), path=path)
    assert len(few) == 5


def test_rows_by_an_index_of_the_user():
    features = torch.randn(N, D)
    cached = CachedFeatures(features, index=lambda x, index: index)
    rows = torch.tensor([3, 1, 36])
    assert torch.equal(cached(torch.ones(3, 2), index=rows), features[rows])
    assert torch.equal(cached(torch.ones(3, 2), index=rows.tolist()), features[rows])
    for wrong in (37, -1):
        with pytest.raises(BadValue, match=f"rows from .*{wrong}.* of 37 cached features"):
            cached(torch.ones(2, 2), index=[0, wrong] if wrong > 0 else [wrong, 0])


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: CachedFeatures([1.0]), BadType, "features is a list"),
        (lambda: CachedFeatures(torch.ones(3, 2)), BadType, "index is missing"),
        (lambda: CachedFeatures.of(build(), []), BadValue, "batches is empty"),
        (
            lambda: CachedFeatures.of(nn.Flatten(0, 1), [torch.ones(4, 3, 2)]),
            BadValue,
            "12 features for 4 samples",
        ),
        (
            lambda: CachedFeatures.of(build(), loader())(None),
            BadType,
            "called without a tensor",
        ),
    ],
    ids=["list", "index", "empty", "rows", "no-tensor"],
)
def test_mistakes_are_told(make, kind, words):
    with pytest.raises(kind, match=words):
        make()
