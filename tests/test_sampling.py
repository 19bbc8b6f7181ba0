"""Class-balanced batches: evenness, shapes, determinism, mining."""

import hashlib
import random
from collections import Counter

import pytest
import torch

from proxyfda.sampling import ClassBalancedBatchSampler, class_similarity


def repeated(classes, shots):
    return [c for c in range(classes) for _ in range(shots)]


def epoch(sampler, number=0):
    sampler.set_epoch(number)
    return list(sampler)


@pytest.mark.parametrize("mined", [False, True], ids=["random", "mined"])
@pytest.mark.parametrize(
    "classes, shots, batches, sizes, per_class",
    [
        pytest.param(32, 16, 8, {64}, {4}, id="divides"),
        pytest.param(24, 16, 6, {64}, {4}, id="24 classes"),
        pytest.param(50, 16, 13, {60, 64}, {4}, id="50 classes"),
        pytest.param(17, 16, 5, {52, 56}, {4}, id="one class too many"),
        pytest.param(5, 16, 2, {40}, {8}, id="fewer classes than m"),
        pytest.param(5, 8, 1, {40}, {8}, id="fewer classes, one batch"),
        pytest.param(50, 1, 1, {50}, {1}, id="1-shot"),
        pytest.param(100, 1, 2, {50}, {1}, id="1-shot, 100 classes"),
        pytest.param(48, 2, 2, {48}, {2}, id="2-shot"),
        pytest.param(3, 1, 1, {3}, {1}, id="3 images"),
        pytest.param(1, 16, 1, {16}, {16}, id="one class"),
    ],
)
def test_shapes_and_every_image_once(classes, shots, batches, sizes, per_class, mined):
    labels = repeated(classes, shots)
    similarity = torch.rand(classes, classes) if mined else None
    sampler = ClassBalancedBatchSampler(labels, 16, 4, similarity=similarity)
    for number in range(3):
        drawn = epoch(sampler, number)
        assert len(drawn) == len(sampler) == batches
        assert {len(batch) for batch in drawn} == sizes
        for batch in drawn:
            assert set(Counter(labels[i] for i in batch).values()) == per_class
        assert Counter(i for batch in drawn for i in batch) == Counter(range(len(labels)))


@pytest.mark.parametrize("seed", range(40))
def test_any_shape(seed):
    rng = random.Random(seed)
    classes = rng.randint(1, 30)
    labels = [c for c in range(classes) for _ in range(rng.choice([1, 2, 16, rng.randint(1, 40)]))]
    rng.shuffle(labels)
    m, n = rng.randint(1, 20), rng.randint(1, 8)
    similarity = torch.rand(classes, classes) if seed % 2 else None
    sampler = ClassBalancedBatchSampler(
        labels, m, n, similarity=similarity, drop_last=seed % 3 == 0
    )
    drawn = epoch(sampler, seed)
    used = Counter(i for batch in drawn for i in batch)
    assert len(drawn) == len(sampler) >= 1
    assert max(used.values()) == 1
    kinds = [Counter(labels[i] for i in batch) for batch in drawn]
    assert max(len(batch) for batch in drawn) <= m * n
    assert max(map(len, kinds)) - min(map(len, kinds)) <= 1
    assert min(map(len, kinds)) >= min(2, sampler.m)
    assert max(max(kind.values()) for kind in kinds) <= sampler.n


def test_uneven_classes_use_each_image_once_where_they_can():
    labels = repeated(20, 16) + [20] * 3 + [21] * 7
    drawn = epoch(ClassBalancedBatchSampler(labels, 16, 4))
    assert Counter(i for batch in drawn for i in batch) == Counter(range(len(labels)))
    parts = [c for batch in drawn for k, c in Counter(labels[i] for i in batch).items() if k == 21]
    assert sorted(parts) == [3, 4]


def test_a_dominating_class_takes_turns():
    labels = [0] * 100 + [1] * 4
    sampler = ClassBalancedBatchSampler(labels, 16, 4)
    used = Counter()
    for number in range(60):
        for batch in epoch(sampler, number):
            assert {labels[i] for i in batch} == {0, 1}
            used.update(batch)
    assert len(used) == 104  # every image has its turn


def test_drop_last_gives_full_batches_and_drops_others_each_epoch():
    labels = repeated(17, 16)
    sampler = ClassBalancedBatchSampler(labels, 16, 4, drop_last=True)
    dropped = []
    for number in range(4):
        drawn = epoch(sampler, number)
        assert len(drawn) == len(sampler) == 4
        assert all(len(batch) == 64 for batch in drawn)
        dropped.append(frozenset(range(len(labels))) - {i for batch in drawn for i in batch})
    assert len(set(dropped)) == 4


def test_deterministic_per_seed_and_epoch():
    labels = repeated(20, 8)
    one, two = ClassBalancedBatchSampler(labels, seed=3), ClassBalancedBatchSampler(labels, seed=3)
    first = epoch(one, 5)
    epoch(two, 1)
    assert epoch(two, 5) == first == list(two)
    assert epoch(one, 6) != first
    assert epoch(ClassBalancedBatchSampler(labels, seed=4), 5) != first


def test_global_random_streams_are_left_alone():
    torch.manual_seed(0)
    random.seed(0)
    before, state = torch.random.get_rng_state(), random.getstate()
    first = epoch(ClassBalancedBatchSampler(repeated(20, 8), similarity=torch.ones(20, 20)))
    assert torch.equal(torch.random.get_rng_state(), before) and random.getstate() == state
    torch.manual_seed(99)
    assert epoch(ClassBalancedBatchSampler(repeated(20, 8), similarity=torch.ones(20, 20))) == first


def test_mining_puts_close_classes_together():
    # Four groups of four classes, scattered over the labels.
    group = torch.arange(16) % 4
    similarity = (group.unsqueeze(0) == group.unsqueeze(1)).float()
    labels = repeated(16, 8)
    drawn = epoch(ClassBalancedBatchSampler(labels, 4, 4, similarity=similarity))
    for batch in drawn:
        assert len({labels[i] % 4 for i in batch}) == 1
    mixed = epoch(ClassBalancedBatchSampler(labels, 4, 4))
    assert any(len({labels[i] % 4 for i in batch}) > 1 for batch in mixed)


def test_random_mode_mixes_classes_evenly():
    labels = repeated(8, 4)
    together = torch.zeros(8, 8)
    sampler = ClassBalancedBatchSampler(labels, 4, 4)
    for number in range(200):
        for batch in epoch(sampler, number):
            present = sorted({labels[i] for i in batch})
            together[torch.tensor(present).unsqueeze(1), torch.tensor(present)] += 1
    pairs = together[torch.ones(8, 8).triu(1).bool()] / 200
    assert pairs.min() > 0.28 and pairs.max() < 0.58  # 3/7 expected


def test_labels_may_be_any_integers_and_a_tensor():
    labels = torch.tensor([70, 3, 70, -2, 3, -2])
    drawn = epoch(ClassBalancedBatchSampler(labels, 3, 1))
    assert [sorted(labels[batch].tolist()) for batch in drawn] == [[-2, 3, 70]] * 2


def test_works_as_batch_sampler_of_a_loader():
    labels = repeated(6, 4)
    sampler = ClassBalancedBatchSampler(labels, 3, 2)
    loader = torch.utils.data.DataLoader(torch.arange(24), batch_sampler=sampler)
    assert len(loader) == len(sampler)
    assert [batch.tolist() for batch in loader] == epoch(sampler)


# What the first version gave, which made an epoch's batches all at once, for seed 3 and epoch 2:
# at random, the same with drop_last, mined, the same with drop_last.
FIRST_VERSION = {
    "50 classes": (
        repeated(50, 16),
        ["0a3cec822734", "14cdf03f10f9", "89c9aa35b055", "e2cd2f6011bf"],
    ),
    "5 classes": (
        repeated(5, 16),
        ["8501e8f46c68", "8501e8f46c68", "9703b0f9aac8", "9703b0f9aac8"],
    ),
    "unequal": (
        [c for c in range(40) for _ in range(1 + c * c % 23)],
        ["01da6ae440f3", "b8763534c861", "726c93723581", "a6bc19274d62"],
    ),
    "one class dominates": (
        [0] * 300 + repeated(30, 2),
        ["5d6f224ab50c", "75f549ae5d05", "66a38e3ff9d6", "453dda6af657"],
    ),
    "1-shot": (
        repeated(100, 1),
        ["f83cc8e23202", "920a58192c76", "131399f40a83", "200bb183be76"],
    ),
}


@pytest.mark.parametrize("labels, digests", FIRST_VERSION.values(), ids=FIRST_VERSION)
def test_batches_of_a_seed_stay_the_same(labels, digests):
    i = torch.arange(len(set(labels)), dtype=torch.float64)
    similarity = (torch.cos(i.unsqueeze(0) * 7 - i.unsqueeze(1) * 7) * 8).round() / 8  # with ties
    drawn = [
        epoch(ClassBalancedBatchSampler(labels, similarity=s, seed=3, drop_last=drop_last), 2)
        for s in (None, similarity)
        for drop_last in (False, True)
    ]
    assert [hashlib.sha256(repr(d).encode()).hexdigest()[:12] for d in drawn] == digests


def test_batches_are_made_while_they_are_used(monkeypatch):
    sampler = ClassBalancedBatchSampler(repeated(200, 64), similarity=torch.rand(200, 200))
    everything = epoch(sampler)
    mined, mine = [], sampler._mine
    monkeypatch.setattr(sampler, "_mine", lambda *args: mined.append(1) or mine(*args))
    used = [len(mined) for batch, _ in zip(sampler, range(20)) if batch]
    assert 0 < used[0] < len(sampler) and used == sorted(used)
    one, two = iter(sampler), iter(sampler)  # iterations do not disturb each other
    assert [next(one), next(two), next(two), next(one)] == [
        everything[0],
        everything[0],
        everything[1],
        everything[1],
    ]


class TestBoundOfAClass:
    @pytest.mark.parametrize("mined", [False, True], ids=["random", "mined"])
    @pytest.mark.parametrize(
        "classes, shots, most, shape, batches",
        [
            pytest.param(5, 16, 7, (5, 7), 3, id="fewer classes than m"),
            pytest.param(5, 16, 12, (5, 12), 2, id="bound above what it becomes"),
            pytest.param(3, 16, 4, (3, 4), 4, id="bound of the n asked for"),
            pytest.param(32, 16, 7, (16, 4), 8, id="nothing to bound"),
            pytest.param(40, 16, 2, (32, 2), 10, id="bound below n"),
            pytest.param(1, 16, 7, (1, 7), 3, id="one class"),
            pytest.param(5, 2, 7, (5, 2), 1, id="classes below the bound"),
        ],
    )
    def test_shape_and_every_image_once(self, classes, shots, most, shape, batches, mined):
        labels = repeated(classes, shots)
        similarity = torch.rand(classes, classes) if mined else None
        sampler = ClassBalancedBatchSampler(
            labels, 16, 4, similarity=similarity, most_per_class=most
        )
        assert (sampler.m, sampler.n) == shape
        drawn = epoch(sampler, 1)
        assert len(drawn) == len(sampler) == batches
        counts = [Counter(labels[i] for i in batch) for batch in drawn]
        assert max(max(count.values()) for count in counts) <= min(shape[1], most)
        assert Counter(i for batch in drawn for i in batch) == Counter(range(len(labels)))

    def test_one_that_does_not_bind_changes_nothing(self):
        labels = repeated(20, 8)
        assert epoch(ClassBalancedBatchSampler(labels, most_per_class=4)) == epoch(
            ClassBalancedBatchSampler(labels)
        )

    @pytest.mark.parametrize(
        "classes, shots, most, note",
        [
            (20, 16, None, ""),
            (20, 16, 7, ""),
            (5, 16, None, "become 5 x 12, because the number of classes is 5."),
            (
                5,
                16,
                7,
                "become 5 x 7, because the number of classes is 5 and a batch may hold at most 7 "
                "images of a class.",
            ),
            (50, 1, None, "become 50 x 1, because no class has more than 1 image."),
            (50, 16, 2, "become 32 x 2, because a batch may hold at most 2 images of a class."),
        ],
        ids=["as asked", "no need", "few classes", "few classes, bound", "1-shot", "bound"],
    )
    def test_a_note_says_what_was_changed(self, classes, shots, most, note):
        sampler = ClassBalancedBatchSampler(repeated(classes, shots), 16, 4, most_per_class=most)
        asked = "Batches of 16 classes x 4 images were asked for and "
        assert sampler.shape_note == (asked + note if note else "")


def test_class_similarity():
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    labels = [4, 1, 4, 9, 1, 1, 9]
    got = class_similarity(x.half(), labels)
    unit = x / x.norm(dim=1, keepdim=True)
    means = torch.stack([unit[[i for i in range(7) if labels[i] == c]].mean(0) for c in (1, 4, 9)])
    for a in range(3):
        for b in range(3):
            want = torch.cosine_similarity(means[a], means[b], dim=0).item()
            assert got[a, b].item() == pytest.approx(want, abs=2e-3)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: ClassBalancedBatchSampler([]), "labels are empty"),
        (lambda: ClassBalancedBatchSampler([0, 1], 0), "m is 0"),
        (lambda: ClassBalancedBatchSampler([0, 1], most_per_class=0), "most_per_class is 0"),
        (lambda: ClassBalancedBatchSampler([0, 1], similarity=torch.ones(3, 3)), "2 classes"),
        (
            lambda: ClassBalancedBatchSampler([0, 1], similarity=torch.full((2, 2), torch.nan)),
            "similarity has values that are not finite",
        ),
        (lambda: class_similarity(torch.ones(3, 2), [0, 1]), r"labels \(2,\)"),
    ],
    ids=["empty", "m", "most_per_class", "similarity", "not finite", "lengths"],
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()
