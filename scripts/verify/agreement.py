"""Trainers and regularisers on the device against the same in fp32 on the CPU."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from proxyfda.names import METHODS, PREFIXES, REFERENCE, WISE_FT, split_run_name
from proxyfda.regularisers import create, find, names
from verify.report import Check, Finding, NotApplicable
from verify.subjects import KINDS, PROJECT, TF32, Kit, check_kind, learnt, tf32

TOLERANCE = {
    "fp32": (1e-3, 5e-3),
    TF32: (0.03, 0.05),
    "amp": (0.03, 0.05),
    "bf16": (0.05, 0.1),
    "fp16": (0.03, 0.05),
}
"""Kind of precision -> largest relative difference from the CPU, of a loss and of the gradient. On
the CPU bf16 is at most 0.02 and 0.02 off; what relates images has neighbours, and one that changes
places moves a gradient by more than rounding does."""
TERM_TOLERANCE = 2e-3
"""The same of a term by itself, which computes in fp32 whatever its features are."""
ACCURACY_POINTS = 10.0
"""How far accuracy may be from the CPU's: a few images of the few that are tested."""
SKIPS = 2
"""Steps of a training that a GradScaler may skip while it finds its scale."""


def trainers() -> list[str]:
    """Every trainer that learns, plain and with the paper's regularisers."""
    hosts = [*PROJECT.hosts, *dict.fromkeys(split_run_name(run)[0] for run in METHODS.values())]
    hosts = [host for host in hosts if host != WISE_FT]  # probes of a plain fine-tuning
    return [prefix + host for host in hosts for prefix in ("", *PREFIXES)]


# -- whole trainings ------------------------------------------------------------------------------


class Trained(NamedTuple):
    """What a short training gave.

    Attributes:
        values: losses of the first step by name.
        gradient: of the first step, on the CPU.
        accuracy: in per cent, after the last step.
        losses: the task's of each step.
        skipped: steps that a GradScaler left out.
    """

    values: dict[str, float]
    gradient: torch.Tensor
    accuracy: float
    losses: list[float]
    skipped: int


def trained(kit: Kit, name: str, prec: str, device: str = "", steps: int = 0) -> Trained:
    """Train for a few steps on the same batches, and evaluate."""
    trainer = kit.trainer(name, prec, device, "INPUT.TRANSFORMS", "['normalize']")
    if trainer.scaler is not None and steps == 1:
        # Its first guess, 2^16, is for it to lower where it overflows; then there is no gradient.
        trainer.scaler = torch.amp.GradScaler(trainer.device.type, init_scale=2.0**8)
    first, gradient, losses, skipped = None, None, [], 0
    batches = iter(())
    for _ in range(steps or kit.sizes.steps):
        batch = next(batches, None)
        if batch is None:
            batches = iter(trainer.train_loader_x)
            batch = next(batches)
        scale = trainer.scaler.get_scale() if trainer.scaler is not None else 0.0
        values = {key: float(value) for key, value in trainer.forward_backward(batch).items()}
        skipped += trainer.scaler is not None and trainer.scaler.get_scale() < scale
        losses.append(values.get("loss_task", values["loss"]))
        if first is None:
            first, gradient = values, gradient_of(trainer)
    result = trainer.evaluate("test")
    trainer.close_writer()
    return Trained(_losses_in(first), gradient, result["accuracy"], losses, skipped)


def gradient_of(trainer) -> torch.Tensor:
    """All gradients of what is learnt, one after the other, in fp32 on the CPU."""
    weights = learnt(trainer).values()
    found = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
    return torch.cat([gradient.detach().float().flatten().cpu() for gradient in found])


def _losses_in(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if name.startswith("loss")}


def far(found: torch.Tensor, expected: torch.Tensor) -> float:
    """|found - expected| / |expected|."""
    return ((found - expected).norm() / expected.norm().clamp(min=1e-12)).item()


def of_trainers(kit: Kit) -> Iterator[Check]:
    """A row for every trainer and precision."""
    reference = functools.lru_cache(None)(lambda name: trained(kit, name, "fp32", "cpu"))
    for name in trainers():
        for kind in KINDS:
            yield Check(
                f"{name}, {kind}",
                f"{_expected(kind)}, accuracy within {ACCURACY_POINTS:.0f} points, "
                f"at most {SKIPS} steps skipped",
                functools.partial(_compare, kit, name, kind, reference),
            )
    yield Check(f"{REFERENCE}, fp32", "accuracy of the CPU", functools.partial(_zero_shot, kit))


def _expected(kind: str) -> str:
    loss, gradient = TOLERANCE[kind]
    return f"losses within {loss:g} and gradient within {gradient:g} of the CPU's"


def _first_step(got: Trained, want: Trained, kind: str) -> Finding:
    """How far the first step is from the CPU's."""
    gaps = {
        name: abs(got.values[name] - value) / max(abs(value), 1e-3)
        for name, value in want.values.items()
    }
    worst, gap = max(gaps, key=gaps.get), far(got.gradient, want.gradient)
    most, most_gap = TOLERANCE[kind]
    # In this order, as nothing is below or above what is no number.
    good = gaps[worst] <= most and gap <= most_gap
    return Finding(good, f"{worst} {gaps[worst]:.1e}, gradient {gap:.1e}")


def _compare(kit: Kit, name: str, kind: str, reference) -> Finding:
    prec = check_kind(kit, name, kind)
    want = reference(name)
    with tf32(kind == TF32):
        got = trained(kit, name, prec)
        # Where a GradScaler skips the first step there is no gradient to compare.
        one = trained(kit, name, prec, steps=1) if prec == "amp" else got
    first = _first_step(one, want, kind)
    points = got.accuracy - want.accuracy
    good = (
        first.good
        and all(map(math.isfinite, got.losses))
        and abs(points) <= ACCURACY_POINTS
        and got.skipped <= SKIPS
    )
    return Finding(
        good,
        f"{first.found}, accuracy {got.accuracy:.1f} ({points:+.1f}), {got.skipped} of "
        f"{len(got.losses)} skipped",
    )


def _zero_shot(kit: Kit) -> Finding:
    found = [
        kit.trainer(REFERENCE, "fp32", device).evaluate("test")["accuracy"]
        for device in ("", "cpu")
    ]
    return Finding(abs(found[0] - found[1]) < 1, f"{found[0]:.1f} and {found[1]:.1f}")


# -- regularisers ---------------------------------------------------------------------------------

DTYPES = {"fp32": torch.float32, TF32: torch.float32, "amp": torch.float16,
          "bf16": torch.bfloat16, "fp16": torch.float16}  # fmt: skip


def of_regularisers(kit: Kit) -> Iterator[Check]:
    """Every regulariser by itself, and in tuning end to end."""
    for name in names():
        for kind in KINDS:
            yield Check(
                f"{name} by itself, {kind}",
                f"value and gradient within {TERM_TOLERANCE:.0e} of the CPU's",
                functools.partial(_term, kit, name, kind),
            )
    reference = functools.lru_cache(None)(lambda name: trained(kit, name, "fp32", "cpu", 1))
    for name in names():
        run = next((p + "FineTune" for p, n in PREFIXES.items() if n == name), f"FineTune+{name}")
        for kind in KINDS:
            yield Check(
                f"{run}, one step, {kind}",
                _expected(kind),
                functools.partial(_one_step, kit, run, kind, reference),
            )


def _term(kit: Kit, name: str, kind: str) -> Finding:
    if find(name).kind == "weights" or find(name).takes_layers:
        raise NotApplicable("acts on weights or layers of an encoder; see the rows of its training")
    if not kit.on_gpu and kind in (TF32, "amp", "fp16"):
        raise NotApplicable("needs a GPU")
    inputs = _features(kit, DTYPES[kind])
    want = _value_and_gradient(name, inputs, torch.device("cpu"), kind)
    with tf32(kind == TF32):
        got = _value_and_gradient(name, inputs, kit.device, kind)
    value = abs(got[0] - want[0]) / max(abs(want[0]), 1e-6)
    gap = far(got[1], want[1])
    good = max(value, gap) <= TERM_TOLERANCE
    return Finding(good, f"value {value:.1e}, gradient {gap:.1e}")


def _features(kit: Kit, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and anchors of four classes, rounded to a dtype before either device sees them."""
    stream = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 64, generator=stream).repeat(kit.sizes.images // 4, 1)
    anchors = centres + 0.5 * torch.randn(len(centres), 64, generator=stream)
    tuned = anchors + 0.3 * torch.randn(len(centres), 64, generator=stream)
    return tuned.to(dtype), anchors.to(dtype)


def _value_and_gradient(name: str, inputs, device: torch.device, kind: str):
    regulariser = create_on(name, inputs[0].shape[1], device)
    tuned, anchors = (rows.to(device) for rows in inputs)
    tuned.requires_grad_()
    autocast = kind in ("amp", "bf16")
    dtype = DTYPES[kind] if autocast else torch.bfloat16
    with torch.autocast(device.type, dtype=dtype, enabled=autocast and device.type != "cpu"):
        loss = regulariser(tuned, anchors)
    (gradient,) = torch.autograd.grad(loss, tuned)
    return loss.item(), gradient.float().cpu()


def create_on(name: str, dim: int, device: torch.device):
    """A regulariser on a device, with the start that a seed gives on any."""
    torch.manual_seed(0)
    return create(name, dim, **({"k": 3} if "k" in _options(name) else {})).to(device)


def _options(name: str) -> set[str]:
    return set(find(name).options_class.__dataclass_fields__)


def _one_step(kit: Kit, run: str, kind: str, reference) -> Finding:
    prec = check_kind(kit, run, kind)
    want = reference(run)
    with tf32(kind == TF32):
        got = trained(kit, run, prec, steps=1)
    return _first_step(got, want, kind)
