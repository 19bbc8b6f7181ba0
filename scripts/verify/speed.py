"""Time, memory, kernels and waits of a training step, and what the regularisers add to it.

What is timed is built by ``bench.py`` and ``bench_finetune.py``. On a CPU there are stand-ins with
the same shape and no meaning: wall-clock time, resident memory, torch's operations for kernels.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import statistics
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator

import bench
import bench_finetune
import torch
from bench_regularisers import operations
from torch.utils._python_dispatch import TorchDispatchMode

from proxyfda import FDA, FrozenCopy, attach
from proxyfda.regularisers import find, names
from proxyfda.regularisers.constants import FIRST_BATCHES
from verify.agreement import create_on, far
from verify.report import Check, Finding
from verify.subjects import TF32, Kit, check_kind, tf32

TRAINERS = ("CoOp", "CoCoOp", "MaPLe", "PromptSRC")
KINDS = (TF32, "amp", "bf16")
MOST = 1.15
"""Largest ratio to the bare encoders of a step's time and memory."""
AIMS = {"fda": 1.0, "proxy_fda": 2.0}
"""Regulariser -> per cent that it may add to a step."""
PAPER = {"fda": "7 to 9 %", "proxy_fda": "17 to 21 %"}
"""What the paper states (arXiv 2505.24088)."""
BEGINNING = FIRST_BATCHES + 1
"""Steps before one is looked at: what is computed once is then there, constants are derived, and
the plugin has seen in its first five whether a term has any effect."""
STAND_IN = "a stand-in on the CPU, at sizes of no meaning"


class Models:
    """Trainers at the sizes that are timed; one at a time, as each takes memory."""

    def __init__(self, kit: Kit) -> None:
        self.kit = kit

    @functools.cached_property
    def weights(self) -> str:
        """A file with random weights of the backbone."""
        return bench.random_weights(self.kit.sizes.backbone, self.kit.folder)

    @functools.cached_property
    def side(self) -> int:
        """Of the images, in pixels."""
        return bench.image_size(self.kit.sizes.backbone, self.weights)

    def prompts(self, name: str, prec: str, classes: int, images: int):
        """A trainer of prompts, and a batch."""
        gc.collect()
        args = self._args(prec, classes, images)
        trainer = bench.build(name, args, self.weights, self.side)
        return trainer, next(iter(trainer.train_loader_x))

    def tuned(self, method: str, prec: str, classes: int, images: int):
        """A trainer that tunes end to end, and a batch."""
        gc.collect()
        args = self._args(prec, classes, images)
        args.weights, args.side, args.folder = self.weights, self.side, self.kit.folder
        trainer = bench_finetune.trainer_of(method, args)
        return trainer, next(iter(trainer.train_loader_x))

    def _args(self, prec: str, classes: int, images: int) -> Namespace:
        opts = {"USE_CUDA": self.kit.on_gpu, "TRAINER.PROXYFDA.K": 3, **self.kit.sizes.options}
        return Namespace(
            backbone=self.kit.sizes.backbone,
            classes=classes,
            batch=images,
            prec=prec,
            opts=[(key, str(value)) for key, value in opts.items()],
        )


# -- time and memory ------------------------------------------------------------------------------


def milliseconds(kit: Kit, jobs: dict[str, Callable[[], None]]) -> dict[str, list[float]]:
    """Times of jobs that take turns, after two rounds that warm up; a GPU's own clock."""
    for _ in range(2 if kit.on_gpu else 1):
        for job in jobs.values():
            job()
    times: dict[str, list] = {name: [] for name in jobs}
    for _ in range(kit.sizes.rounds):
        for name, job in jobs.items():
            if kit.on_gpu:
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                job()
                end.record()
                times[name].append((start, end))
            else:
                before = time.perf_counter()
                job()
                times[name].append(1000 * (time.perf_counter() - before))
    if kit.on_gpu:
        torch.cuda.synchronize()
        return {n: [a.elapsed_time(b) for a, b in pairs] for n, pairs in times.items()}
    return times


def of_steps(kit: Kit) -> Iterator[Check]:
    """Time and memory of a step beside the bare encoders."""
    models = Models(kit)
    for name in TRAINERS:
        for kind in KINDS:
            yield Check(
                f"{name}, {kind}, {kit.sizes.backbone}, {kit.sizes.classes} classes",
                f"time and peak memory at most {MOST:g} times the bare encoders'",
                functools.partial(_step, kit, models, name, kind),
            )


def _step(kit: Kit, models: Models, name: str, kind: str) -> Finding:
    # CoCoOp has texts for every image.
    images = max(2, kit.sizes.batch // 8) if name == "CoCoOp" else kit.sizes.batch
    trainer, batch = models.prompts(name, _prec(kit, name, kind), kit.sizes.classes, images)
    with tf32(kind == TF32):
        frozen = bench.needs_frozen_images(trainer, batch)
        jobs = {
            "step": functools.partial(bench.step, trainer, batch),
            "bare": functools.partial(bench.bare_step, trainer, batch, frozen),
        }
        times = milliseconds(kit, jobs)
        memory = {what: bench.peak_memory(job) for what, job in jobs.items()}
    slower = bench.ratio(times["step"], times["bare"])
    larger = memory["step"] / max(memory["bare"], 1e-6)
    step, bare = (statistics.median(times[what]) for what in jobs)
    found = (
        f"{step:.1f} ms, bare {bare:.1f} ms, {slower:.3f}; {memory['step']:.0f} MiB, bare "
        f"{memory['bare']:.0f} MiB"
    )
    if not kit.on_gpu:
        return Finding(None, found, STAND_IN)
    return Finding(slower <= MOST and larger <= MOST, found)


def _prec(kit: Kit, name: str, kind: str) -> str:
    """``PREC``; a CPU stands in for tf32 with fp32."""
    return "fp32" if kind == TF32 and not kit.on_gpu else check_kind(kit, name, kind)


# -- kernels and waits ----------------------------------------------------------------------------


def of_launches(kit: Kit) -> Iterator[Check]:
    """Kernels of a step, and how often the host waits for the device in it."""
    runs = [prefix + host for host in (*TRAINERS, "FineTune") for prefix in ("", "FDA", "ProxyFDA")]
    for name in runs:
        for kind in ("fp32", "amp"):
            waits = "no wait for the device"
            if kind == "amp":
                waits = "a wait for the device for each optimiser (GradScaler's), no more"
            yield Check(f"{name}, {kind}", waits, functools.partial(_launches, kit, name, kind))


def _launches(kit: Kit, name: str, kind: str) -> Finding:
    trainer = kit.trainer(name, check_kind(kit, name, kind))
    batch = next(iter(trainer.train_loader_x))
    batch = {
        key: value.to(kit.device) if isinstance(value, torch.Tensor) and key != "index" else value
        for key, value in batch.items()
    }
    step = functools.partial(trainer.forward_backward, batch)
    for _ in range(BEGINNING):
        step()
    allowed = 0
    if kind == "amp":  # the proxies' generator has an optimiser of its own
        allowed = 2 if name.startswith("ProxyFDA") else 1
    waits = waits_of(kit, trainer, step)
    launched = kernels(step) if kit.on_gpu else operations(step)
    what = "kernels" if kit.on_gpu else "operations (stand-in for kernels)"
    trainer.close_writer()
    return Finding(waits <= allowed, f"{launched} {what}, {waits} waits")


def kernels(step: Callable[[], None]) -> int:
    """What a step launches on the GPU."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as found:
        step()
        torch.cuda.synchronize()
    cuda = torch.autograd.DeviceType.CUDA
    return sum(
        event.device_type == cuda and not getattr(event, "is_user_annotation", False)
        for event in found.events()
    )


def waits_of(kit: Kit, trainer, step: Callable[[], None]) -> int:
    """How often the host waits for the device in a step."""
    if kit.on_gpu:
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing" in str(one.message) for one in said)
    # On a CPU: operations that give a number to Python. An optimiser keeps its own numbers there
    # whatever the device is.
    with _without_optimisers(trainer), _Waits() as found:
        step()
    return found.count


class _Waits(TorchDispatchMode):
    """Counts operations whose result Python waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        aten = torch.ops.aten
        self.count += func in (aten._local_scalar_dense.default, aten.nonzero.default)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _without_optimisers(trainer) -> Iterator[None]:
    own = getattr(getattr(trainer, "term", None), "own", None)
    optimisers = [one for one in (trainer.optim, own) if one is not None]
    for one in optimisers:
        one.step = lambda *_: None
    try:
        yield
    finally:
        for one in optimisers:
            del one.step


# -- torch.compile --------------------------------------------------------------------------------


def of_compile(kit: Kit) -> Iterator[Check]:
    """Compiled regularisers, and attach around a compiled encoder."""
    backend = "inductor" if kit.on_gpu else "aot_eager"
    note = "" if kit.on_gpu else " (aot_eager, a stand-in for inductor)"
    for name in names():
        if find(name).kind != "weights" and not find(name).takes_layers:
            yield Check(
                f"{name}{note}", "value and gradient as without torch.compile",
                functools.partial(_compiled_term, kit, name, backend),
            )  # fmt: skip
    yield Check(
        f"attach to a compiled encoder{note}", "gradients as without torch.compile",
        functools.partial(_compiled_encoder, kit, backend),
    )  # fmt: skip


def _compiled_term(kit: Kit, name: str, backend: str) -> Finding:
    torch.compiler.reset()  # or the last of many would be left as they are
    torch.manual_seed(0)
    anchors = torch.randn(16, 32, device=kit.device)
    tuned = anchors + 0.3 * torch.randn(16, 32, device=kit.device)
    found = []
    for compiled in (False, True):
        regulariser = create_on(name, 32, kit.device)
        call = torch.compile(regulariser, backend=backend) if compiled else regulariser
        rows = tuned.clone().requires_grad_()
        loss = call(rows, anchors)
        found.append((loss.item(), torch.autograd.grad(loss, rows)[0]))
    (value, gradient), (value_compiled, gradient_compiled) = found
    gaps = abs(value_compiled - value) / max(abs(value), 1e-6), far(gradient_compiled, gradient)
    return Finding(max(gaps) < 1e-3, f"value {gaps[0]:.1e}, gradient {gaps[1]:.1e}")


def _compiled_encoder(kit: Kit, backend: str) -> Finding:
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 8))
    encoder.to(kit.device)
    frozen = FrozenCopy(encoder)
    with torch.no_grad():
        encoder[0].weight.mul_(1.5)
    rows, found = torch.randn(16, 8, device=kit.device), []
    for compiled in (False, True):
        module = torch.compile(encoder, backend=backend, fullgraph=True) if compiled else encoder
        encoder.zero_grad()
        with attach(module, FDA(k=3), 2.0, anchors=frozen):
            module(rows).square().mean().backward()
        found.append(torch.cat([weight.grad.flatten() for weight in encoder.parameters()]))
    gap = far(found[1], found[0])
    return Finding(gap < 1e-3, f"gradient {gap:.1e}")


# -- what the regularisers add --------------------------------------------------------------------


def of_overhead(kit: Kit) -> Iterator[Check]:
    """What FDA and Proxy-FDA add to a step."""
    models, sizes = Models(kit), kit.sizes
    for name, aim in AIMS.items():
        expected = f"at most +{aim:g} % (the paper: {PAPER[name]})"
        at = f"{sizes.backbone}, {sizes.images} images"
        yield Check(
            f"{name}, tuning end to end, {at}, beside a step with the frozen pass", expected,
            functools.partial(_tuned, kit, models, name, aim),
        )  # fmt: skip
        for classes in sizes.many:
            yield Check(
                f"{name}, CoOp, {at}, {classes} classes", expected,
                functools.partial(_prompts, kit, models, name, aim, classes),
            )  # fmt: skip


def _tuned(kit: Kit, models: Models, name: str, aim: float) -> Finding:
    sizes = kit.sizes
    with tf32(kit.on_gpu):
        naive, batch = models.tuned("naive", "fp32", sizes.classes, sizes.images)
        tuned, _ = models.tuned(f"FineTune+{name}", "fp32", sizes.classes, sizes.images)
        jobs = {
            "with": functools.partial(bench.step, tuned, batch),
            "without": functools.partial(bench_finetune.step_with_frozen_pass, naive, batch),
        }
        return _added(kit, milliseconds(kit, jobs), aim)


def _prompts(kit: Kit, models: Models, name: str, aim: float, classes: int) -> Finding:
    images = kit.sizes.images
    with tf32(kit.on_gpu):
        plain, batch = models.prompts("CoOp", "fp32", classes, images)
        tuned, _ = models.prompts(f"CoOp+{name}", "fp32", classes, images)
        jobs = {
            "with": functools.partial(bench.step, tuned, batch),
            "without": functools.partial(bench.step, plain, batch),
        }
        return _added(kit, milliseconds(kit, jobs), aim)


def _added(kit: Kit, times: dict[str, list[float]], aim: float) -> Finding:
    added = 100 * (bench.ratio(times["with"], times["without"]) - 1)
    medians = [statistics.median(times[key]) for key in ("without", "with")]
    found = f"{added:+.2f} % ({medians[0]:.1f} and {medians[1]:.1f} ms)"
    if not kit.on_gpu:
        return Finding(None, found, STAND_IN)
    return Finding(added <= aim, found)
