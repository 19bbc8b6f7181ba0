"""Probes of an encoder: linear probe and zero-shot accuracy on each of several datasets.

``train.py --probe A.yaml,B.yaml`` of the encoder that a run has tuned (``--model-dir``), of weights
between it and the pre-trained one (``--alpha``), or of the backbone as it was pre-trained.

The probe of a dataset is fitted on features of its training images, its strength chosen on its
validation images; then it is fitted on both, as in LDIFS (Mukhoti et al., TMLR 2024), unless
``DATASET.NUM_SHOTS`` says how many images it may have. Where there are no validation images, or
they are the test images, a tenth of the training images is held out for the choice, drawn with seed
0 (the share and the seed are LDIFS's). With ``TEST.SPLIT val`` nothing of the test images is looked
at: the choice is on a held-out tenth, and the score on the validation images.

Images are prepared as the backbone wants them, whatever ``INPUT`` says.
"""

from __future__ import annotations

import argparse
import os.path as osp
import statistics
import time
from typing import Any, Sequence

import torch
from torch import Tensor
from yacs.config import CfgNode

from proxyfda.backbones import ImageBackbone, load_backbone
from proxyfda.backbones.zero_shot import templates_of
from proxyfda.dassl import build_data_loader, build_dataset, build_transform
from proxyfda.diagnostics import LinearProbe, choose_linear_probe
from proxyfda.experiments import layout
from proxyfda.experiments.config import load_config
from proxyfda.experiments.features import FeatureCache, Features, cache_of
from proxyfda.experiments.tuned import TunedRun, check_alpha
from proxyfda.names import PRETRAINED, WISE_FT, run_name
from proxyfda.utils.errors import BadValue, NotFound, sentence

__all__ = ["alpha_of", "check_flags", "completed", "files", "run"]

SPLITS = ("test", "val")
HELD_OUT, MOST_HELD_OUT = 0.1, 20_000  # as LDIFS holds out


# -- before anything is written -------------------------------------------------------------------


def check_flags(args: argparse.Namespace) -> None:
    """Refuse flags that do not go together.

    Raises:
        BadValue: a flag of ``--probe`` without it or beside one of training and evaluation; an α
            outside of 0 to 1, or without anything tuned; no dataset, or one that is named twice;
            the output folder given as that of the model.
        NotFound: a dataset's config file, or the folder of the model, does not exist.
    """
    if not args.probe:
        if args.alpha is not None:
            raise BadValue("--alpha is for --probe; leave it out, or give datasets to probe")
        if args.load_epoch is not None and not args.eval_only:
            raise BadValue(
                f"--load-epoch {args.load_epoch} is for --eval-only and --probe; a training goes "
                "on from its last checkpoint"
            )
        return
    others = {"--eval-only": args.eval_only, "--no-train": args.no_train, "--resume": args.resume}
    for flag, given in others.items():
        if given:
            raise BadValue(f"{flag} does not go with --probe, which trains nothing; leave it out")
    files(args)
    if args.alpha is not None:
        check_alpha(args.alpha, "--alpha")
    if not args.model_dir:
        for flag, value in (("--alpha", args.alpha), ("--load-epoch", args.load_epoch)):
            if value is not None:
                raise BadValue(
                    f"{flag} {value} needs --model-dir, the output folder of the run that has tuned"
                )
    elif not osp.isdir(args.model_dir):
        raise NotFound(
            f"--model-dir {args.model_dir} does not exist; give the output folder of a FineTune run"
        )
    elif args.output_dir and osp.realpath(args.model_dir) == osp.realpath(args.output_dir):
        raise BadValue(
            f"--output-dir and --model-dir are both {args.model_dir}; give an output folder of its "
            "own, so that the training's log and result stay what they are"
        )


def files(args: argparse.Namespace) -> dict[str, str]:
    """The datasets of ``--probe``: name of the config file -> its path.

    Raises:
        BadValue: none, or two of the same name.
        NotFound: there is no such file.
    """
    found: dict[str, str] = {}
    for path in filter(None, map(str.strip, args.probe.split(","))):
        name = osp.splitext(osp.basename(path))[0]
        if name in found:
            raise BadValue(f"--probe names {name} twice ({found[name]}, {path}); name it once")
        if not osp.isfile(path):
            raise NotFound(f"--probe {path} does not exist; give config files of datasets")
        found[name] = path
    if not found:
        raise BadValue(f"--probe is {args.probe!r}; give config files of datasets joined by commas")
    return found


def alpha_of(args: argparse.Namespace) -> float:
    """The share of the tuned weights: 1 unless it is given, 0 where nothing is tuned."""
    if not args.model_dir:
        return 0.0
    return 1.0 if args.alpha is None else args.alpha


def completed(args: argparse.Namespace, cfg: CfgNode) -> CfgNode:
    """The config with what ``--model-dir`` says of the run that has tuned, and checked.

    Raises:
        NotFound, BadValue: see :meth:`TunedRun.at`; flags that say another trainer or backbone than
            that run.
    """
    cfg = cfg.clone()
    cfg.defrost()
    if args.model_dir:
        _take_over(args, cfg, TunedRun.at(args.model_dir, args.load_epoch))
    else:
        cfg.TRAINER.NAME, cfg.TRAINER.PROXYFDA.REGULARISER = PRETRAINED, ""
    if not cfg.MODEL.BACKBONE.NAME:
        raise BadValue(
            "MODEL.BACKBONE.NAME is empty; give --config-file, --backbone or --model-dir"
        )
    cfg.freeze()
    return cfg


def _take_over(args: argparse.Namespace, cfg: CfgNode, tuned: TunedRun) -> None:
    theirs = tuned.config
    trainer = theirs["TRAINER"]
    regulariser = trainer.get("PROXYFDA", {}).get("REGULARISER", "")
    if args.trainer:
        ours = run_name(cfg.TRAINER.NAME, cfg.TRAINER.PROXYFDA.REGULARISER)
        name = run_name(trainer["NAME"], regulariser)
        if ours != name:
            raise BadValue(
                f"--model-dir {args.model_dir} holds a run of {name}, not of {ours}; give its own "
                "trainer, or leave --trainer out"
            )
    else:
        cfg.TRAINER.NAME = trainer["NAME"]
        for key, value in trainer.get("PROXYFDA", {}).items():
            if key in cfg.TRAINER.PROXYFDA:
                cfg.TRAINER.PROXYFDA[key] = value
    chosen = theirs["MODEL"]["BACKBONE"]
    for key in ("NAME", "WEIGHTS"):
        there, here = chosen.get(key, ""), cfg.MODEL.BACKBONE[key]
        if (args.config_file or (key == "NAME" and args.backbone)) and there != here:
            raise BadValue(
                f"--model-dir {args.model_dir} has MODEL.BACKBONE.{key} {there!r}, and this config "
                f"{here!r}; give the config of that run, or leave --config-file out"
            )
        cfg.MODEL.BACKBONE[key] = there
    cfg.INPUT.SIZE = tuple(theirs["INPUT"]["SIZE"])


# -- the run --------------------------------------------------------------------------------------


def run(args: argparse.Namespace, cfg: CfgNode, source: str) -> dict[str, Any]:
    """Probe an encoder; returns what ``result.json`` says of it.

    Args:
        args: what :func:`proxyfda.experiments.run.parser` makes of a command line.
        cfg: the config, see :func:`completed`.
        source: the dataset that was tuned on, named as its config file is; empty for none.

    Raises:
        UserError: a dataset that cannot be read or probed, or weights that cannot be loaded.
    """
    started = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() and cfg.USE_CUDA else "cpu")
    alpha = alpha_of(args)
    tuned = TunedRun.at(args.model_dir, args.load_epoch) if args.model_dir else None
    backbone = _load(cfg, tuned, alpha, device)
    built = time.perf_counter()
    features = None
    probes, readers = {}, {}
    for name, path in files(args).items():
        one = _with_preprocessing(_config_of(args, path, tuned), backbone)
        features = features or _features(backbone, one, cache_of(cfg, alone=True))
        dataset = build_dataset(one)
        _check_dataset(name, dataset)
        probes[name] = _probe(name, dataset, features, one, device)
        readers[name] = getattr(dataset, "name", one.DATASET.NAME)
    place = layout.parse(cfg.OUTPUT_DIR)
    if args.model_dir and args.dataset_config_file:
        source = osp.splitext(osp.basename(args.dataset_config_file))[0]
    alone = (
        bool(args.model_dir) and source in probes and not (place and place.protocol == "continual")
    )
    scored = [source] if alone else list(probes)
    return {
        "accuracy": statistics.fmean(probes[name]["linear_probe"] for name in scored),
        "split": cfg.TEST.SPLIT,
        "dataset": "+".join(readers[name] for name in scored),
        "target": "+".join(scored),
        "name": _name(place, tuned, cfg, alpha),
        "epoch": tuned.epoch if tuned else None,
        "alpha": alpha,
        "probes": probes,
        "time": {
            "build": round(built - started, 3),
            "run": round(time.perf_counter() - built, 3),
        },
    }


def _load(
    cfg: CfgNode, tuned: TunedRun | None, alpha: float, device: torch.device
) -> ImageBackbone:
    chosen = cfg.MODEL.BACKBONE
    if tuned is None:
        print(f"Probing {chosen.NAME} as it was pre-trained ({chosen.WEIGHTS})")
        size = int(cfg.INPUT.SIZE[0])
        found = load_backbone(chosen.NAME, chosen.WEIGHTS, image_size=size, device=device)
    else:
        between = "" if alpha == 1 else f", {alpha:g} of them and the rest as pre-trained"
        print(f"Probing {chosen.NAME} with the weights in {tuned.folder}{between}")
        found = tuned.load(alpha, device)
    return found.eval()


def _name(place: layout.Place | None, tuned: TunedRun | None, cfg: CfgNode, alpha: float) -> str:
    if place and place.part in layout.PROBES.values():
        return place.name
    if tuned is None:
        return PRETRAINED
    return WISE_FT if alpha != 1 else run_name(cfg.TRAINER.NAME, cfg.TRAINER.PROXYFDA.REGULARISER)


def _config_of(args: argparse.Namespace, path: str, tuned: TunedRun | None) -> CfgNode:
    """The run's config for another dataset; one that says where it lies is read there."""
    opts = list(args.opts)
    if tuned is not None and not args.config_file:
        # Without a config the images are read by as many workers as in the training.
        workers = tuned.config.get("DATALOADER", {}).get("NUM_WORKERS")
        opts = [*([] if workers is None else ["DATALOADER.NUM_WORKERS", str(workers)]), *opts]

    def read(root: str) -> CfgNode:
        flags = {**vars(args), "dataset_config_file": path, "root": root, "opts": opts}
        return load_config(argparse.Namespace(**flags))

    own = read("")
    return own if own.DATASET.ROOT else read(args.root)


def _with_preprocessing(cfg: CfgNode, backbone: ImageBackbone) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.SIZE = (backbone.image_size, backbone.image_size)
    cfg.INPUT.PIXEL_MEAN = [float(value) for value in backbone.image_mean]
    cfg.INPUT.PIXEL_STD = [float(value) for value in backbone.image_std]
    cfg.INPUT.INTERPOLATION = backbone.interpolation
    cfg.INPUT.TRANSFORMS, cfg.INPUT.NO_TRANSFORM = ("normalize",), False
    cfg.DATALOADER.RETURN_IMG0 = False
    cfg.freeze()
    return cfg


def _features(backbone: ImageBackbone, cfg: CfgNode, cache: FeatureCache) -> Features:
    transform = build_transform(cfg, is_train=False)

    def batches(items: Sequence[Any]):
        return build_data_loader(
            cfg,
            data_source=items,
            batch_size=cfg.DATALOADER.TEST.BATCH_SIZE,
            tfm=transform,
            is_train=False,
        )

    return Features(backbone, transform, batches, cache)


# -- one dataset ----------------------------------------------------------------------------------

_Part = tuple[Tensor, Tensor]


def _probe(
    name: str, dataset: Any, features: Features, cfg: CfgNode, device: torch.device
) -> dict[str, Any]:
    started = time.perf_counter()

    def part(items: Sequence[Any]) -> _Part:
        found = features.of(items).to(device)
        return found, torch.tensor([item.label for item in items], device=device)

    train, val, scored, refit = _parts(name, dataset, cfg, part)
    read = time.perf_counter()
    node = cfg.PROBE
    try:
        probe: LinearProbe = choose_linear_probe(
            train,
            val,
            tuple(node.STRENGTHS) or None,
            recipe=node.RECIPE,
            refit=refit,
            classes=dataset.num_classes,
        )
    except BadValue as error:
        raise BadValue(f"{name} cannot be probed: {sentence(error)}") from None
    linear, zero = 100 * probe.accuracy(*scored), None
    if features.backbone.has_texts:
        weights = features.texts(dataset.classnames, templates_of(dataset)).to(device)
        by_texts = LinearProbe(weights, weights.new_zeros(len(weights)))
        zero = 100 * by_texts.accuracy(*scored)
    print(
        f"{name}: linear probe {linear:.2f} (strength {probe.strength:g})"
        + (f", zero-shot {zero:.2f}" if zero is not None else "")
        + f" on {len(scored[1])} images of {cfg.TEST.SPLIT}; features {read - started:.1f} s, "
        f"probes {time.perf_counter() - read:.1f} s",
        flush=True,
    )
    return {
        "linear_probe": linear,
        "zero_shot": zero,
        "strength": probe.strength,
        "classes": dataset.num_classes,
        "images": len(scored[1]),
    }


def _parts(name: str, dataset: Any, cfg: CfgNode, part) -> tuple[_Part, _Part, _Part, bool]:
    """What a probe is fitted on, its strength chosen on and its accuracy of; and whether to fit it
    on both of the first two in the end."""
    train = part(dataset.train_x)
    val = None
    if dataset.val and not _overlap(dataset.val, dataset.test):
        val = part(dataset.val)
    chosen = "they choose the strength of its probe"
    if cfg.TEST.SPLIT == "test":
        refit = val is None or cfg.DATASET.NUM_SHOTS < 1
        train, val = (train, val) if val else _hold_out(name, train, chosen)
        return train, val, part(dataset.test), refit
    train, scored = (train, val) if val else _hold_out(name, train, "they are scored")
    return *_hold_out(name, train, chosen), scored, True


def _check_dataset(name: str, dataset: Any) -> None:
    if dataset.num_classes < 2:
        raise BadValue(
            f"{name} has one class, and a probe tells classes apart; leave it out of --probe"
        )
    if _overlap(dataset.train_x, dataset.test):
        raise BadValue(
            f"{name} has only test images, and a probe is fitted on others; leave it out of --probe"
        )


def _overlap(items: Sequence[Any], test: Sequence[Any]) -> bool:
    """Whether some items are test images, as where the test images stand for a part too."""
    tested = {item.impath for item in test}
    return any(item.impath in tested for item in items)


def _hold_out(name: str, train: _Part, why: str) -> tuple[_Part, _Part]:
    """Training images in two parts, the second of a tenth of them; a line says what for."""
    features, labels = train
    count = max(1, min(int(HELD_OUT * len(labels)), MOST_HELD_OUT))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    rest, held = (index.to(labels.device) for index in (order[:-count], order[-count:]))
    print(f"{name}: {count} of {len(labels)} training images are held out (seed 0): {why}")
    return (features[rest], labels[rest]), (features[held], labels[held])
