"""A regulariser in a training loop that is not to be changed: :func:`attach`."""

from __future__ import annotations

import math
import sys
import warnings
import weakref
from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn
from torch.utils import _python_dispatch, checkpoint

from proxyfda.anchors.cached_features import CachedFeatures
from proxyfda.anchors.frozen_copy import FrozenCopy
from proxyfda.anchors.outputs import tensor_of
from proxyfda.diagnostics.monitor import Monitor, check_monitor
from proxyfda.integrations import loss_scale
from proxyfda.integrations.capture import in_backward_pass
from proxyfda.integrations.ranks import OwnParameters
from proxyfda.neighbours.cosines import full_precision
from proxyfda.regularisers.base import Features, Regulariser
from proxyfda.utils.errors import BadType, BadValue, Unusable

__all__ = ["Attached", "attach"]


def attach(
    module: nn.Module,
    regulariser: Callable[..., Tensor],
    weight: Optional[float] = None,
    anchors: Union[str, nn.Module, Callable[..., Any]] = "copy",
    *,
    scale: Any = None,
    output: Union[int, str, None] = None,
    features: Optional[Callable[[Tensor], Features]] = None,
    together: bool = False,
    average: Any = True,
    monitor: Optional[Monitor] = None,
) -> Attached:
    """Regularise the features that a module returns, wherever it is trained.

    From now on the gradient of ``weight * regulariser(features, anchors)`` joins the backward pass
    of every forward pass of the module that is trained, as if the term stood in the loss. Nothing
    else has to be called inside the loop. The reported loss is the task's alone; the terms are in
    ``handle.terms``. Passes without gradient (evaluation) are left alone.

    A regulariser with parameters of its own (the proxies' generator) receives their gradients;
    give ``regulariser.parameters()`` to an optimiser.

    In the loop:

    - *Gradient accumulation*: each forward pass is a batch of its own to the regulariser, however
      many there are before a backward pass or a step. Where the loop divides its loss by k, so is
      the term; a warning says so once, and an explicit ``scale`` settles it.
    - *GradScaler, autocast*: the scale is found. The term is computed in fp32.
    - *A factor in the loss*: what divides the whole loss divides the term (``loss / k``), but
      ``sum() / N`` is a mean and leaves it alone, and a number that multiplies, as in
      ``0.5 * loss``, is the task's own weight. ``scale`` settles what is meant otherwise.
    - *Several calls in a step*: a term each; with ``together=True`` one on all of them joined.
    - *Activation checkpointing*: counts once, reentrant or not.
    - *torch.compile*: before or after attach. With ``fullgraph=True`` compile the module by itself
      and attach to what ``torch.compile`` returns. A factor inside a compiled loss is not seen:
      give ``scale``.
    - *DDP*: attach to the module inside or to the wrapper, on every rank. The regulariser's own
      parameters are made the same on all ranks and their gradients averaged.
    - *DataParallel*: attach to the wrapper, which gathers the features.
    - *FSDP*: ``frozen = FrozenCopy(module)`` before sharding, then ``anchors=frozen``.
    - *Features edited in place*: refused; write ``x = x / y`` for ``x /= y``.
    - *create_graph=True, torch.func*: refused; add the term to the loss by hand.
    - *Two backward passes over one forward pass*: the first has the term.
    - *Features that the loss does not use*: no term, as no gradient arrives that it could join.
    - *Methods other than a call*: ``model.encode_image(x)`` calls ``model.visual(x)``, so attach to
      ``model.visual``. Where nothing was seen ``handle.terms`` stays empty.
    - *Copies and pickles of the module*: have no term; its ``state_dict`` is what it was.

    Args:
        module: returns features, alone or in a tuple, list, mapping or dataclass.
        regulariser: one of :mod:`proxyfda.regularisers`, or a function of (features, anchors) that
            gives one scalar.
        weight: λ; it may be changed later as ``handle.weight``. None: the regulariser's own
            (``default_weight``), for a function 1.
        anchors: the frozen side. ``"copy"``, a copy of the module as it is now, which follows the
            module to another device; a module (in eval mode) or a function, called with what the
            module is called with (before torch 2.0 with its positional arguments), without
            gradient, which returns what the module returns; or
            :class:`~proxyfda.anchors.CachedFeatures`, for which nothing is computed.
        scale: the factor by which the loop multiplies its loss before the backward pass. None finds
            it: while the handle is on, ``torch.autograd.backward`` and ``grad`` are wrapped to read
            it from the loss. Otherwise a number, a ``GradScaler``, or a function that gives the
            factor; nothing is found then.
        output: which of several outputs has the features, a position, a key or the name of an
            attribute; None: the first.
        features: makes features [N, d] of that output, for example ``lambda x: x[:, 0]`` of a
            transformer's tokens [N, T, d], or a list of several layers' features for LDIFS; the
            gradient goes through it.
        together: whether the passes before a backward pass are one batch to the regulariser.
        average: whether the gradients of the regulariser's own parameters are averaged over the
            ranks of ``torch.distributed``, where it runs; or the process group. All ranks have to
            train the module equally often.

    Returns:
        The handle; ``handle.remove()``, or the end of ``with attach(...):``, restores everything.

    Raises:
        BadType: no module, one that cannot be copied, no regulariser, or anchors or a monitor of
            another kind.
        BadValue: a weight that is negative or not finite.
        Unusable: in the loop, what the table says is refused.

    >>> encoder = nn.Linear(4, 3)
    >>> handle = attach(encoder, lambda x, anchors: (x - anchors).square().sum())
    >>> encoder(torch.ones(2, 4)).sum().backward()
    >>> handle.terms, handle.remove()
    ({'loss': tensor(0.)}, None)
    """
    if not isinstance(module, nn.Module):
        raise BadType(
            f"module is a {type(module).__name__}; give the torch.nn.Module to regularise."
        )
    if not callable(regulariser):
        raise BadType(
            f"regulariser is {regulariser!r}; give one of proxyfda.regularisers, such as "
            "proxyfda.FDA(), or a function of (features, anchors)."
        )
    if isinstance(regulariser, nn.parallel.DistributedDataParallel):
        regulariser = regulariser.module
    if weight is None:
        weight = own_weight(regulariser)
    if isinstance(regulariser, Regulariser) and regulariser.kind == "weights":
        raise BadType(
            f"{type(regulariser).__name__} acts on weights and not on features; add "
            f"weight * regulariser() to the loss."
        )
    if (
        isinstance(anchors, str)
        and anchors != "copy"
        or not (anchors == "copy" or callable(anchors))
    ):
        raise BadType(f'anchors is {anchors!r}; give "copy", a module or a function.')
    check_monitor(monitor)
    return Attached(
        module, regulariser, weight, anchors, scale, output, features, together, average, monitor
    )


def own_weight(regulariser: Callable[..., Tensor]) -> float:
    """λ where none is given: the regulariser's own, for a function 1."""
    return regulariser.default_weight if isinstance(regulariser, Regulariser) else 1.0


class Attached:
    """What :func:`attach` returns.

    Attributes:
        weight: λ.
        terms: the terms of the last forward pass by name, without λ.
        scale: the factor of the last backward pass; 1 before.
    """

    def __init__(
        self,
        module: nn.Module,
        regulariser: Callable[..., Tensor],
        weight: float,
        anchors: Any,
        scale: Any,
        output: Union[int, str, None],
        features: Optional[Callable[[Tensor], Features]],
        together: bool,
        average: Any,
        monitor: Optional[Monitor] = None,
    ) -> None:
        self.weight = weight
        self._monitor = monitor
        self.terms: Dict[str, Tensor] = {}
        self.scale: Union[float, Tensor] = 1.0
        self._regulariser = regulariser
        self._follows = isinstance(anchors, str)
        self._anchors: Any = FrozenCopy(module) if self._follows else anchors
        self._given_scale, self._output, self._features = scale, output, features
        self._together, self._open = together, []  # type: Tuple[bool, List[Any]]
        own: List[nn.Parameter] = []
        if isinstance(regulariser, nn.Module):
            own = [p for p in regulariser.parameters() if p.requires_grad]
        self._own = own
        group = None if isinstance(average, bool) else average
        self._ranks = OwnParameters(own, group, average is not False)
        self._warned, self.spent = False, []  # type: Tuple[bool, List[Any]]
        _forget_compiled()
        self._hook = _Hook(self)
        try:
            self._handle: Any = module.register_forward_hook(self._hook, with_kwargs=True)
        except TypeError:  # before torch 2.0, where hooks see no keyword arguments
            self._handle = module.register_forward_hook(self._hook)
        self._unwatch: Any = None
        if scale is None:
            loss_scale.watch()
            self._unwatch = weakref.finalize(self, loss_scale.unwatch)
            self._unwatch.atexit = False

    @property
    def weight(self) -> float:
        """λ; 0 leaves everything out."""
        return self._weight

    @weight.setter
    def weight(self, value: float) -> None:
        if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= 0):
            raise BadValue(f"weight is {value!r}; give a finite number of at least 0.")
        self._weight = float(value)

    def remove(self) -> None:
        """Take everything off the module; graphs that exist lose the term as well."""
        if self._handle is None:
            return
        self._handle.remove()
        self._handle = self._anchors = self._hook.see = None
        if self._unwatch is not None:
            self._unwatch()
        _forget_compiled()

    def __enter__(self) -> Attached:
        return self

    def __exit__(self, *error: Any) -> None:
        self.remove()

    @property
    def removed(self) -> bool:
        """Whether :meth:`remove` was called."""
        return self._handle is None

    # -- forward ----------------------------------------------------------------------------------

    def see(self, module: nn.Module, args: Any, kwargs: Dict[str, Any], output: Any) -> None:
        """A forward pass of the module."""
        if self.removed or not torch.is_grad_enabled():
            return
        if not self.weight:
            self._look_only(module, args, kwargs, output)
            return
        returned = tensor_of(output, self._output)
        if _in_transform() and (
            returned.requires_grad or any(p.requires_grad for p in module.parameters())
        ):
            raise Unusable(
                "the module runs inside a transform of torch.func, where no hook can add a "
                "gradient; add weight * regulariser(features, anchors) to the loss by hand"
            )
        if not returned.requires_grad:
            return
        if getattr(module, "_is_replica", False):
            raise Unusable(
                "the module is a replica inside DataParallel, which has a part of the batch; "
                "attach to the DataParallel module itself, or use DistributedDataParallel"
            )
        self._ranks.align()
        if self._follows:
            self._anchors.follow(module)
        while self.spent:
            self.spent.pop().remove()
        seen = _Pass(self, returned)
        seen.hook = returned.register_hook(seen.join)
        if in_backward_pass():
            # Activation checkpointing computes the pass again. Where it only wants the tensors
            # inside, no gradient ever arrives at these features, and the first ones have the term;
            # a reentrant one had no gradient the first time, and these have it.
            seen.later = lambda: self._frozen(args, kwargs)
            return
        with _unseen():
            seen.anchors = self._frozen(args, kwargs)
            if self._together:
                self._open.append(weakref.ref(seen))
            else:
                self._compute([seen])

    def _look_only(self, module: nn.Module, args: Any, kwargs: Dict[str, Any], output: Any) -> None:
        """Show the monitor a pass that has no term; others cost nothing."""
        if self._monitor is None or in_backward_pass() or _in_transform():
            return
        returned = tensor_of(output, self._output)
        if not returned.requires_grad or not self._monitor.due():
            return
        if self._follows:
            self._anchors.follow(module)
        with _unseen(), torch.no_grad():
            plain = returned.detach()
            found = plain if self._features is None else self._features(plain)
            self._monitor.look(_last(found), _last(self._frozen(args, kwargs)))

    def _frozen(self, args: Any, kwargs: Dict[str, Any]) -> Features:
        if isinstance(self._anchors, CachedFeatures):
            return self._anchors(*args, **kwargs)
        with torch.no_grad():
            found = self._anchors(*args, **kwargs)
            found = tensor_of(found, self._output, "anchors").detach()
            return found if self._features is None else self._features(found)

    # -- the gradient -----------------------------------------------------------------------------

    def compute(self, seen: _Pass) -> None:
        """Fill in the gradients of a pass and of those that belong together with it."""
        if seen.later is not None:
            if self._together:
                raise Unusable(
                    "the module runs inside a reentrant checkpoint, whose passes cannot be taken "
                    "together; call torch.utils.checkpoint.checkpoint with use_reentrant=False"
                )
            seen.anchors, seen.later = seen.later(), None
        waiting = [found for found in (ref() for ref in self._open) if found is not None]
        self._open = []
        self._compute([found for found in waiting if found.anchors is not None] or [seen])

    def _compute(self, passes: Sequence[_Pass]) -> None:
        """Fill in the gradients of passes that are one batch, without scale."""
        leaves = [seen.returned.to(_sums_in(seen.returned)).detach() for seen in passes]
        anchors = [seen.anchors for seen in passes]
        with torch.enable_grad(), full_precision(leaves[0].device):
            for leaf in leaves:
                leaf.requires_grad_()
            made = [leaf if self._features is None else self._features(leaf) for leaf in leaves]
            both = _joined(made), _joined(anchors)
            terms = self._terms(*both)
            first, *others = terms.values()
            total = sum(others, first) * self.weight
            own = self._own if isinstance(self._regulariser, nn.Module) else _leaves(total, leaves)
            # A batch with nothing to align may have a zero without gradient in its place.
            wanted = [*leaves, *own]
            found: Sequence[Optional[Tensor]] = [None] * len(wanted)
            if total.requires_grad:
                found = loss_scale.unnoted_grad(total, wanted, allow_unused=True)
        self.terms = {name: term.detach() for name, term in terms.items()}
        if self._monitor is not None and self._monitor.due():
            self._monitor.look(_last(both[0]), _last(both[1]))
        for seen, gradient in zip(passes, found):
            seen.gradient, seen.anchors, seen.own = gradient, None, None
        passes[0].own = list(zip(own, found[len(leaves) :]))
        for seen in passes:
            seen.computed = True

    def _terms(self, features: Features, anchors: Features) -> Dict[str, Tensor]:
        tuned, frozen = _last(features), _last(anchors)
        rows = (len(tuned), len(frozen)) if tuned.dim() and frozen.dim() else (1, 1)
        if rows[0] != rows[1]:
            raise BadValue(
                f"there are {rows[0]} features and {rows[1]} anchors; give anchors of the same "
                "samples."
            )
        if not isinstance(self._regulariser, Regulariser):
            return {"loss": self._regulariser(features, anchors)}
        if self._regulariser.kind == "relations" and (tuned is not features or tuned.dim() != 2):
            raise BadValue(
                f"the features have the shape {tuple(tuned.shape)}, but "
                f"{type(self._regulariser).__name__} relates samples of a batch [N, d]; choose by "
                "output= and features=, such as features=lambda x: x[:, 0] of tokens [N, T, d]."
            )
        return self._regulariser.terms(features, anchors)

    # -- backward ---------------------------------------------------------------------------------

    def factor(self, like: Tensor) -> Union[float, Tensor]:
        """By what the loss of the backward pass that runs is multiplied."""
        scale = self._given_scale
        if scale is None:
            found = loss_scale.current()
            if not self._warned and not isinstance(found.constant, Tensor) and found.constant != 1:
                self._warned = True
                warnings.warn(
                    f"the loss is multiplied by {found.constant:.4g} before the backward pass, and "
                    "so is the regulariser's term, as it is right under gradient accumulation; "
                    "give scale= to attach, the factor or 1.0, to settle it",
                    stacklevel=2,
                )
            scale = found.factor
        elif hasattr(scale, "scale") and hasattr(scale, "is_enabled"):  # a GradScaler
            # In place of get_scale, which waits for the device.
            scale = scale.scale(like.new_ones(())) if scale.is_enabled() else 1.0
        elif callable(scale):
            scale = scale()
        self.scale = scale
        return scale

    def give_own(
        self, own: Sequence[Tuple[Tensor, Optional[Tensor]]], factor: Union[float, Tensor]
    ) -> None:
        """Add the gradients of the regulariser's own parameters to what they have."""
        gradients = [None if gradient is None else gradient * factor for _, gradient in own]
        if isinstance(self._regulariser, nn.Module):
            gradients = self._ranks.averaged(gradients)
        for (parameter, _), gradient in zip(own, gradients):
            if gradient is not None:
                before = parameter.grad
                parameter.grad = gradient if before is None else before + gradient


class _Pass:
    """A forward pass: the gradient of the term, until the loss's own arrives.

    It belongs to a hook of what the module returned, and is freed with the graph. The tensor itself
    it must not hold, which would keep both for ever: ``returned`` is without gradient.
    """

    def __init__(self, handle: Attached, returned: Tensor) -> None:
        self._handle: Optional[Attached] = handle
        self.returned: Any = returned.detach()  # shares storage and version
        self._version = returned._version
        self.anchors: Any = None
        self.later: Optional[Callable[[], Features]] = None
        self.computed = False
        self.gradient: Optional[Tensor] = None
        self.own: Any = None
        self.hook: Any = None

    def join(self, grad: Tensor) -> Optional[Tensor]:
        """The gradient of the loss with that of the term added."""
        handle = self._handle
        if handle is None or handle.removed:
            return None
        if torch.is_grad_enabled():
            raise Unusable(
                "the backward pass has create_graph=True, for second derivatives, which a gradient "
                "that joins there has not; add weight * regulariser(features, anchors) to the loss "
                "by hand"
            )
        if self.returned._version != self._version:
            raise Unusable(
                "the features were changed in place after the module returned them, so the "
                "regulariser cannot see what they were; write x = x / y instead of x /= y, and "
                "inplace=False in the layer after the module"
            )
        if not self.computed:
            handle.compute(self)
        factor = handle.factor(self.returned)
        if self.own:
            handle.give_own(self.own, factor)
        extra = self.gradient
        # A second backward pass over the graph is not a second term. The hook of a parameter that
        # the module hands out would outlive the graph; it cannot be taken off while it runs.
        handle.spent.append(self.hook)
        self._handle = self.returned = self.gradient = self.own = self.hook = None
        if extra is None:
            return None
        # The sum in fp32: a scaled half-precision gradient would lose the smaller summand.
        wide = _sums_in(grad)
        return (grad.to(wide) + extra.to(wide) * factor).to(grad.dtype)


class _Hook:
    """The forward hook. Copies and pickles of the module have one that does nothing."""

    def __init__(self, handle: Optional[Attached] = None) -> None:
        self.see: Any = None if handle is None else _uncompiled(handle.see)

    def __call__(self, module: nn.Module, args: Any, *rest: Any) -> None:
        if self.see is not None:
            kwargs, output = rest if len(rest) == 2 else ({}, *rest)
            self.see(module, args, kwargs, output)

    def __reduce__(self) -> Any:
        return _Hook, ()


@contextmanager
def _unseen() -> Iterator[None]:
    """What is computed inside is no part of an activation checkpoint around it.

    A checkpoint counts the tensors that are saved inside it, a selective one also the operations,
    and wants the same ones when it computes again.
    """
    with ExitStack() as stack:
        # Asked first, as a call of Python's for each saved tensor is felt.
        top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: True)
        if top(False) is not None:
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(_itself, _itself))
        modes: List[Any] = getattr(_python_dispatch, "_get_current_dispatch_mode_stack", list)()
        if any(type(mode).__module__ == checkpoint.__name__ for mode in modes):
            stack.enter_context(_python_dispatch._disable_current_modes())
        yield


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _sums_in(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _joined(parts: Sequence[Any]) -> Features:
    """One batch of several, of each layer where there are more."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    return [torch.cat(layer) for layer in zip(*parts)]


def _last(features: Features) -> Tensor:
    """The features, of several layers the last one's."""
    return features if isinstance(features, Tensor) else features[-1]


def _leaves(total: Tensor, without: Sequence[Tensor]) -> List[Tensor]:
    """What a function's term depends on that has a gradient of its own, such as a projection."""
    found: List[Tensor] = []
    known, waiting = {None}, [total.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node in known:
            continue
        known.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and all(variable is not other for other in without):
            found.append(variable)
        waiting += [below for below, _ in node.next_functions]
    return found


def _in_transform() -> bool:
    """Whether this runs under grad, vmap or another transform of torch.func."""
    functorch = getattr(torch._C, "_functorch", None)
    peek = getattr(functorch, "peek_interpreter_stack", None)
    return peek is not None and peek() is not None


def _uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function at which ``torch.compile`` breaks the graph."""
    compiler = getattr(torch, "compiler", None)
    disable = getattr(compiler, "disable", None)
    if disable is None:
        return function
    try:
        return disable(
            function,
            reason="proxyfda.attach adds to a gradient between compiled parts; without "
            "fullgraph=True it works, and with it compile the module by itself and attach to what "
            "torch.compile returns",
        )
    except TypeError:  # an older torch has no reasons
        return disable(function)


def _forget_compiled() -> None:
    """Let ``torch.compile`` start anew: what it compiled before does not look for new hooks."""
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()
