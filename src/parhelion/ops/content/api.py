"""The public function of content attention: contract, checks, choice of implementation."""

from typing import Literal

from parhelion.ops.content.contract import check_maps
from parhelion.ops.content.reference import content_attention_reference
from parhelion.shapes import Float, Tensor


def content_attention(
    q: Float[Tensor, "b h w n d"],
    k: Float[Tensor, "b h w n d"],
    v: Float[Tensor, "b h w n e"],
    *,
    normalize_queries: bool = False,
    impl: Literal["auto", "reference"] = "auto",
) -> Float[Tensor, "b h w n e"]:
    """Let every pixel read one summary of the whole image: `q · (softmax over pixels of k)ᵀ v`.

    The softmax runs over all pixels, separately for each key channel and once for all queries (arXiv 2010.03019,
    Fig. 1). No position enters: permuting pixels permutes the result. Cost: 2 d e multiply-adds per pixel and
    head; linear in pixels. There is no 1/sqrt(d).

    Args:
        q: Queries.
        k: Keys.
        v: Values; their width e may differ from d.
        normalize_queries: Put a softmax over the d channels of each query. That confines every output to a mean of
            the d summaries; the figure shows none, so the default leaves queries as they are.
        impl: "auto" chooses the fastest implementation that can run, "reference" is plain PyTorch.

    Returns:
        One value per pixel, in the dtype of v. Float64, float32, bfloat16 and float16, on any device, contiguous
        or not.

    Raises:
        ValueError: shapes that do not fit together, or an unknown `impl`.
    """
    check_maps(q, k, v)
    if impl not in ("auto", "reference"):
        raise ValueError(f"impl must be 'auto' or 'reference', not {impl!r}")
    return content_attention_reference(q, k, v, normalize_queries=normalize_queries)
