"""What every backbone has, and that CLIP's image encoder has it."""

import pytest
import torch
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

from proxyfda.backbones import Backbone
from proxyfda.backbones.clip import ImageEncoder, TextEncoder, load_clip


@pytest.fixture(scope="module")
def encoder(tiny_file):
    return ImageEncoder(load_clip("ViT-B/16", str(tiny_file)))


def test_clips_image_encoder_is_a_backbone(encoder):
    assert isinstance(encoder, Backbone)
    size = encoder.image_size
    features = encoder.encode(torch.rand(2, 3, size, size))
    assert features.shape == (2, encoder.output_dim) and not features.requires_grad
    assert encoder.image_mean == tuple(OPENAI_DATASET_MEAN)
    assert encoder.image_std == tuple(OPENAI_DATASET_STD)


def test_the_statistics_are_those_of_the_model(tiny_file):
    clip = load_clip("ViT-B/16", str(tiny_file))
    clip.visual.image_mean, clip.visual.image_std = [0.5, 0.4, 0.3], [0.2, 0.2, 0.1]
    encoder = ImageEncoder(clip)
    assert (encoder.image_mean, encoder.image_std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))


def test_both_towers_give_features_of_one_space(tiny_file):
    clip = load_clip("ViT-B/16", str(tiny_file))
    text = TextEncoder(clip)
    assert text.encode(["a cat"]).shape == (1, text.output_dim)
    assert text.output_dim == ImageEncoder(clip).output_dim
    del clip.visual.output_dim  # open_clip's wrapper of timm's towers has none
    assert ImageEncoder(clip).output_dim == text.output_dim


@pytest.mark.parametrize(
    "missing", ["output_dim", "image_size", "image_mean", "image_std", "encode"]
)
def test_without_one_of_these_it_is_none(missing):
    parts = {"output_dim": 4, "image_size": 8, "image_mean": (0,) * 3, "image_std": (1,) * 3}
    parts["encode"] = lambda self, images: images
    assert isinstance(type("Whole", (), parts)(), Backbone)
    del parts[missing]
    assert not isinstance(type("Part", (), parts)(), Backbone)
