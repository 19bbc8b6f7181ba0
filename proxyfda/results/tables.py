"""Tables as text, Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from dataclasses import astuple, dataclass, field, fields, replace

from proxyfda.names import is_zero_shot
from proxyfda.results.names import shots_title
from proxyfda.results.summary import AVERAGE, AccuracyRow, Row
from proxyfda.utils.errors import BadValue

FORMS = ("text", "markdown", "csv", "latex")
MEAN = "Accuracy in %, mean ± sample standard deviation (n - 1) over seeds"
CAPTION = (
    f"{MEAN}; H is the harmonic mean of the means; Δnew is relative to zero-shot CLIP's new "
    "accuracy."
)
_COMPARE_CAPTION = (
    "Accuracy in %, and in brackets its difference to the published figure (ViT-B/16, 16 shots, "
    "3 seeds)."
)
_TRANSFER = ("cross_dataset", "domain_generalization")
_TITLES = {
    "fewshot": "Few-shot, all classes",
    "cross_dataset": "Cross-dataset transfer",
    "domain_generalization": "Domain generalisation",
    "zeroshot": "Zero-shot, all classes",
}


@dataclass(frozen=True)
class Block:
    """One table as text: ``lines`` of cells under ``heads``, the first two of them words.

    A line that begins another dataset has its name in the first cell, all others have it empty.
    """

    title: str
    heads: tuple
    lines: list
    caption: str
    notes: list = field(default_factory=list)


def blocks(summary, comparisons=None):
    """The blocks of a summary, the notes with the last one.

    Args:
        summary: :class:`~proxyfda.results.Summary` of either kind of row.
        comparisons: what :func:`~proxyfda.results.compare` returns; shown as further blocks.
    """
    if summary.blocks is not None:
        return summary.blocks(summary)
    found = []
    rows = summary.rows
    if rows and isinstance(rows[0], AccuracyRow):
        make = _fewshot_block if rows[0].protocol == "fewshot" else _accuracy_block
        found.append(make(rows))
    else:
        for shots in dict.fromkeys(row.shots for row in rows):
            found.append(_base_new_block([row for row in rows if row.shots == shots], shots))
    if found:
        found[-1].notes.extend(notes_of(summary))
    if comparisons is not None:
        found.append(_compare_block(*comparisons))
    return found


def notes_of(summary):
    """What stands below the last table of a summary."""
    whole = all(row.complete for row in summary.rows)
    return [*([] if whole else ["* not complete, see below."]), *summary.notes]


def table(summary, form="text", comparisons=None):
    """The table as a string.

    Args:
        summary: :class:`~proxyfda.results.Summary` of either kind of row.
        form: ``text``, ``markdown`` or ``latex`` (booktabs; two decimals, with caption and notes),
            or ``csv`` (all fields of the rows, unrounded, without notes).
        comparisons: what :func:`~proxyfda.results.compare` returns.

    Raises:
        ValueError: another form.
    """
    if form not in FORMS:
        raise BadValue(
            f"the form of a table is {form!r}; use text, markdown or csv, or latex for booktabs"
        )
    if form == "csv":
        return _csv(summary.rows, comparisons[0] if comparisons else None)
    return "\n".join(render(block, form) for block in blocks(summary, comparisons))


def render(block, form="text"):
    """A block as ``text``, ``markdown`` or ``latex``."""
    return {"text": _text, "markdown": _markdown, "latex": _latex}[form](block)


def csv_of(rows):
    """Rows of one dataclass as CSV: all fields, unrounded, empty where there is no value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(f.name for f in fields(rows[0]))
    writer.writerows(["" if v is None else v for v in astuple(row)] for row in rows)
    return text.getvalue()


def _with_titles(rows, cells):
    """Lines of (row, cells of it), with the dataset's title where it changes."""
    total = len({row.dataset for row in rows} - {AVERAGE})
    transfer = getattr(rows[0], "protocol", "") in _TRANSFER
    lines, above = [], None
    for row, more in cells:
        title = row.title
        if getattr(row, "source", False):
            title += " (source)"
        elif row.dataset == AVERAGE and transfer:
            targets = len({r.dataset for r in rows if not r.source} - {AVERAGE})
            part = "" if row.n_datasets == targets else f"{row.n_datasets} of "
            title = f"{AVERAGE} of {part}{targets} targets"
        elif row.dataset == AVERAGE and row.n_datasets < total:
            title = f"{AVERAGE} ({row.n_datasets} of {total})"
        lines.append([title if title != above else "", row.name, *more])
        above = title
    return lines


def cell(value, std=None, sign=""):
    """A number with two decimals and its spread; ``-`` where there is none."""
    if value is None:
        return "-"
    return f"{value:{sign}.2f}" + ("" if std is None else f" ± {std:.2f}")


def seeds_cell(row):
    """How many seeds a row is made of, starred where some are missing."""
    count = "" if is_zero_shot(row.trainer) else str(len(row.seeds))
    return count + "*" * (not row.complete)


def _base_new_block(rows, shots):
    title = f"Base-to-new, {shots_title(shots) if shots > 0 else 'all training images'}"
    cells = [
        (
            row,
            (
                cell(row.base, row.base_std),
                cell(row.new, row.new_std),
                cell(row.h, row.h_std),
                cell(row.delta_new, row.delta_new_std, "+"),
                seeds_cell(row),
            ),
        )
        for row in rows
    ]
    heads = ("dataset", "trainer", "base", "new", "H", "Δnew", "seeds")
    return Block(title, heads, _with_titles(rows, cells), CAPTION)


def _accuracy_block(rows):
    shots = sorted({row.shots for row in rows} - {0})
    title = _TITLES[rows[0].protocol] + (f", {shots_title(shots[0])}" if len(shots) == 1 else "")
    paired = any(row.delta is not None for row in rows)
    cells = []
    for row in rows:
        values = [cell(row.accuracy, row.accuracy_std)]
        if len(shots) > 1:
            values.insert(0, str(row.shots))
        if paired:
            values.append(cell(row.delta, row.delta_std, "+"))
        cells.append((row, (*values, seeds_cell(row))))
    heads = ["dataset", "trainer", *["shots"] * (len(shots) > 1), "accuracy", *["Δ"] * paired]
    caption = f"{MEAN}; Δ is relative to zero-shot CLIP." if paired else f"{MEAN}."
    return Block(title, (*heads, "seeds"), _with_titles(rows, cells), caption)


def _fewshot_block(rows):
    shots = sorted({row.shots for row in rows})
    together = {}
    for row in rows:
        together.setdefault((row.dataset, row.name), {})[row.shots] = row
    cells = []
    for by_shots in together.values():
        values = []
        for k in shots:
            row = by_shots.get(k)
            text = "" if row is None else cell(row.accuracy, row.accuracy_std)
            values.append(text + "*" * (row is not None and not row.complete))
        counts = [len(row.seeds) for row in by_shots.values()]
        first = next(iter(by_shots.values()))
        few, many = min(counts), max(counts)
        seeds = str(many) if few == many else f"{few}-{many}"
        cells.append((first, (*values, "" if is_zero_shot(first.trainer) else seeds)))
    heads = ("dataset", "trainer", *(shots_title(k) for k in shots), "seeds")
    caption = f"{MEAN}; columns are images per class."
    return Block(_TITLES["fewshot"], heads, _with_titles(rows, cells), caption)


def _compare_block(comparisons, notes):
    def beside(value, other):
        if value is None:
            return "-"
        return f"{value:.2f} ({value - other:+.2f})"

    rows = [c.row for c in comparisons]
    cells = []
    for c in comparisons:
        values = (beside(c.row.base, c.base), beside(c.row.new, c.new), beside(c.row.h, c.h))
        cells.append((c.row, (*values, f"{c.method}, {c.source}")))
    heads = ("dataset", "trainer", "base", "new", "H", "published")
    lines = _with_titles(rows, cells) if rows else []
    return Block("Against the published figures", heads, lines, _COMPARE_CAPTION, list(notes))


def _body(block, style):
    from tabulate import tabulate

    align = ("left", "left", *["right"] * (len(block.heads) - 2))
    return tabulate(block.lines, block.heads, style, disable_numparse=True, colalign=align)


def _text(block):
    body = [_body(block, "simple"), "", block.caption] if block.lines else []
    return "\n".join([block.title, "", *body, *block.notes, ""])


def _markdown(block):
    body = [_body(_escaped(block), "github"), "", block.caption, ""] if block.lines else []
    notes = [f"- {note}".replace("*", r"\*") for note in block.notes]
    return "\n".join([block.title, "", *body, *notes, *[""][: len(notes)]])


def _escaped(block):
    lines = [[cell.replace("|", r"\|") for cell in line] for line in block.lines]
    return replace(block, lines=lines)


_ESCAPES = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "Δ": r"$\Delta$",
    "±": r"$\pm$",
    "<": "$<$",
    ">": "$>$",
    "…": r"\ldots{}",
    "α": r"$\alpha$",
    "λ": r"$\lambda$",
    "→": r"$\rightarrow$",
}


def _tex(text):
    return "".join(_ESCAPES.get(char, char) for char in text)


def _tex_number(cell):
    if cell in ("", "-"):
        return cell and "--"
    star = "^{*}" if cell.endswith("*") else ""
    cell = cell.rstrip("*")
    number, brackets, rest = cell.partition(" (")
    if not number.replace(" ± ", "").lstrip("+-").replace(".", "").isdigit():
        return _tex(cell)
    return "$" + number.replace("±", r"\pm") + (f"\\ ({rest}" if brackets else "") + star + "$"


def _latex(block):
    if not block.lines:
        return "".join(f"% {note}\n" for note in (block.title, *block.notes))
    notes = " ".join([block.caption, *block.notes])
    lines = [
        "% needs \\usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex(block.title)}. {_tex(notes)}}}",
        rf"\begin{{tabular}}{{ll{'r' * (len(block.heads) - 2)}}}",
        r"\toprule",
        " & ".join(map(_tex, block.heads)) + r" \\",
    ]
    for first, second, *numbers in block.lines:
        if first:
            lines.append(r"\midrule")
        lines.append(" & ".join([_tex(first), _tex(second), *map(_tex_number, numbers)]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    return "\n".join(lines)


def _plain(value):
    """A field of a row as CSV has it: sequences as words."""
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return "" if value is None else value


def _csv(rows, comparisons):
    kind = type(rows[0]) if rows else Row
    names = [f.name for f in fields(kind)]
    extra = ["published_method", "published_base", "published_new", "published_h"]
    by_row = {id(c.row): c for c in comparisons or ()}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names + extra * (comparisons is not None))
    for row in rows:
        line = [_plain(getattr(row, name)) for name in names]
        if comparisons is not None:
            c = by_row.get(id(row))
            line += [c.method, c.base, c.new, c.h] if c else [""] * len(extra)
        writer.writerow(line)
    return text.getvalue()
