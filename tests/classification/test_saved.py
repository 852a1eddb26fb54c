import json

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from parhelion.classification.predict import predictions
from parhelion.classification.saved import Classifier
from parhelion.data.images import open_image
from parhelion.data.transforms import Preprocessing, eval_transform
from parhelion.errors import UserError
from parhelion.files.weights import read_saved, save_weights
from parhelion.models import create_model

ARGUMENTS = {"num_classes": 3, "in_chans": 1, "image_size": 16}


@pytest.fixture
def classifier():
    return Classifier(
        model=create_model("resnet_tiny", **ARGUMENTS).eval().to(memory_format=torch.channels_last),
        name="resnet_tiny",
        arguments=ARGUMENTS,
        class_names=("Größe", "a/b", "c"),
        preprocessing=Preprocessing(image_px=16, in_chans=1, mean=(0.25,), std=(0.5,)),
        epoch=4,
        metrics={"top1": 0.5},
    )


@pytest.fixture
def folder(tmp_path, classifier):
    classifier.save(tmp_path / "weights.safetensors")
    (tmp_path / "recipe.json").write_text(json.dumps({"model": "resnet_tiny"}))
    return tmp_path


def test_a_classifier_comes_back_whole_from_folder_and_file(folder, classifier):
    images = torch.randn(2, 1, 16, 19)
    for path in (folder, folder / "weights.safetensors"):
        found = Classifier.load(path)
        assert torch.equal(found.model(images), classifier.model(images))
        assert not found.model.training
        for name in ("name", "arguments", "class_names", "preprocessing", "epoch", "metrics"):
            assert getattr(found, name) == getattr(classifier, name)


def test_the_recipe_beside_the_weights_must_name_their_model(folder):
    (folder / "recipe.json").write_text(json.dumps({"model": "gsa_tiny"}))
    with pytest.raises(UserError, match=r"written for resnet_tiny.*another architecture than gsa_tiny: \d+ tensors"):
        Classifier.load(folder)


def test_tensors_that_do_not_fit_are_counted_and_the_first_is_named(folder, classifier):
    weights, facts = read_saved(folder / "weights.safetensors")
    names = list(classifier.model.state_dict())
    weights["surplus"] = torch.zeros(1)
    del weights[names[0]], weights[names[2]]
    weights[names[1]] = torch.zeros(2, 9)
    save_weights(folder / "weights.safetensors", weights, facts)
    with pytest.raises(UserError, match="another architecture than resnet_tiny") as caught:
        Classifier.load(folder)
    sentence = str(caught.value)
    assert f"2 tensors missing (first: {names[0]})" in sentence
    assert "1 tensors unexpected (first: surplus)" in sentence
    assert f"1 tensors of another shape (first: {names[1]} is (2, 9) for" in sentence


def test_a_file_that_is_no_classifier_says_what_it_lacks(tmp_path):
    save_weights(tmp_path / "w.safetensors", {"a": torch.zeros(1)}, {"model": "resnet_tiny"})
    with pytest.raises(UserError, match="header lacks model_arguments, class_names, preprocessing"):
        Classifier.load(tmp_path / "w.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="does not say which model"):
        Classifier.load(tmp_path / "w.safetensors")


def test_missing_paths_and_damaged_recipes_are_named(folder):
    with pytest.raises(UserError, match=r"no checkpoint or run folder .*nowhere"):
        Classifier.load(folder / "nowhere")
    (folder / "recipe.json").write_text("{")
    with pytest.raises(UserError, match=r"recipe\.json is damaged"):
        Classifier.load(folder)
    (folder / "weights.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no weights\.safetensors"):
        Classifier.load(folder)


def test_a_trained_run_answers_alike_by_hand_and_through_timm(tmp_path):
    arguments = {"num_classes": 3, "image_size": 32}
    model = create_model("halonet_tiny", **arguments).eval()
    preprocessing = Preprocessing(image_px=32, mean=(0.5,) * 3, std=(0.25,) * 3)
    trained = Classifier(
        model=model,
        name="halonet_tiny",
        arguments=arguments,
        class_names=("ant", "bee", "cat"),
        preprocessing=preprocessing,
        epoch=1,
        metrics={},
    )
    run, photo = tmp_path / "run", tmp_path / "photo.jpg"
    run.mkdir()
    trained.save(run / "weights.safetensors")
    Image.effect_noise((57, 43), 90).save(photo)
    image = eval_transform(preprocessing)(open_image(photo, 3))
    (found,) = predictions(Classifier.load(run), [photo], top=2)
    assert found.classes[0] == trained.class_names[model(image[None]).argmax()]
    theirs = create_model("halonet_tiny", checkpoint_path=run).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))
    assert torch.equal(transform(open_image(photo, 3)), image)
    assert theirs.pretrained_cfg["label_names"] == trained.class_names
    timm.models.save_for_hf(theirs, tmp_path / "saved", safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()
    assert torch.equal(again(image[None]), model(image[None]))
