"""The encoders under MaPLe's and PromptSRC's prompts against what the originals compute."""

import random_clip

from proxyfda.clip import ClassPrompts, ImageEncoder, TextEncoder, initial_context


def text_features(clip, reference, n_ctx, seeds):
    encoder = TextEncoder(clip)
    words = "a photo of a"
    prompts = ClassPrompts(encoder, reference.names, n_ctx, words)
    deep = [random_clip.tensor((n_ctx, 512), seed, 0.02) for seed in seeds]
    embedded = prompts(initial_context(encoder, words, n_ctx))
    return encoder(embedded, prompts.tokenized_prompts, deep)


def test_maple_with_two_of_four_words(reference_clip, reference):
    name = "maple_d3_ctxinit"
    features = text_features(reference_clip, reference, 2, [2004, 2005])
    reference.check(f"{name}/text_features_raw", features)
    deep = [reference[f"{name}/deep_vision/{i}"] for i in (0, 1)]
    features = ImageEncoder(reference_clip)(
        reference.images, reference[f"{name}/shared_ctx_vision"], deep
    )
    reference.check(f"{name}/image_features_raw", features)


def test_promptsrc_with_independent_prompts(reference_clip, reference):
    name = "promptsrc_d3_ctxinit"
    features = text_features(reference_clip, reference, 4, [2004, 2005])
    reference.check(f"{name}/text_features_raw", features)
    first, *deep = (random_clip.tensor((4, 768), seed, 0.02) for seed in (2000, 2001, 2002))
    features = ImageEncoder(reference_clip)(reference.images, first, deep)
    reference.check(f"{name}/image_features_raw", features)
