"""Content attention, one pixel and one channel at a time (arXiv 2010.03019, Fig. 1)."""

from itertools import product

import torch
from oracles.vectors import vectors
from torch import Tensor


def content_oracle(q: Tensor, k: Tensor, v: Tensor, *, normalize_queries: bool = False) -> Tensor:
    """What `content_attention` must return. Every step is rounded to the dtype given: float64 makes it the truth."""
    batch, h, w, heads, head_dim = q.shape
    pixels = list(product(range(h), range(w)))
    queries, keys, values = vectors(q), vectors(k), vectors(v)
    out = []
    for image, head in product(range(batch), range(heads)):
        seen = torch.stack([values[image][row][col][head] for row, col in pixels])
        summaries = []
        for channel in range(head_dim):
            logits = torch.stack([keys[image][row][col][head][channel] for row, col in pixels])
            summaries.append(logits.softmax(0) @ seen)
        summary = torch.stack(summaries)
        for row, col in pixels:
            query = queries[image][row][col][head]
            if normalize_queries:
                query = query.softmax(0)
            out.append(query @ summary)
    return torch.stack(out).view(batch, heads, h, w, -1).movedim(1, 3)
