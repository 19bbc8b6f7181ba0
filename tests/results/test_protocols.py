"""Tables on all classes, rows of several configs, and what is said about mixed settings."""

import functools

import pytest
from result_trees import write_plain, write_run, write_runs

from proxyfda.experiments.record import FREE
from proxyfda.results import collect, main, summarise, summarise_accuracy, table


def few(root, dataset, trainer, shots, accuracies, config="cfg", **more):
    for seed, accuracy in enumerate(accuracies, 1):
        path = f"{dataset}/{trainer}/{config}_{shots}shots/seed{seed}"
        write_plain(root, path, accuracy, trainer=trainer, seed=seed, shots=shots, **more)


def zero(root, dataset, accuracy, **more):
    more = {"trainer": "ZeroshotCLIP", "shots": -1, **more}
    write_plain(root, f"ZeroshotCLIP/vit_b16/{dataset}", accuracy, **more)


def transferred(root, dataset, trainer, accuracies, source="imagenet", config="cfg"):
    for seed, accuracy in enumerate(accuracies, 1):
        tail = f"{trainer}/{config}_16shots"
        path = f"evaluation/{tail}/{dataset}/seed{seed}"
        write_plain(root, path, accuracy, trainer=trainer, seed=seed, shots=-1, source=source)


def rows_by(summary, *names):
    found = {tuple(getattr(row, name) for name in names): row for row in summary.rows}
    assert len(found) == len(summary.rows)
    return found


class TestFewshot:
    @pytest.fixture
    def output(self, tmp_path):
        for dataset, offset in (("x", 0), ("y", 20)):
            zero(tmp_path, dataset, 40 + offset)
            for shots, accuracies in ((1, (50, 52, 54)), (16, (60, 61, 62))):
                few(tmp_path, dataset, "CoOp", shots, [a + offset for a in accuracies])
        return tmp_path

    def test_means_spreads_and_differences(self, output):
        rows = rows_by(summarise_accuracy(collect(output))["fewshot"], "dataset", "name", "shots")
        row = rows["x", "CoOp", 1]
        assert (row.accuracy, row.accuracy_std, row.delta) == pytest.approx((52, 2, 12))
        average = rows["average", "CoOp", 16]
        assert (average.accuracy, average.accuracy_std) == pytest.approx((71, 1))
        assert average.datasets == ("x", "y")
        assert rows["average", "ZeroshotCLIP", 0].accuracy == pytest.approx(50)

    def test_table_has_a_column_per_number_of_shots(self, output):
        text = table(summarise_accuracy(collect(output))["fewshot"], "markdown")
        lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
        assert ["dataset", "trainer", "zero-shot", "1 shot", "16 shots", "seeds"] in lines
        assert ["x", "ZeroshotCLIP", "40.00", "", "", ""] in lines
        assert ["", "CoOp", "", "52.00 ± 2.00", "61.00 ± 1.00", "3"] in lines

    def test_a_missing_seed_marks_its_cell_and_is_named(self, output):
        (output / "y/CoOp/cfg_16shots/seed2/result.json").unlink()
        summary = summarise_accuracy(collect(output))["fewshot"]
        rows = rows_by(summary, "dataset", "name", "shots")
        assert rows["y", "CoOp", 16].seeds == (1, 3)
        assert rows["y", "CoOp", 1].complete
        # Of the average too: seed 2 has x alone.
        assert rows["average", "CoOp", 16].accuracy == pytest.approx((60 + 62 + 80 + 82) / 4)
        assert "Missing: CoOp on y: seed 2 16 shots (not finished)." in summary.notes
        assert any("CoOp at 16 shots is without seed 2" in note for note in summary.notes)
        assert "81.00 ± 1.41*" in table(summary)

    def test_the_average_has_the_same_datasets_for_every_number_of_shots(self, output):
        few(output, "z", "CoOp", 16, (10, 10, 10))
        summary = summarise_accuracy(collect(output))["fewshot"]
        rows = rows_by(summary, "dataset", "name", "shots")
        assert rows["average", "CoOp", 16].accuracy == pytest.approx(71)
        assert any("2 of 3 datasets, without z" in note for note in summary.notes)

    def test_a_config_per_number_of_shots_makes_one_row(self, output):
        # As CoOp's own protocol: fewer epochs for few shots.
        few(output, "x", "CoOp", 2, (53, 54, 55), config="cfg_ep50")
        summary = summarise_accuracy(collect(output))["fewshot"]
        rows = rows_by(summary, "dataset", "name", "shots")
        assert rows["x", "CoOp", 2].accuracy == pytest.approx(54)
        assert any("puts configs together" in note and "cfg_ep50" in note for note in summary.notes)

    def test_results_on_other_classes_are_no_results(self, output):
        few(output, "x", "CoOp", 16, (1, 2, 3), subsample="base")
        notes = summarise_accuracy(collect(output))["fewshot"].notes
        assert "is of another run, its subsample is base" in notes[0]


class TestTransfer:
    @pytest.fixture
    def output(self, tmp_path):
        few(tmp_path, "imagenet", "CoOp", 16, (70, 71, 72))
        transferred(tmp_path, "caltech101", "CoOp", (90, 91, 92))
        transferred(tmp_path, "dtd", "CoOp", (40, 42, 44))
        transferred(tmp_path, "imagenetv2", "CoOp", (60, 61, 62))
        transferred(tmp_path, "imagenet_r", "CoOp", (70, 70, 70))
        return tmp_path

    def test_cross_dataset_average_is_that_of_targets(self, output):
        rows = rows_by(summarise_accuracy(collect(output))["cross_dataset"], "title")
        assert [title for (title,) in rows] == [
            "ImageNet", "Caltech101", "DescribableTextures", "average",
        ]  # fmt: skip
        assert rows["ImageNet",].source and not rows["Caltech101",].source
        average = rows["average",]
        # by seed: 65, 66.5, 68
        assert (average.accuracy, average.accuracy_std) == pytest.approx((66.5, 1.5))
        assert average.datasets == ("caltech101", "dtd")

    def test_domain_generalization_is_a_table_of_its_own(self, output):
        summary = summarise_accuracy(collect(output))["domain_generalization"]
        assert [row.title for row in summary.rows] == [
            "ImageNet", "ImageNetV2", "ImageNetR", "average",
        ]  # fmt: skip
        assert summary.rows[-1].accuracy == pytest.approx(65.5)
        text = table(summary)
        assert "ImageNet (source)" in text and "average of 2 targets" in text

    def test_the_source_is_that_of_the_result(self, tmp_path):
        for dataset in ("fruits", "scenes", "plants"):
            few(tmp_path, dataset, "CoOp", 16, (80, 80, 80))
        transferred(tmp_path, "scenes", "CoOp", (50, 51, 52), source="fruits")
        rows = summarise_accuracy(collect(tmp_path))["cross_dataset"].rows
        assert [(row.title, row.source) for row in rows] == [("fruits", True), ("scenes", False)]

    def test_a_source_that_is_not_known_is_not_said_to_be_imagenet(self, output):
        for path in (output / "evaluation").rglob("result.json"):
            path.write_text(path.read_text().replace('"source": "imagenet"', '"source": null'))
        rows = summarise_accuracy(collect(output))["cross_dataset"].rows
        assert [row.title for row in rows if row.source] == []

    def test_two_sources_in_one_row_are_told(self, output):
        transferred(output, "dtd", "CoOp", (40, 42, 44), source="eurosat")
        summary = summarise_accuracy(collect(output))["cross_dataset"]
        assert not summary.uniform
        assert any("it was trained on eurosat" in note for note in summary.notes)

    def test_zero_shot_of_another_backbone_is_no_reference(self, output):
        zero(output, "dtd", 44, backbone={"name": "RN50", "weights": "openai"})
        summary = summarise_accuracy(collect(output))["cross_dataset"]
        rows = rows_by(summary, "title", "name")
        assert rows["DescribableTextures", "CoOp"].delta is None
        assert any(note.startswith("No Δ for CoOp where ZeroshotCLIP") for note in summary.notes)

    def test_training_of_a_source_alone_is_no_fewshot_table(self, output):
        assert "fewshot" not in summarise_accuracy(collect(output))
        few(output, "eurosat", "CoOp", 16, (80, 80, 80))
        assert "fewshot" in summarise_accuracy(collect(output))

    def test_zero_shot_does_not_take_the_average(self, output):
        zero(output, "dtd", 44)
        rows = rows_by(summarise_accuracy(collect(output))["cross_dataset"], "title", "name")
        assert rows["average", "CoOp"].accuracy == pytest.approx(66.5)
        assert ("average", "ZeroshotCLIP") not in rows
        assert rows["DescribableTextures", "CoOp"].delta == pytest.approx(-2)


class TestConfigs:
    def test_configs_that_do_not_meet_make_one_row(self, tmp_path):
        write_runs(tmp_path, {"dtd": {"CoOp": ([80], [60])}}, config="ep200")
        write_runs(tmp_path, {"eurosat": {"CoOp": ([90], [50])}}, config="ep200")
        write_runs(tmp_path, {"imagenet": {"CoOp": ([70], [70])}}, config="ep50")
        summary = summarise(collect(tmp_path))
        rows = rows_by(summary, "dataset", "name")
        assert rows["average", "CoOp"].base == pytest.approx(80)
        assert rows["imagenet", "CoOp"].config == "ep50"
        assert (
            "CoOp puts configs together that do not meet on any dataset: ep200, but ep50 on "
            "ImageNet."
        ) in summary.notes
        assert summary.uniform

    def test_configs_that_meet_have_rows_of_their_own(self, tmp_path):
        for config, base in (("a", 80), ("b", 82)):
            write_runs(tmp_path, {"x": {"CoOp": ([base], [60])}}, config=config)
        assert [row.name for row in summarise(collect(tmp_path)).rows] == ["CoOp (a)", "CoOp (b)"]

    def test_other_settings_under_one_name_are_told(self, tmp_path, capsys):
        for seed, n_ctx in ((1, 16), (2, 16), (3, 4)):
            for part in ("base", "new"):
                cfg = {"TRAINER": {"COOP": {"N_CTX": n_ctx}}, "SEED": seed, "DATASET": {"N": seed}}
                write_run(tmp_path, part, "x", "CoOp", seed, 50, cfg=cfg)
        summary = summarise(collect(tmp_path))
        assert summary.notes[-1] == (
            "CoOp mixes settings: TRAINER.COOP.N_CTX is 16 in 4 runs on x and 4 in x seed 3 base, "
            "x seed 3 new."
        )
        assert not summary.uniform
        assert main([str(tmp_path), "--strict"]) == 1
        assert "mixes settings" in capsys.readouterr().out

    @pytest.mark.parametrize("option", FREE)
    def test_what_changes_no_number_is_no_setting(self, tmp_path, option):
        for seed, value in ((1, 8), (2, 0)):
            for part in ("base", "new"):
                cfg = functools.reduce(lambda of, name: {name: of}, option.split(".")[::-1], value)
                write_run(tmp_path, part, "x", "CoOp", seed, 50, cfg=cfg)
        summary = summarise(collect(tmp_path))
        assert summary.uniform
        assert not any(option in note for note in summary.notes)

    def test_other_settings_by_dataset_are_said_but_allowed(self, tmp_path):
        for dataset, mean in (("x", 15), ("y", 45)):
            for part in ("base", "new"):
                cfg = {"TRAINER": {"PROMPTSRC": {"GPA_MEAN": mean}}}
                write_run(tmp_path, part, dataset, "PromptSRC", 1, 50, cfg=cfg)
        summary = summarise(collect(tmp_path))
        assert summary.uniform
        assert any("GPA_MEAN is 15 in x seed 1 base" in note for note in summary.notes)

    def test_versions_of_torch_are_told(self, tmp_path):
        for seed, version in ((1, "2.8.0"), (2, "2.14.1")):
            for part in ("base", "new"):
                write_run(tmp_path, part, "x", "CoOp", seed, 50, versions={"torch": version})
        assert (
            "The runs are of several versions of torch: 2.14.1 (2 runs), 2.8.0 (2 runs)."
            in summarise(collect(tmp_path)).notes
        )


class TestCommand:
    @pytest.fixture
    def output(self, tmp_path):
        write_runs(tmp_path / "base2new", {"x": {"CoOp": ([80], [60])}})
        few(tmp_path, "x", "CoOp", 1, (50, 52, 54))
        return tmp_path

    def test_all_tables_are_shown(self, output, capsys):
        assert main([str(output)]) == 0
        out = capsys.readouterr().out
        assert "Base-to-new, 16 shots" in out and "Few-shot, all classes" in out

    def test_a_csv_holds_one(self, output, capsys):
        with pytest.raises(ValueError, match="one table and there are base2new, fewshot; choose"):
            main([str(output), "--csv"])
        assert main([str(output), "--csv", "--protocol", "fewshot"]) == 0
        assert "\nfewshot,x,x,CoOp,CoOp,cfg,1,1 2 3,52.0,2.0," in capsys.readouterr().out

    def test_a_protocol_without_runs(self, output):
        with pytest.raises(ValueError, match="no results of zeroshot, but of base2new, fewshot"):
            main([str(output), "--protocol", "zeroshot"])

    def test_results_elsewhere_are_told(self, output, capsys):
        write_plain(output, "my_own_try", 50)
        main([str(output)])
        assert "1 folders with results follow no known layout" in capsys.readouterr().out
