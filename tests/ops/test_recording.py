"""Who listens hears what operations are given and return, whichever implementation runs."""

import pytest
import torch
from small_layers import small_layer
from triton_cases import DEVICE

from parhelion.explain import attention
from parhelion.ops.recording import listening


def test_listeners_hear_every_call_until_they_stop():
    halo, gsa, image = small_layer("halo", "auto"), small_layer("global", "reference"), torch.randn(1, 12, 6, 10)
    first, second = [], []
    with listening(first.append):
        out = halo(image)
        with listening(second.append):
            gsa(image)
    halo(image)
    assert [call.operation for call in first] == ["halo_attention"] + [call.operation for call in second]
    assert [call.arguments.get("axis") for call in second] == [None, "h", "w"]
    assert first[0].arguments["window"].block == 4
    assert torch.equal(first[0].output.flatten(-2).permute(0, 3, 1, 2), out)


def test_an_error_leaves_no_listener_behind():
    heard = []
    with pytest.raises(RuntimeError), listening(heard.append):
        raise RuntimeError
    small_layer("halo", "auto")(torch.randn(1, 12, 6, 10))
    assert heard == []


@pytest.mark.triton
@pytest.mark.parametrize("name", ["halo", "global"])
def test_what_the_triton_kernels_return_is_weights_times_values(name):
    layer = small_layer(name, "triton").to(DEVICE)
    maps = attention(layer, torch.randn(1, 12, 5, 7))
    assert 0 < maps.exactness <= 1
