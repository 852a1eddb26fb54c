"""Halo attention, one query and one key at a time (arXiv 2103.12731, section 3)."""

from itertools import product

import torch
from oracles.vectors import vectors
from torch import Tensor


def halo_oracle(  # noqa: PLR0913  the arguments of halo_attention
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table_h: Tensor | None = None,
    table_w: Tensor | None = None,
    *,
    block: int,
    halo: int,
    stride: int = 1,
    border: str = "zero",
    scale: float = 1.0,
    relative: str = "halves",
    offsets: str = "pixels",
) -> Tensor:
    """What `halo_attention` must return. Every step is rounded to the dtype given: float64 makes it the truth."""
    _, h, w, _, head_dim = k.shape
    middle = block - 1 + halo  # the row of offset 0, since the first row is offset -(block-1)-halo
    queries, keys, values = vectors(q), vectors(k), vectors(v)
    padding_value = v.new_zeros(v.shape[-1])
    out = []
    for image, i, j, head in product(*map(range, q.shape[:4])):
        query, row, col = queries[image][i][j][head], i * stride, j * stride
        # How well the query fits each offset: one number per row of the tables.
        query_h, query_w = (query, query) if relative == "summed" else (query[: head_dim // 2], query[head_dim // 2 :])
        fits_h = [] if table_h is None else [query_h @ embedding for embedding in table_h]
        fits_w = [] if table_w is None else [query_w @ embedding for embedding in table_w]
        logits, seen = [], []
        for key_row, key_col in product(window(row, block, halo), window(col, block, halo)):
            if 0 <= key_row < h and 0 <= key_col < w:
                logit = query @ keys[image][key_row][key_col][head]
                value = values[image][key_row][key_col][head]
            elif border == "zero":
                logit, value = q.new_zeros(()), padding_value
            else:
                continue
            if fits_h and fits_w:
                origin_row, origin_col = (origin(pixel, block, stride, offsets) for pixel in (row, col))
                logit = logit + (fits_h[key_row - origin_row + middle] + fits_w[key_col - origin_col + middle])
            logits.append(scale * logit)
            seen.append(value)
        out.append(torch.stack(logits).softmax(0) @ torch.stack(seen))
    return torch.stack(out).view(*q.shape[:4], v.shape[-1])


def window(pixel: int, block: int, halo: int) -> range:
    """The rows (or columns) of keys that the query at `pixel` sees, some of them outside the image."""
    first_of_block = pixel // block * block
    return range(first_of_block - halo, first_of_block + block + halo)


def origin(pixel: int, block: int, stride: int, offsets: str) -> int:
    """Where the query at `pixel` counts its offsets from."""
    within = pixel % block
    return pixel if offsets == "pixels" else pixel - within + within // stride
