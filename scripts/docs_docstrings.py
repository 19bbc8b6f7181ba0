"""Docstrings as the documentation site wants them (an extension of griffe, see mkdocs.yml).

The docstrings are written to be read in a terminal: with ``:class:`` roles, paragraphs that end in
``::``, tables ruled with ``====`` and doctests between paragraphs. Here they become Markdown.
"""

from __future__ import annotations

import re
import textwrap

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|attr|exc|data):`(~?)([\w.]+)`")
REFERENCE = r"See :meth:`[\w.]+`\."
RULE = r"=+(?: +=+)+ *"
TABLE = re.compile(rf"^( *)({RULE})\n(.*?)\n\1{RULE}\n(.*?)\n\1{RULE}$", re.MULTILINE | re.DOTALL)
DOCTEST = re.compile(r"^( *)>>> .*(?:\n(?! *$).*)*", re.MULTILINE)


def to_markdown(text: str, resolve=lambda name: name) -> str:
    """The Markdown of a docstring; ``resolve`` gives the full name of what a role names.

    >>> print(to_markdown("See :func:`fda_loss`::", lambda name: "a." + name))
    See <autoref optional identifier="a.fda_loss"><code>fda_loss</code></autoref>:
    >>> to_markdown(">>> 1 + 1\\n2")
    '```pycon\\n>>> 1 + 1\\n2\\n```'
    """

    def link(match):
        short, name = match.groups()
        shown = name.rsplit(".", 1)[-1] if short else name
        return f'<autoref optional identifier="{resolve(name)}"><code>{shown}</code></autoref>'

    def session(match):
        indent = match.group(1)
        return textwrap.indent(f"```pycon\n{textwrap.dedent(match.group(0))}\n```", indent)

    text = TABLE.sub(table, DOCTEST.sub(session, text))
    text = re.sub(r"(?<=\S)::$", ":", text, flags=re.MULTILINE)
    return ROLE.sub(link, text)


def table(match: re.Match) -> str:
    '''The Markdown of a table ruled with ``====``, as :data:`TABLE` finds it.

    A line in which a cell is empty goes on with the row above it.

    >>> text = """==== =======
    ... a    b
    ... ==== =======
    ... one  goes
    ...      on
    ... two  ends
    ... ==== ======="""
    >>> print(table(TABLE.match(text)))
    | a | b |
    |---|---|
    | one | goes on |
    | two | ends |
    '''
    indent, rule, head, body = match.groups()
    starts = [column.start() + len(indent) for column in re.finditer("=+", rule)]
    ends = [*starts[1:], None]

    def cells(line):
        return [line[start:end].strip().replace("|", "\\|") for start, end in zip(starts, ends)]

    rows = [cells(head)]
    for line in body.splitlines():
        row = cells(line)
        if len(rows) > 1 and not all(row):
            rows[-1] = [f"{above} {cell}".strip() for above, cell in zip(rows[-1], row)]
        else:
            rows.append(row)
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "|" + "---|" * len(starts))
    return "\n".join(indent + line for line in lines)


class Docstrings(griffe.Extension):
    """Rewrites every docstring once its package is loaded, so that names can be resolved."""

    def on_package(self, *, pkg: griffe.Module, **kwargs) -> None:
        """See griffe."""
        self._rewrite(pkg)

    def _rewrite(self, thing: griffe.Object) -> None:
        if thing.docstring and re.fullmatch(REFERENCE, thing.docstring.value.strip()):
            thing.docstring = None  # not shown: the method that it refers to is
        if thing.docstring:
            thing.docstring.value = to_markdown(
                thing.docstring.value, lambda name: self._resolve(thing, name)
            )
        for member in thing.members.values():
            if not member.is_alias:
                self._rewrite(member)

    @staticmethod
    def _resolve(thing: griffe.Object, name: str) -> str:
        first, _, rest = name.partition(".")
        scope = thing
        while scope is not None:
            try:
                place = scope.resolve(first)
                found = thing.modules_collection[place] if place else None
                full = found.canonical_path if found is not None else place
                return f"{full}.{rest}" if rest else full
            except (griffe.GriffeError, KeyError):
                scope = None
        return name
