"""Two updates of every recipe, on small images and with one block a stage."""

import math
import shutil
from dataclasses import replace

import pytest
from recipes.colour_folders import colour_folders

from parhelion.recipes import album
from parhelion.recipes.classification import train
from parhelion.recipes.table import RECIPES, recipe

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return colour_folders(tmp_path_factory.mktemp("colours"))


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
        workers=0,
        checkpoint_updates=0,
        keep=1,
    )


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains(name, data, tmp_path, monkeypatch):
    # They take longer than two updates, and are the same for every recipe.
    for picture in ("draw_scores", "draw_sheet"):
        monkeypatch.setattr(album, picture, lambda *_: None)
    result = train(shortened(name), data=str(data), out=tmp_path / "run", quiet=True)
    assert math.isfinite(result["loss"])
    assert result["val_images"] == 15
    # Large networks would fill the disk where pytest keeps the folders of the last runs.
    shutil.rmtree(tmp_path / "run")
