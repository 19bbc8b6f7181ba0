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
# Of the gradient, where the curvature begins with 1 (see _Convex). At 1e-4 in place of 3e-5 losses
# differ in the fifth digit, and so do one or two in 10,000 predictions.
TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-7}
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
) -> LinearProbe:
    """Logistic regression on features, computed where they are.

    ``convex`` finds the one minimum of mean cross-entropy + strength / 2 · |weight|², bias free
    (scikit-learn's ``LogisticRegression(C=1 / (strength * N))``), by L-BFGS. ``ldifs`` is the
    probe of the published code of LDIFS (``omegafragger/ldifs_code``): 1,000 steps of AdamW with
    torch's defaults on all samples at once, and strength is its learning rate.

    Args:
        features: [N, d], a tensor or an array; float64 is fitted in float64, and more closely.
        labels: their classes [N], whole numbers from 0.
        strength: None for 1e-4, or 0.1 of ``ldifs``.
        recipe: ``convex`` or ``ldifs``.
        normalise: bring features to unit length first.
        classes: C, None for the largest label + 1.
        seed: of the values that ``ldifs`` starts from.

    Raises:
        BadValue: no features, or some that are not finite; labels that are not one class for each,
            or all the same; another option that cannot be.

    >>> x = torch.tensor([[2.0, 0.1], [1.0, -0.2], [0.1, 1.0], [-0.3, 2.0]])
    >>> probe = fit_linear_probe(x, [0, 0, 1, 1])
    >>> probe.weight.shape, probe.accuracy(x, [0, 0, 1, 0])
    (torch.Size([2, 2]), 0.75)
    """
    _check_recipe(recipe)
    x, found = _check("features", features, labels)
    fits = _Fits(x, found, recipe, normalise, classes, seed)
    return fits.at(STRENGTHS[recipe][2] if strength is None else strength)


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
    _check_recipe(recipe)
    strengths = STRENGTHS[recipe] if strengths is None else tuple(strengths)
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
    both = torch.cat([labels, labels_val])
    if classes is None:
        classes = int(both.max()) + 1
    fits = _Fits(x, labels, recipe, normalise, classes, seed)
    convex = recipe == "convex"
    best: Optional[LinearProbe] = None
    best_score = (-1.0, 0.0)
    # From strong to weak, each of them starts close to where it ends.
    for strength in sorted(strengths, reverse=True) if convex else strengths:
        probe = fits.at(strength)
        loss = _loss_of_known(probe, x_val, labels_val) if convex else 0.0
        score = probe.accuracy(x_val, labels_val), -loss
        if score > best_score:
            best, best_score = probe, score
    if best is None:
        raise BadValue(f"no strength of {strengths} gives a probe; use others.")
    if not refit:
        return best
    del fits
    return _Fits(torch.cat([x, x_val]), both, recipe, normalise, classes, seed).at(best.strength)


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


def _check_recipe(recipe: str) -> None:
    if recipe not in STRENGTHS:
        raise BadValue(f"recipe is {recipe!r}; use one of {', '.join(STRENGTHS)}.")


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


class _Fits:
    """Probes of the same features with several strengths."""

    def __init__(
        self,
        x: Tensor,
        labels: Tensor,
        recipe: str,
        normalise: bool,
        classes: Optional[int],
        seed: int,
    ):
        present = labels.unique()
        largest = int(present[-1])
        if len(present) < 2:
            raise BadValue(
                f"all {len(labels)} labels are class {largest}; a probe tells classes apart and "
                "needs two at least."
            )
        if classes is not None and classes <= largest:
            raise BadValue(f"classes is {classes}, but there is class {largest}; count from 0.")
        with torch.no_grad(), full_precision(x.device):
            x = x if x.dtype == torch.float64 else x.float()
            x = unit_rows(x) if normalise else x
            self.classes = largest + 1 if classes is None else classes
            self.present, self.normalise, self.seed = present, normalise, seed
            self.x, self.labels = x, labels
            self.convex: Optional[_Convex] = None
            if recipe == "convex":
                self.convex = _Convex(x, torch.searchsorted(present, labels), len(present))

    def at(self, strength: float) -> LinearProbe:
        """The probe with one strength."""
        if not 0 < strength < float("inf"):
            raise BadValue(f"strength is {strength!r}; use a number above 0.")
        with torch.no_grad(), full_precision(self.x.device):
            if self.convex is None:
                weight, bias = _ldifs(self.x, self.labels, self.classes, strength, self.seed)
            else:
                # A class without samples would send its bias to minus infinity.
                weight = self.x.new_zeros(self.classes, self.x.shape[1])
                bias = self.x.new_full((self.classes,), -float("inf"))
                weight[self.present], bias[self.present] = self.convex.minimum(strength)
        return LinearProbe(weight, bias, self.normalise, strength)


class _CrossEntropy:
    """Mean cross-entropy of labels [N] in [0, C) by features [N, d], and its gradient."""

    def __init__(self, x: Tensor, labels: Tensor, classes: int):
        self.chunks: List[Tuple[Tensor, Tensor]] = list(
            zip(*(part.split(max(1, _CHUNK // classes)) for part in (x, labels)))
        )
        self.size = len(x)

    def __call__(self, weight: Tensor, bias: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        # In fp32 a line search near the minimum would see nothing but rounding.
        loss = torch.zeros((), dtype=torch.float64, device=weight.device)
        by_weight, by_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        for x, labels in self.chunks:
            log = F.linear(x, weight, bias).log_softmax(1)
            rows = torch.arange(len(x), device=x.device)
            loss -= log[rows, labels].double().sum()
            slope = log.exp_()
            slope[rows, labels] -= 1
            by_weight.addmm_(slope.t(), x)
            by_bias += slope.sum(0)
        return loss / self.size, by_weight / self.size, by_bias / self.size


class _Convex:
    """Mean cross-entropy + strength / 2 · |weight|² of features [N, d], for one strength or many.

    Minimised in the coordinates of the features' principal axes about their mean, each scaled by
    the root of the curvature that the loss has along it at weight 0, so that L-BFGS begins with a
    problem of condition 1 instead of that of the features' spread: half the steps where they are
    many. Neither the minimum nor the penalty changes by it.
    """

    def __init__(self, x: Tensor, labels: Tensor, classes: int):
        self.mean = x.mean(0)
        x = x - self.mean
        self.cost = _CrossEntropy(x, labels, classes)
        spread, axes = torch.linalg.eigh((x.t() @ x).double() / len(x))
        self.curvature, self.axes = spread.clamp_(min=0).to(x) / classes, axes.to(x)
        # With the shares of the classes the loss is least at weight 0.
        shares = labels.bincount(minlength=classes).to(x) / len(x)
        self.start = torch.cat([x.new_zeros(classes, x.shape[1]), shares.log()[:, None]], 1)

    def minimum(self, strength: float) -> Tuple[Tensor, Tensor]:
        """Weight [C, d] and bias [C], looked for from where the last minimum was."""
        scale = (self.curvature + strength).rsqrt()
        penalty = strength * scale.square()
        found = self.start.clone()
        found[:, :-1] /= scale
        found.requires_grad_()
        optimiser = torch.optim.LBFGS(
            [found],
            max_iter=ITERATIONS,
            tolerance_grad=TOLERANCE[found.dtype],
            tolerance_change=0.0,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        @torch.no_grad()
        def closure() -> Tensor:
            turned, bias = found[:, :-1], found[:, -1]
            loss, by_weight, by_bias = self.cost((turned * scale) @ self.axes.t(), bias)
            by_turned = (by_weight @ self.axes) * scale + penalty * turned
            found.grad = torch.cat([by_turned, by_bias[:, None]], 1)
            return loss + (penalty * turned.square()).sum() / 2

        optimiser.step(closure)
        found = found.detach()
        found[:, :-1] *= scale
        self.start = found
        weight = found[:, :-1] @ self.axes.t()
        bias = found[:, -1] - weight @ self.mean
        # Of logits only differences count: with mean 0 they are scikit-learn's.
        return weight, bias - bias.mean()


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
