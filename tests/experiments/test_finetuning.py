"""Jobs that tune end to end: their folders, order and options."""

import os
from pathlib import Path

import pytest

import train
from proxyfda.experiments import finetuning
from proxyfda.experiments.config import load_config
from proxyfda.experiments.project import Project
from proxyfda.names import METHODS

ROOT = Path(train.__file__).parent
PROJECT = Project(str(ROOT), entry="train")
WHERE = {"project": PROJECT, "data": "/data", "output": "/out"}
TASKS = ["bundled_fruits", "bundled_scenes", "bundled_creatures"]


def folders(jobs):
    return [os.path.relpath(job.folder, "/out") for job in jobs]


def config_of(job):
    """The config of a training; probes have flags of their own, which are left out."""
    job.flags = [*job.flags]
    for flag in ("--probe", "--alpha", "--model-dir"):
        if flag in job.flags:
            place = job.flags.index(flag)
            del job.flags[place : place + 2]
    return load_config(job.parsed())


def probed(job):
    return [Path(path).stem for path in job.flag("--probe").split(",")]


def test_a_run_is_trained_and_then_probed_on_its_own_and_on_the_others():
    train_job, probes = finetuning.finetune_jobs(
        "FDAFineTune", "bundled_fruits", 2, probes=TASKS[1:], strength="3", **WHERE
    )
    tail = "bundled_fruits/FDAFineTune/bundled-weight_3/seed2"
    assert folders([train_job, probes]) == [f"finetune/train/{tail}", f"finetune/probe_test/{tail}"]
    assert probes.after == probes.flag("--model-dir") == train_job.folder
    assert probed(probes) == TASKS and probes.flag("--alpha") == ""
    configs = [config_of(job) for job in (train_job, probes)]
    assert [cfg.TEST.SPLIT for cfg in configs] == ["val", "test"]
    assert {cfg.TRAINER.PROXYFDA.WEIGHT for cfg in configs} == {3.0}
    assert {(cfg.SEED, cfg.DATASET.NUM_SHOTS) for cfg in configs} == {(2, -1)}
    assert {cfg.DATASET.NAME for cfg in configs} == {"BundledFruits"}
    assert {job.flag("--protocol") for job in (train_job, probes)} == {"finetune"}


def test_the_probes_of_what_was_chosen_lie_in_one_folder_whatever_it_was():
    for run, strength in (("FineTune+rkd", "0.3"), ("WiSEFT", "0.7"), ("LPFT", "")):
        where = {**WHERE, "probes": TASKS, "strength": strength}
        train_job, probes = finetuning.finetune_jobs(run, TASKS[0], 1, chosen=True, **where)
        assert folders([probes]) == [f"finetune/probe_test/{TASKS[0]}/{run}/bundled/seed1"]
        assert ("weight_0.3" in train_job.folder) == (run == "FineTune+rkd")


def test_wise_ft_looks_at_the_weights_of_the_plain_fine_tuning():
    naive, _ = finetuning.finetune_jobs("FineTune", TASKS[0], 1, probes=TASKS, **WHERE)
    jobs = [
        finetuning.finetune_jobs("WiSEFT", TASKS[0], 1, probes=TASKS, strength=alpha, **WHERE)
        for alpha in ("0.3", "0.5")
    ]
    assert [train_job for train_job, _ in jobs] == [naive, naive]
    assert [probes.flag("--alpha") for _, probes in jobs] == ["0.3", "0.5"]
    assert jobs[0][1].name.startswith("WiSEFT ") and naive.name.startswith("FineTune ")
    assert "/WiSEFT/bundled-alpha_0.3/" in jobs[0][1].folder


def test_the_pretrained_backbone_is_probed_once_per_split():
    job = finetuning.pretrained_job(TASKS[2], TASKS, split="val", **WHERE)
    again = finetuning.pretrained_job(TASKS[1], TASKS, split="val", **WHERE)
    assert job == again and job.flag("--model-dir") == ""
    assert folders([job]) == ["finetune/probe_val/pretrained/Pretrained/bundled/seed1"]
    assert job.flag("--trainer") == "FineTune" and probed(job) == TASKS


@pytest.mark.parametrize("method", METHODS)
def test_all_methods_share_one_config_and_are_given_ldifs_s_epochs(method):
    where = {**WHERE, "probes": ["eurosat", "dtd"]}
    train_job, _ = finetuning.finetune_jobs(METHODS[method], "dtd", 1, **where)
    assert "/vit_b32/" in train_job.folder
    words = train_job.flags
    assert words[words.index("OPTIM.MAX_EPOCH") + 1] == "76"
    opts = ["OPTIM.MAX_EPOCH", "2"]
    train_job, _ = finetuning.finetune_jobs(METHODS[method], "dtd", 1, **where, opts=opts)
    assert train_job.flags.index("76") < train_job.flags.index("2")


def test_few_images_to_tune_on_leave_the_probes_all():
    jobs = finetuning.finetune_jobs("FineTune", TASKS[0], 1, probes=TASKS, shots=4, **WHERE)
    assert [config_of(job).DATASET.NUM_SHOTS for job in jobs] == [4, -1]


def test_probes_of_the_tuned_dataset_alone_are_refused():
    with pytest.raises(ValueError, match="are bundled_fruits, and bundled_fruits is tuned on; na"):
        finetuning.finetune_jobs("FineTune", TASKS[0], 1, probes=TASKS[:1], **WHERE)


# -- rows -----------------------------------------------------------------------------------------


def test_each_task_starts_from_the_encoder_of_the_last():
    row, held_out = TASKS[:2], [TASKS[2], TASKS[0]]
    before, *jobs = finetuning.continual_jobs("LPFT", row, 3, probes=held_out, **WHERE)
    name = "bundled_fruits+bundled_scenes"
    tails = [f"{name}/task{number}/LPFT/bundled/seed3" for number in (1, 2)]
    parts = ["continual/train", "continual/probe_test"]
    assert folders(jobs) == [f"{part}/{tail}" for tail in tails for part in parts]
    pre = f"continual/probe_test/{name}/task0/Pretrained/bundled/seed1"
    assert folders([before]) == [pre]
    assert {tuple(probed(job)) for job in (before, *jobs[1::2])} == {tuple(TASKS)}
    first, after_first, second, after_second = jobs
    assert second.after == first.folder and not first.after
    assert [after_first.after, after_second.after] == [first.folder, second.folder]
    starts = [config_of(job).TRAINER.FINETUNE.START_FROM for job in (first, second)]
    assert starts == ["", first.folder]
    assert [config_of(job).DATASET.NAME for job in (first, second)] == [
        "BundledFruits",
        "BundledScenes",
    ]


def test_the_anchor_of_a_row_is_an_option_of_methods_with_a_term_alone():
    row = TASKS[:2]
    where = {**WHERE, "strength": "3", "anchor": "previous"}
    _, first, _, second, _ = finetuning.continual_jobs("FDAFineTune", row, 1, **where)
    assert "/FDAFineTune/bundled-weight_3-previous/" in first.folder
    assert config_of(second).TRAINER.FINETUNE.ANCHOR == "previous"
    where = {**WHERE, "anchor": "previous"}
    assert finetuning.continual_jobs("FineTune", row, 1, **where) == finetuning.continual_jobs(
        "FineTune", row, 1, **WHERE
    )
    with pytest.raises(ValueError, match="the anchor is 'last'; use pretrained or previous"):
        finetuning.continual_jobs("FDAFineTune", row, 1, **WHERE, anchor="last")


@pytest.mark.parametrize("run", ["CoOp", "ProxyFDAMaPLe", "CoOp+rkd"])
def test_prompts_go_on_from_those_of_the_last_task(run):
    row = TASKS[:2]
    jobs = finetuning.prompt_row_jobs(run, row, 2, probes=TASKS, **WHERE)
    name, config = "bundled_fruits+bundled_scenes", "bundled_16shots"
    zero, first, second = jobs[:3], jobs[3:7], jobs[7:]
    tests = [f"continual/test/{name}/task0/ZeroshotCLIP/{config}/{task}/seed1" for task in TASKS]
    assert folders(zero) == tests
    assert {job.flag("--trainer") for job in zero} == {"ZeroshotCLIP"}
    for number, jobs in enumerate((first, second), 1):
        tail = f"{name}/task{number}/{run}/{config}"
        assert folders(jobs) == [
            f"continual/train/{tail}/seed2",
            *(f"continual/test/{tail}/{task}/seed2" for task in TASKS),
        ]
        for job in jobs[1:]:
            assert job.after == job.flag("--model-dir") == jobs[0].folder
            assert "--eval-only" in job.flags and config_of(job).TEST.SPLIT == "test"
    assert second[0].after == first[0].folder
    assert [config_of(jobs[0]).MODEL.INIT_WEIGHTS for jobs in (first, second)] == [
        "",
        first[0].folder,
    ]
    assert config_of(second[0]).TEST.SPLIT == "val"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["dtd"], "the row of tasks is dtd; name at least two"),
        (["dtd", "eurosat", "dtd"], "the row of tasks has dtd twice"),
    ],
    ids=["one", "twice"],
)
def test_a_row_is_of_different_tasks(row, message):
    for make in (finetuning.continual_jobs, finetuning.prompt_row_jobs):
        run = "FineTune" if make is finetuning.continual_jobs else "CoOp"
        with pytest.raises(ValueError, match=message):
            make(run, row, 1, **WHERE)
