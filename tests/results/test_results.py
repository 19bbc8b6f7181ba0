import csv
import io
import json
import math
import subprocess
import sys

import pytest
from result_trees import run_folder, write_run, write_runs

from proxyfda import results
from proxyfda.results import collect, main, summarise, table

# Standard deviations by hand: (1, 2, 3) -> 1; (70, 80, 90) -> 10; (2, 4) -> sqrt 2.
TWO = {
    "apples": {
        "ZeroshotCLIP": ([60.0], [50.0]),
        "CoOp": ([70.0, 80.0, 90.0], [41.0, 42.0, 43.0]),
        "ProxyFDACoOp": ([80.0, 80.0, 80.0], [50.0, 52.0, 54.0]),
    },
    "birds": {
        "ZeroshotCLIP": ([70.0], [60.0]),
        "CoOp": ([90.0, 90.0, 90.0], [30.0, 32.0, 34.0]),
        "ProxyFDACoOp": ([86.0, 87.0, 88.0], [60.0, 61.0, 62.0]),
    },
}


def rows_of(*outputs, **options):
    """Rows by (dataset, name), and the notes."""
    summary = summarise(collect(*outputs, **options))
    rows = {(row.dataset, row.name): row for row in summary.rows}
    assert len(rows) == len(summary.rows)
    return rows, summary.notes


def remove(root, part, dataset, trainer, seed, **where):
    (run_folder(root, part, dataset, trainer, seed, **where) / "result.json").unlink()


@pytest.fixture
def two(tmp_path):
    return write_runs(tmp_path, TWO)


class TestNumbers:
    def test_one_dataset(self, two):
        row = rows_of(two)[0]["apples", "CoOp"]
        assert (row.base, row.base_std) == pytest.approx((80, 10))
        assert (row.new, row.new_std) == pytest.approx((42, 1))
        assert row.h == pytest.approx(2 * 80 * 42 / 122)
        h = [2 * 70 * 41 / 111, 2 * 80 * 42 / 122, 2 * 90 * 43 / 133]
        mean = sum(h) / 3
        assert row.h_std == pytest.approx(math.sqrt(sum((x - mean) ** 2 for x in h) / 2))
        assert (row.delta_new, row.delta_new_std) == pytest.approx((-8, 1))
        assert (row.seeds, row.complete) == ((1, 2, 3), True)

    def test_zero_shot_has_no_spread_and_no_difference(self, two):
        row = rows_of(two)[0]["birds", "ZeroshotCLIP"]
        assert (row.base, row.new, row.h) == pytest.approx((70, 60, 2 * 70 * 60 / 130))
        assert (row.base_std, row.new_std, row.h_std, row.delta_new) == (None,) * 4
        assert row.complete

    def test_average_over_datasets_seed_by_seed(self, two):
        rows, notes = rows_of(two)
        row = rows["average", "CoOp"]
        # base by seed: 80, 85, 90; new by seed: 35.5, 37, 38.5
        assert (row.base, row.base_std) == pytest.approx((85, 5))
        assert (row.new, row.new_std) == pytest.approx((37, 1.5))
        assert row.h == pytest.approx(2 * 85 * 37 / 122)
        assert row.delta_new == pytest.approx(37 - 55)
        assert (row.n_datasets, row.complete) == (2, True)
        assert rows["average", "ZeroshotCLIP"].h == pytest.approx(2 * 65 * 55 / 120)
        assert notes == []

    def test_h_of_the_average_is_that_of_published_tables(self, tmp_path):
        # CoOp's published averages over eleven datasets, here as two whose H differ widely.
        numbers = {"x": ([72.69], [93.22]), "y": ([92.69], [33.22])}
        write_runs(tmp_path, {d: {"CoOp": parts} for d, parts in numbers.items()})
        row = rows_of(tmp_path)[0]["average", "CoOp"]
        assert (row.base, row.new) == pytest.approx((82.69, 63.22))
        assert f"{row.h:.2f}" == "71.66"

    def test_a_single_seed_has_no_spread(self, tmp_path):
        write_runs(tmp_path, {"x": {"CoOp": ([80], [60])}})
        row = rows_of(tmp_path)[0]["x", "CoOp"]
        assert (row.base, row.base_std, row.new_std, row.h_std) == (80, None, None, None)

    def test_one_dataset_needs_no_average(self, tmp_path):
        write_runs(tmp_path, {"x": {"CoOp": ([80], [60])}})
        assert list(rows_of(tmp_path)[0]) == [("x", "CoOp")]


class TestMissing:
    def test_a_deleted_seed_is_named_and_left_out_of_the_average(self, two):
        remove(two, "new", "birds", "CoOp", 2)
        rows, notes = rows_of(two)
        row = rows["birds", "CoOp"]
        assert (row.seeds, row.complete) == ((1, 3), False)
        assert (row.base, row.new) == pytest.approx((90, 32))
        average = rows["average", "CoOp"]
        assert (average.seeds, average.complete) == ((1, 3), False)
        assert (average.base, average.new) == pytest.approx((85, 37))
        assert average.base_std == pytest.approx(math.sqrt(50))  # 80 and 90
        assert rows["average", "ProxyFDACoOp"].complete
        assert notes == [
            "Missing: CoOp on birds: seed 2 new (not finished).",
            "The average of CoOp is without seed 2, which is not complete on each of its datasets.",
        ]

    def test_even_if_nothing_else_has_that_dataset(self, tmp_path):
        numbers = {"x": {"CoOp": ([1, 2, 3], [1, 2, 3]), "FDACoOp": ([1, 2], [1, 2])}}
        rows, notes = rows_of(write_runs(tmp_path, numbers))
        assert not rows["x", "FDACoOp"].complete
        assert "Missing: FDACoOp on x: seed 3 (not run)." in notes

    def test_a_dataset_that_a_row_lacks_leaves_every_average(self, two):
        for part in ("base", "new"):
            for seed in (1, 2, 3):
                remove(two, part, "birds", "ProxyFDACoOp", seed)
        rows, notes = rows_of(two)
        for name in ("ZeroshotCLIP", "CoOp", "ProxyFDACoOp"):
            average, alone = rows["average", name], rows["apples", name]
            assert (average.base, average.new, average.h) == pytest.approx(
                (alone.base, alone.new, alone.h)
            )
            assert (average.n_datasets, average.complete) == (1, False)
        assert rows["birds", "ProxyFDACoOp"].base is None
        assert any("over 1 of 2 datasets, without birds" in note for note in notes)

    def test_a_row_that_has_nothing_leaves_the_averages_alone(self, two):
        run_folder(two, "base", "apples", "MaPLe", 1).mkdir(parents=True)
        rows, notes = rows_of(two)
        assert rows["average", "CoOp"].n_datasets == 2
        assert ("average", "MaPLe") not in rows
        assert "Missing: MaPLe on birds: not run." in notes

    def test_base_without_new(self, tmp_path):
        write_run(tmp_path, "base", "x", "CoOp", 1, 80)
        write_run(tmp_path, "base", "x", "CoOp", 2, 82)
        rows, notes = rows_of(tmp_path)
        row = rows["x", "CoOp"]
        assert (row.base, row.new, row.h, row.delta_new) == (81, None, None, None)
        assert "Missing: CoOp on x: seed 1 new (not run); seed 2 new (not run)." in notes

    def test_no_zero_shot(self, tmp_path):
        write_runs(tmp_path, {"x": {"CoOp": ([80], [60])}})
        rows, notes = rows_of(tmp_path)
        assert rows["x", "CoOp"].delta_new is None
        assert notes == ["There is no Δnew without ZeroshotCLIP in the same output."]

    def test_seeds_that_no_dataset_shares(self, tmp_path):
        for part in ("base", "new"):
            write_run(tmp_path, part, "x", "CoOp", 1, 50)
            write_run(tmp_path, part, "y", "CoOp", 2, 70)
        rows, notes = rows_of(tmp_path)
        assert rows["average", "CoOp"].base is None
        assert any("without seed 1, 2" in note for note in notes)

    @pytest.mark.parametrize(
        "content, fault",
        [
            ("{", "is unreadable"),
            ("[]", "is unreadable"),
            ("{}", "has no accuracy"),
            ('{"accuracy": "good"}', "has accuracy good"),
            ('{"accuracy": 50, "schema": 99}', "has schema 99"),
            ('{"accuracy": 50, "backbone": "RN50"}', "has backbone RN50"),
            ('{"accuracy": NaN}', "has accuracy nan"),
            ('{"accuracy": 101}', "has accuracy 101"),
        ],
    )
    def test_spoilt_results_are_no_results(self, two, content, fault):
        path = run_folder(two, "new", "apples", "CoOp", 3) / "result.json"
        path.write_text(content)
        rows, notes = rows_of(two)
        assert rows["apples", "CoOp"].seeds == (1, 2)
        assert notes[0].startswith(f"Missing: CoOp on apples: seed 3 new ({path} {fault}")

    @pytest.mark.parametrize(
        "wrong",
        [
            {"subsample": "base"},
            {"seed": 1},
            {"shots": 4},
            {"trainer": "MaPLe"},
            {"protocol": "fewshot"},
        ],
        ids=str,
    )
    def test_results_of_another_run_are_no_results(self, two, wrong):
        path = run_folder(two, "new", "apples", "CoOp", 3) / "result.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **wrong}))
        name, value = next(iter(wrong.items()))
        rows, notes = rows_of(two)
        assert rows["apples", "CoOp"].seeds == (1, 2)
        assert f"is of another run, its {name} is {value}" in notes[0]


class TestZeroShot:
    def test_seeds_do_not_matter(self, two):
        write_run(two, "base", "apples", "ZeroshotCLIP", 3, 60.0)
        write_run(two, "new", "apples", "ZeroshotCLIP", 2, 50.0)
        run_folder(two, "new", "apples", "ZeroshotCLIP", 3).mkdir(parents=True)
        rows, notes = rows_of(two)
        assert rows["apples", "ZeroshotCLIP"].complete
        assert rows["average", "ZeroshotCLIP"].base == pytest.approx(65)
        assert notes == []

    def test_different_results_of_seeds_are_told(self, two):
        write_run(two, "new", "apples", "ZeroshotCLIP", 2, 52.0)
        rows, notes = rows_of(two)
        assert rows["apples", "ZeroshotCLIP"].new == 51
        assert any("ZeroshotCLIP on apples has different new results" in note for note in notes)

    def test_missing_on_a_dataset(self, two):
        for part in ("base", "new"):
            remove(two, part, "birds", "ZeroshotCLIP", 1)
        rows, notes = rows_of(two)
        assert rows["birds", "CoOp"].delta_new is None
        assert rows["average", "CoOp"].delta_new == pytest.approx(-8)
        assert "Missing: ZeroshotCLIP on birds: not finished." in notes
        assert any(note.startswith("No Δnew for CoOp, ProxyFDACoOp") for note in notes)

    def test_of_the_same_config_is_the_reference(self, tmp_path):
        write_runs(tmp_path, {"x": {"ZeroshotCLIP": ([60], [50]), "CoOp": ([70], [45])}})
        more = {"x": {"ZeroshotCLIP": ([60], [58]), "CoOp": ([70], [46])}}
        write_runs(tmp_path, more, config="large")
        write_runs(tmp_path, {"x": {"CoOp": ([70], [47])}}, config="other")
        rows, notes = rows_of(tmp_path)
        assert rows["x", "CoOp (cfg)"].delta_new == pytest.approx(-5)
        assert rows["x", "CoOp (large)"].delta_new == pytest.approx(-12)
        assert rows["x", "CoOp (other)"].delta_new is None
        assert any(note.startswith("No Δnew for CoOp (other)") for note in notes)

    def test_of_another_backbone_is_no_reference(self, tmp_path):
        cells = {
            "ZeroshotCLIP": ("RN50", ([50], [40])),
            "CoOp": ("ViT-B/16", ([70], [60])),
            "FDACoOp": ("RN50", ([60], [45])),
        }
        for trainer, (name, numbers) in cells.items():
            backbone = {"name": name, "weights": "openai"}
            write_runs(tmp_path, {"x": {trainer: numbers}}, backbone=backbone)
        rows, notes = rows_of(tmp_path)
        assert rows["x", "CoOp"].delta_new is None
        assert rows["x", "FDACoOp"].delta_new == pytest.approx(5)
        (note,) = [note for note in notes if note.startswith("No Δnew")]
        assert note.startswith("No Δnew for CoOp where ZeroshotCLIP has no result with the same")
        assert "(ViT-B/16, openai)" in note

    @pytest.mark.parametrize(
        "other",
        [
            {"weights": "laion2b"},
            {"weights": "my.pt", "bytes": 1},
            {"weights": "my.pt", "bytes": 2},
        ],
        ids=lambda other: " ".join(map(str, other.values())),
    )
    def test_of_other_weights_is_no_reference(self, tmp_path, other):
        mine = {"name": "ViT-B/16", "weights": "my.pt", "bytes": 1}
        theirs = {"name": "ViT-B/16", **other}
        write_runs(tmp_path, {"x": {"ZeroshotCLIP": ([50], [40])}}, backbone=theirs)
        write_runs(tmp_path, {"x": {"CoOp": ([70], [60])}}, backbone=mine)
        assert rows_of(tmp_path)[0]["x", "CoOp"].delta_new == (20 if mine == theirs else None)

    def test_of_the_backbone_is_chosen_among_several(self, tmp_path):
        for name, new in (("RN50", 40), ("ViT-B/16", 70)):
            backbone = {"name": name, "weights": "openai"}
            numbers = {"x": {"ZeroshotCLIP": ([60], [new]), "CoOp": ([70], [new + 5])}}
            write_runs(tmp_path, numbers, config=name.replace("/", ""), backbone=backbone)
        write_runs(
            tmp_path,
            {"x": {"FDACoOp": ([70], [73])}},
            config="ours",
            backbone={"name": "ViT-B/16", "weights": "openai"},
        )
        rows, _ = rows_of(tmp_path)
        assert rows["x", "FDACoOp"].delta_new == pytest.approx(3)

    def test_serves_every_number_of_shots(self, tmp_path):
        write_runs(tmp_path, {"x": {"ZeroshotCLIP": ([60], [50]), "CoOp": ([70], [45])}})
        write_runs(tmp_path, {"x": {"CoOp": ([65], [48])}}, shots=4)
        summary = summarise(collect(tmp_path))
        assert [(r.shots, r.name, r.delta_new) for r in summary.rows] == [
            (4, "ZeroshotCLIP", None),
            (4, "CoOp", -2),
            (16, "ZeroshotCLIP", None),
            (16, "CoOp", -5),
        ]

    def test_alone(self, tmp_path):
        rows, notes = rows_of(write_runs(tmp_path, {"x": {"ZeroshotCLIP": ([60], [50])}}))
        assert rows["x", "ZeroshotCLIP"].new == 50
        assert notes == []


class TestOrderAndNames:
    def test_trainers(self, tmp_path):
        trainers = ["ProxyFDACoOp", "MaPLe", "FDACoOp", "CoOp", "ZeroshotCLIP", "FDAMaPLe", "Ours"]
        trainers += ["CoOp+rkd", "MaPLe+pointwise", "CoOp+kl"]
        write_runs(tmp_path, {"x": {trainer: ([1], [1]) for trainer in trainers}})
        assert [row.name for row in summarise(collect(tmp_path)).rows] == [
            "ZeroshotCLIP", "CoOp", "FDACoOp", "ProxyFDACoOp", "CoOp+kl", "CoOp+rkd",
            "MaPLe", "FDAMaPLe", "MaPLe+pointwise", "Ours",
        ]  # fmt: skip

    def test_datasets_as_published_then_by_name_then_the_average(self, tmp_path):
        titles = {"ucf101": "UCF101", "zoo": "zoo", "eurosat": "EuroSAT", "ants": "ants"}
        for folder, title in titles.items():
            for part in ("base", "new"):
                write_run(tmp_path, part, folder, "CoOp", 1, 50, title=title)
        rows = summarise(collect(tmp_path)).rows
        assert [row.title for row in rows] == ["EuroSAT", "UCF101", "ants", "zoo", "average"]

    def test_two_folders_with_one_title_keep_their_names(self, tmp_path):
        for folder in ("mine", "yours"):
            write_run(tmp_path, "base", folder, "CoOp", 1, 50, title="ImageFolder")
        rows = summarise(collect(tmp_path)).rows
        assert [row.title for row in rows][:2] == ["mine", "yours"]


class TestOutputFolders:
    def test_base2new_itself_may_be_given(self, two):
        assert rows_of(two / "base2new") == rows_of(two)

    def test_several_are_put_together(self, tmp_path):
        write_runs(tmp_path / "a", {"x": {"CoOp": ([1], [1])}})
        write_runs(tmp_path / "b", {"x": {"FDACoOp": ([1], [1])}})
        rows, _ = rows_of(tmp_path / "a", tmp_path / "b")
        assert list(rows) == [("x", "CoOp"), ("x", "FDACoOp")]

    def test_the_same_run_twice(self, two):
        with pytest.raises(ValueError, match="are the same run; give one of the folders"):
            collect(two, two / "base2new")

    def test_other_files_beside_the_runs(self, two):
        base = two / "base2new" / "train_base"
        (base / ".DS_Store").touch()
        (base / "apples" / "shots_x" / "CoOp" / "cfg" / "seed1").mkdir(parents=True)
        (base / "apples" / "shots_16" / "CoOp" / "cfg" / "seed_copy").mkdir()
        assert rows_of(two)[1] == []

    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
            collect(tmp_path / "nowhere")

    def test_wrong(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="has no base2new/train_base"):
            collect(tmp_path)

    def test_nothing_finished(self, tmp_path):
        run_folder(tmp_path, "base", "x", "CoOp", 1).mkdir(parents=True)
        with pytest.raises(ValueError, match="none of the 1 runs in .* has a valid result.json"):
            collect(tmp_path)


class TestSplit:
    def test_val_results_are_taken_when_asked_for(self, tmp_path):
        write_runs(tmp_path, {"x": {"CoOp": ([80], [60])}}, split="val")
        assert rows_of(tmp_path, split="val")[0]["x", "CoOp"].base == 80
        with pytest.raises(ValueError, match="no result on split 'test'.*--split val"):
            collect(tmp_path)

    def test_rows_on_another_split_are_left_out(self, tmp_path):
        write_runs(tmp_path, {"x": {"CoOp": ([80], [60])}})
        write_runs(tmp_path, {"x": {"CoOp": ([81], [61])}}, split="val", config="tuning")
        assert list(rows_of(tmp_path)[0]) == [("x", "CoOp")]
        assert rows_of(tmp_path, split="val")[0]["x", "CoOp"].base == 81

    def test_a_single_run_on_another_split_is_missing(self, two):
        write_run(two, "new", "apples", "CoOp", 2, 99, split="val")
        rows, notes = rows_of(two)
        assert rows["apples", "CoOp"].new == pytest.approx(42)
        assert "seed 2 new (its result is on split val)" in notes[0]

    def test_results_that_do_not_tell_count_as_the_wanted_one(self, tmp_path):
        write_runs(tmp_path, {"x": {"CoOp": ([80], [60])}}, split=None)
        assert rows_of(tmp_path)[0]["x", "CoOp"].base == 80


class TestTable:
    def test_one_shot_is_no_plural(self, tmp_path):
        write_runs(tmp_path, {"x": {"CoOp": ([80], [60])}}, shots=1)
        assert table(summarise(collect(tmp_path))).startswith("Base-to-new, 1 shot\n")

    def test_text(self, two):
        text = table(summarise(collect(two)))
        lines = [" ".join(line.split()) for line in text.splitlines()]
        assert lines[0] == "Base-to-new, 16 shots"
        assert "apples ZeroshotCLIP 60.00 50.00 54.55 -" in lines
        assert "CoOp 80.00 ± 10.00 42.00 ± 1.00 55.08 ± 3.24 -8.00 ± 1.00 3" in lines
        assert "ProxyFDACoOp 80.00 ± 0.00 52.00 ± 2.00 63.03 ± 1.47 +2.00 ± 2.00 3" in lines
        assert "average ZeroshotCLIP 65.00 55.00 59.58 -" in lines
        assert "sample standard deviation (n - 1)" in text
        assert "*" not in text

    def test_missing_is_marked_and_named(self, two):
        remove(two, "base", "apples", "CoOp", 1)
        text = table(summarise(collect(two)))
        assert [line.split()[-1] for line in text.splitlines() if " CoOp " in line[:40]][:1] == [
            "2*"
        ]
        assert "* not complete, see below." in text
        assert "Missing: CoOp on apples: seed 1 base (not finished)." in text

    def test_an_average_over_fewer_datasets_says_so(self, two):
        for seed in (1, 2, 3):
            remove(two, "new", "birds", "CoOp", seed)
        assert "average (1 of 2)" in table(summarise(collect(two)))

    def test_markdown(self, two):
        remove(two, "base", "apples", "CoOp", 1)
        text = table(summarise(collect(two)), "markdown")
        body = [line for line in text.splitlines() if line.startswith("|")]
        assert len(body) == 2 + 9
        assert {line.count("|") for line in body} == {8}
        assert "- Missing: CoOp on apples: seed 1 base (not finished)." in text.splitlines()

    def test_csv_is_unrounded_and_reads_back(self, two):
        write_run(two, "base", "apples", "CoOp", 1, 70 + 1 / 3)
        summary = summarise(collect(two))
        lines = list(csv.DictReader(io.StringIO(table(summary, "csv"))))
        assert len(lines) == len(summary.rows)
        for line, row in zip(lines, summary.rows):
            assert (line["dataset"], line["name"]) == (row.dataset, row.name)
            assert (float(line["base"]), float(line["h"])) == (row.base, row.h)
            assert line["seeds"] == " ".join(map(str, row.seeds))
        assert lines[0]["delta_new"] == ""

    def test_unknown_form(self, two):
        with pytest.raises(ValueError, match="use text, markdown or csv"):
            table(summarise(collect(two)), "html")


class TestCommand:
    def test_prints_the_table(self, two, capsys):
        assert main([str(two)]) == 0
        assert capsys.readouterr().out == table(summarise(collect(two)))

    @pytest.mark.parametrize(
        "name, flags, form",
        [
            ("t.md", [], "markdown"),
            ("t.csv", [], "csv"),
            ("t.txt", [], "text"),
            ("t.txt", ["--csv"], "csv"),
        ],
    )
    def test_writes_a_file_by_its_suffix(self, two, tmp_path, name, flags, form):
        path = tmp_path / name
        assert main([str(two), "--output", str(path), *flags]) == 0
        assert path.read_text(encoding="utf-8") == table(summarise(collect(two)), form)

    def test_strict_fails_where_something_is_missing(self, two):
        assert main([str(two), "--strict"]) == 0
        remove(two, "base", "apples", "CoOp", 1)
        assert main([str(two)]) == 0
        assert main([str(two), "--strict"]) == 1

    def test_a_mistake_is_one_sentence(self, tmp_path):
        root = results.__file__.rsplit("proxyfda", 1)[0]
        done = subprocess.run(
            [sys.executable, "-m", "proxyfda.results", str(tmp_path / "nowhere")],
            cwd=root, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode != 0
        assert done.stdout == ""
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1

    def test_torch_is_not_loaded(self, two):
        root = results.__file__.rsplit("proxyfda", 1)[0]
        code = (
            "import sys; from proxyfda.results import main\n"
            "main([sys.argv[1]]); sys.exit('torch' in sys.modules)"
        )
        words = [sys.executable, "-c", code, str(two)]
        assert subprocess.run(words, cwd=root, capture_output=True).returncode == 0

    def test_names_are_there_and_others_are_not(self):
        for name in results.__all__:
            assert getattr(results, name) is not None and name in dir(results)
        with pytest.raises(AttributeError, match="no attribute 'tables_of'"):
            _ = results.tables_of


class TestStarts:
    """Runs of one row start from the same, or each seed from its own."""

    @staticmethod
    def notes(root, key, starts):
        for seed, start in enumerate(starts, 1):
            node, _, name = key.rpartition(".")
            cfg = {name: start}
            for part in reversed(node.split(".")):
                cfg = {part: cfg}
            for part in ("base", "new"):
                write_run(root, part, "x", "CoOp", seed, 50, cfg=cfg)
        summary = summarise(collect(root))
        notes = [note for note in summary.notes if "without ZeroshotCLIP" not in note]
        return summary.uniform, " ".join(notes)

    @pytest.mark.parametrize("key", ["MODEL.INIT_WEIGHTS", "TRAINER.FINETUNE.START_FROM"])
    def test_another_start_is_another_setting(self, tmp_path, key):
        uniform, notes = self.notes(tmp_path, key, ["", "out/a/seed1"])
        assert not uniform and f"{key} is " in notes

    @pytest.mark.parametrize("key", ["MODEL.INIT_WEIGHTS", "TRAINER.FINETUNE.START_FROM"])
    def test_each_seed_may_start_from_its_own(self, tmp_path, key):
        assert self.notes(tmp_path, key, ["out/a/seed1", "out/a/seed2"]) == (True, "")

    def test_the_tasks_of_a_row_start_from_each_other(self, tmp_path):
        tasks = [f"out/continual/train/a+b/task{i}/CoOp/cfg/seed1" for i in (1, 2)]
        assert self.notes(tmp_path, "MODEL.INIT_WEIGHTS", ["", *tasks]) == (True, "")
