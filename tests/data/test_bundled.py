from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch

from parhelion.data.sources import bundled_images, open_source
from parhelion.errors import UserError


@pytest.mark.parametrize(("split", "per_class"), [("train", 1000), ("test", 200)])
def test_every_class_has_the_same_number_of_images(split: str, per_class: int) -> None:
    images, labels, class_names = bundled_images(split)
    assert (images.shape, images.dtype) == ((10 * per_class, 28, 28), np.uint8)
    assert np.bincount(labels).tolist() == [per_class] * 10
    assert (class_names[0], class_names[9]) == ("T-shirt/top", "Ankle boot")


def test_no_image_is_both_for_training_and_for_test() -> None:
    train, test = ({image.tobytes() for image in bundled_images(split)[0]} for split in ("train", "test"))
    assert not train & test


def test_the_file_is_small_and_its_licence_lies_beside_it() -> None:
    folder = files("parhelion.data") / "bundled"
    assert len((folder / "fashion_mnist.npz").read_bytes()) < 7_000_000
    assert "2017 Zalando SE" in (folder / "LICENSE").read_text(encoding="utf-8")


@pytest.mark.parametrize(("in_chans", "mode"), [(1, "L"), (3, "RGB")])
def test_the_bundled_source_gives_named_images_in_the_asked_mode(in_chans: int, mode: str) -> None:
    source = open_source("bundled", in_chans=in_chans)
    image, target, name = source.val[17]
    assert (image.mode, image.size, name) == (mode, (28, 28), "bundled:test/17")
    images, labels, _ = bundled_images("test")
    assert target == labels[17]
    assert np.array_equal(np.asarray(image.convert("L")), images[17])
    assert (len(source.train), len(source.val), len(source.class_names)) == (10_000, 2_000, 10)


def test_only_the_asked_split_is_opened() -> None:
    source = open_source("bundled", splits=("val", "test"))
    assert len(source.test) == 2_000
    assert source.train is None
    assert len(source.val) == 2_000


def test_a_folder_for_downloads_is_refused_with_the_bundled_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the source is 'bundled'"):
        open_source("bundled", data_dir=tmp_path)


def test_a_linear_classifier_learns_the_bundled_images() -> None:
    # Guards against labels out of step with the images: ridge regression reaches about 80 %.
    (train, labels, _), (test, truth, _) = bundled_images("train"), bundled_images("test")
    pixels, held_out = (torch.tensor(images.reshape(len(images), -1) / 255.0) for images in (train, test))
    gram = pixels.T @ pixels + torch.eye(784, dtype=torch.float64)
    weights = torch.linalg.solve(gram, pixels.T @ torch.nn.functional.one_hot(torch.tensor(labels)).double())
    assert ((held_out @ weights).argmax(dim=1).numpy() == truth).mean() > 0.75
