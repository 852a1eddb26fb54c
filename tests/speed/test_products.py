"""The size of the matrix product that speeds are compared with. Times are made up here."""

import pytest
import torch

from parhelion.speed import products
from parhelion.speed.products import LAST_SIDE, PRODUCT_SECONDS, matrix_product

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def rates(monkeypatch):
    """FLOPs per second of each dtype on a machine that nobody has; a product takes as long as they say."""
    rates = {torch.float32: 5e10, torch.bfloat16: 5e10}
    monkeypatch.setattr(products, "product_run", lambda side, dtype, device: (side, dtype))
    monkeypatch.setattr(products, "seconds_per_call", lambda run, calls: 2 * run[0] ** 3 / rates[run[1]])
    monkeypatch.setattr(products, "cpu_flags", lambda: ["avx512_bf16"])
    return rates


@pytest.mark.parametrize(("rate", "side"), [(1e7, 64), (3e8, 256), (5e10, 1024), (2e11, 2048), (1e15, LAST_SIDE)])
def test_a_product_is_as_large_as_is_done_quickly(rates, rate, side):
    rates[torch.bfloat16] = rate
    product = matrix_product(torch.bfloat16, "cpu")
    assert product.side == side
    assert 2 * side**3 / rate <= PRODUCT_SECONDS
    assert product.flops_per_second(2.0) == side**3


def test_a_dtype_that_is_slower_than_float32_is_emulated(rates):
    assert not matrix_product(torch.bfloat16, "cpu").emulated
    rates[torch.bfloat16] = 3e8
    assert matrix_product(torch.bfloat16, "cpu").emulated
    assert not matrix_product(torch.float32, "cpu").emulated


def test_a_dtype_without_instructions_is_emulated_however_fast(rates, monkeypatch):
    monkeypatch.setattr(products, "cpu_flags", lambda: ["avx2", "avx512f"])
    assert matrix_product(torch.bfloat16, "cpu").emulated
    monkeypatch.setattr(products, "cpu_flags", lambda: [])  # not told
    assert not matrix_product(torch.bfloat16, "cpu").emulated


def test_the_product_is_computed(monkeypatch):
    monkeypatch.setattr(products, "LAST_SIDE", 64)
    product = matrix_product(torch.float32, "cpu")
    (answer,) = product.run()
    assert answer.shape == (64, 64)
    assert answer.std() > 1
