"""Rows of tasks: metrics on matrices made by hand, tables against plain loops."""

import csv
import io
import shutil
from statistics import fmean, stdev

import pytest
from result_trees import probe_values, write_plain, write_probes

from proxyfda.results import main
from proxyfda.results.continual import summarise_continual
from proxyfda.results.matrix import summarise_matrix
from proxyfda.results.metrics import average_accuracy, backward_transfer, forward_transfer
from proxyfda.results.probes import read_probes
from proxyfda.results.tables import table

ROW = ["svhn", "apples", "dtd"]
HELD_OUT = ["birds", "wagons"]
PROBED = [*ROW, *HELD_OUT]
SEEDS = (1, 2)
# Right after its own task 80, 75 and 70; the reference is 50, 45, 40.
MATRIX = [[80, 48, 30], [70, 75, 44], [66, 71, 70]]
BEFORE = [50, 45, 40]


class TestMetrics:
    def test_by_hand(self):
        assert average_accuracy(MATRIX) == pytest.approx((66 + 71 + 70) / 3)
        assert backward_transfer(MATRIX) == pytest.approx(((66 - 80) + (71 - 75)) / 2)
        assert forward_transfer(MATRIX, BEFORE) == pytest.approx(((48 - 45) + (44 - 40)) / 2)

    @pytest.mark.parametrize("matrix", [[], [[1, 2]], [[1, 2], [3]]], ids=str)
    def test_no_square(self, matrix):
        with pytest.raises(ValueError, match="give one line per task"):
            average_accuracy(matrix)

    def test_one_task_transfers_nothing(self):
        assert average_accuracy([[70.0]]) == 70
        with pytest.raises(ValueError, match="there is 1 task; transfer needs two or more"):
            backward_transfer([[70.0]])
        with pytest.raises(ValueError, match="there is 1 task"):
            forward_transfer([[70.0]], [60.0])

    def test_a_reference_per_task(self):
        with pytest.raises(ValueError, match="3 tasks meet 2 accuracies"):
            forward_transfer(MATRIX, BEFORE[:2])


def place(task, name, seed, config="cfg", row=ROW):
    return f"continual/probe_test/{'+'.join(row)}/task{task}/{name}/{config}/seed{seed}"


def made(name, task, seed):
    return probe_values(f"{name} {task} {seed}", PROBED, -task)


@pytest.fixture
def output(tmp_path):
    root = tmp_path / "out"
    write_probes(root, place(0, "Pretrained", 1), probe_values("before", PROBED))
    for name in ("FineTune", "ProxyFDAFineTune"):
        for task in (1, 2, 3):
            for seed in SEEDS:
                write_probes(root, place(task, name, seed), made(name, task, seed))
    return root


def rows_of(root):
    summary = summarise_continual(read_probes(root))
    rows = {row.name: row for row in summary.rows}
    assert len(rows) == len(summary.rows)
    return rows, summary


def naive(name, seed):
    """Numbers of one seed by plain loops, in the order of the table."""
    before = probe_values("before", PROBED)
    after = {task: made(name, task, seed) for task in (1, 2, 3)}
    backward = [after[3][d][0] - after[task][d][0] for task, d in ((1, "svhn"), (2, "apples"))]
    forward = [after[task][d][0] - before[d][0] for task, d in ((1, "apples"), (2, "dtd"))]
    return {
        "accuracy": fmean(after[3][d][0] for d in ROW),
        "backward": fmean(backward),
        "forward": fmean(forward),
        "held_out": fmean(after[3][d][0] - before[d][0] for d in HELD_OUT),
        "held_out_zero_shot": fmean(after[3][d][1] - before[d][1] for d in HELD_OUT),
    }


class TestTable:
    @pytest.mark.parametrize(
        "name, title", [("FineTune", "naive"), ("ProxyFDAFineTune", "Proxy-FDA")]
    )
    def test_against_plain_loops(self, output, name, title):
        rows, summary = rows_of(output)
        each = [naive(name, seed) for seed in SEEDS]
        for field in each[0]:
            values = [one[field] for one in each]
            assert getattr(rows[title], field) == pytest.approx(fmean(values)), field
            assert getattr(rows[title], f"{field}_std") == pytest.approx(stdev(values)), field
        assert (rows[title].seeds, rows[title].complete) == (SEEDS, True)
        assert rows[title].datasets == tuple(ROW)
        assert summary.uniform and summary.notes == []

    def test_the_pretrained_backbone_comes_first(self, output):
        rows, _ = rows_of(output)
        assert list(rows) == ["Pretrained", "naive", "Proxy-FDA"]
        before = probe_values("before", PROBED)
        assert rows["Pretrained"].accuracy == pytest.approx(fmean(before[d][0] for d in ROW))
        assert rows["Pretrained"].backward is None

    def test_text_says_what_is_not_published(self, output):
        text = table(summarise_continual(read_probes(output)))
        assert "SVHN → apples → DescribableTextures" in text
        assert "no published figure could be verified" in text
        for head in ("accuracy", "BWT", "FWT", "Δ held out", "ΔZS held out"):
            assert head in text

    def test_without_a_reference_of_its_own_it_takes_that_of_single_tunings(self, output):
        own = output / place(0, "Pretrained", 1) / "result.json"
        before = rows_of(output)[0]["naive"]
        own.unlink()
        rows, summary = rows_of(output)
        assert (rows["naive"].forward, rows["naive"].held_out) == (None, None)
        assert not rows["naive"].complete and rows["naive"].backward == before.backward
        assert any(note.startswith("No FWT and no Δ held out") for note in summary.notes)
        elsewhere = "finetune/probe_test/pretrained/Pretrained/cfg/seed1"
        write_probes(output, elsewhere, probe_values("before", PROBED))
        assert rows_of(output)[0]["naive"] == before

    def test_an_unfinished_task_is_named(self, output):
        (output / place(2, "FineTune", 2) / "result.json").unlink()
        rows, summary = rows_of(output)
        assert (rows["naive"].seeds, rows["naive"].complete) == ((1,), False)
        assert rows["naive"].backward == pytest.approx(naive("FineTune", 1)["backward"])
        title = "SVHN → apples → DescribableTextures"
        assert summary.notes == [f"Missing: naive on {title}: seed 2 (task 2 not finished)."]

    def test_a_task_that_was_never_begun_is_named(self, output):
        shutil.rmtree(output / place(3, "FineTune", 1))
        assert any("seed 1 (task 3 not run)" in note for note in rows_of(output)[1].notes)

    def test_rows_in_another_order_are_apart(self, output):
        for task in (1, 2):
            found = probe_values(task, PROBED)
            write_probes(output, place(task, "FineTune", 1, row=["dtd", "svhn"]), found)
        summary = summarise_continual(read_probes(output))
        assert [(r.dataset, r.name) for r in summary.rows if r.name == "naive"] == [
            ("dtd+svhn", "naive"), ("svhn+apples+dtd", "naive"),
        ]  # fmt: skip

    def test_another_backbone_is_apart(self, output):
        backbone = {"name": "ViT-B/32", "weights": "openai"}
        for task in (1, 2, 3):
            found = probe_values(task, PROBED)
            write_probes(output, place(task, "FineTune", 1, "large"), found, backbone=backbone)
        summary = summarise_continual(read_probes(output))
        own = [r for r in summary.rows if r.backbone == "ViT-B/32 (openai)"]
        assert [(r.name, r.forward) for r in own] == [("naive", None)]
        assert {r.name for r in summary.rows if r not in own} == {
            "Pretrained",
            "naive",
            "Proxy-FDA",
        }


def test_matrix(output):
    rows = summarise_matrix(read_probes(output), "continual").rows
    cells = {(r.name, r.task, r.probed): r for r in rows}
    assert len(cells) == len(rows) == len(PROBED) * (1 + 2 * 3)
    for (name, task, probed), row in cells.items():
        if name == "naive":
            values = [made("FineTune", task, seed)[probed][0] for seed in SEEDS]
            assert row.linear_probe == pytest.approx(fmean(values))
            assert row.linear_probe_std == pytest.approx(stdev(values))
    before = probe_values("before", PROBED)
    assert cells["Pretrained", 0, "wagons"].linear_probe == before["wagons"][0]


class TestPrompts:
    """One test per dataset takes the place of the probes."""

    def write(self, root, task, name, seed, accuracies, **more):
        for target, accuracy in accuracies.items():
            folder = (
                f"continual/test/{'+'.join(ROW)}/task{task}/{name}/cfg_16shots/{target}/seed{seed}"
            )
            write_plain(
                root, folder, accuracy, name=name, trainer=name, seed=seed,
                backbone={"name": "ViT-Bundled", "weights": "bundled"}, **more,
            )  # fmt: skip

    def fill(self, root):
        for name, shots in (("ZeroshotCLIP", BEFORE), ("CoOp", None)):
            for task in (0,) if shots else (1, 2, 3):
                line = dict(zip(ROW, shots or MATRIX[task - 1]))
                self.write(root, task, name, 1, {**line, "birds": 30 + task})

    def test_numbers(self, tmp_path):
        self.fill(tmp_path)
        rows, summary = rows_of(tmp_path)
        row = rows["CoOp"]
        assert (row.accuracy, row.backward, row.forward, row.held_out) == pytest.approx(
            (69.0, -9.0, 3.5, 3.0)
        )
        assert row.tested and row.held_out_zero_shot is None and row.complete
        assert rows["ZeroshotCLIP"].accuracy == pytest.approx(45)
        assert summary.uniform and summary.notes == []

    def test_they_are_not_in_one_table_with_probes(self, output):
        self.fill(output)
        titles = [x for x in table(summarise_continual(read_probes(output))).splitlines()
                  if x.startswith("Tasks in a row")]  # fmt: skip
        assert [title.rpartition(", ")[2] for title in titles] == [
            "linear probes", "tests of prompts",
        ]  # fmt: skip

    def test_a_damaged_test_is_named(self, tmp_path):
        self.fill(tmp_path)
        folder = tmp_path / f"continual/test/{'+'.join(ROW)}/task2/CoOp/cfg_16shots/birds/seed1"
        (folder / "result.json").write_text("{")
        rows, summary = rows_of(tmp_path)
        assert rows["CoOp"].accuracy is None
        (note,) = [note for note in summary.notes if note.startswith("Missing")]
        assert "task 2 its tests lack birds (" in note and "is unreadable" in note


class TestCommand:
    def test_shows_the_matrix_too(self, output, capsys):
        assert main([str(output), "--protocol", "continual", "--strict"]) == 0
        out = capsys.readouterr().out
        assert "Tasks in a row" in out and "accuracy after each task" in out
        assert main([str(output), "--protocol", "continual_matrix"]) == 0
        assert "Tasks in a row" not in capsys.readouterr().out

    def test_csv(self, output, capsys):
        with pytest.raises(ValueError, match="continual, continual_matrix; choose by --protocol"):
            main([str(output), "--csv"])
        assert main([str(output), "--csv", "--protocol", "continual"]) == 0
        lines = {x["name"]: x for x in csv.DictReader(io.StringIO(capsys.readouterr().out))}
        rows, _ = rows_of(output)
        assert list(lines) == list(rows)
        assert float(lines["naive"]["forward_std"]) == rows["naive"].forward_std
        assert lines["naive"]["datasets"] == "svhn apples dtd"

    def test_latex_is_plain(self, output, capsys):
        assert main([str(output), "--latex"]) == 0
        assert capsys.readouterr().out.isascii()
