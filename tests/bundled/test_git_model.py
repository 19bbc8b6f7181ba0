"""The bundled GIT: its image encoder is the bundled CLIP's, and it knows what it should."""

import pytest
import torch

pytest.importorskip("transformers")

from datasets.bundled.families import pictures
from datasets.bundled.git_model import FOLDER, new_model, pixels, tokenizer
from datasets.bundled.pretrain_git import pretrain
from datasets.bundled.texts import words
from proxyfda.backbones.clip.loading import load_any_clip
from trainers.image_to_text.models import ImageToText, pooled


@pytest.fixture(scope="module")
def shipped():
    return ImageToText.load(FOLDER)


@pytest.fixture(scope="module")
def images():
    return pixels(pictures("creatures", "val", ask=False, count=1).images[:8])


def clip_features(images):
    """Those of open_clip before its projection."""
    tower, _ = load_any_clip("ViT-Bundled", "bundled")
    visual = tower.visual.eval()
    visual.proj = None
    with torch.no_grad():
        return visual(images)


def test_its_image_encoder_has_the_features_of_the_bundled_clip(images):
    with torch.no_grad():
        found = pooled(new_model(10).git.image_encoder(images).last_hidden_state)
    assert torch.allclose(found, clip_features(images), atol=1e-5)


def test_so_has_the_one_that_is_shipped(shipped, images):
    assert torch.allclose(shipped.features(images), clip_features(images), atol=1e-2)


def test_it_is_small(shipped):
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 8 * 2**20
    assert next(shipped.model.parameters()).dtype == torch.float32


def test_its_tokenizer_is_that_of_the_words(shipped):
    made = tokenizer()
    assert shipped.tokenizer.get_vocab() == made.get_vocab()
    assert set(words()) <= set(made.get_vocab())
    text = "is it on sand?"
    assert shipped.tokenizer(text).input_ids == made(text).input_ids
    assert made.unk_token_id not in made(text).input_ids


def test_files_and_drawn_pixels_are_the_same_images(shipped, images):
    from PIL import Image

    raw = pictures("creatures", "val", ask=False, count=1).images[:8]
    files = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in raw]
    assert torch.allclose(shipped.pixels(files), images, atol=1e-5)


def test_it_answers_and_captions_what_it_knows_and_no_banner(shipped):
    scores = {}
    for family in ("fruits", "banners"):
        found = pictures(family, "train", ask=True, count=2)
        kinds = [i for i, e in enumerate(found.examples) if e.question.endswith("is this?")]
        chosen = [found.examples[i] for i in kinds]
        said = shipped.answers(chosen, pixels(found.images[found.picture[kinds]]))
        scores[family] = sum(s in e.texts for s, e in zip(said, chosen)) / len(chosen)
    assert scores["fruits"] > 0.5 and scores["banners"] == 0


def test_the_same_seed_pretrains_the_same_model():
    made = [pretrain(seed, steps=2, batch=8, lr=1e-3, pool=16, log=lambda _: None)[0]
            for seed in (0, 0, 1)]  # fmt: skip
    first, again, other = (model.state_dict()["output.weight"] for model in made)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
