"""The resize inside a file is Pillow's."""

import numpy as np
import pytest
import torch
from PIL import Image

from parhelion.data.transforms import Preprocessing, as_stored, eval_transform
from parhelion.errors import UserError
from parhelion.export.resize import FILTERS, Prepare


def preprocessing(interpolation: str, crop_ratio: float = 0.9, **changes: object) -> Preprocessing:
    return Preprocessing(
        image_px=37,
        mean=(0.3, 0.4, 0.5),
        std=(0.2, 0.3, 0.25),
        crop_ratio=crop_ratio,
        interpolation=interpolation,
        **changes,
    )


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(("h", "w"), [(97, 131), (23, 20), (41, 640), (193, 100), (3, 5)])
def test_it_makes_the_pixels_of_evaluation(interpolation: str, h: int, w: int) -> None:
    chosen = preprocessing(interpolation)
    pixels = np.random.default_rng(0).integers(0, 256, (h, w, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    expected = eval_transform(chosen)(image)
    actual = Prepare(chosen)(torch.from_numpy(pixels)[None])[0]
    steps = (actual - expected).abs() * torch.tensor(chosen.std).view(3, 1, 1) * 255
    assert steps.max() < 1.01
    # Few values are rounded otherwise.
    assert (steps > 0.01).double().mean() < 0.02


def test_an_image_of_its_size_is_left_as_it_is() -> None:
    chosen = preprocessing("bicubic", crop_ratio=1.0)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 37, 3), dtype=np.uint8))
    actual = Prepare(chosen)(as_stored(image)[None])[0]
    torch.testing.assert_close(actual, eval_transform(chosen)(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["nearest", "box"])
def test_what_jumps_between_pixels_is_refused(interpolation: str) -> None:
    with pytest.raises(UserError, match="leave --with-preprocessing out"):
        Prepare(preprocessing(interpolation))
