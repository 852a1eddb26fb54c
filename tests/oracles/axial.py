"""Axial attention, one pixel and one offset at a time (arXiv 2010.03019, Fig. 1)."""

from itertools import product

import torch
from oracles.vectors import vectors
from torch import Tensor


def axial_oracle(q: Tensor, v: Tensor, table: Tensor, *, axis: str) -> Tensor:
    """What `axial_attention` must return. Every step is rounded to the dtype given: float64 makes it the truth."""
    batch, h, w, heads, _ = q.shape
    middle = len(table) // 2  # the row of offset 0
    queries, values, embeddings = vectors(q), vectors(v), vectors(table)
    out = []
    for image, row, col, head in product(range(batch), range(h), range(w), range(heads)):
        query = queries[image][row][col][head]
        if axis == "h":
            logits = [query @ embeddings[other - row + middle] for other in range(h)]
            seen = [values[image][other][col][head] for other in range(h)]
        else:
            logits = [query @ embeddings[other - col + middle] for other in range(w)]
            seen = [values[image][row][other][head] for other in range(w)]
        out.append(torch.stack(logits) @ torch.stack(seen))
    return torch.stack(out).view(v.shape)
