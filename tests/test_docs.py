"""The documentation: links and pages; the site itself is built by scripts/test.sh."""

import ast
import dataclasses
import importlib
import os
import re
from pathlib import Path

import pytest
from yacs.config import CfgNode

import proxyfda
import train  # noqa: F401  (registers the trainers and datasets)
from proxyfda import regularisers
from proxyfda.experiments.config import option_rules

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")
OPTIONS = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
NAMES = {page: page.relative_to(ROOT).as_posix() for page in PAGES}


def prose(page):
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(page):
    """The fragments of a page's headings, as mkdocs and code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {
        re.sub(r"[^\w\s-]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize("page", PAGES, ids=NAMES.get)
def test_relative_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"\w+:", link):
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if fragment and target.suffix == ".md":
            assert fragment in anchors(target), link


def test_the_readme_is_a_screen_and_a_half_and_leads_to_every_part():
    assert len(README.splitlines()) <= 90
    for page in ("attach", "drop-in", "benchmarks", "regularisers/index", "faq", "results"):
        assert f"docs/{page}.md" in README
    for script in re.findall(r"^bash (\S+)", README, re.M):
        assert (ROOT / script).exists()


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/attach.md"])
def test_python_in_the_first_pages_names_what_exists(page):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    assert blocks
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names)
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "proxyfda":
                assert hasattr(proxyfda, node.attr)


@pytest.mark.parametrize(
    "page", sorted((ROOT / "docs" / "integrations").glob("*.md")), ids=lambda page: page.stem
)
def test_the_code_of_an_integration_is_that_of_its_example(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    taken = [
        line for line in lines if "8" in line and "examples/" in line and "python " not in line
    ]
    assert taken
    for line in taken:
        found = re.fullmatch(r'--8<-- "(examples/\w+\.py):(\w+)"', line)
        assert found, line  # anything else is no snippet, and stands on the page as it is
        text = (ROOT / found[1]).read_text(encoding="utf-8")
        assert f"--8<-- [start:{found[2]}]" in text and f"--8<-- [end:{found[2]}]" in text


def test_the_options_page_has_the_plugins_options_and_defaults_that_are_right():
    cfg = CfgNode({"TRAINER": CfgNode()})
    proxyfda.extend_cfg(cfg)
    node = cfg.TRAINER.PROXYFDA
    given = {}
    part = OPTIONS.split("## Of the trainers")[0]
    for names, defaults in re.findall(r"^\| ((?:`[A-Z_]+`(?:, )?)+) \| ([^|]+) \|", part, re.M):
        values = [value.strip(" `") for value in defaults.split(",")]
        given.update(zip(re.findall(r"`([A-Z_]+)`", names), values))
    of_regularisers = {
        field.name.upper()
        for name in regularisers.names()
        for field in dataclasses.fields(regularisers.find(name).options_class)
    }
    assert set(node) - of_regularisers <= set(given) <= set(node)
    for name, value in given.items():
        assert node[name] in ("", ()) or str(node[name]) == value, name


def test_every_regulariser_has_a_page_with_its_options():
    hooks = pytest.importorskip("docs_hooks")
    overview = (ROOT / "docs" / "regularisers" / "index.md").read_text()
    navigation = hooks.on_config(_config("Regularisers")).nav
    assert [next(iter(page)) for page in navigation[0]["Regularisers"][1:]] == regularisers.names()
    for name in regularisers.names():
        page, module = hooks.regulariser_page(name), regularisers.find(name)
        assert f"::: {module.__module__}.{module.__name__}\n" in page
        for field in dataclasses.fields(module.options_class):
            assert f"| `{field.name}` | `{field.default!r}` |" in page
    assert "<!-- regularisers -->" in overview  # becomes the list of their pages
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", overview, re.M)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert {"fda", "proxy_fda", "rkd"} <= named <= set(regularisers.names())


def test_the_site_loads_nothing_from_elsewhere():
    yaml = pytest.importorskip("yaml")
    lines = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    config = yaml.safe_load(lines)
    assert config["theme"]["font"] is False
    assert "://" not in lines


def _config(section):
    class Config:
        nav = [{section: ["index.md"]}]
        mdx_configs = {"toc": {}}

    return Config()


def test_headings_of_the_site_are_named_as_those_on_the_disk():
    hooks = pytest.importorskip("docs_hooks")
    name = hooks.on_config(_config("Notebooks")).mdx_configs["toc"]["slugify"]
    assert name("The rule for λ and α", "-") == "the-rule-for-λ-and-α"


def test_links_of_the_site_are_made_from_links_on_the_disk():
    hooks = pytest.importorskip("docs_hooks")
    link = hooks.site_link
    assert link("../CONTRIBUTING.md", "docs/faq.md", "faq.md") == "contributing.md"
    assert link("../../CONTRIBUTING.md", "docs/regularisers/index.md", "regularisers/index.md") == (
        "../contributing.md"
    )
    assert link("docs/ablation.md", "CONTRIBUTING.md", "contributing.md") == "ablation.md"
    assert link("notebooks/a.ipynb", "docs/attach.md", "attach.md") == "notebooks/a.md"
    assert link("../train.py", "docs/attach.md", "attach.md") == ""  # not on the site
    assert link("../gone.py", "docs/attach.md", "attach.md") == "../gone.py"  # mkdocs says so


def test_a_notebook_becomes_a_page_with_its_outputs(tmp_path):
    hooks = pytest.importorskip("docs_hooks")
    path = tmp_path / "one.ipynb"
    path.write_text(
        '{"cells": [{"cell_type": "markdown", "source": ["# Title\\n", "Text."]},'
        '{"cell_type": "code", "source": ["print(1)"], "outputs": ['
        '{"output_type": "stream", "text": ["1\\n"]}, {"output_type": "stream", "text": ["2\\n"]},'
        '{"output_type": "display_data", "data": {"image/png": "aGk=\\n"}}]}]}'
    )
    page = hooks.notebook_page(path)
    assert page.startswith("# Title\nText.")
    assert "```python\nprint(1)\n```\n\n```text\n1\n2\n```" in page
    assert 'src="data:image/png;base64,aGk="' in page


def rules_in_words():
    """The table of docs/options.md: what each option may be."""
    rows = ["| option | values |", "|---|---|"]
    ours = ("COOP", "COCOOP", "MAPLE", "PROMPTSRC", "FINETUNE")  # other tests register trainers
    for option, rule in option_rules().items():
        group, _, rest = option.partition(".")
        foreign = group == "TRAINER" and rest.partition(".")[0] not in ours
        if not foreign and not callable(getattr(rule, "names", ())):  # those are of registries
            rows.append(f"| `{option}` | {rule.wanted} |")
    return "\n".join(rows)


def test_the_values_of_options_are_in_the_documentation():
    """UPDATE_DOCS=1 writes them there."""
    path, ends = (
        ROOT / "docs" / "options.md",
        [f"<!-- option rules: {e} -->" for e in ("begin", "end")],
    )
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(ends[0])
    shown, after = rest.split(ends[1])
    if os.environ.get("UPDATE_DOCS"):
        path.write_text(
            f"{before}{ends[0]}\n{rules_in_words()}\n{ends[1]}{after}", encoding="utf-8"
        )
    else:
        assert shown.strip() == rules_in_words(), "run pytest with UPDATE_DOCS=1"
