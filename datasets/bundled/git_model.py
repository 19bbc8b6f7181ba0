"""A small GIT over the image encoder of the bundled CLIP, from transformers' own classes.

GIT (Wang et al., TMLR 2022, arXiv 2205.14100) reads the tokens of an image and continues a text:
nothing is a caption, a question its answer, so that one model does both. Its image encoder is a
CLIP's, here the bundled one; the text decoder is small and knows the words of :mod:`.texts` alone.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from proxyfda.backbones.clip.as_transformers import vision_weights
from proxyfda.backbones.clip.loading import load_any_clip

from .texts import words

FOLDER = Path(__file__).resolve().parents[2] / "proxyfda/backbones/clip/bundled/git"
"""Where the pre-trained model lies, as ``from_pretrained`` of transformers reads it."""
SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")


def tokenizer():
    """A tokenizer of transformers with one token for each word of the rendered world."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *words()))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(word, vocabulary[word]) for word in SPECIAL[1:3]]
    )
    names = dict(zip(("pad_token", "cls_token", "sep_token", "unk_token"), SPECIAL))
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=32, **names)


def image_processor():
    """What makes pixels of images as CLIP does, of 32 x 32."""
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32},
        image_mean=list(OPENAI_DATASET_MEAN), image_std=list(OPENAI_DATASET_STD),
    )  # fmt: skip


def new_model(vocabulary: int, seed: int = 0) -> nn.Module:
    """A GIT with the bundled CLIP's image encoder and a decoder that has learned nothing yet."""
    from transformers import GitConfig, GitForCausalLM

    tower, config = load_any_clip("ViT-Bundled", "bundled")
    seen = config["vision_cfg"]
    vision = {
        "hidden_size": seen["width"],
        "intermediate_size": 4 * seen["width"],
        "num_hidden_layers": seen["layers"],
        "num_attention_heads": seen["width"] // seen["head_width"],
        "image_size": seen["image_size"],
        "patch_size": seen["patch_size"],
        "hidden_act": "gelu",
    }
    torch.manual_seed(seed)
    model = GitForCausalLM(
        GitConfig(
            vision_config=vision, vocab_size=vocabulary, hidden_size=128, num_hidden_layers=2,
            num_attention_heads=4, intermediate_size=512, max_position_embeddings=32,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, tie_word_embeddings=False,
            pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip
    model.git.image_encoder.vision_model.load_state_dict(vision_weights(tower.visual.state_dict()))
    return model


def pixels(images: torch.Tensor) -> torch.Tensor:
    """uint8 images [n, 3, 32, 32] as the model takes them."""
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    mean = torch.tensor(OPENAI_DATASET_MEAN)[:, None, None]
    return (images.float() / 255 - mean) / torch.tensor(OPENAI_DATASET_STD)[:, None, None]
