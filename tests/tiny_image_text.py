"""Tiny random models of transformers, as folders that hold what a real one holds."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForQuestionAnswering,
    BlipImageProcessor,
    CLIPImageProcessor,
    GitConfig,
    GitForCausalLM,
    PreTrainedTokenizerFast,
)

WORDS = """
a an the dog cat horse frog ship truck bird plane deer car red blue green brown on in of grass
water sky road runs sits stands is it what colour where how many one two yes no ? . ,
"""
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]"]
KINDS = ("git", "blip", "blip_vqa")

_VISION = dict(
    hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    image_size=32, patch_size=8,
)  # fmt: skip
_TEXT = dict(
    hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    vocab_size=len(SPECIAL) + len(WORDS.split()), max_position_embeddings=24, pad_token_id=0,
)  # fmt: skip


def tokenizer():
    """Whole words in lower case."""
    numbers = {word: number for number, word in enumerate([*SPECIAL, *WORDS.split()])}
    words = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", additional_special_tokens=["[DEC]"],
    )  # fmt: skip


def model(kind, seed=0):
    """A model with random weights, always the same."""
    torch.manual_seed(seed)
    if kind == "git":
        config = GitConfig(
            vision_config=_VISION, bos_token_id=2, eos_token_id=3, **_TEXT,
            hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1,
        )  # fmt: skip
        return GitForCausalLM(config)
    text = dict(
        _TEXT, encoder_hidden_size=16, bos_token_id=4, sep_token_id=3, eos_token_id=3,
        hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1,
    )  # fmt: skip
    config = BlipConfig(text_config=text, vision_config=_VISION)
    return {"blip": BlipForConditionalGeneration, "blip_vqa": BlipForQuestionAnswering}[kind](
        config
    )


def image_processor(kind):
    """What the real models have, for small images."""
    if kind == "git":
        return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return BlipImageProcessor(size={"height": 32, "width": 32})


def save(kind, folder, seed=0):
    """Write a model's folder; returns it as a text."""
    for part in (model(kind, seed), tokenizer(), image_processor(kind)):
        part.save_pretrained(folder)
    return str(folder)
