"""Two updates of every recipe, on small images and with one block a stage."""

import json
import math
import shutil
from dataclasses import replace

import pytest
from recipes.makers import one_of_each_maker
from runs.colour_folders import colour_folders
from runs.tiny_scenes import TINY, tiny_scenes

from parhelion.recipes.table import RECIPES, recipe
from parhelion.runs.request import Request
from parhelion.runs.trainer import train

# These copy weights for seconds; that their networks can be built is seen where their costs are counted.
LARGE = ("halonet_h7_conv1_imagenet", "halonet_h4_base128_finetune_384")
CLASSIFIERS = [name for name in RECIPES if recipe(name).task == "classification"]
DETECTORS = [name for name in RECIPES if recipe(name).task == "detection"]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread", "no_pictures")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return colour_folders(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return tiny_scenes(tmp_path_factory.mktemp("scenes") / "data", train=4, val=2)


def shortened(name):
    """The recipe, with all that it chooses except for its depth, its size and its length."""
    found = recipe(name)
    # The small networks have one block a stage already.
    shallow = () if "tiny" in found.model else ("blocks=[1,1,1,1]",)
    others = tuple(choice for choice in found.choices if not choice.startswith("blocks="))
    return replace(
        found,
        choices=(*others, *shallow),
        image_px=min(found.image_px, 64),
        batch=2,
        epochs=1,
        updates=2,
        warmup_epochs=0,
        step_updates=min(found.step_updates, 1),
        drop_updates=(1,) if found.drop_updates else (),
        workers=0,
        checkpoint_updates=0,
        keep=1,
    )


@pytest.mark.parametrize("name", one_of_each_maker(CLASSIFIERS, thorough=LARGE))
def test_every_recipe_trains(name, data, tmp_path):
    result = train(shortened(name), Request(data=str(data), out=tmp_path / "run", quiet=True))
    assert math.isfinite(result["loss"])
    assert result["val_images"] == 15
    # Large networks would fill the disk where pytest keeps the folders of the last runs.
    shutil.rmtree(tmp_path / "run")


@pytest.mark.parametrize("name", one_of_each_maker(DETECTORS))
def test_every_detector_trains(name, scenes, tmp_path):
    result = train(replace(shortened(name), **TINY), Request(data=scenes, out=tmp_path / "run", quiet=True))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "losses.jsonl").read_text().splitlines()]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
    assert 0 <= result["mask_ap"] <= 1
    assert result["val_images"] == 2
    shutil.rmtree(tmp_path / "run")
