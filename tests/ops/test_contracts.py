"""What the operations say about arguments that do not fit."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from parhelion.ops import axial_attention, content_attention, halo_attention

pytestmark = pytest.mark.usefixtures("shapes_unchecked")

Q = K = torch.zeros(2, 6, 10, 3, 5)
V = torch.zeros(2, 6, 10, 3, 7)
FLAT = torch.zeros(2, 60, 3, 5)
WINDOW = {"block": 2, "halo": 1}
TABLE_H, TABLE_W = torch.zeros(5, 2), torch.zeros(5, 3)  # 2 * 2 + 2 * 1 - 1 offsets, halves of 5 channels
KV_AGREE = "k and v must agree in batch, h, w and heads, not (2, 6, 10, 3, 5)"
QV_AGREE = "q and v must agree in batch, h, w and heads, not (2, 6, 10, 3, 5)"
Q_MUST = "q must be (2, 6, 10, 3, 5) for k of (2, 6, 10, 3, 5) and stride=1"
NO_MAP = "must be (batch, h, w, heads, channels), not of shape (2, 60, 3, 5)"


def assert_says(sentence: str, attend: Callable[..., Tensor], *tensors: Tensor | None, **options: Any) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        attend(*tensors, **options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"block": 0}, "block and stride must be at least 1, halo at least 0, not block=0, stride=1, halo=1"),
        ({"halo": -1}, "block and stride must be at least 1, halo at least 0, not block=2, stride=1, halo=-1"),
        ({"stride": 0}, "block and stride must be at least 1, halo at least 0, not block=2, stride=0, halo=1"),
        ({"stride": 3}, "stride must divide block, so that every block keeps whole queries, not stride=3, block=2"),
        ({"stride": 4}, "stride must divide block, so that every block keeps whole queries, not stride=4, block=2"),
        ({"border": "reflect"}, "border must be 'zero' or 'masked', not 'reflect'"),
        ({"relative": "full"}, "relative must be 'halves' or 'summed', not 'full'"),
        ({"impl": "fast"}, "impl must be one of 'auto', 'reference', 'cpu', 'triton', not 'fast'"),
    ],
)
def test_halo_attention_names_the_option_that_does_not_fit(options: dict[str, Any], sentence: str):
    assert_says(sentence, halo_attention, Q, K, V, **WINDOW | options)


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ((FLAT, K, V), f"q {NO_MAP}"),
        ((Q, FLAT, V), f"k {NO_MAP}"),
        ((Q, K, FLAT), f"v {NO_MAP}"),
        ((Q, K, V[:1]), f"{KV_AGREE} and (1, 6, 10, 3, 7)"),
        ((Q, K, V[:, 1:]), f"{KV_AGREE} and (2, 5, 10, 3, 7)"),
        ((Q, K, V[:, :, 1:]), f"{KV_AGREE} and (2, 6, 9, 3, 7)"),
        (
            (Q, K, V[..., 1:, :]),
            f"{KV_AGREE} and (2, 6, 10, 2, 7)",
        ),
        ((Q[:1], K, V), f"{Q_MUST}, not (1, 6, 10, 3, 5)"),
        ((Q[:, 1:], K, V), f"{Q_MUST}, not (2, 5, 10, 3, 5)"),
        ((Q[:, :, 1:], K, V), f"{Q_MUST}, not (2, 6, 9, 3, 5)"),
        ((Q[..., 1:], K, V), f"{Q_MUST}, not (2, 6, 10, 3, 4)"),
        ((Q, K, V, TABLE_H, None), "table_h and table_w belong together: give both or neither"),
        ((Q, K, V, None, TABLE_W), "table_h and table_w belong together: give both or neither"),
        ((Q, K, V, TABLE_H[1:], TABLE_W), "table_h must be (5, 2) for this block, halo and head, not (4, 2)"),
        ((Q, K, V, TABLE_H, TABLE_W[1:]), "table_w must be (5, 3) for this block, halo and head, not (4, 3)"),
        ((Q, K, V, TABLE_W, TABLE_H), "table_h must be (5, 2) for this block, halo and head, not (5, 3)"),
    ],
)
def test_halo_attention_names_the_tensor_that_does_not_fit(tensors: tuple[Tensor | None, ...], sentence: str):
    assert_says(sentence, halo_attention, *tensors, **WINDOW)


def test_halo_attention_wants_queries_at_the_strided_pixels():
    sentence = "q must be (2, 3, 5, 3, 5) for k of (2, 6, 10, 3, 5) and stride=2, not (2, 6, 10, 3, 5)"
    assert_says(sentence, halo_attention, Q, K, V, **WINDOW, stride=2)


def test_halo_attention_wants_summed_tables_as_wide_as_the_head():
    sentence = "table_h must be (5, 5) for this block, halo and head, not (5, 2)"
    assert_says(sentence, halo_attention, Q, K, V, TABLE_H, TABLE_W, **WINDOW, relative="summed")


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ((FLAT, K, V), f"q {NO_MAP}"),
        ((Q, FLAT, V), f"k {NO_MAP}"),
        ((Q, K, FLAT), f"v {NO_MAP}"),
        ((Q[..., 1:], K, V), "q and k must have one shape, not (2, 6, 10, 3, 4) and (2, 6, 10, 3, 5)"),
        ((Q[:, 1:], K, V), "q and k must have one shape, not (2, 5, 10, 3, 5) and (2, 6, 10, 3, 5)"),
        ((Q, K, V[:, 1:]), f"{KV_AGREE} and (2, 5, 10, 3, 7)"),
        (
            (Q, K, V[..., 1:, :]),
            f"{KV_AGREE} and (2, 6, 10, 2, 7)",
        ),
    ],
)
def test_content_attention_names_the_tensor_that_does_not_fit(tensors: tuple[Tensor, ...], sentence: str):
    assert_says(sentence, content_attention, *tensors)


def test_content_attention_names_the_unknown_implementation():
    assert_says(
        "impl must be one of 'auto', 'reference', 'cpu', 'triton', not 'fast'", content_attention, Q, K, V, impl="fast"
    )


TABLE = torch.zeros(19, 5)  # 2 * 10 - 1 offsets


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ((FLAT, V, TABLE), f"q {NO_MAP}"),
        ((Q, FLAT, TABLE), f"v {NO_MAP}"),
        (
            (Q, V[:, 1:], TABLE),
            f"{QV_AGREE} and (2, 5, 10, 3, 7)",
        ),
        ((Q, V, TABLE[0]), "table must be (offsets, 5) for q of (2, 6, 10, 3, 5), not (5,)"),
        ((Q, V, TABLE[:, 1:]), "table must be (offsets, 5) for q of (2, 6, 10, 3, 5), not (19, 4)"),
    ],
)
def test_axial_attention_names_the_tensor_that_does_not_fit(tensors: tuple[Tensor, ...], sentence: str):
    assert_says(sentence, axial_attention, *tensors, axis="w")


@pytest.mark.parametrize(
    ("axis", "length", "rows"), [("h", 6, 9), ("h", 6, 10), ("h", 6, 12), ("w", 10, 17), ("w", 10, 18), ("w", 10, 20)]
)
def test_axial_attention_wants_a_row_for_every_offset_and_one_in_the_middle(axis: str, length: int, rows: int):
    sentence = (
        f"table must have an odd number of rows, at least {2 * length - 1} for an axis {length} pixels long, not {rows}"
    )
    assert_says(sentence, axial_attention, Q, V, torch.zeros(rows, 5), axis=axis)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"axis": "x"}, "axis must be 'h' or 'w', not 'x'"),
        ({"axis": "w", "impl": "fast"}, "impl must be one of 'auto', 'reference', 'cpu', 'triton', not 'fast'"),
    ],
)
def test_axial_attention_names_the_option_that_does_not_fit(options: dict[str, str], sentence: str):
    assert_says(sentence, axial_attention, Q, V, TABLE, **options)


@pytest.mark.parametrize(("attend", "options"), [(halo_attention, WINDOW), (content_attention, {})])
def test_queries_and_keys_of_two_dtypes_or_of_integers_are_named(
    attend: Callable[..., Tensor], options: dict[str, Any]
):
    sentence = "q and k must have one floating-point dtype, not torch."
    assert_says(f"{sentence}float32 and torch.bfloat16", attend, Q, K.bfloat16(), V, **options)
    assert_says(f"{sentence}int64 and torch.int64", attend, Q.long(), K.long(), V, **options)
