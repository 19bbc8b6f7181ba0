"""LaTeX, the HTML page and the curves from event files."""

import base64
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from full_output import HOSTILE, write_full
from result_trees import run_folder, write_plain, write_run, write_runs

from proxyfda.results import collect, main, markup, run_list, summarise, table
from proxyfda.results.tables import Block

NUMBERS = {
    "my_birds & bees": {
        "ZeroshotCLIP": ([60], [50]),
        "CoOp": ([80, 81], [40, 43]),
        "ProxyFDACoOp": ([79, 80], [58, 59]),
    },
    "dtd": {
        "ZeroshotCLIP": ([60], [50]),
        "CoOp": ([80, 81], [40, 43]),
        "ProxyFDACoOp": ([79, 80], [58, 59]),
    },
}


@pytest.fixture
def output(tmp_path):
    return write_runs(tmp_path / "output", NUMBERS)


def write_events(folder, runs):
    """One event file per run of {tag: [(step, value)]}."""
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    for i, scalars in enumerate(runs):
        writer = SummaryWriter(str(folder / "tensorboard"), filename_suffix=f".{i}")
        for tag, points in scalars.items():
            for step, value in points:
                writer.add_scalar(tag, value, step)
        writer.close()


class TestLatex:
    def test_booktabs(self, output):
        (output / run_folder(output, "new", "dtd", "CoOp", 2) / "result.json").unlink()
        text = table(summarise(collect(output)), "latex")
        assert r"\begin{tabular}{llrrrrr}" in text
        assert r"my\_birds \& bees & ZeroshotCLIP & $60.00$ & $50.00$ & $54.55$ & -- &  \\" in text
        assert r" & CoOp & $80.50 \pm 0.71$ & $41.50 \pm 2.12$ & " in text
        assert r"$1^{*}$ \\" in text
        assert r"$\Delta$new" in text and "Missing: CoOp on DescribableTextures" in text
        assert text.count(r"\midrule") == 3
        rows = [line for line in text.splitlines() if line.endswith(r"\\")]
        assert {line.replace(r"\&", "").count("&") for line in rows} == {6}
        assert text.isascii()

    def test_by_suffix(self, output, tmp_path):
        assert main([str(output), "--output", str(tmp_path / "t.tex")]) == 0
        assert (tmp_path / "t.tex").read_text() == table(summarise(collect(output)), "latex")


class _Reader(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.images, self.words, self.names = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.links += [attrs[name] for name in ("href", "src") if name in attrs]
        self.names += [attrs["id"]] if "id" in attrs else []
        if tag == "img":
            self.images.append(attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def full_output(tmp_path_factory):
    output = write_runs(tmp_path_factory.mktemp("page") / "output", NUMBERS)
    options = {"name": "rkd", "weight": 3.0, "options": {"distance": 1.0}}
    write_run(output, "base", "dtd", "MaPLe", 1, 70, regulariser=options)
    run_folder(output, "new", "dtd", "MaPLe", 1).mkdir(parents=True)
    folder = run_folder(output, "base", "dtd", "CoOp", 1)
    write_events(folder, [{"train/loss": [(0, 2.0), (1, 1.0)]}])
    return output


@pytest.fixture(scope="module")
def page(full_output):
    path = full_output.parent / "page.html"
    assert main([str(full_output), "--html", str(path), "--compare", "published"]) == 0
    return path.read_text(encoding="utf-8")


class TestPage:
    def test_it_is_whole_and_loads_nothing(self, page):
        reader = _Reader(page)
        assert reader.open == []
        inside = {f"#{name}" for name in reader.names}
        assert len(inside) == len(reader.names) > 3
        assert reader.images and all(
            link.startswith("data:image/") or link in inside for link in reader.links
        )
        assert not re.search(r"https?://|@import|url\(|<script", page)
        assert 'name="viewport"' in page and "prefers-color-scheme: dark" in page

    def test_it_has_tables_figures_and_what_is_missing(self, page):
        reader = _Reader(page)
        words = " ".join(reader.words)
        for text in ("41.50 ± 2.12", "my_birds & bees", "80.50 (+1.06)", "What was run",
                     "rkd (λ 3.0, distance 1.0)",
                     "MaPLe on DescribableTextures seed 1, new: not finished"):  # fmt: skip
            assert text in words, text
        captions = [image["alt"] for image in reader.images]
        assert any("Base against new" in c for c in captions)
        assert any("relative to zero-shot" in c for c in captions)
        assert any("Training" in c for c in captions)
        for image in reader.images:
            data = base64.b64decode(image["src"].split(",")[1])
            assert data.lstrip().startswith(b"<?xml") and b"</svg>" in data

    def test_it_is_the_same_every_time(self, page, full_output, tmp_path):
        main([str(full_output), "--html", str(tmp_path / "again.html"), "--compare", "published"])
        assert (tmp_path / "again.html").read_text(encoding="utf-8") == page

    def test_there_is_a_section_of_every_kind_and_a_line_of_each_in_the_contents(self, tmp_path):
        path = tmp_path / "page.html"
        assert main([str(write_full(tmp_path / "output")), "--html", str(path)]) == 0
        html = path.read_text(encoding="utf-8")
        titles = re.findall(r"<h2 id=[^>]*>([^<]*)</h2>", html)
        assert titles == [
            "Base to new", "Few-shot", "Tuning end to end", "Tasks in a row", "Captioning",
            "Visual question answering", "Diagnostics", "Classes", "What was run",
        ]  # fmt: skip
        reader = _Reader(html)
        assert reader.open == []
        assert {link for link in reader.links if link.startswith("#")} <= {
            f"#{name}" for name in reader.names
        }
        contents = html[html.index("<nav") : html.index("</nav>")]
        assert all(f">{title}</a>" in contents for title in titles)
        words = " ".join(reader.words)
        for text in (
            HOSTILE,
            "has accuracy <i>ninety</i>",
            "otter → beaver: 37.5",
            "Run with torch",
        ):
            assert text in words, text
        for place in ("<b onclick", "<i>ninety"):
            assert place not in html
        captions = " ".join(image["alt"] for image in reader.images)
        for start in (
            "Base against", "New accuracy", "Accuracy on all classes", "Accuracy on the",
            "Accuracy after each", "CIDEr on the tuned", "dtd_layers", "scatter",
        ):  # fmt: skip
            assert start in captions, start

    def test_the_average_stands_first_and_the_rest_of_a_long_table_is_folded(self):
        lines = [["x", "CoOp", "1"], ["", "FDACoOp", "2"], ["average", "CoOp", "3"]]
        block = Block("Title", ("dataset", "trainer", "H"), lines, "caption")
        html = markup.table(block)
        assert html.index("<td>3</td>") < html.index("<td>1</td>") < html.index("<td>2</td>")
        assert "<details>" not in html
        html = markup.table(replace(block, lines=[*lines[:2] * 30, lines[2]]))
        shown, folded = html.split("<details><summary>Each of the 30 datasets</summary>")
        assert "<td>3</td>" in shown and "<td>1</td>" not in shown
        assert folded.count("<td>1</td>") == 30

    def test_many_incomplete_runs_are_counted_and_all_there(self, tmp_path):
        output = write_runs(tmp_path, {"dtd": {"CoOp": ([80], [40])}})
        for seed in range(2, 32):
            run_folder(output, "base", "dtd", "CoOp", seed).mkdir(parents=True)
        html = run_list.incomplete(collect(output))
        assert html.count("<li>") == 30 and "<summary>10 more</summary>" in html

    def test_seconds_and_versions(self, tmp_path):
        for seed, version in ((1, "2.1"), (2, "2.1")):
            write_run(tmp_path, "base", "dtd", "CoOp", seed, 70, time={"run": 617.3},
                      versions={"torch": version})  # fmt: skip
        html = run_list.settings(collect(tmp_path))
        assert '<td class="number">1,235</td>' in html and "Run with torch 2.1." in html
        write_run(tmp_path, "base", "dtd", "MaPLe", 1, 70, versions={"torch": "2.4"})
        html = run_list.settings(collect(tmp_path))
        assert "<td>torch 2.1</td>" in html and "<td>torch 2.4</td>" in html

    def test_missing_folder(self, output, tmp_path):
        with pytest.raises(FileNotFoundError, match="--html: the folder .*nowhere does not exist"):
            main([str(output), "--html", str(tmp_path / "nowhere" / "page.html")])


class TestCurves:
    def read(self, output):
        from proxyfda.results.curves import read_curves

        return read_curves(collect(output))

    def test_seeds_are_stacked_and_evaluations_left_out(self, output):
        for seed, offset in ((1, 0), (2, 10)):
            points = [(step, step + offset) for step in range(4)]
            scalars = {"train/loss": points, "train/loss_fda": points, "train/lr": points}
            write_events(run_folder(output, "base", "dtd", "CoOp", seed), [scalars])
        write_events(run_folder(output, "new", "dtd", "CoOp", 1), [{"train/loss": [(0, 1)]}])
        curves = self.read(output)
        assert list(curves) == ["DescribableTextures"]
        assert list(curves["DescribableTextures"]) == ["CoOp"]
        found = curves["DescribableTextures"]["CoOp"]
        assert list(found) == ["loss", "loss_fda"]
        steps, values = found["loss"]
        assert steps.tolist() == [0, 1, 2, 3]
        assert values.tolist() == [[0, 1, 2, 3], [10, 11, 12, 13]]

    def test_protocols_are_kept_apart(self, output):
        events = {"train/loss": [(0, 1.0), (1, 2.0)]}
        write_events(run_folder(output, "base", "dtd", "CoOp", 1), [events])
        for shots in (4, 16):
            folder = write_plain(output, f"dtd/CoOp/cfg_{shots}shots/seed1", 50, trainer="CoOp",
                                 seed=1, shots=shots)  # fmt: skip
            write_events(folder, [{"train/loss": [(0, 5.0), (1, 6.0)]}])
        curves = self.read(output)
        assert set(curves) == {
            "DescribableTextures (base to new)", "DescribableTextures (few-shot)",
        }  # fmt: skip
        assert list(curves["DescribableTextures (base to new)"]) == ["CoOp"]
        assert set(curves["DescribableTextures (few-shot)"]) == {"CoOp 4 shots", "CoOp 16 shots"}
        _, values = curves["DescribableTextures (base to new)"]["CoOp"]["loss"]
        assert values.tolist() == [[1, 2]]

    def test_a_resumed_run_counts_each_step_once(self, output):
        folder = run_folder(output, "base", "dtd", "CoOp", 1)
        first = [(step, 1.0) for step in range(4)]
        second = [(step, 2.0) for step in range(2, 6)]
        write_events(folder, [{"train/loss": first}])
        # Event files are read in the order of their names, which begin with the second.
        for path in (folder / "tensorboard").iterdir():
            path.rename(path.with_name("events.out.tfevents.1000000000.a"))
        write_events(folder, [{"train/loss": second}])
        steps, values = self.read(output)["DescribableTextures"]["CoOp"]["loss"]
        assert steps.tolist() == [0, 1, 2, 3, 4, 5]
        assert values.tolist() == [[1, 1, 2, 2, 2, 2]]

    def test_long_runs_are_averaged_in_bins(self, output):
        folder = run_folder(output, "base", "dtd", "CoOp", 1)
        write_events(folder, [{"train/loss": [(step, float(step % 2)) for step in range(400)]}])
        steps, values = self.read(output)["DescribableTextures"]["CoOp"]["loss"]
        assert values.shape == (1, 100)
        assert np.allclose(values, 0.5)
        assert steps[:2].tolist() == [1.5, 5.5]

    def test_a_shorter_run_is_left_out_and_named(self, output, capsys):
        for seed, length in ((1, 4), (2, 2)):
            points = [(step, 1.0) for step in range(length)]
            write_events(run_folder(output, "base", "dtd", "CoOp", seed), [{"train/loss": points}])
        _, values = self.read(output)["DescribableTextures"]["CoOp"]["loss"]
        assert values.shape == (1, 4)
        assert "seed2 has fewer training steps than others" in capsys.readouterr().err

    def test_no_event_files(self, output):
        folder = run_folder(output, "base", "dtd", "CoOp", 1) / "tensorboard"
        shutil.rmtree(folder, ignore_errors=True)
        assert self.read(output) == {}
        folder.mkdir()
        assert self.read(output).get("DescribableTextures", {}).get("CoOp", {}) == {}
