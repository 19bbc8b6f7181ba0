"""RKD: distances and angles against loops, and against Park et al.'s own formulas."""

import math

import pytest
import torch
from naive import features
from torch.nn import functional as F

from proxyfda.regularisers import RKD, rkd, rkd_loss


def huber(a, b):
    e = abs(a - b)
    return 0.5 * e * e if e < 1 else e - 0.5


def distances(rows, columns):
    """Distances divided by the mean of the positive ones, in plain Python."""
    d = [[math.dist(a, b) for b in columns.tolist()] for a in rows.tolist()]
    positive = [x for row in d for x in row if x > 1e-9]
    mean = sum(positive) / len(positive)
    return [x / mean for row in d for x in row]


def angle(a, b, c):
    """Cosine of the angle at b; 0 where a point lies on b."""
    u, v = (a - b).tolist(), (c - b).tolist()
    lengths = math.hypot(*u) * math.hypot(*v)
    return sum(p * q for p, q in zip(u, v)) / lengths if lengths else 0.0


def mean_huber(tuned, frozen):
    return sum(map(huber, tuned, frozen)) / len(tuned)


def angle_loop(x, frozen, vertices):
    triples = [(i, j, k) for j in vertices for i in range(len(x)) for k in range(len(x))]
    return mean_huber(*([angle(y[i], y[j], y[k]) for i, j, k in triples] for y in (x, frozen)))


def parks_losses(student, teacher):
    """Distance and angle loss as in https://github.com/lenscloth/RKD, metric/loss.py."""

    def pdist(e):
        squared = e.pow(2).sum(1)
        d = (squared.unsqueeze(1) + squared.unsqueeze(0) - 2 * (e @ e.t())).clamp(min=1e-12).sqrt()
        d = d.clone()
        d[range(len(e)), range(len(e))] = 0
        return d

    def relative(e):
        d = pdist(e)
        return d / d[d > 0].mean()

    def angles(e):
        directions = F.normalize(e.unsqueeze(0) - e.unsqueeze(1), p=2, dim=2)
        return torch.bmm(directions, directions.transpose(1, 2)).view(-1)

    distance = F.smooth_l1_loss(relative(student), relative(teacher))
    return distance, F.smooth_l1_loss(angles(student), angles(teacher))


DISTANCE = {"similarity": 0.0, "distance": 1.0}
ANGLE = {"similarity": 0.0, "angle": 1.0}


def test_distance_and_angle_equal_loops():
    x, frozen = features(7, 1), 5 * features(7, 2)
    want = mean_huber(distances(x, x), distances(frozen, frozen))
    assert rkd_loss(x, frozen, **DISTANCE).item() == pytest.approx(want, rel=1e-9)
    want = angle_loop(x, frozen, range(7))
    assert rkd_loss(x, frozen, **ANGLE).item() == pytest.approx(want, rel=1e-9)


def test_distance_across_two_sets_equals_loop():
    x, y, frozen, frozen_y = (features(n, seed) for seed, n in enumerate([5, 8, 5, 8]))
    want = mean_huber(distances(x, y), distances(frozen, frozen_y))
    got = rkd_loss(x, frozen, columns=y, column_anchors=frozen_y, **DISTANCE)
    assert got.item() == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_park_et_als_code(scale):
    x, frozen = scale * features(9, 1), features(9, 2)
    x.requires_grad_()
    for options, want in zip((DISTANCE, ANGLE), parks_losses(x, frozen)):
        got = rkd_loss(x, frozen, **options)
        assert got.item() == pytest.approx(want.item(), rel=1e-9)
        a, b = (torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in (got, want))
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-9 / scale)


def test_weights_of_the_three():
    x, frozen = features(7, 1), features(7, 2)
    weights = {"similarity": 0.5, "distance": 1.5, "angle": 2.0}
    each = {name: rkd_loss(x, frozen, **{"similarity": 0.0, name: 1.0}).item() for name in weights}
    want = sum(weight * each[name] for name, weight in weights.items())
    assert rkd_loss(x, frozen, **weights).item() == pytest.approx(want)
    assert RKD(**weights)(x, frozen).item() == pytest.approx(want)
    for name, weight in weights.items():
        options = {"similarity": 0.0, name: weight}
        assert RKD(**options)(x, frozen).item() == pytest.approx(weight * each[name])


@pytest.mark.parametrize("options", [DISTANCE, ANGLE], ids=["distance", "angle"])
def test_gradients(options):
    x, frozen = features(6, 1).requires_grad_(), features(6, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rkd_loss(x, frozen.detach(), **options), (x,))
    rkd_loss(x, frozen, **options).backward()
    assert x.grad.abs().sum() > 0 and frozen.grad is None
    x.grad = None
    rkd_loss(x, x.detach(), **options).backward()
    assert x.grad.abs().max() < 1e-9


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["fp16", "fp32"])
@pytest.mark.parametrize("options", [DISTANCE, ANGLE], ids=["distance", "angle"])
def test_gradient_stays_small_where_features_coincide(options, dtype):
    x = features(8, 1, dtype)
    x[3:6] = x[2]
    x.requires_grad_()
    loss = rkd_loss(x, features(8, 2, dtype), **options)
    loss.backward()
    assert torch.isfinite(loss) and 0 < x.grad.abs().max() < 1.0
    same = torch.ones(5, 3, requires_grad=True)
    rkd_loss(same, torch.ones(5, 3), **options).backward()
    assert (same.grad == 0).all()


def test_coinciding_frozen_features_have_angle_0():
    frozen = features(5, 2)
    frozen[1] = frozen[0]
    x = features(5, 1)
    got = rkd_loss(x, frozen, **ANGLE)
    assert got.item() == pytest.approx(angle_loop(x, frozen, range(5)), rel=1e-9)


@pytest.mark.parametrize(
    "most, vertices",
    [(7 * 49, range(7)), (7 * 49 - 1, [0, 2, 4, 6]), (3 * 49, [0, 3, 6]), (10, [0])],
)
def test_angles_are_bounded(monkeypatch, most, vertices):
    assert rkd.MAX_ANGLES == 2**24
    monkeypatch.setattr(rkd, "MAX_ANGLES", most)
    x, frozen = features(7, 1), features(7, 2)
    want = angle_loop(x, frozen, vertices)
    assert rkd_loss(x, frozen, **ANGLE).item() == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("options", [DISTANCE, ANGLE], ids=["distance", "angle"])
def test_sets_in_one_call(options):
    sets, frozen = torch.stack([features(7, seed) for seed in (1, 2, 3)]), features(7, 9)
    each = torch.stack([rkd_loss(x, frozen, **options) for x in sets])
    torch.testing.assert_close(rkd_loss(sets, frozen, **options), each.mean())


@pytest.mark.parametrize("shared", [True, False], ids=["shared anchors", "anchors of each set"])
def test_distances_across_sets_in_one_call(shared):
    sets = torch.stack([features(7, seed) for seed in (1, 2, 3)])
    columns = torch.stack([features(5, seed) for seed in (4, 5, 6)])
    anchors = torch.stack([features(7, 9 if shared else seed) for seed in (9, 10, 11)])
    more = {"column_anchors": features(5, 8), **DISTANCE}
    each = [rkd_loss(x, a, columns=c, **more) for x, a, c in zip(sets, anchors, columns)]
    for given in [anchors, anchors.flatten(0, 1)] + ([anchors[0]] if shared else []):
        got = rkd_loss(sets, given, columns=columns, **more)
        torch.testing.assert_close(got, torch.stack(each).mean())


@pytest.mark.parametrize("n", [0, 3])
@pytest.mark.parametrize("options", [DISTANCE, ANGLE], ids=["distance", "angle"])
def test_nothing_to_align(options, n):
    x = features(n).requires_grad_()
    loss = rkd_loss(x, features(n, 1), **options)
    loss.backward()
    assert loss.item() == 0.0 and (x.grad == 0).all()


@pytest.mark.parametrize("options", [DISTANCE, ANGLE], ids=["distance", "angle"])
def test_half_precision_and_autocast(options):
    x, frozen = features(9, 1, torch.bfloat16), features(9, 2, torch.bfloat16)
    want = rkd_loss(x.double(), frozen.double(), **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = rkd_loss(x, frozen, **options)
    assert got.dtype == torch.float32 and got.item() == pytest.approx(want.item(), rel=1e-4)


X = features(6)
BOTH = {"columns": X, "column_anchors": X}


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: rkd_loss(X, X, similarity=0.0), "similarity is 0.0.*set"),
        (lambda: rkd_loss(X, X, distance=-1.0), "distance is -1.0"),
        (lambda: RKD(angle=float("inf")), "angle is inf"),
        (lambda: rkd_loss(X, X, angle=1.0, **BOTH), "angle is 1.0.*one set"),
        (lambda: rkd_loss(X, graph=RKD().graph(X), distance=1.0), "give anchors"),
        (
            lambda: rkd_loss(X, X, columns=X, graph=RKD().graph(X, X), distance=1.0),
            "column_anchors with columns",
        ),
        (lambda: rkd_loss(X, X[:5], **DISTANCE), "6 rows.*5 x 5"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()
