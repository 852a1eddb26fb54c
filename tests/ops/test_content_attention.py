"""Content attention: the equation, what commutes with it, dtypes and memory layouts."""

import pytest
import torch
from error_budget import assert_as_exact_as
from oracles.content import content_oracle
from simulated_rounding import simulated, step_by_step
from torch import Tensor, nn
from torch.testing import assert_close

from parhelion.ops import content_attention

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def inputs(h: int = 6, w: int = 10, *, batch: int = 2, heads: int = 3) -> list[Tensor]:
    """q, k and v; random, float64, with 5 channels of q and k and 7 of v."""
    return [torch.randn(batch, h, w, heads, channels).double() for channels in (5, 5, 7)]


@pytest.mark.parametrize("normalize_queries", [False, True])
@pytest.mark.parametrize(("h", "w"), [(6, 10), (7, 4), (1, 9), (9, 1), (1, 1)])
def test_equals_the_oracle(h: int, w: int, normalize_queries: bool):
    q, k, v = inputs(h, w)
    actual = content_attention(q, k, v, normalize_queries=normalize_queries)
    assert_close(actual, content_oracle(q, k, v, normalize_queries=normalize_queries))


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_batch_may_be_one_or_odd(batch: int):
    tensors = inputs(4, 6, batch=batch)
    assert_close(content_attention(*tensors), content_oracle(*tensors))


@pytest.mark.parametrize("normalize_queries", [False, True])
def test_gradients_equal_finite_differences(normalize_queries: bool):
    tensors = [tensor.requires_grad_() for tensor in inputs()]

    def attend(*tensors: Tensor) -> Tensor:
        return content_attention(*tensors, normalize_queries=normalize_queries)

    assert torch.autograd.gradcheck(attend, tensors, fast_mode=True)


@pytest.mark.parametrize("normalize_queries", [False, True])
def test_permuting_the_pixels_permutes_the_result(normalize_queries: bool):
    tensors = inputs()
    order = torch.randperm(6 * 10)

    def permuted(tensor: Tensor) -> Tensor:
        return tensor.flatten(1, 2)[:, order].unflatten(1, (6, 10))

    out = content_attention(*tensors, normalize_queries=normalize_queries)
    actual = content_attention(*map(permuted, tensors), normalize_queries=normalize_queries)
    assert_close(actual, permuted(out))
    assert not torch.allclose(permuted(out), out)


def test_exchanging_the_axes_of_the_input_exchanges_those_of_the_output():
    tensors = inputs()
    turned = content_attention(*(tensor.transpose(1, 2) for tensor in tensors))
    assert_close(turned.transpose(1, 2), content_attention(*tensors))


def test_normalised_queries_keep_constant_values_constant_and_others_scale_them():
    q, k, v = inputs()
    constant = torch.full_like(v, 3.0)
    assert_close(content_attention(q, k, constant, normalize_queries=True), constant)
    scaled = 3.0 * q.sum(-1, keepdim=True).expand_as(v)
    assert_close(content_attention(q, k, constant), scaled)


def test_a_constant_added_to_a_key_channel_changes_nothing():
    q, k, v = inputs()
    assert_close(content_attention(q, k + torch.randn(5).double(), v), content_attention(q, k, v))


def test_every_pixel_reads_every_pixel():
    tensors = [tensor.requires_grad_() for tensor in inputs(batch=1)]
    content_attention(*tensors)[0, 5, 9].square().sum().backward()
    _, k, v = tensors
    assert (k.grad != 0).all()
    assert (v.grad != 0).all()


@pytest.mark.parametrize("size", [1e5, -1e5])
def test_huge_keys_do_not_overflow(size: float):
    q, k, v = inputs()
    assert_close(content_attention(q, k * size, v), content_oracle(q, k * size, v))


@pytest.mark.parametrize("normalize_queries", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_as_exact_as_the_plain_equation_in_that_dtype(dtype: torch.dtype, normalize_queries: bool):
    rounded = [tensor.to(dtype) for tensor in inputs()]
    actual = content_attention(*rounded, normalize_queries=normalize_queries)
    assert actual.dtype == dtype
    exact = [tensor.double() for tensor in rounded]
    (likely,) = simulated(
        lambda: [content_attention(*exact, normalize_queries=normalize_queries)], step_by_step(dtype), dtype
    )
    assert_as_exact_as(actual, likely, content_attention(*exact, normalize_queries=normalize_queries))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_in_half_precision_stay_within_the_error_budget(dtype: torch.dtype):
    rounded = [tensor.to(dtype) for tensor in inputs(3, 5, batch=1)]
    towards = torch.randn(1, 3, 5, 3, 7).to(dtype)

    def gradients(dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [tensor.to(dtype).requires_grad_() for tensor in rounded]
        return torch.autograd.grad(content_attention(*leaves), leaves, towards.to(dtype))

    likely = simulated(lambda: gradients(torch.float64), step_by_step(dtype), dtype)
    for triple in zip(gradients(dtype), likely, gradients(torch.float64), strict=True):
        assert_as_exact_as(*triple)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_keeps_the_dtype_of_the_values_and_stays_close(dtype: torch.dtype):
    leaves = [tensor.to(dtype).requires_grad_() for tensor in inputs()]
    with torch.autocast("cpu", torch.bfloat16):
        actual = content_attention(*leaves)
    assert actual.dtype == dtype
    truth = content_attention(*(tensor.double() for tensor in leaves))
    rounded = [tensor.bfloat16().double() for tensor in leaves]
    (likely,) = simulated(lambda: [content_attention(*rounded)], step_by_step(torch.bfloat16), torch.bfloat16)
    assert_as_exact_as(actual, likely, truth)
    actual.float().square().sum().backward()
    for leaf in leaves:
        assert leaf.grad.dtype == dtype
        assert torch.isfinite(leaf.grad).all()


def test_views_of_a_channels_last_convolution_need_no_copy():
    images = torch.randn(3, 4, 6, 10).to(memory_format=torch.channels_last)
    project = nn.Conv2d(4, 3 * (5 + 5 + 7), 1).to(memory_format=torch.channels_last)
    packed = project(images).permute(0, 2, 3, 1).unflatten(-1, (3, 17))
    assert packed.is_contiguous(), "the convolution left channels-last memory"
    views = packed.split((5, 5, 7), dim=-1)
    assert not any(tensor.is_contiguous() for tensor in views)
    assert_close(content_attention(*views), content_attention(*(tensor.contiguous() for tensor in views)))


def test_memory_may_be_in_any_order():
    tensors = inputs()
    expected = content_attention(*tensors)
    channels_first = [tensor.movedim(-1, 1).contiguous().movedim(1, -1) for tensor in tensors]
    assert_close(content_attention(*channels_first), expected)
    every_other = [tensor.repeat_interleave(2, dim=2)[:, :, ::2] for tensor in tensors]
    assert_close(content_attention(*every_other), expected)


def test_one_image_may_be_expanded_to_a_batch():
    tensors = inputs(batch=1)
    out = content_attention(*(tensor.expand(3, -1, -1, -1, -1) for tensor in tensors))
    assert_close(out, content_attention(*tensors).expand(3, -1, -1, -1, -1))


def test_inputs_are_left_as_they_were():
    tensors = inputs()
    before = [tensor.clone() for tensor in tensors]
    content_attention(*tensors, normalize_queries=True)
    for tensor, copy in zip(tensors, before, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.parametrize("normalize_queries", [False, True])
def test_equals_gsa_pytorch_without_positions(normalize_queries: bool):
    theirs = pytest.importorskip("gsa_pytorch").GSA(4, dim_out=15, dim_key=5, heads=3, norm_queries=normalize_queries)
    theirs = theirs.double()
    theirs.to_out = nn.Identity()
    images = torch.randn(2, 4, 6, 10).double()
    packed = theirs.to_qkv(images).permute(0, 2, 3, 1).unflatten(-1, (3, 3, 5))
    out = content_attention(*packed.unbind(3), normalize_queries=normalize_queries)
    assert_close(out.flatten(-2).permute(0, 3, 1, 2), theirs(images))
