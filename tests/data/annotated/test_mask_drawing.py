"""Masks drawn at the size of a training image against masks drawn at full size and then scaled."""

import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data.annotated.coco_folders import opened, rectangle, refused, run_lengths, write_coco
from PIL import Image

from parhelion.data.annotated.instances import Instances
from parhelion.data.annotated.mask_drawing import View, drawn
from parhelion.data.annotated.transforms import DetectionAugmentation, detection_train_transform

SIZE = H, W = 331, 457
SCALED = (83, 114)


def blob(random: np.random.Generator, radius: float, centre: tuple[float, float]) -> list[float]:
    """A polygon of 60 points around `centre` (row, column), in and out by a third."""
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    radii = radius * (1 + 0.3 * np.sin(5 * angles + random.uniform(0, 6)))
    points = np.stack([centre[1] + radii * np.cos(angles), centre[0] + radii * np.sin(angles)], axis=1)
    return points.ravel().tolist()


def shapes() -> list[Any]:
    """Polygons and run lengths: round, long, in parts, overlapping, reaching out."""
    random = np.random.default_rng(5)
    polygons = [[blob(random, random.uniform(30, 90), random.uniform(60, 280, 2))] for _ in range(12)]
    polygons += [
        [blob(random, 60, (90, 80)), blob(random, 50, (230, 300)), blob(random, 40, (240, 330))],
        [[20.5, 30.25, 440.75, 60.5, 430.0, 90.0, 15.25, 55.5]],
        [blob(random, 100, (20, 440))],
        [rectangle(-3, -2, W + 9, H + 7)],
    ]
    return [*polygons, *(run_lengths(mask.numpy()) for mask in drawn(polygons, View.whole(SIZE)))]


def overlap(these: torch.Tensor, those: torch.Tensor) -> torch.Tensor:
    """Intersection over union of each pair of masks."""
    these, those = these.bool().flatten(1), those.bool().flatten(1)
    return (these & those).sum(1) / (these | those).sum(1)


@pytest.mark.parametrize("scaled", [SCALED, (160, 221), (331, 457), (662, 914), (797, 1100)])
def test_masks_drawn_small_are_those_drawn_large_and_then_scaled(scaled: tuple[int, int]) -> None:
    view, all_shapes = View.whole(SIZE, scaled=scaled), shapes()
    small, large = drawn(all_shapes, view), drawn(all_shapes, View.whole(SIZE))
    assert small.shape == (len(all_shapes), *scaled)
    centres = large[:, torch.from_numpy(view.rows())][:, :, torch.from_numpy(view.cols())]
    # Run lengths are read exactly there, and polygons are drawn as finely as the new size allows.
    half = len(all_shapes) // 2
    assert torch.equal(small[half:], centres[half:])
    assert overlap(small, centres).min() > 0.95
    if scaled == SIZE:
        assert torch.equal(small, large)
    corners = torch.nn.functional.interpolate(large[None], size=scaled, mode="nearest")[0]
    assert overlap(small, corners).min() > 0.85


@pytest.mark.parametrize(("top", "left", "part"), [(0, 0, (83, 60)), (17, 31, (40, 70)), (60, 90, (23, 24))])
def test_a_part_is_drawn_as_it_is_cut_from_the_whole(top: int, left: int, part: tuple[int, int]) -> None:
    whole = drawn(shapes(), View.whole(SIZE, scaled=SCALED))
    cut = whole[:, top : top + part[0], left : left + part[1]]
    view = View(size=SIZE, scaled=SCALED, top=top, left=left, part=part)
    masks = drawn(shapes(), view)
    half = len(masks) // 2
    assert torch.equal(masks[half:], cut[half:])
    # The library rounds what lies left of the part or above it the other way, by a fifth of a pixel.
    assert (masks != cut).flatten(1).sum(1).max() <= 0.01 * cut[0].numel()
    assert cut.any()


def test_what_reaches_far_out_is_cut_near_the_part() -> None:
    size, scaled = (7, 10), (933, 1333)
    far = [[-1e6, -1e6, 1e6, -1e6, 1e6, 1e6, -1e6, 1e6]]
    # The half above the diagonal of a square that is much larger than the image.
    diagonal = [[-1e6, -1e6, 1e6, -1e6, 1e6, 1e6]]
    beside = [[-1e6, -1e6, -50, -1e6, -50, 1e6, -1e6, 1e6]]
    full, half, none = drawn([far, diagonal, beside], View.whole(size, scaled=scaled))
    assert full.all()
    assert not none.any()
    rows, cols = np.indices(scaled)
    expected = torch.from_numpy(cols * size[1] * scaled[0] > rows * size[0] * scaled[1])
    # Equal but for the pixels on the line itself.
    assert (half.bool() != expected).sum() < 3 * sum(scaled)


@pytest.mark.parametrize("encoded", [False, True])
def test_objects_of_a_pixel_and_more_keep_a_pixel(encoded: bool) -> None:
    random = np.random.default_rng(2)
    # Of the image four pixels are one after scaling.
    sides = random.uniform(4.2, 12, (200, 2))
    places = random.uniform(0, np.array([W, H]) - sides)
    polygons = [[rectangle(*place, *side)] for place, side in zip(places, sides, strict=True)]
    large = drawn(polygons, View.whole(SIZE))
    given = [run_lengths(mask.numpy()) for mask in large] if encoded else polygons
    small = drawn(given, View.whole(SIZE, scaled=SCALED))
    kept = small.flatten(1).any(1)
    before = torch.nn.functional.interpolate(large[None], size=SCALED, mode="nearest")[0].flatten(1).any(1)
    assert kept.all() if not encoded else kept.sum() >= before.sum()


def scene(encoded: bool, size: tuple[int, int] = SIZE) -> tuple[Image.Image, Instances]:
    """A white shape on black, and what is annotated there."""
    polygon = [blob(np.random.default_rng(7), 70, (150, 220))]
    mask = drawn([polygon], View.whole(size))
    rows, cols = mask[0].any(1).nonzero(), mask[0].any(0).nonzero()
    box = [cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]
    instances = Instances(
        image_id=3,
        size=size,
        boxes=np.array([box], np.float32),
        labels=np.array([2]),
        crowd=np.array([False]),
        segmentations=(run_lengths(mask[0].numpy()) if encoded else polygon,),
    )
    return Image.fromarray(mask[0].numpy() * 255), instances


@pytest.mark.parametrize("encoded", [False, True])
def test_masks_lie_where_the_image_shows_the_object_after_scaling_cutting_and_mirroring(encoded: bool) -> None:
    image, instances = scene(encoded)
    transform = detection_train_transform(DetectionAugmentation(image_px=120, jitter=(0.6, 1.8)), masks=True)
    offsets = []
    for seed in range(20):
        torch.manual_seed(seed)
        pixels, target = transform(image, instances)
        shown, mask = pixels[0], target["masks"][0].float()
        assert overlap(target["masks"], shown[None] > 0.5).item() > 0.93
        left, top, right, bottom = target["boxes"][0].tolist()
        rows, cols = mask.any(1).nonzero(), mask.any(0).nonzero()
        edges = [cols.min().item(), rows.min().item(), cols.max().item() + 1, rows.max().item() + 1]
        assert np.abs(np.subtract([left, top, right, bottom], edges)).max() <= 1
        grid = torch.stack(torch.meshgrid(*map(torch.arange, mask.shape), indexing="ij")).float()
        middles = [(grid * weight).sum((1, 2)) / weight.sum() for weight in (shown, mask)]
        offsets.append(middles[1] - middles[0])
    # Read at the corners of pixels instead of their centres, masks would lie a third of a pixel off.
    assert torch.stack(offsets).mean(0).abs().max() < 0.05


def test_memory_follows_the_size_of_training_and_not_of_the_photograph() -> None:
    image, one = scene(encoded=False, size=(3000, 4000))
    many = Instances(
        **{**vars(one), "boxes": one.boxes.repeat(60, 0), "labels": one.labels.repeat(60)}
        | {"crowd": one.crowd.repeat(60), "segmentations": one.segmentations * 60}
    )
    transform = detection_train_transform(DetectionAugmentation(image_px=96, flip=1), masks=True)
    tracemalloc.start()
    try:
        _, target = transform(image, many)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert target["masks"].shape == (60, 72, 96)
    # Of which the image takes 12 million bytes; at its size the masks would take 720 million.
    assert peak < 50e6


def test_masks_need_the_library_and_boxes_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = write_coco(tmp_path)
    monkeypatch.setitem(sys.modules, "faster_coco_eval.core", None)
    assert 'pip install "parhelion[detection]"' in refused(spec)
    assert len(opened(spec, masks=False).train) == 3
