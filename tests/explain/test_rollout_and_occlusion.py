"""Rollout follows attention back; occlusion follows the answer."""

import pytest
import torch
from explain.attentive import CHANNELS, MAP, far_layer, neighbour_layer, one_map
from torch import nn

from parhelion.explain import attention
from parhelion.explain.occlusion import losses, patch_px
from parhelion.explain.picture import key_px
from parhelion.explain.rollout import rollout, spread

pytestmark = pytest.mark.usefixtures("one_thread")


def test_rollout_follows_two_layers_back_and_keeps_half_for_each_shortcut():
    model = nn.Sequential(far_layer(0, 2), far_layer(1, 0))
    layers = attention(model, one_map()).layers
    uniform = torch.full(MAP, 1.0)
    # By hand: what a pixel is read by, and what stays by the shortcut.
    second = 0.5 * nn.functional.pad(uniform[:-1], (0, 0, 1, 0)) + 0.5 * uniform
    first = 0.5 * nn.functional.pad(second[:, :-2], (2, 0)) + 0.5 * second
    torch.testing.assert_close(rollout(layers), first / first.sum())


def test_rollout_of_windows_goes_where_they_read():
    found = rollout(attention(neighbour_layer(0, 1), one_map()).layers)
    assert found.shape == MAP
    torch.testing.assert_close(found.sum(), torch.tensor(1.0))
    # The first column is read by nobody and keeps its shortcuts; the second one is read as well.
    torch.testing.assert_close(found[:, 1], 2 * found[:, 0])


@pytest.mark.parametrize("size", [(5, 7), (10, 13), (3, 20)])
def test_spreading_keeps_the_sum(size):
    share = torch.rand(3, 7)
    wide = spread(share, size)
    assert wide.shape == size
    torch.testing.assert_close(wide.sum(), share.sum())


def test_occlusion_finds_the_one_patch_that_an_answer_reads():
    def probability(images):
        return images[:, 0, 5:7, 9:11].mean(dim=(1, 2))

    image = torch.full((1, 3, 10, 14), 0.5)
    lost = losses(probability, image, 4)
    assert lost.shape == (3, 4)
    expected = torch.zeros(3, 4)
    expected[1, 2] = 0.5
    torch.testing.assert_close(lost, expected)
    assert image.min() == 0.5


def test_occlusion_is_of_the_most_probable_class():
    model = nn.Sequential(neighbour_layer(0, 0), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 4))
    image = one_map((8, 12))
    maps = attention(model, image, class_names=("a", "b", "c", "d"), occlusion=True)
    best = model(image)[0].softmax(0)
    assert maps.occlusion.class_name == "abcd"[best.argmax()] == maps.top[0][0]
    hidden = image.clone()
    hidden[:, :, :1, 2:3] = 0
    loss = best.max() - model(hidden)[0].softmax(0)[best.argmax()]
    torch.testing.assert_close(maps.occlusion.losses[0, 2], loss.detach())


def test_pixels_of_maps_are_powers_of_two_where_they_can_be():
    assert key_px((97, 131), (25, 33)) == (4, 4)
    assert key_px((97, 131), (24, 32)) == (4, 4)
    assert key_px((30, 30), (7, 4)) == (4, 8)
    assert key_px((30, 30), (11, 30)) == (30 / 11, 1)
    assert patch_px((800, 1333), (32.0, 32.0)) == 84
