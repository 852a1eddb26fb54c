"""The command line shows what detectors find."""

import json
import shutil

import pytest
from cli.command_line import printed
from PIL import Image
from runs.colour_folders import truncate

from parhelion.cli import main
from parhelion.detection.saved import load_detector

pytestmark = pytest.mark.usefixtures("one_thread")


def test_predict_prints_an_object_in_a_line(capsys, run, images):
    lines = [line.split("\t") for line in printed(capsys, "predict", run, *images, "--min-score", "0.1").splitlines()]
    assert [line[0] for line in lines] == sorted((line[0] for line in lines), key=list(map(str, images)).index)
    named = [line for line in lines if line[1:] != ["nothing found"]]
    assert named
    assert {line[0] for line in lines} == set(map(str, images))
    for _, name, score, *box in named:
        left, top, right, bottom = map(float, box)
        assert name in ("green", "red", "blue")
        assert 0.1 <= float(score) <= 1
        assert 0 <= left < right <= 64
        assert 0 <= top < bottom <= 64
    assert printed(capsys, "predict", run, images[0], "--min-score", "1") == f"{images[0]}\tnothing found\n"


def test_predict_gives_json_with_as_many_objects_of_such_a_score_as_asked(capsys, run, images):
    def said(*words):
        return json.loads(printed(capsys, "predict", run, *images, "--json", *words))

    low, best, all_ = (said("--min-score", "0.1"), said("--min-score", "0.1", "--top", "1"), said("--min-score", "0"))
    assert [row["image"] for row in low] == list(map(str, images))
    for image, row in zip(images, low, strict=True):
        assert (row["width"], row["height"]) == Image.open(image).size
        scores = [thing["score"] for thing in row["objects"]]
        assert scores == sorted(scores, reverse=True)
    assert [row["objects"] for row in best] == [row["objects"][:1] for row in low]
    # Below what counted as found in training, too.
    assert (
        min(thing["score"] for row in all_ for thing in row["objects"])
        < load_detector(run).model.roi_heads.score_thresh
    )
    usual = said()
    expected = [[thing for thing in row["objects"] if thing["score"] >= 0.5] for row in low]
    assert [row["objects"] for row in usual] == expected


def test_predict_draws_pictures_and_writes_results(capsys, run, images, data, tmp_path):
    out, file = tmp_path / "new" / "pictures", tmp_path / "results.json"
    words = ("--out", out, "--results", file, "--min-score", "0.1", "--json")
    said = json.loads(printed(capsys, "predict", run, *images, *words))
    assert sorted(path.name for path in out.iterdir()) == sorted(f"{image.stem}.png" for image in images)
    for image in images:
        ours, theirs = (Image.open(path).size for path in (out / f"{image.stem}.png", image))
        # Small images are drawn larger, in their proportions.
        assert ours[0] / ours[1] == pytest.approx(theirs[0] / theirs[1], rel=0.05)
    results = json.loads(file.read_text())
    assert [entry["image_id"] for entry in results] == [
        number for number, row in enumerate(said, start=1) for _ in row["objects"]
    ]
    assert results
    assert {entry["category_id"] for entry in results} <= {3, 7, 90}
    assert all({"bbox", "score", "segmentation"} < entry.keys() for entry in results)


def test_images_of_one_name_have_pictures_of_their_own(capsys, run, images, tmp_path):
    for folder, name in (("a", "2_x"), ("a", "x"), ("b", "x")):
        (tmp_path / folder).mkdir(exist_ok=True)
        shutil.copy(images[0], tmp_path / folder / f"{name}.png")
    given = [tmp_path / "a" / "2_x.png", tmp_path / "a" / "x.png", tmp_path / "b" / "x.png"]
    printed(capsys, "predict", run, *given, "--out", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1_2_x.png", "2_x.png", "3_x.png"]


def test_a_picture_never_takes_the_place_of_an_image(refused, run, images, tmp_path):
    image = tmp_path / "x.png"
    shutil.copy(next(path for path in images if path.suffix == ".png"), image)
    before = image.read_bytes()
    assert f"would write a picture over the image {image}" in refused("predict", run, image, "--out", tmp_path)
    assert image.read_bytes() == before


def test_grey_and_transparent_images_are_looked_at_too(capsys, run, images, tmp_path):
    for mode in ("L", "RGBA", "P"):
        Image.open(images[1]).convert(mode).save(tmp_path / f"{mode}.png")
    given = sorted(tmp_path.glob("*.png"))
    assert len(json.loads(printed(capsys, "predict", run, *given, "--json", "--out", tmp_path / "out"))) == 3


def test_folders_give_all_images_but_the_pictures_drawn_before(capsys, run, images, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for image in images[:2]:
        shutil.copy(image, folder)
    words = ("predict", run, folder, "--out", folder / "drawn", "--min-score", "0.1")
    said = json.loads(printed(capsys, *words, "--json"))
    assert [row["image"] for row in said] == [str(folder / image.name) for image in images[:2]]
    assert len(list((folder / "drawn").iterdir())) == 2
    assert [json.loads(line) for line in printed(capsys, *words, "--jsonl").splitlines()] == said


def test_a_corrupt_image_loses_no_answer(capsys, run, images, tmp_path):
    bad = tmp_path / "bad.jpg"
    Image.new("RGB", (30, 20), "red").save(bad)
    truncate(bad)
    capsys.readouterr()
    file = tmp_path / "found.json"
    words = (bad, images[0], "--results", file, "--min-score", "0")
    assert main(["predict", str(run), *map(str, words)]) == 2
    said = capsys.readouterr()
    assert said.out.startswith(f"{images[0]}\t")
    assert "cannot read the image" in said.err.splitlines()[0]
    assert "1 of 2 images could not be read" in said.err
    # The second of the images named.
    assert {entry["image_id"] for entry in json.loads(file.read_text())} == {2}
    words = (bad, images[0], "--on-bad-image", "skip", "--out", tmp_path / "out", "--json")
    capsys.readouterr()
    assert main(["predict", str(run), *map(str, words)]) == 0
    said = capsys.readouterr()
    assert [row["image"] for row in json.loads(said.out)] == [str(images[0])]
    assert said.err.startswith("skipped: ")
    assert "bad.jpg" in said.err
    assert [path.stem for path in (tmp_path / "out").iterdir()] == [images[0].stem]
