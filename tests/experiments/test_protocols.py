"""Protocols: their jobs, folders and configs."""

import itertools
import os
from pathlib import Path

import pytest
import yaml

import train
from proxyfda.benchmarks import SHIFTED, TITLES
from proxyfda.dassl import TRAINER_REGISTRY
from proxyfda.experiments import protocols
from proxyfda.experiments.candidates import Candidate
from proxyfda.experiments.config import load_config
from proxyfda.experiments.project import Project
from proxyfda.names import run_name
from proxyfda.utils.errors import NotFound

ROOT = Path(train.__file__).parent
PROJECT = Project(str(ROOT), entry="train")
WHERE = {"project": PROJECT, "data": "/data", "output": "/out"}


def folders(jobs):
    return [os.path.relpath(job.folder, "/out") for job in jobs]


def test_base2new_has_the_family_s_folders():
    jobs = protocols.base2new_jobs("CoOp", "eurosat", 2, **WHERE)
    tail = "eurosat/shots_16/CoOp/vit_b16_ctxv1/seed2"
    assert folders(jobs) == [f"base2new/train_base/{tail}", f"base2new/test_new/{tail}"]
    assert jobs[1].after == jobs[0].folder
    assert jobs[1].flag("--model-dir") == jobs[0].folder


WEIGHTS = [
    Candidate("plain", "CoOp"),
    *(Candidate(f"w{w}", "CoOp+rkd", (("TRAINER.PROXYFDA.WEIGHT", w),)) for w in ("1", "3")),
]


def test_select_trains_on_the_seen_half_and_tests_both_on_validation_images():
    opts = ["TEST.SPLIT", "val", "DATASET.SUBSAMPLE_CLASSES", "all"]
    where = {**WHERE, "cfg": "vit_b16", "opts": opts}
    jobs = protocols.select_jobs(WEIGHTS, "dtd", 2, 5, shots=4, **where)
    top = "select/dtd/shots_4"
    assert folders(jobs[:3]) == [
        f"{top}/CoOp/vit_b16/split2/train/seed5",
        f"{top}/CoOp+rkd/vit_b16-weight_1/split2/train/seed5",
        f"{top}/CoOp+rkd/vit_b16-weight_3/split2/train/seed5",
    ]
    assert len(jobs) == len({job.folder for job in jobs}) == 9
    for number, job in enumerate(jobs):
        cfg = load_config(job.parsed())
        part = Path(job.folder).parent.name
        tested = number >= 3
        assert tested == ("--eval-only" in job.flags) == (part != "train")
        classes = "unseen@2" if part == "unseen" else "seen@2"
        found = (cfg.DATASET.SUBSAMPLE_CLASSES, cfg.TEST.SPLIT, cfg.DATASET.NUM_SHOTS, cfg.SEED)
        assert found == (classes, "val", -1 if tested else 4, 5)
        assert job.flag("--protocol") == "select"
        if tested:
            assert job.after == job.flag("--model-dir") == jobs[(number - 3) // 2].folder
    found = [load_config(job.parsed()).TRAINER.PROXYFDA.WEIGHT for job in jobs[:3]]
    assert found[1:] == [1.0, 3.0]


def test_a_variant_is_named_the_same_in_both_protocols():
    where = {**WHERE, "overlay": "paper_cross"}
    one = WEIGHTS[1]
    base, _ = protocols.base2new_jobs(one.run, "dtd", 1, variant=one, **where)
    train, *_ = protocols.select_jobs([one], "dtd", 1, 1, **where)
    config = "vit_b16_ctxv1-paper_cross-weight_1"
    assert f"/CoOp+rkd/{config}/" in base.folder and f"/CoOp+rkd/{config}/" in train.folder
    assert base.name == "CoOp+rkd dtd seed 1 (weight_1), train_base"
    base, _ = protocols.base2new_jobs(one.run, "dtd", 1, variant=one, **where, label="mine")
    assert "/CoOp+rkd/mine-weight_1/" in base.folder


def test_an_overlay_may_be_a_file(tmp_path):
    path = tmp_path / "choice.yaml"
    path.write_text("TRAINER: {PROXYFDA: {REGULARISER: rkd, WEIGHT: 3}}\n")
    base, _ = protocols.base2new_jobs("CoOp+rkd", "dtd", 1, overlay=str(path), **WHERE)
    assert "/CoOp+rkd/vit_b16_ctxv1-choice/" in base.folder
    assert load_config(base.parsed()).TRAINER.PROXYFDA.WEIGHT == 3.0
    with pytest.raises(NotFound, match="the overlay .*gone.yaml does not exist"):
        protocols.base2new_jobs("CoOp+rkd", "dtd", 1, overlay=str(tmp_path / "gone.yaml"), **WHERE)


def test_transfer_trains_once_and_has_the_family_s_folders():
    jobs = protocols.transfer_jobs("MaPLe", "imagenet", ["eurosat", "dtd"], 1, **WHERE)
    cfg = "vit_b16_c2_ep5_batch4_2ctx_cross_datasets_16shots"
    assert folders(jobs) == [
        f"imagenet/MaPLe/{cfg}/seed1",
        f"evaluation/MaPLe/{cfg}/eurosat/seed1",
        f"evaluation/MaPLe/{cfg}/dtd/seed1",
    ]
    assert {job.after for job in jobs[1:]} == {jobs[0].folder}
    again = protocols.transfer_jobs("MaPLe", "imagenet", SHIFTED, 1, **WHERE)
    assert again[0] == jobs[0]


def test_zero_shot_runs_are_the_same_in_all_protocols_of_all_classes():
    jobs = protocols.zeroshot_jobs("dtd", **WHERE)
    assert folders(jobs) == ["ZeroshotCLIP/vit_b16/dtd"]
    assert protocols.fewshot_jobs("ZeroshotCLIP", "dtd", 3, shots=4, **WHERE) == jobs
    transfer = protocols.transfer_jobs("ZeroshotCLIP", "imagenet", ["dtd"], 2, **WHERE)
    assert transfer[1:] == jobs


@pytest.mark.parametrize(
    ("trainer", "dataset", "shots", "config"),
    [
        ("CoOp", "dtd", 1, "vit_b16_ep50"),
        ("CoOp", "dtd", 2, "vit_b16_ep100"),
        ("CoOp", "dtd", 4, "vit_b16_ep100"),
        ("ProxyFDACoOp", "dtd", 8, "vit_b16"),
        ("CoOp", "imagenet", 16, "vit_b16_ep50"),
        ("PromptSRC", "dtd", 16, "vit_b16_c2_ep50_batch4_4+4ctx_few_shot_gpa45"),
        ("PromptSRC", "food101", 1, "vit_b16_c2_ep50_batch4_4+4ctx_few_shot"),
        ("FDAMaPLe", "dtd", 4, "vit_b16_c2_ep20_batch64_2ctx"),
        ("MaPLe+rkd", "dtd", 4, "vit_b16_c2_ep20_batch64_2ctx"),
        ("MaPLe", "dtd", 4, "vit_b16_c2_ep5_batch4_2ctx"),
        ("PromptSRC+pointwise", "dtd", 4, "vit_b16_c2_ep40_batch64_4+4ctx"),
    ],
    ids=lambda value: str(value),
)
def test_few_shot_configs_follow_the_papers(trainer, dataset, shots, config):
    (job,) = protocols.fewshot_jobs(trainer, dataset, 1, shots=shots, **WHERE)
    assert folders([job]) == [f"{dataset}/{trainer}/{config}_{shots}shots/seed1"]


@pytest.mark.parametrize(
    ("dataset", "mean", "std"),
    [("caltech101", 30, 30), ("sun397", 30, 30), ("eurosat", 45, 5), ("oxford_flowers", 45, 5)],
)
def test_promptsrc_s_few_shot_aggregation_depends_on_the_dataset(dataset, mean, std):
    (job,) = protocols.fewshot_jobs("PromptSRC", dataset, 1, shots=1, **WHERE)
    cfg = load_config(job.parsed())
    assert (mean, std) == (cfg.TRAINER.PROMPTSRC.GPA_MEAN, cfg.TRAINER.PROMPTSRC.GPA_STD)
    assert cfg.OPTIM.MAX_EPOCH == 50


@pytest.mark.parametrize("host", PROJECT.hosts)
@pytest.mark.parametrize(
    "run", ["{}", "FDA{}", "ProxyFDA{}", "{}+rkd"], ids=lambda v: v.format("*")
)
def test_every_default_config_exists_and_merges(host, run):
    trainer = run.format(host)
    jobs = {}
    datasets = ["imagenet", "eurosat", "bundled_fruits", "atlas_fruits"]
    for dataset, shots in itertools.product(datasets, [1, 2, 16]):
        for first, *_ in (
            protocols.base2new_jobs(trainer, dataset, 1, shots=shots, **WHERE),
            protocols.fewshot_jobs(trainer, dataset, 1, shots=shots, **WHERE),
            protocols.transfer_jobs(trainer, dataset, ["dtd"], 1, shots=shots, **WHERE),
        ):
            jobs[first.flag("--config-file")] = first
    for job in jobs.values():
        cfg = load_config(job.parsed())
        assert job.name.startswith(run_name(cfg.TRAINER.NAME, cfg.TRAINER.PROXYFDA.REGULARISER))


@pytest.mark.parametrize("run", [*PROJECT.hosts, "ZeroshotCLIP", "ProxyFDACoOp"])
def test_rendered_datasets_take_the_encoder_that_knows_their_world(run):
    for dataset in PROJECT.rendered_datasets:
        world = dataset.split("_")[0]
        assert PROJECT.default_config(run, dataset, "base2new", 16) == world
        job, *_ = protocols.base2new_jobs(run, dataset, 1, **WHERE)
        weights = load_config(job.parsed()).MODEL.BACKBONE.WEIGHTS
        assert weights == world


def test_defaults_name_protocols_and_trainers_that_there_are():
    table = yaml.safe_load((ROOT / "configs/defaults.yaml").read_text())
    assert set(table.pop("epochs")) <= set(TITLES)
    protocols = {"base2new", "fewshot", "transfer", "zeroshot", "finetune", "continual"}
    assert set(table) == protocols
    names = {name for trainers in table.values() for name in trainers}
    assert names <= set(TRAINER_REGISTRY.registered_names())


def test_a_dataset_config_with_a_root_keeps_it(tmp_path):
    path = tmp_path / "birds.yaml"
    path.write_text("DATASET: {NAME: ImageFolder, ROOT: /my/birds}\n")
    (job,) = protocols.zeroshot_jobs(str(path), **WHERE)
    assert folders([job]) == ["ZeroshotCLIP/vit_b16/birds"]
    cfg = load_config(job.parsed())
    assert cfg.DATASET.ROOT == "/my/birds"


def test_the_user_s_options_come_after_those_of_the_table_and_before_the_classes():
    opts = ["TRAINER.PROMPTSRC.GPA_MEAN", "7", "DATASET.SUBSAMPLE_CLASSES", "all"]
    (job,) = protocols.fewshot_jobs("PromptSRC", "dtd", 1, shots=1, opts=opts, **WHERE)
    assert load_config(job.parsed()).TRAINER.PROMPTSRC.GPA_MEAN == 7
    base, new = protocols.base2new_jobs("CoOp", "dtd", 1, opts=opts, **WHERE)
    cfg = load_config(new.parsed())
    assert cfg.DATASET.SUBSAMPLE_CLASSES == "new"


def test_the_jobs_say_their_protocol():
    base2new = protocols.base2new_jobs("CoOp", "dtd", 1, **WHERE)
    transfer = protocols.transfer_jobs("CoOp", "imagenet", ["dtd"], 1, **WHERE)
    (zero,) = protocols.zeroshot_jobs("dtd", **WHERE)
    said = [job.flag("--protocol") for job in (*base2new, *transfer, zero)]
    # The training of a transfer is a few-shot run: both protocols share it.
    assert said == ["base2new", "base2new", "fewshot", "transfer", "zeroshot"]


def test_the_regulariser_is_part_of_the_name_and_a_flag():
    base, _ = protocols.base2new_jobs("CoOp+rkd", "dtd", 1, **WHERE)
    assert folders([base]) == ["base2new/train_base/dtd/shots_16/CoOp+rkd/vit_b16_ctxv1/seed1"]
    assert (base.flag("--trainer"), base.flag("--regulariser")) == ("CoOp", "rkd")
    assert base.name == "CoOp+rkd dtd seed 1, train_base"


@pytest.mark.parametrize(
    ("word", "trainer"), [("CoOp+fda", "FDACoOp"), ("CoOp+proxy_fda", "ProxyFDACoOp")]
)
def test_two_words_for_one_run_make_the_same_jobs(word, trainer):
    jobs = [protocols.base2new_jobs(name, "dtd", 1, **WHERE) for name in (word, trainer)]
    assert jobs[0] == jobs[1] and jobs[0][0].flag("--trainer") == trainer


def test_an_overlay_is_merged_on_top_and_named_in_the_folder():
    (base, _) = protocols.base2new_jobs("FDACoOp", "dtd", 1, overlay="paper_cross", **WHERE)
    assert "/FDACoOp/vit_b16_ctxv1-paper_cross/seed1" in base.folder
    cfg = load_config(base.parsed())
    assert (cfg.TRAINER.PROXYFDA.SPACES, cfg.TRAINER.PROXYFDA.M) == (("cross",), 16)
    assert cfg.OPTIM.MAX_EPOCH == 200  # of the host's file below it
    for plain in ("CoOp", "ZeroshotCLIP"):
        base, _ = protocols.base2new_jobs(plain, "dtd", 1, overlay="paper_cross", **WHERE)
        assert f"/{plain}/vit_b16_ctxv1/seed1" in base.folder and "paper" not in str(base.flags)
    base, _ = protocols.base2new_jobs("CoOp+none", "dtd", 1, overlay="paper_cross", **WHERE)
    assert "/CoOp/vit_b16_ctxv1-paper_cross/" in base.folder
    assert base.flag("--regulariser") == "none"


def test_an_unknown_overlay_names_those_that_there_are():
    with pytest.raises(NotFound, match="no overlay 'papers'; .* has paper, paper_cross"):
        protocols.base2new_jobs("FDACoOp", "dtd", 1, overlay="papers", **WHERE)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs/trainers").rglob("*.yaml")), ids=lambda p: p.stem
)
def test_a_host_s_file_leaves_the_regulariser_to_overlays(path):
    own = yaml.safe_load(path.read_text()).get("TRAINER", {}).get("PROXYFDA", {})
    # Tuning end to end was measured with literal constants and their λ.
    literal = {"CONSTANTS": "given", "WEIGHT": 1.0}
    assert own == (literal if path.parent.name == "FineTune" else {})


def test_hosts_come_as_published():
    assert PROJECT.hosts == ["CoOp", "CoCoOp", "MaPLe", "PromptSRC"]


def test_an_unknown_dataset_is_told_with_what_there_is(tmp_path):
    with pytest.raises(NotFound, match=r"\(did you mean 'oxford_pets'\?\); use one of"):
        PROJECT.dataset_config("oxford_pest")
    empty = Project(str(tmp_path), entry="train")
    with pytest.raises(NotFound, match=r"no dataset 'x'; use a YAML file \(.*datasets has none\)$"):
        empty.dataset_config("x")
