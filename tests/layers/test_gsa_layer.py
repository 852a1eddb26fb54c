"""GlobalSelfAttention as a layer: drop-in shapes, the figure's structure, longer maps and other sizes."""

import itertools

import pytest
import torch
from torch import nn

from parhelion.layers import GlobalSelfAttention
from parhelion.layers.tables import resized_table


def test_it_stands_in_for_a_3x3_convolution() -> None:
    for stride, (height, width) in itertools.product((1, 2), ((13, 22), (6, 5), (1, 9))):
        convolution = nn.Conv2d(12, 20, 3, stride=stride, padding=1)
        attention = GlobalSelfAttention(12, 20, heads=4, size=22, stride=stride)
        images = torch.randn(3, 12, height, width)
        assert attention(images).shape == convolution(images).shape


def test_its_parameters_are_three_projections_two_tables_and_one_norm() -> None:
    layer = GlobalSelfAttention(64, heads=8, size=56)
    assert sum(p.numel() for p in layer.parameters()) == 3 * 64 * 64 + 2 * 111 * 8 + 2 * 64


def test_content_alone_commutes_with_any_permutation_of_pixels_and_position_does_not() -> None:
    image = torch.randn(2, 12, 6, 10, dtype=torch.float64)
    order = torch.randperm(60)
    shuffled = image.flatten(2)[..., order].unflatten(2, (6, 10))
    for branches, commutes in (({"position": False}, True), ({"content": False}, False), ({}, False)):
        layer = GlobalSelfAttention(12, heads=3, size=10, **branches).double().eval()
        expected = layer(image).flatten(2)[..., order].unflatten(2, (6, 10))
        assert torch.allclose(layer(shuffled), expected) == commutes


def test_positions_are_on_unless_switched_off() -> None:
    layer = GlobalSelfAttention(12, heads=3, size=10)
    assert layer.position
    assert layer.content
    with pytest.raises(ValueError, match="cannot both be off"):
        GlobalSelfAttention(12, heads=3, size=10, content=False, position=False)


def test_position_runs_along_columns_then_through_the_norm_then_along_rows() -> None:
    height, width, size = 4, 3, 5
    layer = GlobalSelfAttention(2, heads=1, size=size, content=False).double().eval()
    layer.norm.running_mean.copy_(torch.tensor([0.3, -0.2]))
    layer.norm.running_var.copy_(torch.tensor([2.0, 0.5]))
    image = torch.randn(1, 2, height, width, dtype=torch.float64)
    q, _, v = (part[0].permute(1, 2, 0) for part in layer.qkv(image).split(2, dim=1))

    def columns(y: int, x: int) -> torch.Tensor:
        attended = sum(q[y, x] @ layer.table_h[i - y + size - 1] * v[i, x] for i in range(height))
        return (attended - layer.norm.running_mean) / (layer.norm.running_var + layer.norm.eps).sqrt()

    out = layer(image)
    for y, x in itertools.product(range(height), range(width)):
        rows = sum(q[y, x] @ layer.table_w[j - x + size - 1] * columns(y, j) for j in range(width))
        torch.testing.assert_close(out[0, :, y, x], rows)


def test_a_map_longer_than_the_tables_reads_interpolated_ones() -> None:
    layer = GlobalSelfAttention(12, heads=3, size=5).double().eval()
    resized = GlobalSelfAttention(12, heads=3, size=10).double().eval()
    state = layer.state_dict()
    state |= {name: resized_table(state[name], 19) for name in ("table_w",)}
    state |= {"table_h": nn.functional.pad(state["table_h"], (0, 0, 5, 5))}
    resized.load_state_dict(state)
    image = torch.randn(2, 12, 5, 10, dtype=torch.float64)
    torch.testing.assert_close(layer(image), resized(image))


def test_far_pixels_count_on_a_map_longer_than_the_tables() -> None:
    layer = GlobalSelfAttention(12, heads=3, size=4, content=False).double().eval()
    image = torch.randn(1, 12, 1, 16, dtype=torch.float64, requires_grad=True)
    layer(image)[0, :, 0, 0].sum().backward()
    assert image.grad[0, :, 0, 15].abs().max() > 0


def test_another_size_interpolates_the_tables() -> None:
    layer = GlobalSelfAttention(12, heads=3, size=4)
    with torch.no_grad():
        layer.table_w.copy_(torch.linspace(-1, 1, 7)[:, None].expand(7, 4))
    layer.resize(6)
    torch.testing.assert_close(layer.table_w.detach(), torch.linspace(-1, 1, 11)[:, None].expand(11, 4))
    with pytest.raises(ValueError, match="size must be at least 1"):
        layer.resize(0)


def test_both_branches_start_with_signals_of_one_order_before_rows_add_up() -> None:
    layer = GlobalSelfAttention(64, heads=8, size=14)
    assert layer.table_h.std().item() == pytest.approx(8**-0.5, rel=0.2)


def test_a_stride_averages_what_is_there() -> None:
    layer = GlobalSelfAttention(12, heads=3, size=11, stride=2).double().eval()
    plain = GlobalSelfAttention(12, heads=3, size=11).double().eval()
    plain.load_state_dict(layer.state_dict())
    image = torch.randn(2, 12, 7, 11, dtype=torch.float64)
    full, pooled = plain(image), layer(image)
    torch.testing.assert_close(pooled[:, :, 1, 2], full[:, :, 2:4, 4:6].mean(dim=(2, 3)))
    torch.testing.assert_close(pooled[:, :, 3, 5], full[:, :, 6, 10])


def test_normalised_queries_are_a_choice() -> None:
    layer = GlobalSelfAttention(12, heads=3, size=10, position=False, normalize_queries=True).double()
    image = torch.randn(2, 12, 6, 10, dtype=torch.float64)
    values = layer.qkv(image)[:, 24:]
    out = layer(image)
    assert (out.amax(dim=(2, 3)) <= values.amax(dim=(2, 3))).all()
    assert (out.amin(dim=(2, 3)) >= values.amin(dim=(2, 3))).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_layer_works_in_every_precision(dtype: torch.dtype) -> None:
    layer = GlobalSelfAttention(8, heads=2, size=14).to(dtype)
    out = layer(torch.randn(2, 8, 9, 14, dtype=dtype))
    assert out.dtype == dtype
    assert torch.isfinite(out).all()


def test_under_autocast_the_output_has_the_lower_precision_and_gradients_the_full_one() -> None:
    layer = GlobalSelfAttention(8, heads=2, size=14)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(torch.randn(2, 8, 9, 14))
    out.float().square().sum().backward()
    assert out.dtype == torch.bfloat16
    assert layer.table_h.grad.dtype == torch.float32
