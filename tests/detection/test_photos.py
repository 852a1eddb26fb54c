"""A run takes photos upright or as they are stored, in training, evaluation and prediction alike."""

import json
from pathlib import Path

import pytest
from PIL import Image
from runs.tiny_scenes import annotations_of, quick_detector, tiny_scenes

from parhelion.cli import main
from parhelion.detection.predict import Prediction, predictions
from parhelion.detection.saved import Detector
from parhelion.errors import UserError
from parhelion.runs.request import Request
from parhelion.runs.trainer import train

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")


def photos(root: Path) -> str:
    """Scenes whose files all say that the camera was turned, with annotations of the pixels as stored."""
    data = tiny_scenes(root, train=4, val=2)
    for file in (*root.glob("train/*"), *root.glob("val/*")):
        with Image.open(file) as image:
            image.load()
            image.getexif()[0x0112] = 6
            image.save(file, exif=image.getexif(), quality=95)
    return data


def test_a_run_on_photos_as_stored_stays_so_to_the_last_picture(tmp_path, capsys):
    data, out = photos(tmp_path / "data"), tmp_path / "run"
    with pytest.raises(UserError, match=r"4 of its 4 images are turned upright by their EXIF .*--exif stored.*ation 6"):
        train(quick_detector(epochs=1), Request(data=data, out=tmp_path / "upright", quiet=True))
    train(quick_detector(epochs=1, warmup_epochs=0.0, exif="stored"), Request(data=data, out=out, quiet=True))
    assert json.loads((out / "recipe.json").read_text())["exif"] == "stored"
    (photo, *_) = sorted((tmp_path / "data/val").iterdir())
    with Image.open(photo) as image:
        stored = image.height, image.width
    detector = Detector.load(out)
    assert detector.exif == "stored"
    (answer,) = predictions(detector, [photo])
    assert isinstance(answer, Prediction)
    assert (answer.found.size, answer.image.size) == (stored, stored[::-1])
    assert main(["evaluate", str(out), "--data", data, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 2
    # Another word than that of training is obeyed, and said to be wrong here before anything is computed.
    assert main(["evaluate", str(out), "--data", data, "--exif", "upright"]) == 2
    assert "2 of its 2 images are turned upright by their EXIF orientation" in capsys.readouterr().err


def test_when_every_image_is_skipped_it_is_said_which_and_why(tmp_path, capsys):
    data, out = photos(tmp_path / "data"), tmp_path / "run"
    recipe = quick_detector(epochs=1, warmup_epochs=0.0, on_bad_image="skip")
    with pytest.raises(UserError) as caught:
        train(recipe, Request(data=data, out=out))
    assert "no image to train on: all 4 were left out; the first: the image" in str(caught.value)
    assert "(EXIF orientation 6): they are of the image as stored, see --exif stored" in str(caught.value)
    said = capsys.readouterr().err
    assert f"'{annotations_of(data, 'train')}' does not fit its images: 4 of its 4 images are turned" in said
    assert "they are skipped" in said
    assert main(["evaluate", str(out), "--data", data, "--on-bad-image", "skip"]) == 2
    assert "none of the 2 images could be used; the first: the image" in capsys.readouterr().err
