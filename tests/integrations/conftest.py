"""Fixtures for the plugin on hosts of the engine."""

import pytest

import proxyfda
from proxyfda.dassl import build_trainer, get_cfg_default, set_random_seed


@pytest.fixture
def make(tmp_path):
    """``make("ProxyFDAPlain", K=3, output="run")`` builds a trainer, by name or class.

    Options in upper case are the plugin's; others go by their whole name as positional arguments.
    """

    def build(trainer, *options, output="run", epochs=1, **own):
        cfg = get_cfg_default()
        proxyfda.extend_cfg(cfg)
        (tmp_path / "data").mkdir(exist_ok=True)
        name = trainer if isinstance(trainer, str) else trainer.__name__
        cfg.merge_from_list(
            ["TRAINER.NAME", name, "DATASET.NAME", "Pets", "DATASET.ROOT", str(tmp_path / "data"),
             "DATASET.NUM_SHOTS", 4, "OUTPUT_DIR", str(tmp_path / output), "USE_CUDA", False,
             "SEED", 1, "INPUT.SIZE", (8, 8), "INPUT.TRANSFORMS", ("random_flip", "normalize"),
             "DATALOADER.NUM_WORKERS", 0, "DATALOADER.TRAIN_X.BATCH_SIZE", 8, "TRAIN.PRINT_FREQ", 1,
             "OPTIM.NAME", "sgd", "OPTIM.LR", 0.05, "OPTIM.MAX_EPOCH", epochs, *options]
        )  # fmt: skip
        for option, value in own.items():
            cfg.merge_from_list([f"TRAINER.PROXYFDA.{option}", value])
        cfg.freeze()
        set_random_seed(cfg.SEED)
        return build_trainer(cfg) if isinstance(trainer, str) else trainer(cfg)

    return build
