"""HaloAttention as a layer: drop-in shapes, the properties of the paper, and change of window."""

import itertools

import pytest
import torch
from torch import nn

from parhelion.layers import HaloAttention
from parhelion.layers.tables import resized_table


def test_it_stands_in_for_a_3x3_convolution() -> None:
    for stride, (height, width) in itertools.product((1, 2), ((13, 22), (6, 5), (1, 9))):
        convolution = nn.Conv2d(12, 20, 3, stride=stride, padding=1)
        attention = HaloAttention(12, 20, heads=4, block=4, halo=1, stride=stride)
        images = torch.randn(3, 12, height, width)
        assert attention(images).shape == convolution(images).shape


def test_its_parameters_are_three_projections_and_two_tables_shared_by_the_heads() -> None:
    layer = HaloAttention(64, 160, heads=4, block=8, halo=3)
    assert sum(p.numel() for p in layer.parameters()) == 64 * 64 * 2 + 64 * 160 + 21 * (8 + 8)


def test_a_constant_image_comes_out_as_the_constant_value_when_the_border_is_masked() -> None:
    layer = HaloAttention(12, 20, heads=4, block=4, halo=3, border="masked").double()
    constant = torch.randn(1, 12, 1, 1, dtype=torch.float64)
    out = layer(constant.expand(2, 12, 7, 10))
    value = layer.kv(constant)[:, 12:].expand(2, 20, 7, 10)
    torch.testing.assert_close(out, value)


def test_a_constant_image_fades_where_windows_reach_beyond_a_zero_border() -> None:
    layer = HaloAttention(12, 20, heads=4, block=4, halo=1, border="zero").double()
    constant = torch.randn(1, 12, 1, 1, dtype=torch.float64)
    out = layer(constant.expand(1, 12, 12, 16))
    value = layer.kv(constant)[:, 12:].expand(1, 20, 12, 16)
    torch.testing.assert_close(out[:, :, 4:8, 4:12], value[:, :, 4:8, 4:12])
    assert (out.abs() < value.abs())[:, :, :4].all()


@pytest.mark.parametrize("border", ["zero", "masked"])
def test_it_commutes_with_shifts_by_whole_blocks_away_from_the_border_and_with_no_other(border: str) -> None:
    block, halo = 4, 2
    layer = HaloAttention(6, heads=2, block=block, halo=halo, border=border).double()
    image = torch.randn(1, 6, 24, 20, dtype=torch.float64)
    inner = (slice(None), slice(None), slice(8, 16), slice(8, 12))
    out = layer(image)
    for shift in range(1, 8):
        for axis in (2, 3):
            shifted = layer(image.roll(shift, axis)).roll(-shift, axis)
            same = torch.allclose(shifted[inner], out[inner])
            assert same == (shift == block), (shift, axis)


def test_swapping_h_and_w_of_the_input_and_of_the_tables_swaps_the_output() -> None:
    layer = HaloAttention(12, heads=2, block=4, halo=1, stride=2, relative="summed").double()
    image = torch.randn(2, 12, 7, 18, dtype=torch.float64)
    out = layer(image)
    layer.table_h, layer.table_w = layer.table_w, layer.table_h
    torch.testing.assert_close(layer(image.transpose(2, 3)), out.transpose(2, 3))


def test_interior_blocks_are_not_the_mean_of_the_values() -> None:
    layer = HaloAttention(6, heads=2, block=4, halo=2, border="masked").double()
    image = 3 * torch.randn(1, 6, 12, 16, dtype=torch.float64)
    mean = layer.kv(image)[:, 6:, 2:10, 2:10].mean(dim=(2, 3))
    assert (layer(image)[:, :, 4:8, 4:8] - mean[..., None, None]).abs().mean() > 0.1


@pytest.mark.parametrize("stride", [1, 2])
def test_every_row_of_the_tables_learns(stride: int) -> None:
    layer = HaloAttention(8, heads=2, block=4, halo=2, stride=stride)
    layer(torch.randn(1, 8, 24, 28)).square().sum().backward()
    queries = range(0, 4, stride)
    reached = {key - query for query in queries for key in range(-2, 6)}
    for table in (layer.table_h, layer.table_w):
        learning = {row - 5 for row, grad in enumerate(table.grad) if grad.abs().max() > 0}
        assert learning == reached


def test_spare_rows_stay_zero_and_change_nothing() -> None:
    spare = HaloAttention(8, heads=2, block=4, halo=2, rows="window")
    exact = HaloAttention(8, heads=2, block=4, halo=2)
    assert spare.table_h.shape[0] == exact.table_h.shape[0] + 4 == 2 * (4 + 2 * 2) - 1
    exact.load_state_dict({k: v[2:-2] if "table" in k else v for k, v in spare.state_dict().items()})
    image = torch.randn(2, 8, 9, 14)
    torch.testing.assert_close(exact(image), spare(image))
    assert not spare.table_h[:2].any()
    spare.resize(block=6, halo=3)
    exact.resize(block=6, halo=3)
    assert spare.table_h.shape[0] == 2 * (6 + 2 * 3) - 1
    torch.testing.assert_close(exact(image), spare(image))


def test_another_window_interpolates_the_tables_linearly_about_offset_zero() -> None:
    layer = HaloAttention(8, heads=2, block=4, halo=1)
    offsets = torch.linspace(-1, 1, 9)[:, None]
    with torch.no_grad():
        layer.table_h.copy_(offsets.expand(9, 2))
    layer.resize(block=6, halo=2)
    assert (layer.block, layer.halo) == (6, 2)
    torch.testing.assert_close(layer.table_h.detach(), torch.linspace(-1, 1, 15)[:, None].expand(15, 2))
    assert layer(torch.randn(1, 8, 13, 10)).shape == (1, 8, 13, 10)


def test_the_same_window_leaves_the_tables_as_they_are() -> None:
    layer = HaloAttention(8, heads=2, block=4, halo=1)
    before = layer.table_h.detach().clone()
    layer.resize(block=4, halo=1)
    assert torch.equal(layer.table_h, before)
    assert resized_table(before, before.shape[0]) is before


@pytest.mark.usefixtures("shapes_unchecked")
def test_a_window_that_cannot_be_is_refused_and_the_layer_stays() -> None:
    layer = HaloAttention(8, heads=2, block=4, halo=1, stride=2)
    with pytest.raises(ValueError, match="stride must divide block"):
        layer.resize(block=5)
    assert layer(torch.randn(1, 8, 9, 14)).shape == (1, 8, 5, 7)
    with pytest.raises(ValueError, match="heads must divide dim_out"):
        HaloAttention(8, 9, heads=2, block=4, halo=1)
    with pytest.raises(ValueError, match="border must be"):
        HaloAttention(8, heads=2, block=4, halo=1, border="reflect")


def test_logits_start_with_unit_variance_whatever_the_scale() -> None:
    for scale in (1.0, None):
        layer = HaloAttention(256, heads=4, block=4, halo=0, scale=scale)
        images = torch.randn(1, 256, 16, 20)
        q, k = layer.q(images).unflatten(1, (4, 64)), layer.kv(images)[:, :256].unflatten(1, (4, 64))
        logits = torch.einsum("bndhw,bndij->bnhwij", q, k) * layer.scale
        assert logits.std().item() == pytest.approx(1, rel=0.15)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_layer_works_in_every_precision(dtype: torch.dtype) -> None:
    layer = HaloAttention(8, heads=2, block=4, halo=1).to(dtype)
    out = layer(torch.randn(2, 8, 9, 14, dtype=dtype))
    assert out.dtype == dtype
    assert torch.isfinite(out).all()


def test_under_autocast_the_output_has_the_lower_precision_and_gradients_the_full_one() -> None:
    layer = HaloAttention(8, heads=2, block=4, halo=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(torch.randn(2, 8, 9, 14))
    out.float().square().sum().backward()
    assert out.dtype == torch.bfloat16
    assert layer.table_h.grad.dtype == torch.float32
