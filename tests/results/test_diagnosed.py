"""What diagnose left in an output, on the page."""

import struct

import pytest
from full_output import write_correlation, write_csv, write_diagnosis, write_full
from result_trees import write_runs

from proxyfda.results import diagnosed, main
from proxyfda.utils.errors import UserError


@pytest.fixture
def output(tmp_path):
    write_diagnosis(tmp_path / "out" / "a" / "before_after")
    write_correlation(tmp_path / "out" / "diagnose")
    return tmp_path / "out"


def shown(output):
    section = diagnosed.section(diagnosed.find([output]))
    return "\n".join(section.parts), section.tables


def test_both_kinds_are_found_wherever_they_lie_and_each_once(output):
    html, titles = shown(output)
    assert titles == ["out/a/before_after", "out/diagnose"]
    found = diagnosed.find([output, output / "diagnose"])
    assert [one.title for one in found] == titles


def test_tables_and_figures_are_there(output):
    html, _ = shown(output)
    for text in ("<td>0.988</td>", "FDA &lt;mine&gt;", "-0.90 [-0.99, -0.50]", "<td>-3.000</td>",
                 "The 3 runs", "<th scope=\"col\">CKA</th>"):  # fmt: skip
        assert text in html, text
    assert ">zero shot<" not in html, "a column without values"
    assert html.count("<img") == 5
    order = [
        html.index(f'alt="dtd_{name}:') for name in ("layers", "pca", "classes", "neighbours2")
    ]
    assert order == sorted(order)
    assert 'width="450" height="270"' in html  # 5 by 3 inches


def test_of_the_classes_those_that_kept_fewest_neighbours_are_shown(output):
    html, _ = shown(output)
    assert all((f"<td>class {i}</td>" in html) == (i < 5) for i in range(10))


def test_a_folder_of_runs_is_not_searched(output):
    write_diagnosis(output / "base2new" / "seed1")
    assert len(diagnosed.find([output])) == 2


def test_links_that_go_round_end(output):
    (output / "a" / "round").symlink_to(output)
    assert len(diagnosed.find([output])) == 2


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00bad", b"a,b\n"], ids=["empty", "binary", "head"]
)
def test_a_damaged_table_is_named_and_the_rest_shown(output, content):
    (output / "diagnose" / "correlations.csv").write_bytes(content)
    html, _ = shown(output)
    assert "correlations.csv cannot be read: " in html
    assert "The 3 runs" in html


@pytest.mark.parametrize(
    "content",
    [b"", b"<svg/>", b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n" + struct.pack(">I4s", 13, b"IHDR")],
    ids=["empty", "svg", "cut", "cut-later"],
)
def test_a_damaged_figure_is_named_and_the_rest_shown(output, content):
    (output / "diagnose" / "scatter.png").write_bytes(content)
    html, _ = shown(output)
    assert "scatter.png cannot be shown: it is no PNG image" in html
    assert html.count("<img") == 4


def test_rows_of_uneven_length(output):
    (output / "diagnose" / "runs.csv").write_text("folder,delta\na,1.0,7,8\nb\n")
    html, _ = shown(output)
    assert "<td>a</td><td>1.000</td>" in html and "<td>b</td><td></td>" in html


def test_diagnoses_without_any_run_make_a_page(output, tmp_path):
    page = tmp_path / "page.html"
    assert main([str(output), "--html", str(page)]) == 0
    assert "out/diagnose" in page.read_text(encoding="utf-8")
    with pytest.raises(UserError, match="has no base2new"):
        main([str(output)])  # text has no place for them


def test_a_name_is_no_markup(tmp_path):
    row = {"dataset": "<i>dtd</i>", "model": '" onclick="x()'}
    write_csv(tmp_path / "out<b>" / "diagnose.csv", [row])
    html, _ = shown(tmp_path)
    assert "<i>" not in html and "<b>" not in html and '" onclick' not in html


def test_the_page_has_a_section_of_them(tmp_path):
    page = tmp_path / "page.html"
    main([str(write_full(tmp_path / "output")), "--html", str(page)])
    assert '<h2 id="diagnostics">' in page.read_text(encoding="utf-8")
    write_runs(tmp_path / "plain", {"dtd": {"CoOp": ([80], [40])}})
    main([str(tmp_path / "plain"), "--html", str(page)])
    assert "iagnos" not in page.read_text(encoding="utf-8")
