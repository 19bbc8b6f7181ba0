"""Small variants of full-size backbones, for tests."""

SIZE = 28  # of DINOv2: two patches of 14
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "cat", "dog", "##s", "."]
TINY = {"depth": 4, "embed_dim": 32, "num_heads": 2}
DINOV2, MAE = "timm:vit_base_patch14_dinov2.lvd142m", "timm:vit_base_patch16_224.mae"


def flava_config():
    """FLAVA, but small."""
    from transformers import FlavaConfig

    small = {
        "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2,
        "intermediate_size": 64, "initializer_range": 0.2,
    }  # fmt: skip
    return FlavaConfig(
        image_config={**small, "image_size": 32, "patch_size": 8},
        text_config={**small, "vocab_size": len(WORDS), "max_position_embeddings": 12},
        multimodal_config={**small, "num_hidden_layers": 1},
        hidden_size=32,
        projection_dim=24,
        init_codebook=False,
        initializer_range=0.2,
    )
