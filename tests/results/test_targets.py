"""Files that the results are written to, and those that they cannot be written to."""

import errno
import os

import pytest
from result_trees import write_runs

from proxyfda.results import figures, main
from proxyfda.utils import files
from proxyfda.utils.errors import UserError


@pytest.fixture
def output(tmp_path):
    return write_runs(tmp_path / "output", {"dtd": {"CoOp": ([80, 81], [40, 43])}})


@pytest.fixture
def unread(monkeypatch):
    """Whether anything was read: a wrong place is to be refused before."""
    from proxyfda.results import command

    def refuse(*_):
        raise AssertionError("the runs were read first")

    monkeypatch.setattr(command, "read_runs", refuse)
    monkeypatch.setattr(figures, "read_runs", refuse)


WRONG = {
    "a folder": ("taken", "taken is a folder; give the name of a file"),
    "no folder": ("nowhere/x.md", "the folder .*nowhere does not exist; make it first"),
    "in a file": ("file/x.md", "x.md cannot be written, since .*file is no folder"),
}


@pytest.mark.parametrize("flag", ["--output", "--html"])
@pytest.mark.parametrize(("name", "why"), WRONG.values(), ids=WRONG)
def test_a_place_that_no_file_can_be_in(output, tmp_path, unread, flag, name, why):
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=f"^{flag}: .*{why}"):
        main([str(output), "--markdown", flag, str(tmp_path / name)])
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["file", "file/below/it"])
def test_figures_into_a_file(output, tmp_path, unread, name):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="^--out: .* cannot be written, since .*file is no folder"):
        figures.main([str(output), "--out", str(tmp_path / name)])
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to(output, tmp_path, unread):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    for main_of, words in (
        (main, ["--html", str(closed / "x.html")]),
        (main, ["--output", str(closed / "x.md")]),
        (figures.main, ["--out", str(closed / "figures")]),
    ):
        with pytest.raises(UserError, match=f"{words[0]}: .*{closed} takes no files"):
            main_of([str(output), *words])


def test_a_place_of_the_system_that_takes_no_file(output, unread):
    if not os.path.isdir("/proc/self"):
        pytest.skip("there is no /proc")
    for flag, path in (("--html", "/proc/x.html"), ("--output", "/proc/x.md")):
        with pytest.raises(UserError, match=f"{flag}: {path} cannot be written"):
            main([str(output), flag, path])


@pytest.mark.parametrize("flag", ["--output", "--html", "--out"])
def test_a_full_disk_leaves_what_was_there(output, tmp_path, monkeypatch, flag):
    place = tmp_path / "there"
    place.mkdir()

    def full(partial, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    if flag == "--out":
        with pytest.raises(UserError, match="there.* cannot be written.*disk is full"):
            figures.main([str(output), flag, str(place)])
        assert not list(place.iterdir())
        return
    name = "x.html" if flag == "--html" else "x.md"
    (place / name).write_text("before")
    with pytest.raises(UserError, match=f"{name} cannot be written: the disk is full"):
        main([str(output), flag, str(place / name)])
    assert [(p.name, p.read_text()) for p in place.iterdir()] == [(name, "before")]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (
            "t.mk",
            r"the ending of --output .*t.mk says no form .did you mean '.md'\?.; use .md, .csv",
        ),
        ("table", "the ending of --output .*table says no form; use .md, .csv, .tex, .txt, or"),
        ("t.html", "a page is written by --html"),
        ("t.xlsx", "or say the form by --text, --markdown, --csv, --latex"),
    ],
)
def test_an_ending_that_says_no_form(output, tmp_path, unread, name, why):
    with pytest.raises(UserError, match=why):
        main([str(output), "--output", str(tmp_path / name)])
    assert not (tmp_path / name).exists()


def test_the_form_may_be_said_instead_and_capitals_are_endings_too(output, tmp_path):
    main([str(output), "--csv", "--output", str(tmp_path / "table")])
    assert (tmp_path / "table").read_text().startswith("dataset,title")
    main([str(output), "--output", str(tmp_path / "T.TEX")])
    assert r"\begin{tabular}" in (tmp_path / "T.TEX").read_text()
    main([str(output), "--output", str(tmp_path / "t.txt")])
    assert (tmp_path / "t.txt").read_text().startswith("Base-to-new, 16 shots\n")


def test_a_page_does_not_take_the_ending_of_a_table(output, tmp_path, unread):
    with pytest.raises(UserError, match="--html is .*x.md, but writes a page; name it .html"):
        main([str(output), "--html", str(tmp_path / "x.md")])
    assert not list(tmp_path.glob("x.*"))


def test_page_and_table_in_one_file(output, tmp_path, unread):
    path = str(tmp_path / "x.md")
    with pytest.raises(UserError, match="--output and --html are both .*x.md"):
        main([str(output), "--output", path, "--html", path])


@pytest.mark.parametrize("of", [main, figures.main], ids=["tables", "figures"])
def test_a_label_that_is_given_twice(output, tmp_path, of):
    other = write_runs(tmp_path / "other", {"eurosat": {"CoOp": ([80], [40])}})
    more = ["--out", str(tmp_path / "figures")] if of is figures.main else []
    with pytest.raises(UserError, match="the label 'a' is given to .*output and to .*other; give"):
        of([f"a={output}", f"a={other}", *more])
    assert of([f"a={output}", f"b={other}", *more]) == 0
    assert of([str(output), str(other), *more]) == 0  # without labels they are put together
