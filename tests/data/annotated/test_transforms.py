import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data.annotated.coco_folders import (
    BAD,
    GOOD,
    MALFORMED,
    SIZES,
    annotation,
    content,
    crowd_mask,
    library_mask,
    opened,
    rectangle,
    run_lengths,
    with_annotations,
    write_coco,
)
from PIL import Image

from parhelion.data.annotated.instances import Instances
from parhelion.data.annotated.transforms import (
    DetectionAugmentation,
    detection_eval_transform,
    detection_train_transform,
)
from parhelion.errors import UserError

H, W = 46, 74
STILL = DetectionAugmentation(image_px=W, flip=0)


def instances(*boxes: list[float], crowd: tuple[int, ...] = (), size: tuple[int, int] = (H, W)) -> Instances:
    """Objects (left, top, width, height) that fill their boxes; labels 1, 2, 3 and so on."""
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    return Instances(
        image_id=17,
        size=size,
        boxes=corners,
        labels=np.arange(1, len(boxes) + 1),
        crowd=np.isin(np.arange(len(boxes)), crowd),
        segmentations=tuple([rectangle(*box)] for box in boxes),
    )


TWO = instances([4, 2, 10, 12], [40, 20, 30, 16])


@pytest.fixture
def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8))


def bounds(masks: torch.Tensor) -> list[list[int]]:
    """Left, top, right, bottom of each mask; right and bottom after the last pixel."""
    edges = []
    for mask in masks:
        rows, columns = mask.any(1).nonzero().flatten().tolist(), mask.any(0).nonzero().flatten().tolist()
        edges.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return edges


def test_an_image_that_fits_comes_out_as_it_is(noise: Image.Image) -> None:
    image, target = detection_train_transform(STILL, masks=True)(noise, TWO)
    assert (type(image), image.dtype) == (torch.Tensor, torch.float32)
    torch.testing.assert_close(image, torch.from_numpy(np.array(noise)).permute(2, 0, 1) / 255)
    assert {name: (type(values), values.dtype, *values.shape) for name, values in target.items()} == {
        "boxes": (torch.Tensor, torch.float32, 2, 4),
        "labels": (torch.Tensor, torch.int64, 2),
        "masks": (torch.Tensor, torch.uint8, 2, H, W),
        "image_id": (torch.Tensor, torch.int64),
    }
    assert target["boxes"].tolist() == [[4, 2, 14, 14], [40, 20, 70, 36]]
    assert torch.equal(target["masks"], TWO.masks())
    assert target["image_id"] == 17


def test_a_flip_mirrors_boxes_and_masks(noise: Image.Image) -> None:
    image, target = detection_train_transform(DetectionAugmentation(image_px=W, flip=1), masks=True)(noise, TWO)
    straight, _ = detection_train_transform(STILL, masks=True)(noise, TWO)
    assert torch.equal(image, straight.flip(-1))
    assert target["boxes"].tolist() == [[W - 14, 2, W - 4, 14], [W - 70, 20, W - 40, 36]]
    assert torch.equal(target["masks"], TWO.masks().flip(-1))
    assert target["labels"].tolist() == [1, 2]


def test_a_flip_comes_as_often_as_asked(noise: Image.Image) -> None:
    transform = detection_train_transform(DetectionAugmentation(image_px=W, flip=0.25), masks=False)
    flipped = [transform(noise, TWO)[1]["boxes"][0, 0].item() == W - 14 for _ in range(400)]
    assert 70 < sum(flipped) < 130


@pytest.mark.parametrize(("image_px", "size"), [(37, (23, 37)), (148, (92, 148)), (7, (4, 7))])
def test_the_longer_side_is_scaled_to_fit(noise: Image.Image, image_px: int, size: tuple[int, int]) -> None:
    transform = detection_train_transform(DetectionAugmentation(image_px=image_px, flip=0), masks=True)
    image, target = transform(noise, TWO)
    assert image.shape == (3, *size)
    assert target["masks"].shape[1:] == size
    factors = torch.tensor([size[1] / W, size[0] / H] * 2)
    boxes = torch.tensor([[4.0, 2, 14, 14], [40, 20, 70, 36]]) * factors
    torch.testing.assert_close(target["boxes"], boxes[target["labels"] - 1])
    tall, _ = transform(noise.transpose(Image.Transpose.TRANSPOSE), instances(size=(W, H)))
    assert tall.shape == (3, *size[::-1])


def test_scaled_masks_are_their_nearest_pixels(noise: Image.Image) -> None:
    drawn = np.random.default_rng(1).integers(0, 2, (H, W), dtype=np.uint8)
    speckled = Instances(**{**vars(instances([0, 0, W, H])), "segmentations": (run_lengths(drawn),)})
    _, target = detection_train_transform(DetectionAugmentation(image_px=2 * W, flip=0), masks=True)(noise, speckled)
    assert np.array_equal(target["masks"][0].numpy(), drawn.repeat(2, 0).repeat(2, 1))


def test_a_smaller_image_is_blended_and_not_picked_from(noise: Image.Image) -> None:
    image, _ = detection_train_transform(DetectionAugmentation(image_px=19, flip=0), masks=False)(noise, TWO)
    # Of noise in 0..1 the deviation is 0.29; the mean of 4 x 4 pixels has a quarter of it.
    assert image.std() < 0.15


def test_jitter_scales_within_its_range_and_never_beyond_the_side(noise: Image.Image) -> None:
    transform = detection_train_transform(DetectionAugmentation(image_px=W, jitter=(0.5, 2.0)), masks=False)
    sizes = [tuple(transform(noise, TWO)[0].shape[1:]) for _ in range(60)]
    widths = [w for _, w in sizes]
    assert W / 2 <= min(widths) < W * 0.7
    assert max(widths) == W
    # Twice the height is 92, which does not fit either.
    assert max(h for h, _ in sizes) == W


@pytest.mark.parametrize("seed", range(12))
def test_after_jitter_and_crop_boxes_are_the_bounds_of_the_masks(noise: Image.Image, seed: int) -> None:
    objects = instances([1, 1, 12, 9], [30, 5.5, 20.25, 33], [60, 30, 14, 16], [45, 2, 9, 5])
    transform = detection_train_transform(DetectionAugmentation(image_px=W, jitter=(1.3, 2.0)), masks=True)
    torch.manual_seed(seed)
    image, target = transform(noise, objects)
    assert image.shape[-1] == W
    assert target["masks"].shape[1:] == image.shape[1:]
    assert target["boxes"].tolist() == bounds(target["masks"])
    assert len(target["boxes"]) == len(target["labels"]) == len(target["masks"])


def test_image_boxes_and_masks_are_cut_from_the_same_place() -> None:
    drawn = np.zeros((H, W), np.uint8)
    drawn[10:36, 30:50] = 255
    objects = instances([30, 10, 20, 26])
    for masks in (True, False):
        transform = detection_train_transform(DetectionAugmentation(image_px=W, jitter=(2.0, 2.0)), masks=masks)
        for _ in range(20):
            image, target = transform(Image.fromarray(drawn), objects)
            shown = image > 0.5
            # Twice 46 rows and 74 columns, cut to 74: a part of the object is always left.
            assert target["boxes"].tolist() == bounds(shown)
            if masks:
                assert torch.equal(target["masks"].bool(), shown)


def test_what_a_crop_leaves_out_goes_with_its_label_and_mask(noise: Image.Image) -> None:
    corners = instances([0, 0, 6, 5], [68, 0, 6, 5], [0, 41, 6, 5], [68, 41, 6, 5])
    transform = detection_train_transform(DetectionAugmentation(image_px=W, jitter=(4.0, 4.0), flip=0), masks=True)
    seen = set()
    for _ in range(60):
        _, target = transform(noise, corners)
        assert len(target["masks"]) == len(target["labels"]) == len(target["boxes"]) <= 1
        assert all(mask.any() for mask in target["masks"])
        seen |= set(target["labels"].tolist())
    assert len(seen) > 1
    _, target = detection_train_transform(DetectionAugmentation(image_px=W, jitter=(9.0, 9.0)), masks=True)(
        noise, instances()
    )
    assert (target["boxes"].shape, target["labels"].shape) == ((0, 4), (0,))
    assert target["masks"].shape == (0, W, W)


@pytest.mark.parametrize("masks", [True, False])
def test_objects_scaled_below_a_pixel_go(noise: Image.Image, masks: bool) -> None:
    objects = instances([40, 20, 30, 16], [4, 2, 1.5, 12], [10, 8, 24, 20])
    transform = detection_train_transform(DetectionAugmentation(image_px=W // 2, flip=0), masks=masks)
    assert transform(noise, objects)[1]["labels"].tolist() == [1, 3]


def test_objects_without_a_pixel_in_their_mask_go(noise: Image.Image) -> None:
    sliver = [[4, 10.55, 60, 10.55, 60, 10.65, 4, 10.65]]
    objects = Instances(**{**vars(TWO), "segmentations": (sliver, TWO.segmentations[1])})
    assert not objects.masks()[0].any()
    _, target = detection_train_transform(STILL, masks=True)(noise, objects)
    assert target["labels"].tolist() == [2]
    assert target["boxes"].tolist() == [[40, 20, 70, 36]]


def test_crowds_are_nothing_to_learn(noise: Image.Image) -> None:
    objects = instances([4, 2, 10, 12], [40, 20, 30, 16], [1, 1, 9, 9], crowd=(1,))
    for jitter in (1.0, 0.5):
        augmentation = DetectionAugmentation(image_px=W, jitter=(jitter, jitter))
        _, target = detection_train_transform(augmentation, masks=True)(noise, objects)
        assert target["labels"].tolist() == [1, 3]
        assert len(target["masks"]) == 2


@pytest.mark.parametrize("masks", [True, False])
def test_an_image_without_objects_can_be_trained_on(noise: Image.Image, masks: bool) -> None:
    augmentation = DetectionAugmentation(image_px=31, jitter=(0.5, 2.0), color_jitter=0.4)
    for _ in range(10):
        image, target = detection_train_transform(augmentation, masks=masks)(noise, instances())
        assert target["boxes"].shape == (0, 4)
        assert not masks or target["masks"].shape == (0, *image.shape[1:])


def test_grey_images_stay_grey(noise: Image.Image) -> None:
    augmentation = DetectionAugmentation(image_px=31, jitter=(0.5, 2.0), color_jitter=0.4)
    image, _ = detection_train_transform(augmentation, masks=True)(noise.convert("L"), TWO)
    assert image.shape[0] == 1
    assert 0 <= image.min() < image.max() <= 1
    assert detection_eval_transform()(noise.convert("L"), TWO)[0].shape == (1, H, W)


def test_colour_jitter_changes_colours_and_nothing_else(noise: Image.Image) -> None:
    still, expected = detection_train_transform(STILL, masks=True)(noise, TWO)
    augmentation = DetectionAugmentation(image_px=W, flip=0, color_jitter=0.4)
    image, target = detection_train_transform(augmentation, masks=True)(noise, TWO)
    assert 0.01 < (image - still).abs().mean() < 0.3
    assert image.min() >= 0
    assert image.max() <= 1
    assert all(torch.equal(target[name], expected[name]) for name in expected)


@pytest.mark.parametrize("masks", [True, False])
def test_the_same_seed_gives_the_same_result(noise: Image.Image, masks: bool) -> None:
    augmentation = DetectionAugmentation(image_px=50, jitter=(0.5, 2.0), color_jitter=0.4)
    transform = detection_train_transform(augmentation, masks=masks)
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        # Other generators have no say.
        np.random.seed(len(results))
        results.append(pickle.loads(pickle.dumps(transform))(noise, TWO))
    (first, targets), (again, same), (other, _) = results
    assert torch.equal(first, again)
    assert all(torch.equal(targets[name], same[name]) for name in targets)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_evaluation_sees_the_image_in_its_own_pixels(noise: Image.Image) -> None:
    image, target = detection_eval_transform()(noise, TWO)
    torch.testing.assert_close(image, torch.from_numpy(np.array(noise)).permute(2, 0, 1) / 255)
    assert {name: (values.dtype, values.tolist()) for name, values in target.items()} == {
        "image_id": (torch.int64, 17),
        "size": (torch.int64, [H, W]),
    }


def test_annotations_are_left_as_they_were(noise: Image.Image) -> None:
    objects = instances([4, 2, 10, 12], [40, 20, 30, 16])
    augmentation = DetectionAugmentation(image_px=50, jitter=(0.5, 2.0), flip=1)
    for _ in range(5):
        detection_train_transform(augmentation, masks=True)(noise, objects)
    assert objects.boxes.tolist() == TWO.boxes.tolist()
    assert objects.labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ({"image_px": 0}, "image_px is 0, but it should be at least 1"),
        ({"jitter": (2.0, 0.5)}, "jitter is (2.0, 0.5), but it should be two rising positive numbers"),
        ({"jitter": (0.0, 0.5)}, "jitter is (0.0, 0.5)"),
        ({"jitter": (1.0, float("inf"))}, "jitter is (1.0, inf)"),
        ({"flip": 1.5}, "flip is 1.5, but it should be a probability, 0 to 1"),
        ({"color_jitter": -0.1}, "color_jitter is -0.1, but it should be 0 (off) or more"),
        ({"color_jitter": float("nan")}, "color_jitter is nan"),
    ],
)
def test_values_that_mean_nothing_are_refused(wrong: dict[str, Any], right: str) -> None:
    with pytest.raises(UserError) as caught:
        DetectionAugmentation(**{"image_px": W, **wrong})
    assert right in str(caught.value)


def test_torchvisions_detector_trains_on_it(noise: Image.Image, one_thread: Callable[[], None]) -> None:
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    detector = MaskRCNN(backbone, num_classes=3, min_size=32, max_size=64)
    transform = detection_train_transform(DetectionAugmentation(image_px=64, jitter=(0.7, 1.5)), masks=True)
    images, targets = zip(*[transform(noise, objects) for objects in (TWO, instances())], strict=True)
    losses = detector(list(images), list(targets))
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_mask"] > 0


def test_polygons_and_run_lengths_are_drawn_as_pycocotools_does(tmp_path: Path) -> None:
    from pycocotools import mask

    noise = np.random.default_rng(0).integers(0, 2, SIZES[11], dtype=np.uint8)
    packed = mask.encode(np.asfortranarray(noise))
    whole = {"size": list(SIZES[11]), "counts": [0, math.prod(SIZES[11])]}
    segmentations = [
        [[1.5, 2.2, 30.1, 4.9, 17.3, 20.8]],
        [rectangle(-3, -2, 12, 9), rectangle(20, 15, 30, 30)],
        # An eight, whose area is none by the shoelace formula.
        [[5, 5, 25, 15, 25, 5, 5, 15]],
        run_lengths(crowd_mask()),
        {"size": list(SIZES[11]), "counts": packed["counts"].decode()},
        whole,
    ]
    entries = [annotation(n, 11, 3, [1, 1, 30, 20], segmentation=s) for n, s in enumerate(segmentations, start=1)]
    masks = opened(with_annotations(tmp_path, *entries)).train[0][1].masks()
    for drawn, segmentation in zip(masks, segmentations, strict=True):
        assert drawn.any()
        assert np.array_equal(drawn.numpy(), library_mask(segmentation, SIZES[11]))
    assert np.array_equal(masks[3].numpy(), crowd_mask())
    assert np.array_equal(masks[4].numpy(), noise)


@pytest.mark.parametrize("share", [0.002, 0.05, 0.5, 0.97])
def test_packed_run_lengths_of_every_kind_are_read(tmp_path: Path, share: float) -> None:
    from pycocotools import mask

    size = (211, 307)
    entries = []
    for seed in range(8):
        # Whole rows in some places, noise in others: runs from one pixel to thousands, growing and shrinking.
        drawn = np.random.default_rng(seed).random(size) < share
        drawn[seed * 20 : seed * 20 + 30, 17:] = seed % 2 == 0
        packed = {"size": list(size), "counts": mask.encode(np.asfortranarray(drawn, np.uint8))["counts"].decode()}
        entries.append(annotation(seed + 1, 6, 3, [1, 1, 30, 20], segmentation=packed))
        short = {**packed, "counts": packed["counts"][:-1]}
        entries.append(annotation(seed + 101, 6, 3, [1, 1, 30, 20], segmentation=short))
    spec = write_coco(tmp_path, train=content({6: size}, entries))
    images = opened(spec, on_bad_annotation="drop").train
    assert sorted(sum(images.dropped.values(), ())) == list(range(101, 109))
    assert all(kind.startswith(f"{MALFORMED} (run lengths that ") for kind in images.dropped)
    assert images.annotation_ids.tolist() == list(range(1, 9))


def test_boxes_labels_and_masks_have_torchvisions_shapes_and_types(tmp_path: Path) -> None:
    target = opened(write_coco(tmp_path)).train[0][1].target(masks=True)
    assert {name: (values.dtype, *values.shape) for name, values in target.items()} == {
        "boxes": (torch.float32, 2, 4),
        "labels": (torch.int64, 2),
        "masks": (torch.uint8, 2, *SIZES[11]),
    }
    assert target["masks"][0].nonzero().amin(0).tolist() == [2, 4]
    assert target["masks"][0].nonzero().amax(0).tolist() == [13, 13]


def test_crowds_are_left_out_of_targets_but_not_of_the_ground_truth(tmp_path: Path) -> None:
    images = opened(write_coco(tmp_path)).train
    instances = images[0][1]
    assert instances.crowd.tolist() == [False, False, True]
    assert instances.target(masks=False)["labels"].tolist() == [1, 3]
    assert instances.masks().shape == (3, *SIZES[11])
    assert [entry["id"] for entry in images.ground_truth()["annotations"] if entry["iscrowd"]] == [104]


def test_without_masks_segmentations_do_not_matter(tmp_path: Path) -> None:
    spec = with_annotations(tmp_path, *({**GOOD, "id": n, **BAD[k][1]} for n, k in enumerate(("none", "two points"))))
    instances = opened(spec, masks=False).train[0][1]
    assert instances.segmentations == (None, None)
    assert instances.target(masks=False)["boxes"].shape == (2, 4)
    with pytest.raises(UserError, match="should be opened with masks"):
        instances.target(masks=True)
