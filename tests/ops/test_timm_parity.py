"""Halo attention against timm's layer, where that one works: maps of whole blocks."""

import pytest
import torch
from timm.layers.halo_attn import HaloAttn
from torch.testing import assert_close

from parhelion.ops import halo_attention


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("scale_pos_embed", [False, True])
@pytest.mark.parametrize(("block", "halo", "h", "w"), [(4, 1, 8, 12), (4, 3, 12, 8), (6, 4, 6, 12), (2, 0, 4, 10)])
def test_equals_timm_where_the_blocks_divide_the_map(
    block: int, halo: int, h: int, w: int, scale_pos_embed: bool, stride: int
):
    theirs = HaloAttn(
        16,
        dim_out=3 * 7,
        num_heads=3,
        dim_head=5,
        stride=stride,
        block_size=block,
        halo_size=halo,
        scale_pos_embed=scale_pos_embed,
    ).double()
    images = torch.randn(2, 16, h, w).double()
    # Each head of timm's kv is its keys, then its values.
    q = theirs.q(images).permute(0, 2, 3, 1).unflatten(-1, (3, 5))
    k, v = theirs.kv(images).permute(0, 2, 3, 1).unflatten(-1, (3, 5 + 7)).split((5, 7), dim=-1)
    # timm has 2 (block + 2 halo) - 1 rows, the first of them for offset -(block + 2 halo - 1) + halo; the lowest
    # 2 halo offsets never occur. It scales the relative logits only where asked to; ours are always scaled.
    unscaled = 1.0 if scale_pos_embed else 1 / theirs.scale
    tables = [table[2 * halo :] * unscaled for table in (theirs.pos_embed.height_rel, theirs.pos_embed.width_rel)]
    options = {"block": block, "halo": halo, "stride": stride, "scale": theirs.scale}
    out = halo_attention(q, k, v, *tables, **options, relative="summed", offsets="queries")
    assert_close(out.flatten(-2).permute(0, 3, 1, 2), theirs(images))
