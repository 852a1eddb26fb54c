import dataclasses
import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from parhelion.data.transforms import Augmentation, Preprocessing, eval_transform, train_transform
from parhelion.errors import UserError

H, W = 37, 53
RGB = Preprocessing(image_px=24, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5), crop_ratio=0.75)
GREY = Preprocessing(image_px=19, in_chans=1, mean=(0.25,), std=(0.5,), interpolation="bilinear")
OFF = Augmentation(crop_scale=(1.0, 1.0), crop_ratio=(W / H, W / H), flip=0.0)


def noise(mode: str) -> Image.Image:
    shape = (H, W, 3) if mode == "RGB" else (H, W)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def seeded(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def test_evaluation_normalises_each_channel() -> None:
    result = eval_transform(RGB)(Image.new("RGB", (W, H), (255, 102, 0)))
    assert (result.shape, result.dtype) == ((3, 24, 24), torch.float32)
    torch.testing.assert_close(result[:, 5, 7], torch.tensor([2.5, 0.0, -0.6]))


def test_evaluation_cuts_the_middle_of_the_resized_image() -> None:
    # The shorter side becomes 24 / 0.75 = 32, the longer 46: 4 rows and 11 columns go on each side.
    image = Image.new("L", (46, 32), 255)
    image.paste(0, (11, 4, 35, 28))
    grey = dataclasses.replace(GREY, image_px=24, crop_ratio=0.75)
    assert (eval_transform(grey)(image) == -0.5).all()
    image.putpixel((34, 27), 255)
    assert eval_transform(grey)(image).argmax() == 24 * 24 - 1


def test_preprocessing_survives_json() -> None:
    assert Preprocessing.from_dict(json.loads(json.dumps(RGB.as_dict()))) == RGB


def test_preprocessing_from_other_entries_names_them() -> None:
    values = {key: value for key, value in RGB.as_dict().items() if key != "std"} | {"stdev": 1}
    with pytest.raises(UserError, match="it lacks std and should not have stdev"):
        Preprocessing.from_dict(values)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image_px": 0}, "image_px is 0"),
        ({"mean": (0.5,)}, r"mean is \(0.5,\), but it should be 3 numbers"),
        ({"std": (0.1, 0.0, 0.1)}, "std is .* more than 0"),
        ({"crop_ratio": 1.5}, "crop_ratio is 1.5"),
        ({"interpolation": "bicubik"}, "did you mean bicubic"),
    ],
)
def test_preprocessing_that_means_nothing_is_refused(change: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        dataclasses.replace(RGB, **change)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"crop": "square"}, "crop is 'square'"),
        ({"crop_scale": (0.5, 0.2)}, "crop_scale is"),
        ({"flip": 2.0}, "flip is 2"),
        ({"randaugment": 32}, "randaugment is 32"),
        ({"crop": "padded", "crop_scale": (0.5, 1.0)}, "crop is 'padded'"),
    ],
)
@pytest.mark.usefixtures("shapes_unchecked")
def test_augmentation_that_means_nothing_is_refused(change: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Augmentation(**change)


def test_augmentation_that_is_all_off_is_plain_resizing() -> None:
    image = noise("RGB")
    resized = np.asarray(image.resize((24, 24), Image.Resampling.BICUBIC))
    expected = (torch.tensor(resized / 255).permute(2, 0, 1) - torch.tensor(RGB.mean)[:, None, None]) / torch.tensor(
        RGB.std
    )[:, None, None]
    torch.testing.assert_close(train_transform(RGB, OFF)(image), expected.float())


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(),
        Augmentation(crop="padded"),
        Augmentation(crop="center"),
        dataclasses.replace(OFF, flip=0.5),
        dataclasses.replace(OFF, randaugment=9),
        dataclasses.replace(OFF, erase=0.5),
        dataclasses.replace(OFF, color_jitter=0.4),
    ],
    ids=["resized", "padded", "center", "flip", "randaugment", "erase", "color_jitter"],
)
@pytest.mark.parametrize("preprocessing", [RGB, GREY], ids=["RGB", "grey"])
def test_each_augmentation_is_random_and_repeats_with_the_seed(
    augmentation: Augmentation, preprocessing: Preprocessing
) -> None:
    transform = train_transform(preprocessing, augmentation)
    image = noise("RGB" if preprocessing.in_chans == 3 else "L")
    runs = []
    for _ in range(2):
        seeded(5)
        runs.append(torch.stack([transform(image) for _ in range(12)]))
    assert runs[0].shape == (12, preprocessing.in_chans, preprocessing.image_px, preprocessing.image_px)
    assert torch.equal(runs[0], runs[1])
    assert len(runs[0].flatten(1).unique(dim=0)) > 1


def test_a_center_crop_is_what_evaluation_sees() -> None:
    preprocessing = Preprocessing(image_px=24, mean=(0.5,) * 3, std=(0.5,) * 3, crop_ratio=0.8)
    image = Image.effect_noise((41, 57), 60).convert("RGB")
    trained = train_transform(preprocessing, Augmentation(crop="center", flip=0.0))(image)
    assert torch.equal(trained, eval_transform(preprocessing)(image))


def test_a_padded_crop_moves_the_image_by_at_most_an_eighth() -> None:
    transform = train_transform(
        Preprocessing(image_px=24, in_chans=1, mean=(0.0,), std=(1.0,)), Augmentation(crop="padded")
    )
    white = Image.new("L", (24, 24), 255)
    seeded(0)
    black = torch.stack([transform(white)[0] == 0 for _ in range(200)])
    rows = black.all(dim=2).sum(dim=1)
    assert rows.unique().tolist() == [0, 1, 2, 3]
    assert not black[:, 3:-3, 3:-3].any()


@pytest.mark.parametrize("magnitude", [10, 31])
def test_a_strong_randaugment_never_fails(magnitude: int) -> None:
    # Magnitude 10 made timm posterise to 0 bits, which Pillow 13 refuses.
    transform = train_transform(RGB, dataclasses.replace(OFF, randaugment=magnitude))
    seeded(0)
    image = noise("RGB")
    assert all(torch.isfinite(transform(image)).all() for _ in range(400))


def operations(magnitude: int) -> dict[str, Callable[[Image.Image], Image.Image]]:
    """The operations of RandAugment by timm's names, each always applied."""
    steps = train_transform(RGB, dataclasses.replace(OFF, randaugment=magnitude)).transforms[1].transforms
    return always(steps)


def always(steps: list[Any]) -> dict[str, Callable[[Image.Image], Image.Image]]:
    (randaugment,) = (step for step in steps if hasattr(step, "ops"))
    for operation in randaugment.ops:
        operation.prob = 1.0
    return {operation.name: operation for operation in randaugment.ops}


def test_no_operation_of_the_strongest_randaugment_leaves_nothing_to_see() -> None:
    image, fill = noise("RGB").resize((48, 48)), [round(255 * mean) for mean in RGB.mean]
    for name, operation in operations(31).items():
        for seed in range(4):
            seeded(seed)
            pixels = np.asarray(operation(image)).reshape(-1, 3)
            assert len(np.unique(pixels, axis=0)) > 3, name
            assert (pixels != fill).any(axis=1).mean() > 0.3, name


def test_beyond_10_randaugment_goes_on_growing_where_it_can() -> None:
    image = noise("RGB").resize((48, 48))
    grow = {"Rotate", "ShearX", "ShearY"} | {
        f"{name}Increasing" for name in ("Color", "Contrast", "Brightness", "Sharpness")
    }
    at_10, at_31 = operations(10), operations(31)
    differ = set()
    for name in at_10:
        for seed in range(4):
            seeded(seed)
            weak = np.asarray(at_10[name](image))
            seeded(seed)
            if (weak != np.asarray(at_31[name](image))).any():
                differ.add(name)
    assert differ - {"SolarizeAdd"} == grow


@pytest.mark.parametrize("magnitude", [1, 6, 10])
def test_up_to_10_randaugment_is_timms_but_for_images_of_0_bits(magnitude: int) -> None:
    _, steps, _ = create_transform(
        24,
        is_training=True,
        separate=True,
        auto_augment=f"rand-m{magnitude}-mstd0.5-inc1",
        interpolation=RGB.interpolation,
        mean=RGB.mean,
    )
    theirs, ours = always(steps.transforms), operations(magnitude)
    assert list(ours) == list(theirs)
    image = noise("RGB").resize((24, 24))
    for name in ours.keys() - {"PosterizeIncreasing"}:
        for seed in range(8):
            seeded(seed)
            expected = np.asarray(theirs[name](image))
            seeded(seed)
            assert (np.asarray(ours[name](image)) == expected).all(), name


def test_colour_jitter_stays_on_beside_randaugment() -> None:
    image = Image.new("RGB", (W, H), (100, 150, 200))
    transform = train_transform(RGB, dataclasses.replace(OFF, randaugment=1, color_jitter=0.4))
    seeded(0)
    # RandAugment leaves about a third of the images alone; the jitter changes every one.
    assert len({transform(image)[0, 12, 12].item() for _ in range(30)}) > 25
