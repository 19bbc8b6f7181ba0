"""One tiny backbone of each library, with random weights of the full-size models' own kinds."""

import copy

import pytest
import torch
from tiny_backbones import DINOV2, MAE, SIZE, TINY, WORDS, flava_config


@pytest.fixture(scope="session")
def flava_folder(tmp_path_factory):
    """A folder as the hub has it: what pre-training saved, and the tokenizer."""
    from transformers import FlavaForPreTraining

    folder = tmp_path_factory.mktemp("flava")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = FlavaForPreTraining(flava_config())
        for name in ("cls_token", "position_embeddings"):
            torch.nn.init.normal_(getattr(model.flava.image_model.embeddings, name))
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder


@pytest.fixture(scope="session")
def made(flava_folder, tiny_file):
    """Each of the four, made once; copy before changing."""
    from proxyfda.backbones import load_backbone
    from proxyfda.backbones.from_timm import TimmBackbone

    return {
        "CLIP": load_backbone("ViT-B/32", str(tiny_file)),
        "DINOv2": TimmBackbone(DINOV2, "random", SIZE, **TINY),
        "MAE": TimmBackbone(MAE, "random", 32, **TINY),
        "FLAVA": load_backbone("flava", str(flava_folder)),
    }


@pytest.fixture(params=["CLIP", "DINOv2", "MAE", "FLAVA"])
def backbone(request, made):
    """A copy of one of the four."""
    return copy.deepcopy(made[request.param])


@pytest.fixture
def images(backbone):
    size = backbone.image_size
    return torch.randn(6, 3, size, size, generator=torch.Generator().manual_seed(1))
