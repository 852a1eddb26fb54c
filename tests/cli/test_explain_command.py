"""`parhelion explain`: a page and a sheet for a run or a named model, and a sentence for every mistake."""

import json
import re

import pytest
import torch
from cli.command_line import printed
from PIL import Image

from parhelion.classification.saved import Classifier
from parhelion.data.transforms import Preprocessing
from parhelion.models import create_model

pytestmark = pytest.mark.usefixtures("one_thread")
ARGUMENTS = {"num_classes": 3, "in_chans": 1, "image_size": 20}


@pytest.fixture
def image(tmp_path):
    file = tmp_path / "phötö.png"
    Image.effect_noise((41, 30), 90).convert("RGBA").save(file)
    return file


@pytest.fixture
def run(tmp_path):
    preprocessing = Preprocessing(image_px=20, in_chans=1, mean=(0.25,), std=(0.5,))
    classifier = Classifier(
        model=create_model("halonet_tiny", **ARGUMENTS).eval(),
        name="halonet_tiny",
        arguments=ARGUMENTS,
        class_names=("boot", "bag", "dress"),
        preprocessing=preprocessing,
        epoch=2,
        metrics={"top1": 0.5},
    )
    folder = tmp_path / "run"
    folder.mkdir()
    classifier.save(folder / "weights.safetensors")
    return folder


def test_a_run_gives_a_page_and_a_sheet(run, image, tmp_path, capsys):
    page, sheet = tmp_path / "page.html", tmp_path / "sheet.png"
    words = ["explain", run, image, "--out", page, "--png", sheet, "--pixel", 19, 0, "--rollout", "--occlusion"]
    said = printed(capsys, *words, "--layers", "stages.[12].*")
    assert re.search(r"^halonet_tiny .*: 2 attention layers; (boot|bag|dress) \d+\.\d%$", said, re.MULTILINE)
    assert "Trained for 2 epochs; top-1 50.00%" in said
    assert f"the page is {page}" in said
    text = page.read_text(encoding="utf-8")
    (model,) = json.loads(re.search(r'id="models">(.*?)</script>', text)[1])
    assert [layer["name"] for layer in model["layers"]] == ["stages.1.0.operator", "stages.2.0.operator"]
    assert model["size"] == [20, 20]
    with Image.open(sheet) as drawn:
        assert drawn.width > 500


def test_a_model_by_name_is_said_to_be_untrained_and_stands_beside_another(run, image, tmp_path, capsys):
    page = tmp_path / "both.html"
    said = printed(capsys, "explain", "gsa_tiny", image, "--out", page, "--compare", run)
    assert "The weights are random" in said
    models = json.loads(re.search(r'id="models">(.*?)</script>', page.read_text(encoding="utf-8"))[1])
    assert [model["layers"][0]["kind"] for model in models] == ["global", "halo"]
    said = printed(capsys, "explain", "halonet_tiny", image, "--out", page, "--weights", run)
    assert "random" not in said


@pytest.mark.slow
def test_timm_models_are_accelerated_and_what_timm_saved_is_read(image, tmp_path, capsys):
    import timm

    page, weights = tmp_path / "page.html", tmp_path / "weights.safetensors"
    model = timm.create_model("parhelion_gsa_tiny", num_classes=3)
    timm.models.save_for_hf(model, tmp_path / "saved", safe_serialization=True)
    assert "3 attention layers" in printed(capsys, "explain", tmp_path / "saved", image, "--out", page)
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(timm.create_model("halonet26t").state_dict(), weights)
    said = printed(capsys, "explain", "timm:halonet26t", image, "--out", page, "--weights", weights)
    assert "3 attention layers" in said
    assert "random" not in said


MISTAKES = [
    (["resnet_tiny", "IMAGE"], "this ResNet has no attention that can be shown"),
    (["timm:halonet26", "IMAGE"], "timm has no model 'halonet26'; did you mean"),
    (["timm:resnet18", "IMAGE"], "this ResNet has no attention that can be shown"),
    (["halonet_tiny", "IMAGE", "--layers", "stage"], "no attention layer is called 'stage'; there are stages.0.0"),
    (["halonet_tiny", "IMAGE", "--png", "sheet.png", "--pixel", "32", "0"], "the pixel 32 0 is not in the image"),
    (["halonet_tiny", "IMAGE", "--pretrained"], "there are no published weights of halonet_tiny"),
    (["halonet_tiny", "IMAGE", "--weights", "broken.safetensors"], "is not a whole safetensors file"),
    (["timm:halonet26t", "IMAGE", "--weights", "broken.safetensors"], "is not a whole safetensors file"),
    (["timm:halonet26t", "IMAGE", "--weights", "evil.pth"], "evil.pth is a pickle"),
    (["RUN", "IMAGE", "--pretrained"], "brings its weights with it"),
    (["RUN", "broken.png"], "cannot read the image broken.png"),
    (["empty", "IMAGE"], "holds no weights"),
]


@pytest.mark.parametrize(("words", "sentence"), MISTAKES, ids=lambda value: " ".join(value)[:50])
def test_mistakes_leave_no_page_behind(words, sentence, run, image, tmp_path, refused, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("broken.png", "broken.safetensors", "evil.pth"):
        (tmp_path / name).write_bytes(b"\x89PNG\r\n")
    (tmp_path / "empty").mkdir()
    places = {"RUN": run, "IMAGE": image}
    assert sentence in refused("explain", *(places.get(word, word) for word in words))
    assert not (tmp_path / "attention.html").exists()
    assert not (tmp_path / "sheet.png").exists()
