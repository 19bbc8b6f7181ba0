"""Whole runs of tuning end to end: interrupted, from an earlier encoder, with kept anchors; and
what is refused."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from proxyfda.dassl import load_checkpoint
from proxyfda.sampling import ClassBalancedBatchSampler
from proxyfda.utils.nested import plain
from tests.trainers.finetune_tools import BATCH, step, tuned

NODE, OWN = "TRAINER.PROXYFDA", "TRAINER.FINETUNE"
BASE = ("INPUT.TRANSFORMS", ("normalize",), "SEED", 1)


def states(trainer):
    """All that training has changed."""
    found = {f"{n}.{k}": v for n, m in trainer._models.items() for k, v in m.state_dict().items()}
    if trainer.term is not None:
        found.update({f"own.{k}": v for k, v in trainer.term.regulariser.state_dict().items()})
    return found


class Interrupted(Exception):
    """Stands in for Ctrl-C."""


@pytest.mark.parametrize(
    "name, opts",
    [
        ("FineTune", []),
        (
            "ProxyFDAFineTune",
            [f"{NODE}.K", 3, f"{NODE}.M", 4, f"{NODE}.N", 2, f"{NODE}.MINING", True],
        ),
    ],
    ids=["naive", "proxy_fda"],
)
def test_an_interrupted_run_ends_with_the_same_numbers(make_trainer, name, opts, monkeypatch):
    opts = [
        "INPUT.TRANSFORMS", ("random_flip", "normalize"), "SEED", 1, "OPTIM.MAX_EPOCH", 3,
        "TRAIN.CHECKPOINT_FREQ", 1, "OPTIM.NAME", "adamw", *opts,
    ]  # fmt: skip
    whole = make_trainer(name, *opts, output="whole")
    whole.train()
    stopped = make_trainer(name, *opts, output="parts")
    begin = stopped.before_epoch

    def before_epoch():
        if stopped.epoch == 1:
            raise Interrupted
        begin()

    monkeypatch.setattr(stopped, "before_epoch", before_epoch)
    with pytest.raises(Interrupted):
        stopped.train()
    resumed = make_trainer(name, *opts, output="parts")
    torch.rand(7)  # the streams stand elsewhere than in the first run
    resumed.train()
    assert resumed.start_epoch == 1
    want, got = states(whole), states(resumed)
    assert want.keys() == got.keys() and any(key.startswith("own.") for key in want) == bool(
        whole.term
    )
    assert all(torch.equal(want[key], got[key]) for key in want)
    assert not any(
        torch.equal(want[key], value) for key, value in states(stopped).items() if "weight" in key
    )


@pytest.fixture
def earlier(make_trainer):
    """A folder as a run of FineTune leaves it, and its trainer."""
    trainer = make_trainer("FineTune", *BASE, "OPTIM.LR", 0.05, output="earlier")
    trainer.train()
    Path(trainer.output_dir, "config.yaml").write_text(yaml.safe_dump(plain(trainer.cfg)))
    return trainer


@pytest.mark.parametrize("regulariser", ["pointwise", "l2sp"])
def test_a_run_goes_on_from_an_earlier_encoder_and_stays_near_either(
    make_trainer, earlier, regulariser
):
    opts = [*BASE, f"{OWN}.START_FROM", earlier.output_dir, f"{NODE}.REGULARISER", regulariser]
    pull = f"loss_{regulariser}"
    near_previous = make_trainer("FineTune", *opts, f"{OWN}.ANCHOR", "previous")
    near_pretrained = make_trainer("FineTune", *opts)
    want = earlier.backbone.image_tower.state_dict()
    for trainer in (near_previous, near_pretrained):
        got = trainer.backbone.image_tower.state_dict()
        assert all(torch.equal(want[key], got[key]) for key in want)
        assert not torch.equal(trainer.head.weight, earlier.head.weight)  # the head is new
    assert step(near_previous)[0][pull] == pytest.approx(0, abs=1e-6)
    assert step(near_pretrained)[0][pull] > 1e-4


def test_kept_anchors_are_the_anchors(make_trainer, capsys):
    opts = [f"{NODE}.K", 3, "DATALOADER.TRAIN_X.SAMPLER", "SequentialSampler"]
    batches = []
    for keep in (False, True):
        trainer, _, _ = tuned(make_trainer, "FDAFineTune", *opts, f"{OWN}.CACHE_ANCHORS", keep)
        trainer.before_train()
        assert (trainer._frozen is None) == keep
        for batch in trainer.train_loader_x:  # both batches, the second with numbers from 8 on
            values, gradient = step(trainer, batch)
            batches.append((values["loss_fda"], gradient))
    for plain_one, kept in zip(batches[:2], batches[2:]):
        assert kept[0] == pytest.approx(plain_one[0], rel=1e-5)
        torch.testing.assert_close(kept[1], plain_one[1], rtol=1e-4, atol=1e-6)
    again, _, _ = tuned(make_trainer, "FDAFineTune", *opts, f"{OWN}.CACHE_ANCHORS", True)
    capsys.readouterr()
    again.before_train()
    assert "Anchors: frozen features" not in capsys.readouterr().out
    naive, _, _ = tuned(make_trainer, "FineTune", f"{OWN}.CACHE_ANCHORS", True, output="naive")
    naive.before_train()
    assert "CACHE_ANCHORS has no effect" in capsys.readouterr().out


@pytest.mark.parametrize("name, mining", [("FineTune", False), ("FDAFineTune", True)])
def test_batches_are_balanced(make_trainer, name, mining):
    opts = [f"{NODE}.M", 4, f"{NODE}.N", 2, f"{NODE}.MINING", mining]
    opts += [] if name != "FineTune" else [f"{NODE}.REGULARISER", "none"]
    trainer, _, _ = tuned(make_trainer, name, *opts)
    trainer.before_train()
    assert isinstance(trainer.train_loader_x.batch_sampler, ClassBalancedBatchSampler)
    for batch in trainer.train_loader_x:
        assert sorted(batch["label"].bincount().tolist())[-4:] == [2, 2, 2, 2]
    similar = trainer.train_loader_x.batch_sampler._similarity
    assert (similar is not None) == mining
    assert Path(trainer.output_dir, "class_similarity.pt").is_file() == mining


def test_what_a_run_leaves_is_loaded_again(make_trainer, earlier):
    again = make_trainer("FineTune", *BASE, output="other")
    again.load_model(earlier.output_dir)
    torch.testing.assert_close(again.model(BATCH["img"]), earlier.model(BATCH["img"]))
    state = load_checkpoint(Path(earlier.output_dir, "image_encoder", "model.pth.tar-2"))
    assert set(state["state_dict"]) == set(earlier.backbone.image_tower.state_dict())


def test_images_are_prepared_as_the_backbone_takes_them(make_trainer, capsys):
    opts = ["INPUT.PIXEL_MEAN", [0.1, 0.2, 0.3], "INPUT.INTERPOLATION", "nearest"]
    trainer = make_trainer("FineTune", *BASE, *opts)
    out = capsys.readouterr().out
    assert "Images as ViT-B/16 takes them: bicubic, mean [0.48145466" in out
    for loader in (trainer.train_loader_x, trainer.test_loader):
        shown = repr(loader.dataset.transform)
        assert "0.48145466" in shown and "bicubic" in shown and "nearest" not in shown


# -- what is refused ------------------------------------------------------------------------------

REFUSED = {
    "half precision": ([f"{OWN}.PREC", "fp16"], "PREC is 'fp16'.*give fp32, amp or bf16"),
    "head": ([f"{OWN}.HEAD", "prob"], "HEAD is 'prob'.*probe"),
    "anchor": ([f"{OWN}.ANCHOR", "last"], "ANCHOR is .last.*give pretrained or previous"),
    "previous": ([f"{OWN}.ANCHOR", "previous"], "START_FROM names no run"),
    "warm-up": ([f"{OWN}.WARMUP_STEPS", -1], "WARMUP_STEPS is -1; give a whole number"),
    "bound": ([f"{OWN}.CLIP_GRAD", -0.5], "CLIP_GRAD is -0.5; give a number of at least 0"),
    "space": ([f"{NODE}.REGULARISER", "fda", f"{NODE}.SPACES", ("text",)], "leave SPACES empty"),
    "words": (
        [f"{NODE}.REGULARISER", "fda", f"{NODE}.VOCABULARY", "nouns"],
        "VOCABULARY is 'nouns', which has no effect on FineTune",
    ),
    "mixed": ([f"{NODE}.REGULARISER", "fda", f"{NODE}.MIXED", 4], "MIXED is 4, which has no"),
    "kept, random": (
        [f"{OWN}.CACHE_ANCHORS", True, "INPUT.TRANSFORMS", ("random_flip", "normalize")],
        "CACHE_ANCHORS is True, but INPUT.TRANSFORMS has random_flip",
    ),
    "kept layers": (
        [f"{OWN}.CACHE_ANCHORS", True, f"{NODE}.REGULARISER", "ldifs"],
        "ldifs compares all tokens",
    ),
    "not normalised": (["INPUT.TRANSFORMS", ("random_flip",)], "add normalize"),
    "prompts": (["MODEL.INIT_WEIGHTS", "x.pth"], "give the run .* as TRAINER.FINETUNE.START_FROM"),
    "epochs of warm-up": (["OPTIM.WARMUP_EPOCH", 1], "use TRAINER.FINETUNE.WARMUP_STEPS"),
    "size": (["INPUT.SIZE", (32, 48)], r"INPUT.SIZE is \(32, 48\); encoders take squares"),
    "no folder": ([f"{OWN}.START_FROM", "nowhere"], "START_FROM nowhere does not exist"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_one_sentence(make_trainer, case):
    opts, words = REFUSED[case]
    with pytest.raises((ValueError, OSError), match=words) as error:
        make_trainer("FineTune", *BASE, *opts)
    assert "\n" not in str(error.value)


def other_backbone(folder):
    path = Path(folder, "config.yaml")
    path.write_text(path.read_text().replace("NAME: ViT-B/16", "NAME: ViT-B/32"))


def other_trainer(folder):
    path = Path(folder, "config.yaml")
    path.write_text(path.read_text().replace("NAME: FineTune", "NAME: CoOp"))


def no_config(folder):
    Path(folder, "config.yaml").unlink()


def no_encoder(folder):
    shutil.rmtree(Path(folder, "image_encoder"))


def damaged(folder):
    Path(folder, "image_encoder", "model.pth.tar-2").write_bytes(b"nothing")


def another_shape(folder):
    path = Path(folder, "image_encoder", "model.pth.tar-2")
    state = load_checkpoint(path)
    state["state_dict"]["proj"] = torch.zeros(3, 4)
    torch.save(state, path)


SPOILT = {
    other_backbone: "has MODEL.BACKBONE.NAME 'ViT-B/32' and this run 'ViT-B/16'",
    other_trainer: "not a run that tunes an encoder end to end .*one of CoOp",
    no_config: "not a run that tunes an encoder end to end .*no readable config.yaml",
    no_encoder: "Model not found",
    damaged: "cannot be read as a checkpoint",
    another_shape: "does not fit the image_encoder of this run: unequal shapes: proj",
}


def test_an_encoder_that_cannot_be_gone_on_with_is_refused(make_trainer, earlier, tmp_path):
    for number, (spoil, words) in enumerate(SPOILT.items()):
        folder = tmp_path / f"spoilt{number}"
        shutil.copytree(earlier.output_dir, folder)
        spoil(folder)
        with pytest.raises((ValueError, OSError), match=words):
            make_trainer("FineTune", *BASE, f"{OWN}.START_FROM", str(folder))


def test_a_head_of_other_classes_is_refused_and_its_encoder_is_not(make_trainer, earlier):
    path = Path(earlier.output_dir, "head", "model.pth.tar-2")
    state = copy.deepcopy(load_checkpoint(path))
    state["state_dict"] = {key: value[:5] for key, value in state["state_dict"].items()}
    torch.save(state, path)
    trainer = make_trainer("FineTune", *BASE, f"{OWN}.START_FROM", earlier.output_dir)
    with pytest.raises(ValueError, match="is a head of 5 classes and the dataset has 8"):
        trainer.load_model(earlier.output_dir)


def test_a_backbone_without_texts_has_no_zero_shot_head_and_no_flyp(make_trainer):
    trainer = make_trainer("FineTune", *BASE)
    trainer.backbone.text_tower = None
    assert trainer.head_start == "random"
    trainer.cfg.defrost()
    trainer.cfg.TRAINER.FINETUNE.HEAD = "zero_shot"
    with pytest.raises(ValueError, match="HEAD is 'zero_shot', but ViT-B/16 has no text encoder"):
        _ = trainer.head_start


def test_a_probe_needs_two_classes(make_trainer):
    trainer = make_trainer("LPFT", *BASE)
    for item in trainer.train_loader_x.dataset.data_source:
        item._label = 0
    with pytest.raises(ValueError, match="all 16 labels are class 0; a probe tells classes apart"):
        trainer.train()


def test_a_head_that_a_method_does_not_have_is_refused(make_trainer):
    for name, words in (("FLYP", "FLYP has no head"), ("LPFT", "LPFT starts its head from probe")):
        with pytest.raises(ValueError, match=words):
            make_trainer(name, *BASE, f"{OWN}.HEAD", "zero_shot")
