"""The commands on a few rendered images and checkpoints that were made by hand."""

import csv
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
import yaml

from proxyfda.diagnose import command
from proxyfda.diagnose.command import _names, main
from proxyfda.diagnose.encoders import encode, load_encoder
from proxyfda.diagnose.samples import read_sample
from proxyfda.diagnose.sweep import measure_runs
from proxyfda.diagnostics import l2_drift
from proxyfda.experiments import layout
from proxyfda.utils.errors import UserError
from proxyfda.utils.files import write_json

pytest.importorskip("ot")
ROOT = Path(__file__).resolve().parents[2]
FRUITS = "configs/datasets/bundled_fruits.yaml"


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def make_run(folder, noise):
    """A folder as a run leaves it, with the bundled encoder changed a little."""
    folder.mkdir(parents=True)
    backbone = load_encoder("ViT-Bundled=bundled")
    stream = torch.Generator().manual_seed(1)
    state = {
        name: value + noise * value.std() * torch.randn(value.shape, generator=stream)
        if value.dim() > 1
        else value
        for name, value in backbone.image_tower.state_dict().items()
    }
    (folder / "image_encoder").mkdir()
    torch.save({"state_dict": state, "epoch": 1}, folder / "image_encoder" / "model.pth.tar-1")
    (folder / "image_encoder" / "checkpoint").write_text("model.pth.tar-1\n")
    config = {
        "MODEL": {"BACKBONE": {"NAME": "ViT-Bundled", "WEIGHTS": "bundled"}},
        "INPUT": {"SIZE": [32, 32]},
        "TRAINER": {"NAME": "FineTune"},
        "OPTIM": {"MAX_EPOCH": 1},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return str(folder)


def make_probes(folder, accuracy, **more):
    """The probes of a run as they leave them, by what its folder says; ``more`` of the result."""
    folder.mkdir(parents=True)
    name = layout.parse(str(folder)).name
    probe = {"zero_shot": None, "strength": 1e-4, "classes": 24, "images": 48}
    probes = {
        "bundled_fruits": {"linear_probe": accuracy, **probe},
        "bundled_scenes": {"linear_probe": 50.0, **probe},
    }
    backbone = {"name": "ViT-Bundled", "weights": "bundled"}
    content = {"accuracy": accuracy, "probes": probes, "alpha": 1.0, "name": name, **more}
    content = {**content, "split": "test", "trainer": name, "backbone": backbone}
    write_json(str(folder / layout.RESULT), content)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """An output with three runs, tuned on scenes and probed on fruits."""
    output = tmp_path_factory.mktemp("runs")
    make_probes(output / layout.pretrained("probe_test", "bundled"), 80.0, alpha=0.0)
    for seed, noise in ((1, 0.05), (2, 0.2), (3, 0.4)):
        place = ("bundled_scenes", "FineTune", "bundled", seed)
        make_run(output / layout.finetune("train", *place), noise)
        make_probes(output / layout.finetune("probe_test", *place), 80 - 100 * noise)
    return output


def rows_of(path):
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_two_models_as_tables_and_figures(runs, bundled_data, tmp_path, capsys, monkeypatch):
    drawn = {}  # files take longer than all the rest
    monkeypatch.setattr(
        "proxyfda.diagnose.command.save_figure",
        lambda figure, stem: drawn.update({Path(stem).name: figure}),
    )
    tuned = [str(runs / layout.finetune("train", "bundled_scenes", "FineTune", "bundled", seed))
             for seed in (1, 3)]  # fmt: skip
    options = ["--root", str(bundled_data), "--out", str(tmp_path), "--images", "40", "--k", "4"]
    assert main([*tuned, "--datasets", "bundled_fruits", *options]) == 0
    first, second = rows_of(tmp_path / "diagnose.csv")
    assert first["images"] == "40" and first["of"] == "48"
    assert float(first["overlap"]) > float(second["overlap"])
    assert 0 < float(first["l2_drift"]) < float(second["l2_drift"])
    # The numbers are those of the images that the seed draws.
    sample = read_sample(FRUITS, str(bundled_data), most=40)
    from proxyfda.diagnostics import neighbour_overlap

    before, after = (
        encode(load_encoder(model), sample) for model in ("ViT-Bundled=bundled", tuned[0])
    )
    want = neighbour_overlap(before.features, after.features, 4)
    assert float(first["overlap"]) == pytest.approx(want)
    classes = [row for row in rows_of(tmp_path / "classes.csv") if row["model"] == first["model"]]
    mean = sum(float(row["overlap"]) * int(row["images"]) for row in classes) / 40
    assert mean == pytest.approx(want)
    ends = ("layers", "pca", "classes", "neighbours1", "neighbours2")
    assert drawn.keys() == {f"bundled_fruits_{end}" for end in ends}
    (layers,) = drawn["bundled_fruits_layers"].axes
    assert layers.lines[0].get_xdata().tolist() == [0, 1, 2, 3, 4]
    assert len(drawn["bundled_fruits_neighbours1"].axes) == 6 * 11
    assert len(drawn["bundled_fruits_pca"].axes) == 3
    printed = capsys.readouterr().out
    assert "naive (bundled_scenes, seed 3)" in printed and "40 of 48" in printed


def test_measures_of_a_sweep_against_forgetting(runs, bundled_data, tmp_path, capsys):
    options = ["--root", str(bundled_data), "--out", str(tmp_path), "--images", "40"]
    assert main(["correlate", str(runs), *options]) == 0
    points = rows_of(tmp_path / "runs.csv")
    assert [float(point["delta"]) for point in points] == pytest.approx([-5, -20, -40])
    assert {point["datasets"] for point in points} == {"1"}  # the tuned one is not among them
    found = {row["measure"]: row for row in rows_of(tmp_path / "correlations.csv")}
    assert found["L2 drift"]["spearman"].startswith("-1.00")
    assert found["neighbours kept"]["spearman"].startswith("+1.00")
    assert (tmp_path / "scatter.png").is_file()
    printed = capsys.readouterr().out
    assert "3 runs" in printed and "the intervals say little" in printed


def test_runs_whose_strength_was_chosen_are_measured(runs, bundled_data, tmp_path):
    place = ("bundled_scenes", "FDAFineTune")
    for value, noise in ((0.3, 0.4), (3, 0.1)):
        folder = layout.finetune("train", *place, f"bundled-weight_{value}", 1)
        make_run(tmp_path / folder, noise)
    chosen = str(tmp_path / folder)
    make_probes(tmp_path / layout.pretrained("probe_test", "bundled"), 80.0, alpha=0.0)
    # Where λ and α were chosen the names of the probes leave them out.
    folder = tmp_path / layout.finetune("probe_test", *place, "bundled", 1)
    make_probes(folder, 78.0, regulariser={"name": "fda", "weight": 3.0})
    folder = tmp_path / layout.finetune("probe_test", "bundled_scenes", "WiSEFT", "bundled", 3)
    make_probes(folder, 70.0, alpha=0.25)
    plain = layout.finetune("train", "bundled_scenes", "FineTune", "bundled", 3)
    shutil.copytree(runs / plain, tmp_path / plain)

    sample, said = read_sample(FRUITS, str(bundled_data), most=12), []
    points = measure_runs(str(tmp_path), lambda dataset: sample, k=4, say=said.append)
    assert not [line for line in said if line.startswith("left out")]
    frozen = encode(load_encoder("ViT-Bundled=bundled"), sample).features
    want = {
        "FDAFineTune": load_encoder(chosen),
        "WiSEFT": load_encoder(str(tmp_path / plain), alpha=0.25),
    }
    assert {point["name"]: point["l2_drift"] for point in points} == {
        name: pytest.approx(l2_drift(frozen, encode(model, sample).features, unit=True))
        for name, model in want.items()
    }


def test_a_run_without_its_training_is_named(runs, bundled_data, tmp_path):
    shutil.copytree(runs, tmp_path / "runs")
    gone = layout.finetune("train", "bundled_scenes", "FineTune", "bundled", 2)
    shutil.rmtree(tmp_path / "runs" / gone)
    sample, said = read_sample(FRUITS, str(bundled_data), most=12), []
    more = {"k": 4, "say": said.append}
    points = measure_runs(str(tmp_path / "runs"), lambda dataset: sample, **more)
    assert [point["seed"] for point in points] == [1, 3]
    with pytest.raises(UserError, match="has no run that was tuned end to end"):
        measure_runs(str(tmp_path / "runs"), lambda dataset: sample, tuned=["x"], **more)
    assert [line for line in said if f"its training is not in {tmp_path / 'runs' / gone}" in line]


def test_all_stages_of_a_convolutional_tower_are_layers(bundled_data):
    sample = read_sample(FRUITS, str(bundled_data), most=2)
    found = encode(load_encoder("timm:resnet10t=random"), sample, layers=True)
    assert list(found.layers) == [0, 1, 2, 3, 4]
    assert [means.shape for means in found.layers.values()] == [
        (2, width) for width in (64, 64, 128, 256, 512)
    ]


def test_images_are_prepared_as_the_backbone_says(bundled_data):
    sample = read_sample(FRUITS, str(bundled_data), most=3)
    backbone = load_encoder("ViT-Bundled=bundled")
    (batch,) = sample.batches(backbone)
    assert batch.shape == (3, 3, 32, 32)
    red = torch.tensor(numpy.array(sample.image(0)))[..., 0].double().mean() / 255
    assert batch[0, 0].mean().item() * backbone.image_std[0] + backbone.image_mean[0] == (
        pytest.approx(red.item(), abs=1e-3)
    )
    assert next(sample.batches(backbone)) is batch  # the next encoder takes the same


def test_models_have_the_shortest_names_that_tell_them_apart(tmp_path):
    def run(*place):
        folder = tmp_path / layout.finetune("train", *place)
        folder.mkdir(parents=True)
        return str(folder)

    scenes, fruits = ("bundled_scenes", "FDAFineTune"), ("bundled_fruits", "FDAFineTune")
    one, other = run(*scenes, "bundled", 1), run("bundled_scenes", "FineTune", "bundled", 1)
    assert list(_names([one, other])) == ["FDA", "naive"]
    second = run(*fruits, "bundled", 1)
    assert list(_names([one, second])) == ["FDA (bundled_scenes, seed 1)",
                                           "FDA (bundled_fruits, seed 1)"]  # fmt: skip
    third = run(*scenes, "bundled-weight_3", 1)
    assert list(_names([one, third]))[1] == "FDA (bundled_scenes, bundled-weight_3, seed 1)"
    assert _names([one, "ViT-B/32=/a/b.pt"]) == {"FDA": one, "ViT-B/32 b.pt": "ViT-B/32=/a/b.pt"}
    same = ["ViT-B/32=/a/b.pt", "ViT-B/32=/c/b.pt"]
    assert list(_names(same)) == same


def test_a_table_is_there_after_each_dataset(runs, bundled_data, tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("proxyfda.diagnose.command._draw", interrupted)
    model = str(runs / layout.finetune("train", "bundled_scenes", "FineTune", "bundled", 1))
    words = [model, "--datasets", "bundled_fruits", "--root", str(bundled_data)]
    with pytest.raises(KeyboardInterrupt):
        main([*words, "--out", str(tmp_path)])
    assert [row["dataset"] for row in rows_of(tmp_path / "diagnose.csv")] == ["bundled_fruits"]


@pytest.mark.parametrize("label", [None, -1], ids=["none", "minus one"])
def test_images_without_a_class_are_refused(label, bundled_data, monkeypatch):
    class Unlabelled:
        classnames, test = ["a"], [SimpleNamespace(label=0), SimpleNamespace(label=label)]

    monkeypatch.setattr("proxyfda.diagnose.samples.build_dataset", lambda cfg: Unlabelled())
    with pytest.raises(UserError, match="has 1 test images without a class, which OTDD and"):
        read_sample(FRUITS, str(bundled_data))


TWO = ["ViT-Bundled=bundled", "--frozen", "ViT-Bundled=bundled"]
FRUITS_OF = ["--datasets", "bundled_fruits"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["nowhere", "--datasets", "bundled_fruits"], "'nowhere' is no model"),
        (["runs/nowhere/seed1", *FRUITS_OF], "the folder runs/nowhere/seed1 does not exist"),
        (["docs", *FRUITS_OF], "docs has neither a config.yaml nor a log.txt"),
        ([*TWO[:1], *TWO, *FRUITS_OF], "the model ViT-Bundled=bundled is given twice"),
        ([*TWO, "--datasets", " , "], "--datasets is ' , '; name datasets"),
        ([*TWO, *FRUITS_OF, "--images", "9"], "has 9 images here, too few for 8 neighbours"),
        ([*TWO, *FRUITS_OF, "--images", "0"], "the number of images is 0"),
        ([*TWO, *FRUITS_OF, "--k", "0"], "k is 0"),
        (
            [*TWO[1:], "timm:resnet10t=random", *FRUITS_OF],
            "the frozen model has features of 128 dimensions and timm:resnet10t random of 512",
        ),
        (["ViT-Bundled=bundled", "--datasets", "bundled_fruits"], "--frozen is not given"),
        (["ViT-Bundled=bundled", "--datasets", "bundled_nuts"], "no dataset 'bundled_nuts'"),
        (["x", "--datasets", "bundled_fruits", "--entry", "nothing"], "no nothing.py"),
        (["correlate", "nowhere"], "nowhere is no folder"),
        (["correlate", "docs"], "docs has no run that was tuned end to end"),
    ],
    ids=[
        "model",
        "model-folder",
        "no-run",
        "twice",
        "datasets",
        "few",
        "none",
        "k",
        "dimensions",
        "frozen",
        "dataset",
        "entry",
        "folder",
        "empty",
    ],
)
def test_bad_input_is_one_sentence(words, message, bundled_data, tmp_path):
    with pytest.raises(UserError, match=message):
        main([*words, "--root", str(bundled_data), "--out", str(tmp_path)])


@pytest.mark.parametrize("words", [[*TWO, *FRUITS_OF], ["correlate", "docs"]], ids=["two", "sweep"])
def test_out_that_cannot_be_made_is_refused_before_any_work(words, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "_project", lambda args: pytest.fail("too late"))
    (tmp_path / "taken").write_text("mine")
    for out in ("taken", "taken/below"):
        with pytest.raises(UserError, match="--out: .* cannot be written, since .* is no folder"):
            main([*words, "--out", str(tmp_path / out)])
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_folder_that_nothing_can_be_made_in_is_one_sentence(bundled_data):
    with pytest.raises(UserError, match="--out: /proc/here cannot be (written|used)"):
        main([*TWO, *FRUITS_OF, "--root", str(bundled_data), "--out", "/proc/here"])
