"""A linear probe: how well a linear classifier tells classes apart by frozen features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from proxyfda.neighbours.cosines import check_features, full_precision, unit_rows
from proxyfda.utils.errors import BadValue

__all__ = ["STRENGTHS", "LinearProbe", "choose_linear_probe", "fit_linear_probe"]

STRENGTHS: Dict[str, Tuple[float, ...]] = {
    "convex": (1e-2, 1e-3, 1e-4, 1e-5, 1e-6),
    "ldifs": (0.01, 0.05, 0.1, 0.5, 1.0),
}
"""Recipe -> the strengths that are tried, see :func:`fit_linear_probe`.

Those of ``ldifs`` are the learning rates of the published code of LDIFS (Mukhoti et al., TMLR 2024,
``omegafragger/ldifs_code``)."""

ITERATIONS = 1000  # of ``ldifs``, and at most of ``convex``
_CHUNK = 1 << 24  # logits that are in memory at a time
_TOLERANCE = 1e-6  # of the gradient where its scale is 1, see _convex
_Data = Tuple[Any, Any]


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier of features.

    Attributes:
        weight: [C, d].
        bias: [C]; minus infinity for classes that no feature of the fit has.
        normalise: whether features are brought to unit length first.
        strength: that it was fitted with, see :func:`fit_linear_probe`.
    """

    weight: Tensor
    bias: Tensor
    normalise: bool = True
    strength: float = 0.0

    @torch.no_grad()
    def logits(self, x: Any) -> Tensor:
        """Logits [N, C] of features [N, d].

        Raises:
            BadValue: no matrix of features, or one of another dimension.
        """
        features = torch.as_tensor(x).detach().to(self.weight.device)
        check_features("x", features)
        if features.shape[1] != self.weight.shape[1]:
            raise BadValue(
                f"x has {features.shape[1]} dimensions and the probe {self.weight.shape[1]}; give "
                "features of the model that it was fitted on."
            )
        with full_precision(features.device):
            ready = unit_rows(features) if self.normalise else features
            return F.linear(ready.to(self.weight.dtype), self.weight, self.bias)

    def accuracy(self, x: Any, labels: Any) -> float:
        """Share of features [N, d] whose class [N] has the largest logit, 0 to 1.

        Classes that no feature of the fit has are never predicted, so that theirs count as wrong.

        Raises:
            BadValue: as :meth:`logits`, or not one label for each feature.
        """
        logits = self.logits(x)
        found = _check_labels("labels", labels, len(logits)).to(logits.device)
        return (logits.argmax(1) == found).double().mean().item()


def fit_linear_probe(
    features: Any,
    labels: Any,
    *,
    strength: Optional[float] = None,
    recipe: str = "convex",
    normalise: bool = True,
    classes: Optional[int] = None,
    seed: int = 0,
    start: Optional[LinearProbe] = None,
) -> LinearProbe:
    """Logistic regression on features, computed where they are.

    ``convex`` finds the one minimum of mean cross-entropy + strength / 2 · |weight|², bias free
    (scikit-learn's ``LogisticRegression(C=1 / (strength * N))``), by L-BFGS.  ``ldifs`` is the
    probe of the published code of LDIFS (``omegafragger/ldifs_code``): 1,000 steps of AdamW with
    torch's defaults on all samples at once, and strength is its learning rate.

    Args:
        features: [N, d], a tensor or an array.
        labels: their classes [N], whole numbers from 0.
        strength: None for 1e-4, or 0.1 of ``ldifs``.
        recipe: ``convex`` or ``ldifs``.
        normalise: bring features to unit length first.
        classes: C, None for the largest label + 1.
        seed: of the values that ``ldifs`` starts from.
        start: probe of the same classes that ``convex`` starts from, which saves time and does not
            change the minimum.

    Raises:
        BadValue: no features, or some that are not finite; labels that are not one class for each,
            or all the same; another option that cannot be.

    >>> x = torch.tensor([[2.0, 0.1], [1.0, -0.2], [0.1, 1.0], [-0.3, 2.0]])
    >>> probe = fit_linear_probe(x, [0, 0, 1, 1])
    >>> probe.weight.shape, probe.accuracy(x, [0, 0, 1, 0])
    (torch.Size([2, 2]), 0.75)
    """
    if recipe not in STRENGTHS:
        raise BadValue(f"recipe is {recipe!r}; use one of {', '.join(STRENGTHS)}.")
    if strength is None:
        strength = STRENGTHS[recipe][2]
    if not 0 < strength < float("inf"):
        raise BadValue(f"strength is {strength!r}; use a number above 0.")
    x, found = _check("features", features, labels)
    present = found.unique()
    if len(present) < 2:
        raise BadValue(
            f"all {len(found)} labels are class {int(present[0])}; a probe tells classes apart and "
            "needs two at least."
        )
    classes = int(present[-1]) + 1 if classes is None else classes
    if classes <= int(present[-1]):
        raise BadValue(f"labels has class {int(present[-1])}, but classes is {classes}.")
    with torch.no_grad(), full_precision(x.device):
        x = unit_rows(x) if normalise else (x if x.dtype == torch.float64 else x.float())
        if recipe == "ldifs":
            weight, bias = _ldifs(x, found, classes, strength, seed)
            return LinearProbe(weight, bias, normalise, strength)
        # A class without samples would send its bias to minus infinity: it is there already.
        weight, bias = x.new_zeros(classes, x.shape[1]), x.new_full((classes,), -float("inf"))
        first = None
        if start is not None and start.weight.shape == weight.shape:
            first = start.weight.to(x)[present], start.bias.to(x)[present]
        places = torch.searchsorted(present, found)
        weight[present], bias[present] = _convex(x, places, len(present), strength, first)
    return LinearProbe(weight, bias, normalise, strength)


def choose_linear_probe(
    train: _Data,
    val: _Data,
    strengths: Optional[Sequence[float]] = None,
    *,
    recipe: str = "convex",
    refit: bool = False,
    normalise: bool = True,
    classes: Optional[int] = None,
    seed: int = 0,
) -> LinearProbe:
    """The probe whose strength gives the best accuracy on a validation set.

    Equal accuracies are decided by the lower cross-entropy there, and for ``ldifs``, as in the
    published code, by the order of the strengths.

    Args:
        train: features [N, d] and labels [N].
        val: features [M, d] and labels [M].
        strengths: to choose from; None for :data:`STRENGTHS`.
        refit: fit the probe with the chosen strength on both sets.
        recipe, normalise, classes, seed: see :func:`fit_linear_probe`.

    Raises:
        BadValue: as :func:`fit_linear_probe`, sets of unequal dimension, or no strength.

    >>> x = torch.tensor([[2.0, 0.1], [1.0, -0.2], [0.1, 1.0], [-0.3, 2.0]])
    >>> choose_linear_probe((x, [0, 0, 1, 1]), (x, [0, 0, 1, 1]), [1e-1, 1e-3]).strength
    0.001
    """
    if strengths is None:
        strengths = STRENGTHS.get(recipe, (1.0,))
    if not strengths:
        raise BadValue("strengths is empty; give one at least.")
    x, labels = _check("features of train", *train)
    x_val, labels_val = _check("features of val", *val)
    if x.shape[1] != x_val.shape[1]:
        raise BadValue(
            f"train has {x.shape[1]} dimensions and val {x_val.shape[1]}; give features of the "
            "same model."
        )
    x_val, labels_val = x_val.to(x), labels_val.to(labels.device)
    if classes is None:
        classes = int(torch.cat([labels, labels_val]).max()) + 1
    options: Any = {"recipe": recipe, "normalise": normalise, "classes": classes, "seed": seed}
    best: Optional[LinearProbe] = None
    best_score = (-1.0, 0.0)
    last: Optional[LinearProbe] = None
    order = sorted(strengths, reverse=True) if recipe == "convex" else strengths
    for strength in order:
        last = fit_linear_probe(x, labels, strength=strength, start=last, **options)
        score = last.accuracy(x_val, labels_val), 0.0
        if recipe == "convex":
            score = score[0], -_loss_of_known(last, x_val, labels_val)
        if score > best_score:
            best, best_score = last, score
    assert best is not None
    if not refit:
        return best
    both = torch.cat([x, x_val]), torch.cat([labels, labels_val])
    return fit_linear_probe(*both, strength=best.strength, start=best, **options)


def _loss_of_known(probe: LinearProbe, x: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy of the samples whose class the probe knows."""
    known = probe.bias.isfinite()[labels]
    return F.cross_entropy(probe.logits(x[known]), labels[known]).item() if known.any() else 0.0


# -- what is fitted on ----------------------------------------------------------------------------


def _check_labels(name: str, labels: Any, length: int) -> Tensor:
    found = torch.as_tensor(labels).detach()
    if found.shape != (length,) or found.is_floating_point() or found.dtype == torch.bool:
        raise BadValue(
            f"{name} has shape {list(found.shape)} and dtype {found.dtype} for {length} features; "
            "give each one class as a whole number."
        )
    if length and int(found.min()) < 0:
        raise BadValue(f"{name} has class {int(found.min())}; number the classes from 0.")
    return found.long()


def _check(name: str, features: Any, labels: Any) -> Tuple[Tensor, Tensor]:
    x = torch.as_tensor(features).detach()
    check_features(name, x)
    if not x.numel():
        raise BadValue(f"{name} has shape {tuple(x.shape)}; a probe needs some.")
    found = _check_labels(name.replace("features", "labels"), labels, len(x)).to(x.device)
    finite = x.isfinite().all(1)
    if not finite.all():
        raise BadValue(
            f"{name} has {int((~finite).sum())} rows of {len(x)} that are not finite; compute them "
            "in fp32, or leave these out."
        )
    return x, found


# -- the two solvers ------------------------------------------------------------------------------


class _CrossEntropy:
    """Mean cross-entropy of labels [N] in [0, C) by features [N, d], and its gradient."""

    def __init__(self, x: Tensor, labels: Tensor, classes: int):
        self.chunks: List[Tuple[Tensor, Tensor]] = list(
            zip(*(part.split(max(1, _CHUNK // classes)) for part in (x, labels)))
        )
        self.size = len(x)

    def __call__(self, weight: Tensor, bias: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        loss = weight.new_zeros(())
        by_weight, by_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        for x, labels in self.chunks:
            log = F.linear(x, weight, bias).log_softmax(1)
            rows = torch.arange(len(x), device=x.device)
            loss -= log[rows, labels].sum()
            slope = log.exp_()
            slope[rows, labels] -= 1
            by_weight.addmm_(slope.t(), x)
            by_bias += slope.sum(0)
        return loss / self.size, by_weight / self.size, by_bias / self.size


def _convex(
    x: Tensor,
    labels: Tensor,
    classes: int,
    strength: float,
    start: Optional[Tuple[Tensor, Tensor]],
) -> Tuple[Tensor, Tensor]:
    """The minimum of mean cross-entropy + strength / 2 · |weight|²: weight [C, d], bias [C].

    In the coordinates of the features' principal axes about their mean, each scaled by the root of
    the curvature that the loss has along it at weight 0 (and a little more: the whole curvature is
    at most that), so that L-BFGS sees a problem of condition 1 instead of one of the features'
    spread. Mean and axes change neither the minimum nor the penalty.
    """
    mean = x.mean(0)
    centred = x - mean
    variances, axes = torch.linalg.eigh((centred.t() @ centred).double() / len(x))
    scale = (variances.clamp_(min=0) / classes + strength).rsqrt().to(x)
    turn = axes.to(x) * scale  # [d, d]: from features to coordinates
    cost = _CrossEntropy(centred @ turn, labels, classes)
    penalty = strength * scale.square()

    weight, bias = x.new_zeros(classes, x.shape[1]), x.new_zeros(classes)
    if start is not None and bool(start[1].isfinite().all()):
        weight = start[0] @ axes.to(x) / scale
        bias = start[1] + start[0] @ mean
    else:
        # The minimum at weight 0.
        bias = (labels.bincount(minlength=classes).to(x) / len(x)).log()
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    optimiser = torch.optim.LBFGS(
        parameters,
        max_iter=ITERATIONS,
        tolerance_grad=_TOLERANCE,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    @torch.no_grad()
    def closure() -> Tensor:
        loss, weight.grad, bias.grad = cost(weight, bias)
        weight.grad += penalty * weight
        return loss + (penalty * weight.square()).sum() / 2

    optimiser.step(closure)
    found = (weight.detach() * scale) @ axes.to(x).t()
    # Of the logits only differences count; scikit-learn's biases have this mean too.
    level = bias.detach() - found @ mean
    return found, level - level.mean()


def _ldifs(
    x: Tensor, labels: Tensor, classes: int, rate: float, seed: int
) -> Tuple[Tensor, Tensor]:
    """AdamW on all samples, as in the published code of LDIFS, from a seeded start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = nn.Linear(x.shape[1], classes).to(x)
    cost = _CrossEntropy(x, labels, classes)
    optimiser = torch.optim.AdamW(layer.parameters(), lr=rate)
    for _ in range(ITERATIONS):
        _, layer.weight.grad, layer.bias.grad = cost(layer.weight, layer.bias)
        optimiser.step()
    return layer.weight.detach(), layer.bias.detach()
