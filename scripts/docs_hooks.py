"""What the documentation site holds beside the files in docs/ (hooks of mkdocs, see mkdocs.yml).

- a page for every regulariser that there is;
- the notebooks of docs/notebooks as pages, with the outputs that are stored in them;
- CONTRIBUTING.md, CHANGELOG.md and the model card, which lie elsewhere in the repository.

Links among all of these are written as on a disk, so they also hold where the repository is
browsed; here they are turned into links of the site, and those to code into plain words.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import posixpath
import re
import sys
from pathlib import Path

from mkdocs.structure.files import File
from pymdownx.slugs import slugify

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from docs_docstrings import to_markdown

import proxyfda
from proxyfda import regularisers

ELSEWHERE = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "proxyfda/backbones/clip/bundled/README.md": "model-card.md",
    "proxyfda/backbones/clip/bundled/git/README.md": "model-card-git.md",
}
NOTEBOOKS = ROOT / "docs" / "notebooks"

LINK = re.compile(r"\[([^\[\]]*)\]\((?!\w+:|#|/)([^)\s#]+)(#[^)\s]*)?\)")


def notebooks():
    """Title and path of every notebook, in the order of their file names."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        heading = re.search(r"^# (.+)$", notebook_page(path), re.MULTILINE)
        yield heading.group(1) if heading else path.stem.replace("_", " "), path


def on_config(config):
    """Put the generated pages into the navigation, and name headings as code hosts do."""
    # Markdown's own drop letters that ASCII lacks: links with a λ would hold on disk alone.
    config.mdx_configs["toc"]["slugify"] = slugify(case="lower")
    for entry in config.nav:
        (section, pages), *_ = entry.items()
        if section == "Regularisers":
            pages += [{name: f"regularisers/{name}.md"} for name in regularisers.names()]
        elif section == "Notebooks":
            pages += [{title: f"notebooks/{path.stem}.md"} for title, path in notebooks()]
    config.nav = [entry for entry in config.nav if all(entry.values())]
    return config


def on_files(files, config):
    """Add the generated pages."""
    for name in regularisers.names():
        files.append(_generated(config, f"regularisers/{name}.md", regulariser_page(name)))
    for _, path in notebooks():
        files.append(_generated(config, f"notebooks/{path.stem}.md", notebook_page(path)))
    for source, page in ELSEWHERE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(_generated(config, page, text))
    return files


def _generated(config, path, text):
    return File.generated(config, path, content=text)


def on_page_markdown(markdown, page, config, files):
    """Fill in the lists, and turn links on the disk into links of the site."""
    if "<!-- regularisers -->" in markdown:
        pages = [f"[`{name}`]({name}.md)" for name in regularisers.names()]
        markdown = markdown.replace("<!-- regularisers -->", ", ".join(pages))
    if "<!-- public names -->" in markdown:
        markdown = markdown.replace("<!-- public names -->", public_names())
    here = page.file.src_uri
    place = {page: source for source, page in ELSEWHERE.items()}.get(here, f"docs/{here}")
    return LINK.sub(lambda match: _on_site(match, place, here), markdown)


def _on_site(match, source, page):
    words, link, fragment = match.groups(default="")
    target = site_link(link, source, page)
    return f"[{words}]({target}{fragment})" if target else words


def site_link(link: str, source: str, page: str) -> str:
    """The link of the site for one in a file of the repository.

    Args:
        link: relative, without a fragment.
        source: the file that it stands in, below the repository.
        page: the page that this file becomes, below docs/.

    >>> site_link("../CONTRIBUTING.md", "docs/faq.md", "faq.md")
    'contributing.md'
    >>> site_link("docs/ablation.md", "CONTRIBUTING.md", "contributing.md")
    'ablation.md'

    Empty for another file of the repository, which the site does not have:

    >>> site_link("../train.py", "docs/faq.md", "faq.md")
    ''
    """
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    if target in ELSEWHERE:
        target = ELSEWHERE[target]
    elif target.startswith("docs/"):
        target = target[len("docs/") :]
    else:
        return "" if (ROOT / target).is_file() else link  # mkdocs says that it is not there
    if target.endswith(".ipynb"):
        target = target[: -len("ipynb")] + "md"
    return posixpath.relpath(target, posixpath.dirname(page) or ".")


def regulariser_page(name: str) -> str:
    """The page of a regulariser, from its docstrings and its options."""
    module = regularisers.find(name)
    home = sys.modules[module.__module__]
    dim, beside = "", ""
    if module.needs_dim:
        plain = name[len("proxy_") :]
        dim, beside = ", dim=512", f" With proxies; without them it is [`{plain}`]({plain}.md)."
    call = "()" if module.kind == "weights" else "(features, anchors)"
    parts = [
        f"# {name}",
        f"{home.__doc__.strip().splitlines()[0]}{beside}",
        f"Acts on {module.kind}. In a loop of your own, and in the trainers:",
        "```python\nfrom proxyfda import regularisers\n\n"
        f'regulariser = regularisers.create("{name}"{dim})\n'
        f"loss = task_loss + weight * regulariser{call}\n```",
        f"```bash\npython train.py --trainer CoOp --regulariser {name} ...\n```",
    ]
    rows = [
        f"| `{field.name}` | `{field.default!r}` | `TRAINER.PROXYFDA.{field.name.upper()}` |"
        for field in dataclasses.fields(module.options_class)
    ]
    if rows:
        table = "| option | default | in the config |\n|---|---|---|\n" + "\n".join(rows)
        parts.append(f"## Options\n\n{table}")
    # Each is documented once: a loss function on the page that has its name.
    for one in (f"{name}_loss", module.__name__, module.options_class.__name__):
        if getattr(getattr(home, one, None), "__module__", "") == home.__name__:
            parts.append(f"::: {home.__name__}.{one}")
    return "\n\n".join(parts) + "\n"


def public_names() -> str:
    """A table of what ``proxyfda`` exports, with links."""
    rows = ["| name | what |", "|---|---|"]
    for name in proxyfda.__all__:
        value = getattr(proxyfda, name)
        summary = inspect.getdoc(value).split("\n\n", 1)[0].replace("\n", " ").replace("|", "\\|")
        summary = to_markdown(summary)
        rows.append(f"| [`{name}`][{value.__module__}.{value.__qualname__}] | {summary} |")
    return "\n".join(rows)


def notebook_page(path: Path) -> str:
    """A notebook as Markdown: text, code, and the printed and drawn outputs stored with it."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        text = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            parts.append(text)
        elif cell["cell_type"] == "code" and text:
            parts.append(f"```python\n{text}\n```")
            shown = "\n\n".join(filter(None, map(_output, cell["outputs"])))
            parts.append(shown.replace("\n```\n\n```text\n", "\n"))  # each print is an output
    parts.insert(1, f"*A notebook: `jupyter lab docs/notebooks/{path.name}` runs it.*")
    return "\n\n".join(filter(None, parts)) + "\n"


def _output(output) -> str:
    if output["output_type"] == "stream":
        return "```text\n" + "".join(output["text"]).rstrip() + "\n```"
    data = output.get("data", {})
    if "image/png" in data:
        picture = "".join(data["image/png"]).replace("\n", "")
        return f'<img alt="output" src="data:image/png;base64,{picture}">'
    if "image/svg+xml" in data:
        return re.sub(r"^<\?xml.*?(?=<svg)", "", "".join(data["image/svg+xml"]), flags=re.DOTALL)
    if "text/plain" in data:
        return "```text\n" + "".join(data["text/plain"]).rstrip() + "\n```"
    return ""
