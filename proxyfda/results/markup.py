"""Parts of a page in HTML that loads nothing from anywhere: tables, figures, what can be folded.

All text is escaped here and nowhere else, but for what a caller hands over as HTML: arguments that
are called ``html``, and :attr:`Section.parts`.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

from matplotlib import rc_context
from matplotlib.figure import Figure

from proxyfda.results.summary import AVERAGE
from proxyfda.results.tables import Block

__all__ = [
    "Section",
    "anchor",
    "document",
    "drawn_figure",
    "folded",
    "image",
    "notes",
    "paragraph",
    "table",
    "titled",
    "words_table",
]

_LONG = 40  # lines of a table
PIXELS_PER_INCH = 90
"""That figures of ours are shown at."""

# Contrast of text is at least 4.5 to 1 on the ground that it stands on (WCAG 2.1, level AA).
_STYLE = """
:root { color-scheme: light dark; --line: #d5d8dc; --soft: #f4f6f8; --text: #1b1f24; --back: #fff;
  --quiet: #57606a; --warn: #9a3412; --link: #0b57b0; }
@media (prefers-color-scheme: dark) { :root { --line: #3a414a; --soft: #1f252c; --text: #e6e9ed;
  --back: #14181d; --quiet: #a3adb8; --warn: #fdba74; --link: #8ab8f5; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--back);
  color: var(--text); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; }
h2 { margin: 3rem 0 .5rem; padding-bottom: .2rem; font-size: 1.35rem;
  border-bottom: 1px solid var(--line); }
section:first-child h2 { margin-top: 1rem; }
h3 { margin: 1.6rem 0 .5rem; font-size: 1.05rem; }
a { color: var(--link); }
nav { font-size: .9rem; }
nav ul { margin: 0; padding-left: 1.1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
th, td { padding: .25rem .7rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
thead th { border-bottom: 2px solid var(--line); }
tr.first td { border-top: 1px solid var(--line); }
tr.average { background: var(--soft); font-weight: 600; }
table.words td { white-space: pre-line; text-align: left; vertical-align: top; min-width: 4rem;
  max-width: 24rem; }
table.words th { text-align: left; }
table.words .number { text-align: right; white-space: nowrap; }
figure { margin: 1.5rem 0; padding: .5rem; background: #fff; border: 1px solid var(--line);
  border-radius: 6px; overflow-x: auto; }
figure img { display: block; margin: 0 auto; height: auto; }
figcaption { padding: .3rem; color: #57606a; font-size: .85rem; }
.quiet { color: var(--quiet); font-size: .9rem; }
ul.notes { padding-left: 1.2rem; color: var(--warn); font-size: .9rem; }
summary { cursor: pointer; padding: .4rem 0; }
@media (max-width: 40rem) { table { font-size: .78rem; } th, td { padding: .2rem .35rem; } }
@media (min-width: 60rem) { figure img { max-width: 100%; } }
@media (min-width: 90rem) {
  body { display: grid; grid-template-columns: 16rem minmax(0, 1fr); column-gap: 2.5rem;
    max-width: 96rem; }
  header { grid-column: 1 / -1; }
  nav { position: sticky; top: 1rem; align-self: start; max-height: calc(100vh - 2rem);
    overflow-y: auto; }
}
"""


@dataclass(frozen=True)
class Section:
    """A part of the page that its contents lead to; ``parts`` are HTML."""

    title: str
    parts: list[str]
    tables: list[str] = field(default_factory=list)
    """Titles of :func:`titled` parts, for the contents."""


def document(title: str, html: str, sections: Sequence[Section]) -> str:
    """The page: what stands below its title as HTML, contents, sections."""
    contents, body = [], []
    for section in sections:
        below = "".join(f"<li>{_link(section.title, title)}</li>" for title in section.tables)
        contents.append(f"<li>{_link(section.title)}{f'<ul>{below}</ul>' * bool(below)}</li>")
        body.append(f'<section><h2 id="{anchor(section.title)}">{escape(section.title)}</h2>')
        body += [*filter(None, section.parts), "</section>"]
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
            f"<header><h1>{escape(title)}</h1>\n{html}</header>",
            f'<nav aria-label="Contents"><ul>{"".join(contents)}</ul></nav>\n<main>',
            *body,
            "</main>\n</body>\n</html>\n",
        ]
    )


def anchor(*titles: str) -> str:
    """Name of a place on the page.

    >>> anchor("Base to new", "Base-to-new, 16 shots")
    'base-to-new.base-to-new-16-shots'
    """
    return ".".join(re.sub(r"\W+", "-", title.lower()).strip("-") for title in titles)


def _link(*titles: str) -> str:
    return f'<a href="#{anchor(*titles)}">{escape(titles[-1])}</a>'


def titled(section: str, title: str, html: str) -> str:
    """A part of a section with a title that the contents lead to."""
    return f'<h3 id="{anchor(section, title)}">{escape(title)}</h3>\n{html}'


def paragraph(text: str) -> str:
    """A quiet paragraph; empty for an empty text."""
    return f'<p class="quiet">{escape(text)}</p>' if text else ""


def notes(texts: Iterable[str]) -> str:
    """A list of remarks; empty if there are none."""
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f'<ul class="notes">{items}</ul>' if items else ""


def folded(title: str, html: str) -> str:
    """What is shown when its title is clicked."""
    return f"<details><summary>{escape(title)}</summary>\n{html}\n</details>"


def table(block: Block) -> str:
    """A table of numbers with its caption and notes; the average stands first.

    Of a long table the other lines are folded then.
    """
    if not block.lines:
        return notes(block.notes)
    averages, others, rows = [], [], []
    for line in block.lines:
        if line[0]:
            rows = averages if line[0].startswith(AVERAGE) else others
        kinds = ["first"] * bool(line[0]) + ["average"] * (rows is averages)
        rows.append((" ".join(kinds), line))
    if averages and len(others) > _LONG:
        count = sum("first" in kinds for kinds, _ in others)
        body = _scrolling(block.title, block.heads, averages) + folded(
            f"Each of the {count} {block.heads[0]}s",
            _scrolling(f"{block.title}, each", block.heads, others),
        )
    else:
        body = _scrolling(block.title, block.heads, [*averages, *others])
    return "\n".join(filter(None, [body, paragraph(block.caption), notes(block.notes)]))


def words_table(
    name: str, heads: Sequence[str], lines: Iterable[Sequence[str]], numbers: Sequence[str] = ()
) -> str:
    """A table of words.

    Args:
        name: for those who do not see it.
        numbers: heads of columns of numbers.
    """
    return _scrolling(name, heads, (("first", line) for line in lines), "words", numbers)


def _scrolling(name, heads, rows, kind="", numbers=()):
    """A table that scrolls within itself, with the keyboard as well."""
    of_column = [' class="number"' * (cell in numbers) for cell in heads]
    head = "".join(f'<th scope="col"{of}>{escape(cell)}</th>' for of, cell in zip(of_column, heads))
    body = "".join(
        f'<tr class="{kinds}">'
        + "".join(f"<td{of}>{escape(str(cell))}</td>" for of, cell in zip(of_column, line))
        + "</tr>"
        for kinds, line in rows
    )
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(name)}">'
        f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def drawn_figure(figure: Figure, caption: str) -> str:
    """A figure of matplotlib with its caption."""
    # As an image, so that names inside one SVG do not meet those of the next; letters as outlines,
    # so that it looks the same without the fonts.
    file = io.BytesIO()
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "proxyfda"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    size = tuple(round(PIXELS_PER_INCH * inches) for inches in figure.get_size_inches())
    return image(file.getvalue(), "svg+xml", size, caption)


def image(data: bytes, kind: str, size: tuple[int, int], caption: str) -> str:
    """An image that the page holds itself.

    Args:
        data: of the file, whose type is ``image/<kind>``.
        size: width and height on the page, in pixels.
        caption: below it, and instead of it for those who do not see it.
    """
    width, height = size
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
    return (
        f'<figure><img width="{width}" height="{height}" alt="{escape(caption)}" '
        f'src="{source}"><figcaption>{escape(caption)}</figcaption></figure>'
    )
