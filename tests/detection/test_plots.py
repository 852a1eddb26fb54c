import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from parhelion.detection.detections import Found, truth
from parhelion.detection.plots import Pair, class_color, detection_sheet, draw_found, learning_curves
from parhelion.errors import UserError

NAMES = ["coat", "a shoe of $5 with a name that never ends_$", "ботинок"]
SIZES = [(75, 100), (1, 300), (300, 1), (480, 203), (1500, 2000)]


def grey(size):
    return Image.new("RGB", size[::-1], (128, 128, 128))


def found_in(size, *, masks=True):
    """Two instances: the left half (class 1, 90%) and the lower right quarter (class 3, 60%)."""
    h, w = size
    return Found(
        image_id=1,
        size=size,
        boxes=torch.tensor([[0, 0, w / 2, h], [w / 2, h / 2, w, h]]),
        labels=torch.tensor([1, 3]),
        scores=torch.tensor([0.9, 0.6]),
        masks=torch.ones(2, 7, 7) if masks else None,
    )


def changed(picture):
    """Where `picture`, once grey, was drawn on, (h, w) bool."""
    return (np.asarray(picture) != 128).any(axis=2)


def has(picture, color):
    return (np.asarray(picture) == color).all(axis=2).any()


@pytest.mark.parametrize("size", SIZES)
def test_every_picture_is_enlarged_by_a_whole_number_until_it_can_be_read(size):
    picture = draw_found(grey(size), found_in(size), NAMES)
    factor = picture.width // size[1]
    assert (picture.height, picture.width) == (factor * size[0], factor * size[1])
    assert max(picture.size) >= 800
    assert factor == 1 or (factor - 1) * max(size) < 800
    assert changed(picture).any()


def test_boxes_are_drawn_in_the_colours_of_their_classes():
    picture = np.asarray(draw_found(grey((900, 1200)), found_in((900, 1200), masks=False), NAMES))
    assert (picture[300:800, 0] == class_color(1)).all()
    assert (picture[899, 700:1100] == class_color(3)).all()
    # Nothing is drawn inside a box but its name.
    assert (picture[200:800, 100:500] == 128).all()


def test_masks_shine_through_where_the_instances_are_and_nowhere_else():
    picture = draw_found(grey((900, 1200)), found_in((900, 1200)), NAMES)
    assert changed(picture)[100:800, 100:500].all()
    assert not changed(picture)[100:350, 700:1100].any()
    inside = np.asarray(picture)[400, 300]
    assert inside.tolist() == pytest.approx((128 * 0.55 + 0.45 * np.array(class_color(1))).tolist(), abs=1)


def test_a_small_picture_has_its_masks_in_the_same_place():
    picture = changed(draw_found(grey((75, 100)), found_in((75, 100)), NAMES))
    assert picture[100:500, 50:350].all()
    assert not picture[50:230, 450:780].any()


def test_those_below_the_score_and_beyond_the_top_are_left_out():
    size = (900, 1200)
    assert has(draw_found(grey(size), found_in(size), NAMES), class_color(3))
    assert not has(draw_found(grey(size), found_in(size), NAMES, min_score=0.7), class_color(3))
    assert not has(draw_found(grey(size), found_in(size), NAMES, top=1), class_color(3))
    assert not changed(draw_found(grey(size), found_in(size), NAMES, min_score=0.95)).any()


def test_names_do_not_hide_each_other():
    size = (900, 1200)
    same = Found(
        image_id=1,
        size=size,
        boxes=torch.tensor([[200.0, 300.0, 700.0, 800.0]] * 4),
        labels=torch.tensor([1, 2, 3, 1]),
        scores=torch.tensor([0.9, 0.8, 0.7, 0.6]),
    )
    fewer = changed(draw_found(grey(size), same.best(1), NAMES)).sum()
    assert changed(draw_found(grey(size), same, NAMES)).sum() > 3 * (fewer - 4 * 4 * 500)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_pictures_of_every_mode_come_back_as_rgb_and_the_given_one_unchanged(mode):
    image = grey((900, 1200)).convert(mode)
    before = image.tobytes()
    assert draw_found(image, found_in((900, 1200)), NAMES).mode == "RGB"
    assert image.tobytes() == before


def test_boxes_out_of_the_picture_or_without_an_extent_are_no_crash():
    size = (90, 130)
    strange = Found(
        image_id=1,
        size=size,
        boxes=torch.tensor([[-50.0, -9.0, 400.0, 300.0], [130.0, 90.0, 130.0, 90.0], [500.0, 500.0, 600.0, 600.0]]),
        labels=torch.tensor([1, 2, 3]),
        scores=torch.ones(3),
        masks=torch.ones(3, 5, 5),
    )
    assert changed(draw_found(grey(size), strange, NAMES)).any()


def test_the_classes_of_coco_have_colours_of_their_own():
    assert len({class_color(label) for label in range(1, 91)}) == 90


def test_a_picture_of_another_size_and_a_label_without_a_name_are_errors():
    with pytest.raises(UserError, match=r"the picture has 20 x 30 pixels \(h x w\), but .* 30 x 20"):
        draw_found(grey((20, 30)), found_in((30, 20)), NAMES)
    with pytest.raises(UserError, match="the label 3, but the 2 class names"):
        draw_found(grey((20, 30)), found_in((20, 30)), NAMES[:2])


def a_pair(size):
    whole = torch.zeros(1, *size)
    whole[:, : size[0] // 2] = 1
    true = truth(1, size, torch.tensor([[0, 0, size[1], size[0] // 2]]), torch.tensor([2]), whole)
    return Pair(image=grey(size), truth=true, found=found_in(size))


@pytest.mark.parametrize("count", [1, 5, pytest.param(2, marks=pytest.mark.thorough)])
def test_a_sheet_is_drawn_from_one_pair_on(tmp_path, count):
    sizes = [(60, 100), (100, 61), (45, 200), (230, 47)] * 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detection_sheet([a_pair(size) for size in sizes[:count]], NAMES, tmp_path / "sheet.png", "of $5 shirts_$")
    picture = Image.open(tmp_path / "sheet.png").convert("RGB")
    # Classes 1 and 3 were found, class 2 is the truth.
    for label in (1, 2, 3):
        near = np.abs(np.asarray(picture).astype(int) - class_color(label)).max(axis=2) < 12
        assert near.sum() > 100
    # Two pictures side by side, or four.
    assert picture.width / 130 == pytest.approx(7.56 if count == 1 else 15.0, abs=0.03)


def test_a_sheet_shows_at_most_eight_pairs(tmp_path):
    for count in (8, 11):
        detection_sheet([a_pair((60, 100))] * count, NAMES, tmp_path / f"{count}.png", "title")
    assert (tmp_path / "8.png").read_bytes() == (tmp_path / "11.png").read_bytes()


def test_a_sheet_of_nothing_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no image"):
        detection_sheet([], NAMES, tmp_path / "sheet.png", "title")


ROWS = [
    {"epoch": epoch, "train_loss": 2 / epoch, "box_ap": 0.4, "box_ap50": 0.6, "mask_ap": 0.3, "mask_ap50": 0.5}
    for epoch in range(1, 4)
]


@pytest.mark.parametrize(
    "rows",
    [
        ROWS,
        pytest.param(ROWS[:1], marks=pytest.mark.thorough),
        [{"epoch": 1, "train_loss": 2.0}, *ROWS[1:]],
        [{"epoch": 1, "train_loss": 2.0}],
    ],
    ids=["three epochs", "one epoch", "one epoch without a validation", "no validation"],
)
def test_curves_are_drawn_from_what_there_is(tmp_path, rows):
    learning_curves(rows, tmp_path / "curves.png", "mask_rcnn on $5 shirts_$")
    pixels = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


def test_boxes_alone_have_no_curve_of_masks(tmp_path):
    learning_curves(ROWS, tmp_path / "masks.png", "title")
    boxes = [{key: value for key, value in row.items() if "mask" not in key} for row in ROWS]
    learning_curves(boxes, tmp_path / "boxes.png", "title")
    green = [
        (np.asarray(Image.open(tmp_path / name).convert("RGB")) == (0x2E, 0x8B, 0x57)).all(axis=2).sum()
        for name in ("masks.png", "boxes.png")
    ]
    assert green[0] > 100
    assert green[1] == 0


def test_drawing_needs_no_display_and_leaves_pyplot_alone(tmp_path):
    before = "matplotlib.pyplot" in sys.modules
    learning_curves(ROWS, tmp_path / "curves.png", "title")
    detection_sheet([a_pair((60, 100))], NAMES, tmp_path / "sheet.png", "title")
    assert ("matplotlib.pyplot" in sys.modules) == before
