"""An output with something of everything that the page shows, made by hand."""

import csv

from result_trees import probe_values, run_folder, write_plain, write_probes, write_run, write_runs

from proxyfda.experiments import layout

DATASETS = ("dtd", "eurosat", "food101")
CLASSES = [
    {"name": "otter", "images": 40, "accuracy": 50.0, "taken_for": {"beaver": 15, "mink": 5}},
    {"name": "beaver", "images": 20, "accuracy": 90.0, "taken_for": {"mink": 2}},
    {"name": "mink", "images": 10, "accuracy": 100.0, "taken_for": {}},
]
BEFORE = [
    {**CLASSES[0], "accuracy": 75.0, "taken_for": {"beaver": 10}},
    {**CLASSES[1], "accuracy": 80.0, "taken_for": {"mink": 4}},
    CLASSES[2],
]
HOSTILE = '<b onclick="x()">birds & bees</b>'
"""A dataset's name that would be markup if it were not escaped."""


def write_full(output):
    """Prompts, few-shot, end to end, a row of tasks, diagnoses and what is incomplete."""
    numbers = {
        name: {
            "ZeroshotCLIP": ([60], [50]),
            "CoOp": ([80, 81], [40, 43]),
            "ProxyFDACoOp": ([79, 80], [58, 59]),
        }
        for name in ("my_birds", *DATASETS)
    }
    timed = {"time": {"build": 1.0, "run": 12.5}, "versions": {"torch": "2.4.0"}}
    hostile = {"my_birds": numbers.pop("my_birds")}
    write_runs(output, hostile, title=HOSTILE, per_class=CLASSES, **timed)
    write_runs(output, numbers, per_class=CLASSES, **timed)
    for part in ("base", "new"):
        write_run(output, part, "dtd", "ZeroshotCLIP", 1, 60, per_class=BEFORE, **timed)
    (run_folder(output, "base", "dtd", "MaPLe", 1)).mkdir(parents=True)
    broken = run_folder(output, "base", "dtd", "CoCoOp", 1)
    broken.mkdir(parents=True)
    (broken / "result.json").write_text('{"accuracy": "<i>ninety</i>"}')
    for shots in (1, 4):
        path = f"dtd/CoOp/cfg_{shots}shots/seed1"
        write_plain(output, path, 60 + shots, trainer="CoOp", seed=1, shots=shots, dataset="dtd")
    write_probes(
        output, "finetune/probe_test/pretrained/Pretrained/cfg/seed1", probe_values(0, DATASETS)
    )
    for method, shift in (("FineTune", -3), ("FDAFineTune", -1)):
        for dataset in DATASETS[:2]:
            place = f"finetune/probe_test/{dataset}/{method}/cfg/seed1"
            write_probes(output, place, probe_values((method, dataset), DATASETS, shift))
    row = "+".join(DATASETS[:2])
    place = f"continual/probe_test/{row}/task0/Pretrained/cfg/seed1"
    write_probes(output, place, probe_values(0, DATASETS))
    for task in (1, 2):
        place = f"continual/probe_test/{row}/task{task}/FineTune/cfg/seed1"
        write_probes(output, place, probe_values(("row", task), DATASETS, -task))
    for protocol in ("captioning", "vqa"):
        write_spoken(output, protocol, "", "Pretrained", "git", 1, (50, 60, 70))
        for method, config, lost in (("FineTune", "git", 9), ("FDAFineTune", "git-weight_3", 4)):
            for seed in (1, 2):
                scores = (90 + seed, 60 - lost, 70 - lost)
                write_spoken(output, protocol, "sea", method, config, seed, scores)
    write_diagnosis(output / "before_after")
    write_correlation(output / "diagnose")
    return output


def write_spoken(output, protocol, family, name, config, seed, scores):
    """A run of a model that captions images or answers questions on three families."""
    _, _, weight = config.partition("-weight_")
    place = layout.image_to_text(protocol, family, name, config, seed)
    scores = {
        family: {"score": score, "exact": 10.0, "examples": 30}
        for family, score in zip(("sea", "wood", "town"), scores)
    }
    write_plain(
        output, place, 50.0, name=name, seed=seed, source=family, scores=scores, trainer=name,
        regulariser={"name": "fda", "weight": float(weight)} if weight else None,
    )  # fmt: skip


def write_csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_figure(path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3))
    figure.subplots().plot([1, 2], [3, 4])
    figure.savefig(path, dpi=160)


def write_diagnosis(folder):
    """What ``python -m proxyfda.diagnose`` writes of two models."""
    common = {"dataset": "dtd", "images": 100, "of": 1880, "cka": 0.98765, "zero_shot": ""}
    rows = [{**common, "model": name, "overlap": 0.7} for name in ("naive", "FDA <mine>")]
    write_csv(folder / "diagnose.csv", rows)
    classes = [
        {"dataset": "dtd", "model": "naive", "class": f"class {i}", "overlap": 0.1 * i}
        for i in range(10)
    ]
    write_csv(folder / "classes.csv", classes)
    for name in ("dtd_classes", "dtd_layers", "dtd_neighbours2", "dtd_pca"):
        write_figure(folder / f"{name}.png")


def write_correlation(folder):
    """What ``python -m proxyfda.diagnose correlate`` writes."""
    row = {"measure": "OTDD", "pearson": "-0.90 [-0.99, -0.50]", "spearman": "-0.80 [-1.00, +0.10]"}
    write_csv(folder / "correlations.csv", [row])
    runs = [{"folder": f"run {i}", "dataset": "dtd", "delta": -1.5 * i} for i in range(3)]
    write_csv(folder / "runs.csv", runs)
    write_figure(folder / "scatter.png")
