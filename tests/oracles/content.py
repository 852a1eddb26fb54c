"""Content attention, one pixel and one channel at a time (arXiv 2010.03019, Fig. 1)."""

from itertools import product

import torch
from torch import Tensor


def content_oracle(q: Tensor, k: Tensor, v: Tensor, *, normalize_queries: bool = False) -> Tensor:
    """What `content_attention` must return. Every step is rounded to the dtype given: float64 makes it the truth."""
    batch, h, w, heads, head_dim = q.shape
    pixels = list(product(range(h), range(w)))
    out = v.new_empty(v.shape)
    for image, head in product(range(batch), range(heads)):
        summaries = []
        for channel in range(head_dim):
            keys = torch.stack([k[image, row, col, head, channel] for row, col in pixels])
            values = torch.stack([v[image, row, col, head] for row, col in pixels])
            summaries.append(keys.softmax(0) @ values)
        for row, col in pixels:
            query = q[image, row, col, head]
            if normalize_queries:
                query = query.softmax(0)
            out[image, row, col, head] = query @ torch.stack(summaries)
    return out
