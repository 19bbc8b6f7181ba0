"""Which class each row of a text encoder's output is.

Trainers call their text encoder in many ways: once with a row per class, once per image, with
several prompts per class, with the classes of the whole dataset as well, or in an order drawn
anew in each step. Rows that are taken for other classes than they are give a term that looks sound
and is wrong, so each call is judged by itself (*ours*).
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple

import torch
from torch import Tensor

from proxyfda.integrations.capture import Call, tensors_in
from proxyfda.utils.errors import BadType, BadValue

__all__ = ["ClassTexts", "ClassesByTokens", "order_problem"]

# A call is compared with the frozen texts the first times that it is met: an order that is drawn
# anew may be that of the labels by chance.
_CHECKS = 3
_REMEDY = (
    "say which class a row is by TRAINER.PROXYFDA.TEXT_CLASSES tokens or by text_classes for "
    "proxyfda.register (see docs/drop-in.md), or use TRAINER.PROXYFDA.SPACES image"
)


class ClassTexts:
    """Brings the rows of a step's text encoder calls into the order of the labels.

    A call takes part if its rows are the C classes in label order, once or several times over (one
    set per image, or per prompt); so do calls in a row that are one set in pieces. What else a
    trainer encodes is left out, and said once; if nothing is left, the step is refused.

    Args:
        classes_of: gives for a call the class of each row, -1 for none; None: label order.
        checked: whether rows in label order are compared with the frozen texts.
    """

    def __init__(
        self, classes_of: Optional[Callable[[Call], Any]] = None, checked: bool = True
    ) -> None:
        self._classes_of, self._checked = classes_of, checked
        self._checks: Dict[Tuple[int, int], int] = {}
        self._left_out: Set[Tuple[int, int]] = set()

    def sets(
        self, calls: Sequence[Call], leaves: Sequence[Tensor], anchors: Tensor
    ) -> Tuple[Tensor, Tensor]:
        """Class text features of a step and their anchors.

        Args:
            calls: the calls of the text encoder.
            leaves: their features, [rows, d] or with more dimensions before the last.
            anchors: frozen features [C, d] of the classes in label order.

        Returns:
            One set [n, d] or several [S, n, d], and ``anchors``; where ``classes_of`` names some of
            the classes only, n < C and the anchors are theirs.

        Raises:
            BadValue: no call has rows that can be told to be the classes.
        """
        sets: List[Tuple[Tensor, Optional[Tensor]]] = []
        problems: List[str] = []
        found_rows = [leaf.reshape(-1, leaf.shape[-1]) for leaf in leaves]
        if self._classes_of is None:
            found_rows = _whole(found_rows, len(anchors))
        for place, (call, rows) in enumerate(zip(calls, found_rows)):
            key = place, len(rows)
            found = None
            if rows.shape[-1] != anchors.shape[-1]:
                problem = (
                    f"the text encoder's features have {rows.shape[-1]} dimensions and the frozen "
                    f"ones {anchors.shape[-1]}"
                )
            elif key in self._left_out:
                continue
            else:
                problem, found = self._judge(call, rows, anchors, key)
            if found is not None:
                sets.append(found)
                continue
            problems.append(problem)
            if self._classes_of is None:
                self._left_out.add(key)
        if not sets:
            what = problems[0] if problems else "every call of the text encoder was left out"
            raise BadValue(f"{what}; {_REMEDY}")
        for problem in problems:
            print(f"Proxy-FDA: a call of the text encoder is left out: {problem}")
        return self._together(sets, anchors)

    def _judge(
        self, call: Call, rows: Tensor, anchors: Tensor, key: Tuple[int, int]
    ) -> Tuple[str, Optional[Tuple[Tensor, Optional[Tensor]]]]:
        """What speaks against a call; or its sets [S, n, d] and their classes (None: all)."""
        classes = len(anchors)
        if self._classes_of is not None:
            return _by_class(rows, self._classes_of(call), classes)
        if not len(rows) or len(rows) % classes:
            return (
                f"the text encoder returned {len(rows)} features in one call, not a multiple of "
                f"the {classes} classes"
            ), None
        found = rows.view(-1, classes, rows.shape[-1])
        checks = self._checks.get(key, 0)
        if self._checked and checks < _CHECKS:
            self._checks[key] = checks + 1
            problem = order_problem(found.detach(), anchors)
            if problem:
                return problem, None
        return "", (found, None)

    @staticmethod
    def _together(
        sets: List[Tuple[Tensor, Optional[Tensor]]], anchors: Tensor
    ) -> Tuple[Tensor, Tensor]:
        chosen = sets[0][1]
        for _, other in sets[1:]:
            same = (
                other is None
                if chosen is None
                else other is not None and torch.equal(chosen, other)
            )
            if not same:
                raise BadValue(
                    "text_classes names other classes in one call of the text encoder than in "
                    "another of the same step; give -1 for the rows of all calls but one"
                )
        features = torch.cat([found for found, _ in sets]) if len(sets) > 1 else sets[0][0]
        if chosen is not None:
            anchors = anchors[chosen.to(anchors.device)]
        return (features[0] if len(features) == 1 else features), anchors


def _whole(parts: List[Tensor], count: int) -> List[Tensor]:
    """Rows of calls, with one set of ``count`` rows in place of calls in a row that make it up.

    >>> [len(rows) for rows in _whole([torch.ones(n, 2) for n in (4, 3, 1, 8, 3, 2)], 4)]
    [4, 4, 8, 3, 2]
    """
    found: List[Tensor] = []
    at = 0
    while at < len(parts):
        end, rows = at + 1, len(parts[at])
        while rows < count and end < len(parts):
            rows, end = rows + len(parts[end]), end + 1
        if rows != count:
            end = at + 1
        found.append(torch.cat(parts[at:end]) if end > at + 1 else parts[at])
        at = end
    return found


def _by_class(
    rows: Tensor, classes: Any, count: int
) -> Tuple[str, Optional[Tuple[Tensor, Optional[Tensor]]]]:
    """What speaks against a call; or its sets in label order and their classes (None: all)."""
    found = torch.as_tensor(classes, device=rows.device).reshape(-1).long()
    if len(found) != len(rows):
        return (
            f"text_classes gave {len(found)} classes for {len(rows)} rows of the text encoder"
        ), None
    if int(found.max()) >= count:
        return f"text_classes gave class {int(found.max())} of only {count} classes", None
    kept = (found >= 0).nonzero()[:, 0]
    if not len(kept):
        return f"none of the {len(rows)} rows of a call of the text encoder is a class", None
    # Stable, so that the first rows of all classes are the first set.
    present, each = found[kept].unique(return_counts=True)
    if int(each.min()) != int(each.max()):
        return (
            f"text_classes gave {int(each.min())} rows for one class and {int(each.max())} for "
            "another in one call of the text encoder"
        ), None
    order = kept[found[kept].sort(stable=True).indices].view(len(present), -1).t()
    return "", (rows[order], None if len(present) == count else present)


def order_problem(sets: Tensor, anchors: Tensor) -> str:
    """What speaks against rows being the classes in label order; empty if nothing does.

    Each row's nearest anchor, by cosines of centred features, is compared with its own. A row is
    away from its own if that is less than half as near, counted from the mean cosine, as nearest
    anchors are to their rows; so classes that resemble each other do not count. Rows are in another
    order if half of them are away and own cosines are hardly larger (by less than two standard
    errors) than those of a random order; and if the rows that are away are exactly those at whose
    anchors they lie, so that they have changed places.

    Args:
        sets: features [S, C, d].
        anchors: frozen features [C, d] in label order.

    >>> anchors = torch.eye(6)
    >>> order_problem(anchors[None] + 0.1, anchors)
    ''
    >>> order_problem(anchors[[1, 0, 2, 3, 4, 5]][None], anchors)
    'rows of the text encoder lie at the frozen texts of other classes (row 0 at that of class 1)'
    """
    count = len(anchors)
    if count < 2:
        return ""
    frozen = _centred(anchors)
    for rows in sets:
        cosines = _centred(rows) @ frozen.t()
        own, (best, nearest) = cosines.diagonal(), cosines.max(1)
        away = (best - own > 0.5 * (best.mean() - cosines.mean())).nonzero()[:, 0]
        error = cosines.std() / count**0.5
        if 2 * len(away) >= count and bool(own.mean() - cosines.mean() < 2 * error):
            return (
                f"only {count - len(away)} of the {count} rows of a call of the text encoder lie "
                "near the frozen text of their class, so they seem to be in another order than the "
                "labels"
            )
        if len(away) and torch.equal(nearest[away].sort().values, away):
            return (
                "rows of the text encoder lie at the frozen texts of other classes (row "
                f"{int(away[0])} at that of class {int(nearest[away[0]])})"
            )
    return ""


def _centred(rows: Tensor) -> Tensor:
    rows = rows.float() - rows.float().mean(0)
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)


class ClassesByTokens:
    """Reads the class of each row from the tokens that the text encoder is given.

    The tokens are the first tensor of whole numbers [rows, L] among the arguments; a row is the
    class whose name's tokens it has, the longest one if several fit, and -1 without any.

    Args:
        tokenize: texts to tokens [n, L], with one token before the text and the largest at its end.
        names: class names in label order.
    """

    def __init__(self, tokenize: Callable[[Sequence[str]], Tensor], names: Sequence[str]) -> None:
        self._names: List[Tuple[Tuple[int, ...], int]] = []
        for label, row in enumerate(tokenize(list(names))):
            self._names.append((tuple(row[1 : int(row.argmax())].tolist()), label))
        self._names.sort(key=lambda item: -len(item[0]))
        self._known: Dict[Tuple[int, ...], int] = {}

    def __call__(self, call: Call) -> Tensor:
        """Classes [rows] of a call.

        Raises:
            BadType: the text encoder is given no tokens.
        """
        for tokens in tensors_in([call.args, call.kwargs]):
            if tokens.dim() == 2 and not (tokens.is_floating_point() or tokens.is_complex()):
                break
        else:
            raise BadType(
                "TRAINER.PROXYFDA.TEXT_CLASSES is 'tokens', but the text encoder is given no "
                "tokens [rows, L] (those passed by keyword are seen from torch 2.0 on); give "
                "text_classes to proxyfda.register in its place"
            )
        classes = torch.tensor([self._class_of(tuple(row)) for row in tokens.tolist()])
        rows = call.output.numel() // call.output.shape[-1]
        # The tokens of one set stand for all.
        return classes.repeat(rows // len(classes)) if rows % len(classes) == 0 else classes

    def _class_of(self, row: Tuple[int, ...]) -> int:
        if row not in self._known:
            self._known[row] = next(
                (label for name, label in self._names if _contains(row, name)), -1
            )
        return self._known[row]


def _contains(row: Tuple[int, ...], part: Tuple[int, ...]) -> bool:
    return any(row[i : i + len(part)] == part for i in range(len(row) - len(part) + 1))
