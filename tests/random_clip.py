"""A small random CLIP in OpenAI's key layout, and other fixed tensors, from seeds.

The reference numbers in ``tests/trainers/data`` were computed with ``state_dict(0)`` and
``tensor(...)``. Recipe, so that anyone can make the same numbers on any machine:

* one CPU generator, seeded; names are visited in sorted order;
* each tensor draws uniform numbers u in [0, 1) (``torch.rand`` maps integers to floats exactly,
  unlike ``randn``), becomes ``offset + std * (u - 0.5) * sqrt(12)``, with offset and std from
  ``offset_and_std``;
* values are rounded to fp16 and kept as fp32, so that code paths through fp16 see the same ones.
"""

import math

import torch

ARCH = {
    "image_size": 64, "patch": 16, "v_width": 768, "v_layers": 4,
    "t_width": 512, "t_layers": 4, "context": 77, "vocab": 49408, "embed": 512,
}  # fmt: skip
TINY = {
    "image_size": 32, "patch": 16, "v_width": 64, "v_layers": 3,
    "t_width": 64, "t_layers": 3, "context": 77, "vocab": 49408, "embed": 32,
}  # fmt: skip


def block_shapes(prefix, width):
    """Names and shapes of one residual attention block."""
    linears = {
        "attn.in_proj_": (3 * width, width),
        "attn.out_proj.": (width, width),
        "mlp.c_fc.": (4 * width, width),
        "mlp.c_proj.": (width, 4 * width),
    }
    out = {}
    for name, shape in linears.items():
        out[f"{prefix}{name}weight"] = shape
        out[f"{prefix}{name}bias"] = shape[:1]
    for name in ("ln_1", "ln_2"):
        out[f"{prefix}{name}.weight"] = out[f"{prefix}{name}.bias"] = (width,)
    return out


def shapes(arch):
    """Names and shapes of all floating-point entries but logit_scale."""
    vision, text = arch["v_width"], arch["t_width"]
    tokens = (arch["image_size"] // arch["patch"]) ** 2 + 1
    out = {
        "visual.conv1.weight": (vision, 3, arch["patch"], arch["patch"]),
        "visual.class_embedding": (vision,),
        "visual.positional_embedding": (tokens, vision),
        "visual.proj": (vision, arch["embed"]),
        "token_embedding.weight": (arch["vocab"], text),
        "positional_embedding": (arch["context"], text),
        "text_projection": (text, arch["embed"]),
    }
    for norm, width in (("visual.ln_pre", vision), ("visual.ln_post", vision), ("ln_final", text)):
        out[f"{norm}.weight"] = out[f"{norm}.bias"] = (width,)
    for i in range(arch["v_layers"]):
        out.update(block_shapes(f"visual.transformer.resblocks.{i}.", vision))
    for i in range(arch["t_layers"]):
        out.update(block_shapes(f"transformer.resblocks.{i}.", text))
    return out


def offset_and_std(name, shape):
    """Distribution of one tensor."""
    if "ln_" in name:
        return (1.0, 0.1) if name.endswith("weight") else (0.0, 0.05)
    if name.endswith("bias"):
        return 0.0, 0.02
    if name == "token_embedding.weight":
        return 0.0, 0.02
    if name == "positional_embedding":
        return 0.0, 0.01
    if name in ("visual.class_embedding", "visual.positional_embedding"):
        return 0.0, shape[-1] ** -0.5
    if name in ("visual.proj", "text_projection"):
        return 0.0, shape[0] ** -0.5
    return 0.0, math.prod(shape[1:]) ** -0.5


def draw(shape, generator, std=1.0, offset=0.0):
    u = torch.rand(tuple(shape), generator=generator, dtype=torch.float32)
    return ((u - 0.5) * math.sqrt(12.0) * std + offset).to(torch.float16).float()


def tensor(shape, seed, std=1.0, offset=0.0):
    """A fixed tensor: images, initial values of learnables."""
    return draw(shape, torch.Generator().manual_seed(seed), std, offset)


def state_dict(seed=0, arch=ARCH, meta=True):
    """The state dict; ``meta`` adds the integer entries that OpenAI's archives have."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    all_shapes = shapes(arch)
    for name in sorted(all_shapes):
        offset, std = offset_and_std(name, all_shapes[name])
        state[name] = draw(all_shapes[name], generator, std, offset)
    state["logit_scale"] = torch.tensor(math.log(1 / 0.07))
    if meta:
        state["input_resolution"] = torch.tensor(arch["image_size"])
        state["context_length"] = torch.tensor(arch["context"])
        state["vocab_size"] = torch.tensor(arch["vocab"])
    return state
