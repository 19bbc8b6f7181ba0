"""open_clip's residual attention blocks, with the attention itself left to the caller.

``nn.MultiheadAttention`` projects a transposed view of its input. Where gradients are wanted, torch
then makes one small product for each position of the sequence, which on a CPU cost a third of a
training step of prompts in the image encoder (ViT-B/16, batch 4). Here it is one large product.
"""

from __future__ import annotations

from typing import Callable

from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional as F


def are_known(transformer: nn.Module) -> bool:
    """Whether all blocks are open_clip's own, whose parts :func:`run_block` calls."""
    return all(
        type(block) is ResidualAttentionBlock and type(block.attn) is nn.MultiheadAttention
        for block in transformer.resblocks
    )


def run_block(
    block: ResidualAttentionBlock, x: Tensor, attend: Callable[[Tensor], Tensor]
) -> Tensor:
    """What the block makes of x [n, L, w].

    Args:
        attend: maps queries, keys and values [n, L, 3, h, w / h] to the attended values [n, L, w].
    """
    attn = block.attn
    qkv = F.linear(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias)
    attended = attend(qkv.unflatten(-1, (3, attn.num_heads, -1)))
    x = x + block.ls_1(attn.out_proj(attended))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def run_last_block(
    block: ResidualAttentionBlock,
    x: Tensor,
    read: Tensor,
    attend: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """What the block makes of some tokens of x [n, L, w]: [n, R, w].

    All tokens have keys and values; queries and everything behind the attention are needed for
    those alone that are read afterwards.

    Args:
        read: positions [R].
        attend: maps their queries [n, R, h, w / h] and all keys and values [n, L, 2, h, w / h] to
            the attended values [n, R, w].
    """
    attn, width = block.attn, x.shape[-1]
    weight, bias = attn.in_proj_weight, attn.in_proj_bias
    q_bias, kv_bias = (None, None) if bias is None else (bias[:width], bias[width:])
    normed = block.ln_1(x)
    q = F.linear(normed.index_select(1, read), weight[:width], q_bias)
    kv = F.linear(normed, weight[width:], kv_bias)
    heads = attn.num_heads
    attended = attend(q.unflatten(-1, (heads, -1)), kv.unflatten(-1, (2, heads, -1)))
    x = x.index_select(1, read) + block.ls_1(attn.out_proj(attended))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def attend_to_all(qkv: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Softmax attention within each sequence of [n, L, 3, h, e]; a float mask [L, L] is added."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    mask = attn_mask if attn_mask is None else attn_mask.to(q.dtype)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2).flatten(2)


def attend_from(q: Tensor, kv: Tensor) -> Tensor:
    """Softmax attention of some tokens' queries [n, R, h, e] to all keys and values
    [n, L, 2, h, e]: [n, R, h * e]."""
    k, v = kv.permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q.transpose(1, 2), k, v).transpose(1, 2).flatten(2)
