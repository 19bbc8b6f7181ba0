"""Registries, config, evaluation, meters, log."""

import sys

import numpy as np
import pytest
import torch

from proxyfda.engine import (
    AverageMeter,
    Classification,
    MetricMeter,
    Registry,
    build_evaluator,
    build_trainer,
    collect_env_info,
    compute_accuracy,
    count_num_param,
    get_cfg_default,
    listdir_nohidden,
    read_json,
    setup_logger,
    write_json,
)

COOP_YAML = """
DATALOADER:
  TRAIN_X:
    BATCH_SIZE: 32
  TEST:
    BATCH_SIZE: 100
  NUM_WORKERS: 8
INPUT:
  SIZE: (224, 224)
  INTERPOLATION: "bicubic"
  PIXEL_MEAN: [0.48145466, 0.4578275, 0.40821073]
  PIXEL_STD: [0.26862954, 0.26130258, 0.27577711]
  TRANSFORMS: ["random_resized_crop", "random_flip", "normalize"]
OPTIM:
  NAME: "sgd"
  LR: 0.002
  MAX_EPOCH: 200
  LR_SCHEDULER: "cosine"
  WARMUP_EPOCH: 1
  WARMUP_TYPE: "constant"
  WARMUP_CONS_LR: 1e-5
TRAIN:
  PRINT_FREQ: 5
MODEL:
  BACKBONE:
    NAME: "ViT-B/16"
"""


def test_registry():
    registry = Registry("TRAINER")

    @registry.register()
    class CoOp:
        pass

    class ZeroshotCLIP:
        pass

    registry.register(ZeroshotCLIP)
    assert registry.get("CoOp") is CoOp
    assert registry.registered_names() == ["CoOp", "ZeroshotCLIP"]
    with pytest.raises(KeyError, match="already"):
        registry.register(CoOp)
    registry.register(CoOp, force=True)
    expected = "Unknown trainer 'coop' (did you mean 'CoOp'?): available are CoOp, ZeroshotCLIP"
    with pytest.raises(ValueError) as caught:
        registry.get("coop")
    assert str(caught.value) == expected
    with pytest.raises(ValueError) as caught:
        registry.get("xyz")
    assert str(caught.value) == "Unknown trainer 'xyz': available are CoOp, ZeroshotCLIP"


def test_unknown_trainer_in_the_config():
    cfg = get_cfg_default()
    cfg.TRAINER.NAME = "NoSuchTrainer"
    with pytest.raises(ValueError, match="Unknown trainer 'NoSuchTrainer'"):
        build_trainer(cfg)


def test_configs_of_the_family_merge(tmp_path):
    (tmp_path / "coop.yaml").write_text(COOP_YAML)
    cfg = get_cfg_default()
    cfg.merge_from_file(tmp_path / "coop.yaml")
    assert cfg.INPUT.SIZE == (224, 224) and cfg.OPTIM.WARMUP_CONS_LR == 1e-5
    assert get_cfg_default().OPTIM.LR == 0.0003  # a fresh copy each time


@pytest.fixture
def evaluator(tmp_path):
    cfg = get_cfg_default()
    cfg.TEST.PER_CLASS_RESULT = True
    cfg.TEST.COMPUTE_CMAT = True
    cfg.OUTPUT_DIR = str(tmp_path)
    return build_evaluator(cfg, lab2cname={0: "cat", 1: "dog", 2: "owl"})


def logits_for(predictions):
    return torch.nn.functional.one_hot(torch.tensor(predictions), 3).float()


def test_evaluation(evaluator, tmp_path, capsys):
    capsys.readouterr()
    evaluator.process(logits_for([0, 0]), torch.tensor([1, 1]))
    evaluator.reset()
    # cat: 2 of 3, dog: 1 of 1; owl is predicted once and never true
    evaluator.process(logits_for([0, 2]), torch.tensor([0, 0]))
    evaluator.process(logits_for([0, 1]), torch.tensor([0, 1]))
    results = evaluator.evaluate()
    assert list(results) == ["accuracy", "error_rate", "macro_f1", "perclass_accuracy"]
    f1 = 100 * (2 * 1.0 * (2 / 3) / (1 + 2 / 3) + 1) / 2
    assert list(results.values()) == pytest.approx([75, 25, f1, 100 * (2 / 3 + 1) / 2])
    assert evaluator._correct == 3 and evaluator._total == 4
    assert capsys.readouterr().out.splitlines() == [
        "=> result",
        "* total: 4",
        "* correct: 3",
        "* accuracy: 75.0%",
        "* error: 25.0%",
        "* macro_f1: 90.0%",
        "=> per-class result",
        "* class: 0 (cat)\ttotal: 3\tcorrect: 2\tacc: 66.7%",
        "* class: 1 (dog)\ttotal: 1\tcorrect: 1\tacc: 100.0%",
        "* average: 83.3%",
        f"Confusion matrix is saved to {tmp_path / 'cmat.pt'}",
    ]
    saved = torch.load(tmp_path / "cmat.pt", weights_only=False)  # a numpy array, our own file
    assert np.allclose(saved, [[2 / 3, 0, 1 / 3], [0, 1, 0], [0, 0, 0]])


def test_thousands_are_separated(capsys):
    evaluator = Classification(get_cfg_default())
    evaluator.process(torch.zeros(1234, 2), torch.zeros(1234, dtype=torch.long))
    evaluator.evaluate()
    assert "* total: 1,234\n* correct: 1,234\n" in capsys.readouterr().out


def test_nothing_to_evaluate():
    with pytest.raises(ValueError, match="nothing to evaluate"):
        Classification(get_cfg_default()).evaluate()


def test_compute_accuracy():
    output = torch.tensor([[3.0, 2, 1], [1, 3, 2], [1, 2, 3], [3, 1, 2]])
    target = torch.tensor([0, 2, 2, 1])
    top1, top2 = compute_accuracy((output, None), target, topk=(1, 2))
    assert top1.item() == 50 and top2.item() == 75


def test_meters():
    meter = AverageMeter()
    meter.update(torch.tensor(2.0))
    meter.update(5.0, n=2)
    assert (meter.val, meter.avg, meter.count) == (5.0, 4.0, 3)
    forgetting = AverageMeter(ema=True)
    forgetting.update(10)
    forgetting.update(20)
    assert forgetting.avg == pytest.approx(2.9)
    metrics = MetricMeter()
    metrics.update({"loss": 1.0, "acc": torch.tensor(50.0)})
    metrics.update({"loss": 2.0})
    metrics.update(None)
    assert str(metrics) == "loss 2.0000 (1.5000) acc 50.0000 (50.0000)"
    with pytest.raises(TypeError, match="float"):
        metrics.update(1.0)


def test_log_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    setup_logger(str(tmp_path / "run"))
    print("first")
    assert (tmp_path / "run" / "log.txt").read_text() == "first\n"  # at once, not at exit
    setup_logger(str(tmp_path / "run"))
    print("second")
    assert (tmp_path / "run" / "log.txt").read_text() == "first\n"
    (dated,) = (tmp_path / "run").glob("log.txt-????-??-??-??-??-??")
    assert dated.read_text() == "second\n"
    assert capsys.readouterr().out == "first\nsecond\n"


def test_files_and_counts(tmp_path):
    write_json({"a": [1]}, str(tmp_path / "new" / "x.json"))
    (tmp_path / "new" / ".hidden").touch()
    assert read_json(tmp_path / "new" / "x.json") == {"a": [1]}
    assert listdir_nohidden(tmp_path / "new") == ["x.json"]
    layer = torch.nn.Linear(3, 2)
    assert count_num_param(layer) == 8
    assert count_num_param(params=[{"params": [layer.weight]}, layer.bias]) == 8
    assert torch.__version__ in collect_env_info()
