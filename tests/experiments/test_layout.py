"""Folders of runs: what is written is read back."""

import os
from dataclasses import replace

import pytest

from proxyfda.experiments import layout


@pytest.mark.parametrize("name", ["CoOp", "ProxyFDACoOp", "CoOp+rkd"])
@pytest.mark.parametrize("root", ["/out", "/out/base2new/old", "relative"])
def test_what_is_written_is_read_back(root, name):
    config = "vit_b16_c2_ep20_batch4_4+4ctx-paper"
    for part, classes in (("train_base", "base"), ("test_new", "new"), ("train", "base")):
        folder = layout.base2new(part, "dtd", -1, name, config, 2)
        place = layout.Place("base2new", part, "dtd", name, config, -1, 2)
        assert layout.parse(os.path.join(root, folder)) == place
        assert place.classes == classes
    for part, classes in (("train", "seen@3"), ("seen", "seen@3"), ("unseen", "unseen@3")):
        folder = layout.select(part, "dtd", 16, name, config, 3, 2)
        assert folder.startswith(layout.selection("dtd", 16, name))
        place = layout.Place("select", part, "dtd", name, config, 16, 2, split=3)
        assert layout.parse(os.path.join(root, folder)) == place
        assert place.classes == classes
    folder = layout.fewshot("dtd", 4, name, config, 1)
    place = layout.Place("fewshot", "", "dtd", name, config, 4, 1)
    assert layout.parse(os.path.join(root, folder)) == place and place.classes == "all"
    folder = layout.transfer("dtd", 16, name, config, 3)
    place = layout.Place("transfer", "", "dtd", name, config, 16, 3)
    assert layout.parse(os.path.join(root, folder)) == place


@pytest.mark.parametrize("part", ["train", "probe_val", "probe_test"])
def test_what_tunes_end_to_end_is_read_back(part):
    folder = layout.finetune(part, "dtd", "FineTune+rkd", "vit_b32-weight_0.3", 2)
    place = layout.Place("finetune", part, "dtd", "FineTune+rkd", "vit_b32-weight_0.3", None, 2)
    assert layout.parse(f"/out/{folder}") == place
    folder = layout.continual(part, ["svhn", "dtd"], 2, "LPFT", "vit_b32", 3)
    place = layout.Place("continual", part, "svhn+dtd", "LPFT", "vit_b32", None, 3, task=2)
    assert layout.parse(f"/out/{folder}") == place


def test_tests_of_prompts_over_a_row_are_read_back():
    folder = layout.continual_test(["svhn", "dtd"], 2, "CoOp", "vit_b16_16shots", "food101", 3)
    assert folder == "continual/test/svhn+dtd/task2/CoOp/vit_b16_16shots/food101/seed3"
    config = "vit_b16_16shots"
    place = layout.Place("continual", "test", "svhn+dtd", "CoOp", config, None, 3, None, 2)
    assert layout.parse(f"/out/{folder}") == replace(place, target="food101")


def test_zero_shot_is_read_back():
    folder = layout.zeroshot("dtd", "ZeroshotCLIP", "vit_b16")
    place = layout.Place("zeroshot", "", "dtd", "ZeroshotCLIP", "vit_b16", None, None)
    assert layout.parse(os.path.join("/out", folder)) == place


@pytest.mark.parametrize(
    ("folder", "protocol", "config"),
    [
        ("output/base2new/test_base/dtd/shots_16/CoOp/cfg/seed1", "base2new", "cfg"),
        ("output/few_shot/dtd/PromptSRC/cfg_few_shot_4shots/seed1", "fewshot", "cfg_few_shot"),
        ("output/dtd/CoOp/rn50_1shots/nctx16_cscFalse_ctpend/seed1", "fewshot",
         "rn50/nctx16_cscFalse_ctpend"),
        ("output/evaluation/CoOp/rn50_16shots/nctx16_cscFalse_ctpend/dtd/seed1", "transfer",
         "rn50/nctx16_cscFalse_ctpend"),
        ("output/ZeroshotCLIP2/rn50/dtd/seed1", "zeroshot", "rn50"),
    ],
    ids=["MaPLe's base", "reproduced few-shot", "CoOp's few-shot", "CoOp's transfer", "zero-shot"],
)  # fmt: skip
def test_upstream_s_layouts_are_read(folder, protocol, config):
    place = layout.parse(folder)
    assert (place.protocol, place.config, place.dataset) == (protocol, config, "dtd")


@pytest.mark.parametrize("folder", ["/", "output/my_try", "train_base/dtd/shots_x/CoOp/cfg/seed1"])
def test_other_folders_are_none_of_ours(folder):
    assert layout.parse(folder) is None


def test_the_run_of_a_file_in_it():
    assert layout.run_folder_of("/out/dtd/CoOp/c_16shots/seed1/prompt_learner/model.pth") == (
        "/out/dtd/CoOp/c_16shots/seed1"
    )
    assert layout.run_folder_of("/weights/model.pth") == ""


def test_the_training_of_probes_whose_strength_was_chosen(tmp_path):
    probes = tmp_path / layout.finetune("probe_test", "dtd", "FDAFineTune", "cfg", 2)
    plain = tmp_path / layout.finetune("train", "dtd", "FDAFineTune", "cfg", 2)
    chosen = tmp_path / layout.finetune("train", "dtd", "FDAFineTune", "cfg-weight_0.3", 2)
    assert layout.training_of(str(probes), 0.3) == str(plain)  # nothing else is there
    chosen.mkdir(parents=True)
    assert layout.training_of(str(probes), 0.3) == str(chosen)
    assert layout.training_of(str(probes), 3.0) == layout.training_of(str(probes)) == str(plain)
