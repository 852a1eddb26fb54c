import sys

import numpy as np
import pycocotools.mask as coco_masks
import pytest
import torch
from torchvision.models.detection.roi_heads import paste_masks_in_image

from parhelion.detection.masks import Patch, instance_rle, mask_rle, pasted, patch, run_lengths
from parhelion.errors import UserError

M, H, W = 7, 23, 31

BOXES = {
    "inside": (4.3, 5.9, 17.2, 19.6),
    "over the left and upper border": (-3.7, -2.2, 9.4, 11.5),
    "over the right and lower border": (20.5, 12.25, 35.0, 27.75),
    "larger than the image": (-6.0, -7.5, 40.0, 33.0),
    "the whole image": (0.0, 0.0, 31.0, 23.0),
    "full height": (8.6, 0.0, 14.1, 23.0),
    "full width": (0.0, 8.6, 31.0, 14.1),
    "one pixel": (10.0, 12.0, 11.0, 13.0),
    "less than a pixel": (10.2, 12.3, 10.4, 12.4),
    "a line": (3.0, 12.0, 28.0, 12.0),
}


def torchvisions(mask, box, size):
    return paste_masks_in_image(mask[None, None], box[None], size, padding=1)[0, 0] >= 0.5


def a_mask(seed):
    return torch.rand(M, M, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES.keys())
def test_a_pasted_mask_is_torchvisions_to_the_pixel(box):
    for mask in (a_mask(0), torch.ones(M, M), torch.zeros(M, M)):
        assert torch.equal(pasted(mask, torch.tensor(box), (H, W)), torchvisions(mask, torch.tensor(box), (H, W)))


def test_random_boxes_are_pasted_as_torchvision_does():
    generator = torch.Generator().manual_seed(1)
    for seed in range(300):
        corner = torch.rand(2, generator=generator) * torch.tensor([W - 1.0, H - 1.0])
        box = torch.cat([corner, corner + 0.3 + torch.rand(2, generator=generator) * 20])
        assert torch.equal(pasted(a_mask(seed), box, (H, W)), torchvisions(a_mask(seed), box, (H, W))), box


def test_a_box_outside_the_image_has_no_pixel():
    for box in ((90.0, 5.0, 99.0, 9.0), (5.0, -40.0, 9.0, -20.0)):
        assert not pasted(torch.ones(M, M), torch.tensor(box), (H, W)).any()
        assert instance_rle(torch.ones(M, M), torch.tensor(box), (H, W)) == mask_rle(torch.zeros(H, W))


def test_a_patch_is_no_larger_than_its_box_needs():
    rows, cols = patch(torch.ones(M, M), torch.tensor(BOXES["inside"]), (3000, 4000)).pixels.shape
    assert (rows, cols) < (20, 20)


def pycocotools_rle(mask):
    rle = coco_masks.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES.keys())
def test_the_run_lengths_of_an_instance_are_those_of_the_whole_image(box):
    for mask in (a_mask(2), torch.ones(M, M), torch.zeros(M, M)):
        whole = torchvisions(mask, torch.tensor(box), (H, W))
        assert instance_rle(mask, torch.tensor(box), (H, W)) == mask_rle(whole) == pycocotools_rle(whole)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98, 1.0])
@pytest.mark.parametrize("size", [(H, W), (1, W), (H, 1), (1, 1)])
def test_run_lengths_are_pycocotools(share, size):
    mask = torch.rand(size, generator=torch.Generator().manual_seed(3)) < share
    assert mask_rle(mask) == pycocotools_rle(mask)
    assert np.array_equal(coco_masks.decode(mask_rle(mask)), mask.numpy())


def test_run_lengths_go_down_the_columns():
    small = Patch(pixels=torch.tensor([[True, False], [True, True]]), top=1, left=2)
    #  . . . .
    #  . . X .
    #  . . X X
    assert run_lengths(small, (3, 4)) == [7, 2, 2, 1]


def test_masks_may_be_given_as_numbers():
    mask = torch.tensor([[0, 1, 1], [0, 0, 1]])
    assert mask_rle(mask.float()) == mask_rle(mask.to(torch.uint8)) == mask_rle(mask.bool())


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    monkeypatch.setitem(sys.modules, "faster_coco_eval.core", None)
    with pytest.raises(UserError, match=r'pip install "parhelion\[detection\]"'):
        mask_rle(torch.ones(H, W))
