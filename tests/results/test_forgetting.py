"""Forgetting by tuning end to end: numbers against plain loops, what lacks, what is published."""

import csv
import io
import json
import shutil
from statistics import fmean, stdev

import pytest
from result_trees import BACKBONE, probe_values, write_plain, write_probes, write_runs

from proxyfda.benchmarks import FINETUNE
from proxyfda.results import collect, main
from proxyfda.results.forgetting import summarise_forgetting
from proxyfda.results.matrix import summarise_matrix
from proxyfda.results.probes import read_probes
from proxyfda.results.published_probes import published_for, published_probes
from proxyfda.results.tables import table

PROBED = ["dtd", "apples", "birds", "wagons"]
TUNED = ["dtd", "apples", "birds"]
SEEDS = (1, 2, 3)
METHODS = {"FineTune": -5.0, "LPFT": -3.0, "FDAFineTune": -1.0, "FineTune+ldifs": -2.0}
B32 = {"name": "ViT-B/32", "weights": "openai"}
OWN = "Forgetting, ViT-Bundled (bundled): mean over 3 tuned datasets"


def key(name, tuned, seed):
    return f"{name} {tuned} {seed}"


def tree(root, methods=METHODS, tuned=TUNED, probed=PROBED, texts=True, config="cfg", **more):
    """Probes of every method; the numbers are those of ``numbers``."""
    before = probe_values("before", probed, texts=texts)
    write_probes(root, f"finetune/probe_test/pretrained/Pretrained/{config}/seed1", before, **more)
    for name, shift in methods.items():
        for one in tuned:
            for seed in SEEDS:
                found = probe_values(key(name, one, seed), probed, shift, texts)
                write_probes(root, place(name, one, seed, config), found, **more)
    return root


def place(name, tuned, seed, config="cfg"):
    return f"finetune/probe_test/{tuned}/{name}/{config}/seed{seed}"


def naive(name, tuned, seeds=SEEDS, probed=PROBED):
    """A_LP, Δ_LP and ΔZS of each seed: plain loops over the numbers of ``tree``."""
    before, found = probe_values("before", probed), []
    for seed in seeds:
        accuracies, deltas, zero_shot = [], [], []
        for one in tuned:
            after = probe_values(key(name, one, seed), probed, METHODS[name])
            accuracies.append(after[one][0])
            rest = [d for d in probed if d != one]
            deltas.append(sum(after[d][0] - before[d][0] for d in rest) / len(rest))
            zero_shot.append(sum(after[d][1] - before[d][1] for d in rest) / len(rest))
        found.append([sum(v) / len(v) for v in (accuracies, deltas, zero_shot)])
    return list(zip(*found))


def rows_of(root, **options):
    summary = summarise_forgetting(read_probes(root), **options)
    rows = {(row.dataset, row.name): row for row in summary.rows}
    assert len(rows) == len(summary.rows)
    return rows, summary


@pytest.fixture
def output(tmp_path):
    return tree(tmp_path / "out")


class TestNumbers:
    @pytest.mark.parametrize("name", METHODS)
    @pytest.mark.parametrize("which", ["average", *TUNED])
    def test_against_plain_loops(self, output, name, which):
        rows, _ = rows_of(output)
        row = next(r for r in rows.values() if (r.trainer, r.dataset) == (name, which))
        expected = naive(name, TUNED if which == "average" else [which])
        shown = [
            (row.accuracy, row.accuracy_std),
            (row.delta, row.delta_std),
            (row.delta_zero_shot, row.delta_zero_shot_std),
        ]
        for (mean, std), values in zip(shown, expected):
            assert (mean, std) == pytest.approx((fmean(values), stdev(values)))
        assert (row.seeds, row.complete) == (SEEDS, True)

    def test_methods_are_in_the_order_of_the_paper(self, output):
        rows, summary = rows_of(output)
        names = [name for dataset, name in rows if dataset == "average"]
        assert names == ["Pretrained", "naive", "LP-FT", "LDIFS", "FDA"]
        assert summary.uniform and summary.notes == []

    def test_the_pretrained_backbone_has_no_seeds_and_no_change(self, output):
        row = rows_of(output)[0]["average", "Pretrained"]
        before = probe_values("before", PROBED)
        assert row.accuracy == pytest.approx(fmean(before[d][0] for d in TUNED))
        assert (row.delta, row.accuracy_std, row.seeds) == (None, None, ())

    def test_a_backbone_without_texts_has_no_zero_shot(self, tmp_path):
        rows, summary = rows_of(tree(tmp_path, texts=False))
        assert rows["average", "FDA"].delta_zero_shot is None
        assert rows["average", "FDA"].delta is not None and rows["average", "FDA"].complete
        line = next(x for x in table(summary).splitlines() if " FDA " in x)
        assert line.split()[-1] == "3" and line.count("±") == 2

    def test_one_tuned_dataset_needs_no_average(self, tmp_path):
        rows, summary = rows_of(tree(tmp_path, tuned=["dtd"]))
        assert {dataset for dataset, _ in rows} == {"dtd"}
        assert "mean over" not in table(summary)

    def test_only_the_pretrained_backbone(self, tmp_path):
        rows, summary = rows_of(tree(tmp_path, methods={}))
        assert set(rows) == {(d, "Pretrained") for d in (*PROBED, "average")}
        assert summary.notes == []


class TestMissing:
    def test_an_unfinished_seed_is_named_and_leaves_the_average(self, output):
        (output / place("LPFT", "apples", 2) / "result.json").unlink()
        rows, summary = rows_of(output)
        row = rows["average", "LP-FT"]
        assert (row.seeds, row.complete) == ((1, 3), False)
        assert row.delta == pytest.approx(fmean(naive("LPFT", TUNED, (1, 3))[1]))
        assert rows["average", "FDA"].complete
        assert "Missing: LP-FT on apples: seed 2 (not finished)." in summary.notes
        assert any("The average of LP-FT is without seed 2" in note for note in summary.notes)
        text = table(summary)
        assert " 2*" in text and "* not complete, see below." in text

    def test_a_dataset_that_a_method_lacks_leaves_every_average(self, output):
        shutil.rmtree(output / "finetune/probe_test/birds/FDAFineTune")
        rows, summary = rows_of(output)
        for name in ("naive", "LP-FT", "FDA", "Pretrained"):
            assert rows["average", name].datasets == ("dtd", "apples")
        expected = naive("FineTune", ["dtd", "apples"])
        assert rows["average", "naive"].delta == pytest.approx(fmean(expected[1]))
        assert not rows["average", "naive"].complete
        assert "Missing: FDA on birds: not run." in summary.notes
        assert "mean over 2 of 3 tuned datasets" in table(summary)

    @pytest.mark.parametrize(
        "change, fault",
        [
            (lambda text: "{", "is unreadable"),
            (lambda text: text.replace('"probes"', '"others"'), "has no probes"),
            (
                lambda text: text.replace('"linear_probe": 6', '"linear_probe": 1116'),
                "'linear_probe': 1116",
            ),
            (lambda text: text.replace('"seed": 3', '"seed": 4'), "its seed is 4"),
            (lambda text: text.replace('"test"', '"val"'), "of the split val"),
            (lambda text: text.replace('"wagons"', '"buses"'), "its probes lack wagons"),
        ],
        ids=["damaged", "no probes", "no percentage", "of another run", "other split", "one lacks"],
    )
    def test_damaged_and_foreign_results_are_named(self, output, change, fault):
        path = output / place("FDAFineTune", "apples", 3) / "result.json"
        path.write_text(change(path.read_text()))
        rows, summary = rows_of(output)
        assert rows["apples", "FDA"].seeds == (1, 2)
        assert rows["average", "FDA"].seeds == (1, 2)
        (note,) = [note for note in summary.notes if note.startswith("Missing")]
        assert note.startswith("Missing: FDA on apples: seed 3 (") and fault in note

    def test_without_the_pretrained_backbone_there_is_no_change(self, output):
        shutil.rmtree(output / "finetune/probe_test/pretrained")
        rows, summary = rows_of(output)
        row = rows["average", "FDA"]
        assert (row.delta, row.delta_zero_shot, row.complete) == (None, None, False)
        assert row.accuracy == pytest.approx(fmean(naive("FDAFineTune", TUNED)[0]))
        (note,) = summary.notes
        assert "no Δ without the probes of ViT-Bundled (bundled) as it was pre-trained" in note

    def test_a_pretrained_backbone_that_lacks_a_dataset(self, output):
        before = probe_values("before", ["dtd", "apples", "birds"])
        write_probes(output, "finetune/probe_test/pretrained/Pretrained/cfg/seed1", before)
        rows, summary = rows_of(output)
        assert rows["average", "FDA"].delta is None and not rows["average", "FDA"].complete
        assert "No Δ where the probes of the pre-trained backbone lack wagons." in summary.notes

    def test_probes_of_other_images_are_no_forgetting(self, output):
        path = output / place("FineTune", "dtd", 1) / "result.json"
        content = json.loads(path.read_text())
        content["probes"]["wagons"]["images"] = 7
        path.write_text(json.dumps(content))
        _, summary = rows_of(output)
        assert not summary.uniform
        assert any(
            note.startswith("The probes of wagons are not of the same") for note in summary.notes
        )


class TestBackbones:
    def test_each_has_a_table_and_a_reference_of_its_own(self, output):
        tree(output, methods={"FDAFineTune": -1.0}, config="large", backbone=B32)
        shifted = probe_values("another", PROBED)
        write_probes(
            output, "finetune/probe_test/pretrained/Pretrained/large/seed1", shifted, backbone=B32
        )
        summary = summarise_forgetting(read_probes(output))
        rows = {(r.backbone, r.name): r for r in summary.rows if r.dataset == "average"}
        before = probe_values("before", PROBED)
        moved = fmean(
            fmean(shifted[d][0] - before[d][0] for d in PROBED if d != one) for one in TUNED
        )
        first = rows["ViT-Bundled (bundled)", "FDA"].delta
        assert rows["ViT-B/32 (openai)", "FDA"].delta == pytest.approx(first - moved)
        assert ("ViT-B/32 (openai)", "naive") not in rows
        titles = [line for line in table(summary).splitlines() if line.startswith("Forgetting")]
        assert len(titles) == 4 and summary.notes == []

    def test_one_that_is_mixed_in_is_told(self, output):
        found = probe_values("other", PROBED)
        write_probes(output, place("FDAFineTune", "dtd", 2), found, backbone=B32)
        _, summary = rows_of_backbone(output, "ViT-Bundled (bundled)")
        assert not summary.uniform
        assert (
            "FDA with the config cfg has runs of several backbones, 8 of ViT-Bundled (bundled) and "
            "1 of ViT-B/32 (openai); each backbone has tables of its own."
        ) in summary.notes

    def test_weights_in_another_file_are_another_backbone(self, output):
        other = {**BACKBONE, "bytes": 1}
        write_probes(output, place("LPFT", "dtd", 1), probe_values("x", PROBED), backbone=other)
        summary = summarise_forgetting(read_probes(output))
        assert any(
            "LP-FT with the config cfg has runs of several" in note for note in summary.notes
        )


def rows_of_backbone(output, backbone):
    summary = summarise_forgetting(read_probes(output))
    return [row for row in summary.rows if row.backbone == backbone], summary


def regularised(weight):
    return {"regulariser": {"name": "fda", "weight": weight}}


class TestSettings:
    def test_two_strengths_on_one_dataset_are_two_rows(self, output):
        for weight in (10.0, 3.0):
            for one in TUNED:
                for seed in SEEDS:
                    write_probes(
                        output,
                        place("FineTune+rkd", one, seed, f"cfg-weight_{weight:g}"),
                        probe_values(weight, PROBED),
                        **regularised(weight),
                    )
        rows, _ = rows_of(output)
        shown = [(r.name, r.setting, r.weight) for r in rows.values() if "rkd" in r.trainer]
        assert shown[-2:] == [("RKD (λ 3)", "λ 3", 3.0), ("RKD (λ 10)", "λ 10", 10.0)]

    def test_one_chosen_for_each_dataset_is_one_row(self, output):
        for one, weight in zip(TUNED, (1.0, 3.0, 3.0)):
            for seed in SEEDS:
                cfg = {"TRAINER": {"PROXYFDA": {"WEIGHT": weight}}}
                found = probe_values(one, PROBED)
                write_probes(output, place("FineTune+rkd", one, seed), found, cfg=cfg)
        rows, summary = rows_of(output)
        assert rows["average", "RKD"].setting == "per dataset"
        assert [rows[one, "RKD"].weight for one in TUNED] == [1.0, 3.0, 3.0]
        assert any("TRAINER.PROXYFDA.WEIGHT is 3.0 in 6 runs" in note for note in summary.notes)

    def test_wise_has_its_share_and_what_has_no_term_has_none(self, output):
        for seed in SEEDS:
            write_probes(
                output, place("WiSEFT", "dtd", seed), probe_values("w", PROBED), alpha=0.25,
            )  # fmt: skip
        rows, _ = rows_of(output)
        assert rows["dtd", "WiSE-FT"].setting == "α 0.25"
        assert rows["dtd", "naive"].setting == rows["dtd", "LP-FT"].setting == ""

    def test_the_training_beside_the_probes_tells_it(self, output):
        folder = place("FDAFineTune", "dtd", 1).replace("probe_test", "train")
        write_plain(output, folder, 50.0, **regularised(7.0))
        runs = {r.record.folder: r for r in read_probes(output)}
        assert runs[str(output / place("FDAFineTune", "dtd", 1))].weight == 7.0

    def test_the_training_of_a_chosen_strength_is_that_of_its_folder(self, output):
        for weight, seconds in ((3.0, 40.0), (10.0, 90.0)):
            folder = place("FDAFineTune", "dtd", 1, f"cfg-weight_{weight:g}")
            folder, more = folder.replace("probe_test", "train"), regularised(weight)
            write_plain(output, folder, 50.0, time={"run": seconds}, **more)
        probes = place("FDAFineTune", "dtd", 1)
        found = probe_values("x", PROBED)
        write_probes(output, probes, found, time={"run": 2.0}, **regularised(3.0))
        run = {r.record.folder: r for r in read_probes(output)}[str(output / probes)]
        assert run.record.details["time"] == {"run": 42.0} and run.weight == 3.0

    def test_seeds_that_differ_in_an_option_are_told(self, output):
        for seed in SEEDS:
            cfg = {"OPTIM": {"LR": 0.1 if seed == 2 else 0.2}, "PROBE": {"CACHE": f"at {seed}"}}
            found = probe_values(key("LPFT", "dtd", seed), PROBED, -3.0)
            write_probes(output, place("LPFT", "dtd", seed), found, cfg=cfg)
        _, summary = rows_of(output)
        assert not summary.uniform
        (note,) = summary.notes
        assert "LP-FT mixes settings: OPTIM.LR is 0.2 in" in note and "PROBE" not in note


class TestPublished:
    def test_figures_are_those_of_the_paper(self):
        found = {one.method: (one.accuracy, one.delta) for one in published_probes()}
        assert found == {
            "naive": (91.90, -4.37), "LP-FT": (91.55, -2.59), "L2SP": (90.69, 0.29),
            "LDIFS": (91.66, 0.86), "FDA": (91.86, 1.39), "Proxy-FDA": (91.82, 1.54),
        }  # fmt: skip
        assert len(set(FINETUNE)) == 10 and {one.tasks for one in published_probes()} == {FINETUNE}

    def test_beside_the_same_backbone_and_datasets(self, tmp_path):
        rows, summary = rows_of(tree(tmp_path, tuned=FINETUNE, probed=FINETUNE, backbone=B32))
        row = rows["average", "FDA"]
        assert (row.published_accuracy, row.published_delta) == (91.86, 1.39)
        assert rows["dtd", "FDA"].published_source is None
        text = table(summary)
        assert "published Δ_LP" in text and "Published, of another" not in text
        (line,) = [x for x in text.splitlines() if " FDA " in x and "91.86" in x]
        assert line.split()[-2:] == ["91.86", "+1.39"]

    @pytest.mark.parametrize(
        "name, backbone, tasks",
        [
            ("FDAFineTune", ("ViT-B/16", "openai"), FINETUNE),
            ("FDAFineTune", ("ViT-B/32", "laion2b"), FINETUNE),
            ("FDAFineTune", ("ViT-B/32", "openai"), FINETUNE[:9]),
            ("FineTune+rkd", ("ViT-B/32", "openai"), FINETUNE),
        ],
        ids=["backbone", "weights", "datasets", "method"],
    )
    def test_nothing_else_is_compared(self, name, backbone, tasks):
        assert published_for("finetune", name, backbone, tasks) is None

    def test_the_order_of_datasets_does_not_matter(self):
        found = published_for("finetune", "LPFT", ("ViT-B/32", "openai"), FINETUNE[::-1])
        assert found.accuracy == 91.55

    def test_others_have_them_in_a_block_of_their_own(self, output):
        text = table(summarise_forgetting(read_probes(output)))
        head, title, tail = text.partition("Published, of another backbone and other data")
        assert title and "+1.54" in tail and "+1.54" not in head
        assert "no differences are taken" in tail


class TestCommand:
    def test_an_output_of_probes_alone(self, output, capsys):
        assert main([str(output), "--strict"]) == 0
        out = capsys.readouterr().out
        assert out == table(summarise_forgetting(read_probes(output)))
        assert "base2new" not in out

    def test_beside_base_to_new(self, output, capsys):
        write_runs(output, {"dtd": {"ZeroshotCLIP": ([60], [50]), "CoOp": ([80], [45])}})
        assert main([str(output)]) == 0
        out = capsys.readouterr().out
        assert "Base-to-new, 16 shots" in out and OWN in out
        assert main([str(output), "--protocol", "base2new"]) == 0
        assert OWN not in capsys.readouterr().out
        assert [r.protocol for r in collect(output)] == ["base2new"] * 4

    def test_unfinished_base_to_new_runs_do_not_hide_probes(self, output, capsys):
        folder = output / "base2new/train_base/dtd/shots_16/CoOp/cfg/seed1"
        folder.mkdir(parents=True)
        assert main([str(output)]) == 0
        out = capsys.readouterr().out
        assert OWN in out and "Missing: CoOp on DescribableTextures" in out

    def test_csv_reads_back(self, output, capsys):
        assert main([str(output), "--csv"]) == 0
        lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        rows, _ = rows_of(output)
        assert len(lines) == len(rows)
        for line, row in zip(lines, rows.values()):
            assert (line["dataset"], line["name"]) == (row.dataset, row.name)
            assert float(line["accuracy"]) == row.accuracy
            assert line["delta"] == ("" if row.delta is None else str(row.delta))
            assert line["seeds"] == " ".join(map(str, row.seeds))

    @pytest.mark.parametrize("form", ["markdown", "latex"])
    def test_other_forms(self, output, capsys, form):
        assert main([str(output), f"--{form}"]) == 0
        out = capsys.readouterr().out
        assert "LDIFS" in out and (form == "markdown" or out.isascii())

    def test_the_matrix_on_request(self, output, capsys):
        assert main([str(output), "--protocol", "finetune_matrix"]) == 0
        out = capsys.readouterr().out
        assert "Change per probed dataset" in out and "Forgetting" not in out
        rows = summarise_matrix(read_probes(output), "finetune").rows
        before = probe_values("before", PROBED)
        for row in rows:
            if row.dataset:
                after = [
                    probe_values(key(row.trainer, row.dataset, s), PROBED, METHODS[row.trainer])
                    for s in SEEDS
                ]
                values = [found[row.probed][0] - before[row.probed][0] for found in after]
                assert row.change == pytest.approx(fmean(values))
                assert row.change_std == pytest.approx(stdev(values))
                zero_shot = fmean(found[row.probed][1] for found in after)
                assert row.zero_shot == pytest.approx(zero_shot)
        assert len(rows) == len(PROBED) * (1 + len(METHODS) * len(TUNED))

    def test_strict_fails_where_a_run_is_missing(self, output):
        shutil.rmtree(output / place("LPFT", "dtd", 1))
        assert main([str(output), "--strict"]) == 1

    def test_validation_alone(self, output, tmp_path):
        with pytest.raises(ValueError, match="no probes on split 'val', but 37 on others; give"):
            main([str(output), "--split", "val"])

    def test_nothing_finished(self, tmp_path):
        (tmp_path / place("LPFT", "dtd", 1)).mkdir(parents=True)
        with pytest.raises(ValueError, match="none of the 1 probed runs in .*not finished"):
            main([str(tmp_path)])

    def test_trainings_without_probes(self, tmp_path):
        write_plain(tmp_path, "finetune/train/dtd/LPFT/cfg/seed1", 50.0)
        with pytest.raises(FileNotFoundError, match="tuned end to end, and no probes of them"):
            main([str(tmp_path)])

    def test_no_runs_of_the_protocol(self, output):
        with pytest.raises(ValueError, match="no results of continual, but of finetune"):
            main([str(output), "--protocol", "continual"])

    def test_the_same_run_in_two_outputs(self, output):
        with pytest.raises(ValueError, match="are the same run; give one of the folders"):
            main([str(output), str(output / "finetune")])

    def test_labelled_outputs_have_rows_of_their_own(self, output, capsys):
        assert main([f"old={output}", f"new={output / 'finetune'}"]) == 0
        out = capsys.readouterr().out
        assert "naive (old)" in out and "naive (new)" in out
