"""Logs of other codebases, in the layouts of CoOp's, MaPLe's and PromptSRC's scripts."""

import pytest
from result_trees import write_log, write_run

from proxyfda.results import collect, summarise, summarise_accuracy, table

B2N = "output/base2new/{}/caltech101/shots_16/CoOp/vit_b16_ctxv1/seed{}"


@pytest.fixture
def theirs(tmp_path):
    for seed, base, new in ((1, "98.0", "89.1"), (2, "97.9", "90.0"), (3, "98.3", "90.5")):
        write_log(tmp_path, B2N.format("train_base", seed), base, subsample="base")
        write_log(tmp_path, B2N.format("test_new", seed), new, subsample="new")
    return tmp_path / "output"


def only_row(*outputs, **options):
    summary = summarise(collect(*outputs, **options))
    (row,) = summary.rows
    return row, summary.notes


def test_base_to_new(theirs):
    row, notes = only_row(theirs)
    assert (row.base, row.new) == pytest.approx((294.2 / 3, 269.6 / 3))
    assert (row.title, row.name, row.seeds) == ("Caltech101", "CoOp (log)", (1, 2, 3))
    assert row.rounded
    assert "Read from logs, which have one decimal, so rounded before averaging: CoOp (log)." in (
        notes
    )
    assert "rounded" in table(summarise(collect(theirs)))


def test_the_last_evaluation_counts(theirs):
    path = theirs.parent / B2N.format("test_new", 1) / "log.txt"
    path.write_text(path.read_text() + "=> result\n* accuracy: 50.0%\n* error: 50.0%\n")
    row, _ = only_row(theirs)
    assert row.new == pytest.approx((50 + 90 + 90.5) / 3)


def test_per_class_lines_are_no_accuracy(theirs):
    path = theirs.parent / B2N.format("test_new", 1) / "log.txt"
    more = (
        "=> per-class result\n* class: 0 (a)\ttotal: 5\tcorrect: 5\tacc: 100.0%\n* average: 1.0%\n"
    )
    path.write_text(path.read_text() + more)
    row, _ = only_row(theirs)
    assert row.new == pytest.approx(269.6 / 3)


@pytest.mark.parametrize(
    "said, fault",
    [
        ({"subsample": "base"}, "its subsample is base"),
        ({"seed": 9}, "its seed is 9"),
        ({"shots": 4}, "its shots is 4"),
        ({"trainer": "MaPLe"}, "its trainer is MaPLe"),
    ],
    ids=lambda value: str(value),
)
def test_a_log_of_another_run_is_told(theirs, said, fault):
    write_log(theirs.parent, B2N.format("test_new", 2), "97.9", **{"subsample": "new", **said})
    row, notes = only_row(theirs)
    assert row.seeds == (1, 3)
    assert fault in notes[0] and "seed 2 new" in notes[0]


@pytest.mark.parametrize(
    "text, fault",
    [("epoch [1/2] batch", "has no result"), ("=> result\n* accuracy: nan%\n", "has accuracy nan")],
)
def test_unfinished(theirs, text, fault):
    (theirs.parent / B2N.format("test_new", 2) / "log.txt").write_text(text)
    row, notes = only_row(theirs)
    assert row.seeds == (1, 3)
    assert fault in notes[0]


def test_a_resumed_run_ends_in_a_later_log(theirs):
    folder = B2N.format("test_new", 2)
    (theirs.parent / folder / "log.txt").write_text("epoch [1/2]")
    write_log(theirs.parent, folder, "91.0", name="log.txt-2022-01-02-03-04-05", subsample="new")
    assert only_row(theirs)[0].new == pytest.approx((89.1 + 91.0 + 90.5) / 3)


def test_several_results_are_told(theirs):
    later = "log.txt-2022-01-02-03-04-05"
    write_log(theirs.parent, B2N.format("test_new", 2), "91.0", name=later, subsample="new")
    row, notes = only_row(theirs)
    assert row.new == pytest.approx(269.6 / 3)
    assert any("log.txt 90, which is shown, and" in n and f"{later} 91" in n for n in notes)


def test_base_may_be_in_test_base(theirs, tmp_path):
    for seed in (1, 2, 3):
        old = theirs.parent / B2N.format("train_base", seed)
        write_log(tmp_path, B2N.format("test_base", seed), "80.0", subsample="base")
        (old / "log.txt").unlink()
    assert only_row(theirs)[0].base == pytest.approx(80)


def test_train_base_and_test_base_that_differ_are_told(theirs, tmp_path):
    write_log(tmp_path, B2N.format("test_base", 1), "80.0", subsample="base")
    row, notes = only_row(theirs)
    assert row.base == pytest.approx(294.2 / 3)
    assert any("98.00 and test_base has 80.00" in note for note in notes)


def test_a_log_of_ours_is_no_result(theirs):
    # Our runs say by a config.yaml that they are, and end with a result.json.
    for log in list(theirs.rglob("log.txt")):
        log.with_name("config.yaml").write_text("SEED: 2\n")
    with pytest.raises(ValueError, match="none of the 6 runs .*seed1: not finished"):
        collect(theirs)


def test_an_empty_folder_among_logs_is_a_missing_run_of_theirs(theirs):
    (theirs.parent / B2N.format("test_new", 2) / "log.txt").unlink()
    row, notes = only_row(theirs)
    assert (row.name, row.seeds) == ("CoOp (log)", (1, 3))
    assert notes[0] == "Missing: CoOp (log) on Caltech101: seed 2 new (not finished)."


def test_results_on_the_validation_split_do_not_count(theirs):
    write_log(theirs.parent, B2N.format("test_new", 2), "99", subsample="new", split="val")
    row, notes = only_row(theirs)
    assert row.seeds == (1, 3)
    assert "its result is on split val" in notes[0]


class TestBesideOurs:
    def test_rows_are_never_mixed(self, theirs, tmp_path):
        for seed in (1, 2, 3):
            for part, accuracy in (("base", 97.0 + seed), ("new", 88.0 + seed)):
                cfg = {"config": "vit_b16_ctxv1"}
                write_run(tmp_path / "ours", part, "caltech101", "CoOp", seed, accuracy, **cfg)
        rows = summarise(collect(tmp_path / "ours", theirs)).rows
        assert [(row.name, row.base) for row in rows] == [
            ("CoOp", 99.0), ("CoOp (log)", pytest.approx(294.2 / 3)),
        ]  # fmt: skip

    def test_labels_tell_two_outputs_apart(self, theirs):
        with pytest.raises(ValueError, match="or name the two outputs by LABEL=FOLDER"):
            collect(theirs, theirs / "base2new")
        rows = summarise(collect(f"a={theirs}", f"b={theirs}")).rows
        assert [row.name for row in rows] == ["CoOp (a)", "CoOp (b)"]

    def test_their_seeds_are_not_missed_in_ours(self, theirs, tmp_path):
        write_run(tmp_path / "ours", "base", "caltech101", "CoOp", 1, 97.0)
        write_run(tmp_path / "ours", "new", "caltech101", "CoOp", 1, 90.0)
        ours, _ = summarise(collect(tmp_path / "ours", theirs)).rows
        assert ours.complete


class TestOtherLayouts:
    @pytest.mark.parametrize(
        "path",
        [
            "output/dtd/PromptSRC/cfg_few_shot_4shots/seed1",
            "output/few_shot/dtd/PromptSRC/cfg_few_shot_4shots/seed1",
            "output/dtd/PromptSRC/cfg_few_shot_4shots/nctx16_cscFalse_ctpend/seed1",
        ],
        ids=["PromptSRC", "reproduce", "CoOp"],
    )
    def test_fewshot(self, tmp_path, path):
        write_log(tmp_path, path, "66.6", trainer="PromptSRC", shots=4)
        (row,) = summarise_accuracy(collect(tmp_path))["fewshot"].rows
        assert (row.title, row.shots, row.accuracy) == ("DescribableTextures", 4, 66.6)

    def test_cross_dataset(self, tmp_path):
        tail = "MaPLe/cfg_cross_datasets_16shots"
        write_log(tmp_path, f"output/imagenet/{tail}/seed1", "70.7", trainer="MaPLe")
        for dataset, accuracy in (("caltech101", "93.5"), ("oxford_pets", "90.5")):
            path = f"output/evaluation/{tail}/{dataset}/seed1"
            write_log(tmp_path, path, accuracy, trainer="MaPLe", shots=-1)
        tables = summarise_accuracy(collect(tmp_path))
        assert list(tables) == ["cross_dataset"]
        assert [(r.title, r.source, r.accuracy) for r in tables["cross_dataset"].rows] == [
            ("ImageNet", True, 70.7),
            ("Caltech101", False, 93.5),
            ("OxfordPets", False, 90.5),
            ("average", False, pytest.approx(92.0)),
        ]

    def test_zero_shot(self, tmp_path):
        write_log(tmp_path, "output/ZeroshotCLIP/vit_b16/dtd", "43.9", trainer="ZeroshotCLIP")
        (row,) = summarise_accuracy(collect(tmp_path))["zeroshot"].rows
        assert (row.title, row.accuracy, row.complete) == ("DescribableTextures", 43.9, True)
